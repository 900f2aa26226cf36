"""Language models as shapes: read from a Hugging Face configuration, counted in parameters, FLOPs and bytes.

Needs nothing but the standard library and numpy, so that the engine can use it on a bare machine.
"""

from simulator.models.dtypes import DTYPES, DType, Precision, dtype
from simulator.models.layers import AttentionSpec, Gemm, LatentSpec, LayerSpec, MlpSpec
from simulator.models.registry import list_models, load_model
from simulator.models.spec import ModelSpec

__all__ = [
    "DTYPES",
    "AttentionSpec",
    "DType",
    "Gemm",
    "LatentSpec",
    "LayerSpec",
    "MlpSpec",
    "ModelSpec",
    "Precision",
    "dtype",
    "list_models",
    "load_model",
]
