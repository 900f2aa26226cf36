"""A small, real LLM engine, made to be measured: it runs the simulator's own schedulers with real kernels.

>>> from engine import LLM, SamplingParams
>>> llm = LLM("path/to/model")                                       # doctest: +SKIP
>>> llm.generate(["Once upon a time"], SamplingParams(max_tokens=32))  # doctest: +SKIP
"""

from engine.beam import Beam, BeamSearchParams
from engine.executor import Executor
from engine.llm import LLM
from engine.outputs import Completion, RequestOutput
from engine.params import SamplingParams
from engine.settings import EngineSettings

__all__ = [
    "LLM",
    "Beam",
    "BeamSearchParams",
    "Completion",
    "EngineSettings",
    "Executor",
    "RequestOutput",
    "SamplingParams",
]
