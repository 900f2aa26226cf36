"""The engine's operators beside the matrix products, in three forms: CUDA, Triton, torch.

>>> from engine.kernels import get_kernels
>>> kernels = get_kernels("cpu")
>>> kernels.name
'torch'
"""

from engine.kernels.interface import OPERATORS, Kernels
from engine.kernels.selection import BACKENDS, get_kernels
from engine.kernels.weights import FORMATS, QuantizedWeight, dequantize, quantize

__all__ = [
    "BACKENDS",
    "FORMATS",
    "OPERATORS",
    "Kernels",
    "QuantizedWeight",
    "dequantize",
    "get_kernels",
    "quantize",
]
