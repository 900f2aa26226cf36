"""A small, real LLM engine, made to be measured: it runs the simulator's own schedulers with real kernels.

>>> from engine import LLM, SamplingParams
>>> llm = LLM("path/to/model")                                       # doctest: +SKIP
>>> llm.generate(["Once upon a time"], SamplingParams(max_tokens=32))  # doctest: +SKIP

Names are loaded when they are used: the HTTP front with another executor behind it needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.beam import Beam, BeamSearchParams
    from engine.executor import Executor
    from engine.llm import LLM
    from engine.outputs import Completion, RequestOutput
    from engine.params import SamplingParams
    from engine.realtime import Arrival, replay
    from engine.settings import EngineSettings

__all__ = [
    "LLM",
    "Arrival",
    "Beam",
    "BeamSearchParams",
    "Completion",
    "EngineSettings",
    "Executor",
    "RequestOutput",
    "SamplingParams",
    "replay",
]

_HOME = {
    "LLM": "llm",
    "Arrival": "realtime",
    "Beam": "beam",
    "BeamSearchParams": "beam",
    "Completion": "outputs",
    "EngineSettings": "settings",
    "Executor": "executor",
    "RequestOutput": "outputs",
    "SamplingParams": "params",
    "replay": "realtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'engine' has no attribute {name!r}")
    return getattr(import_module(f"engine.{_HOME[name]}"), name)
