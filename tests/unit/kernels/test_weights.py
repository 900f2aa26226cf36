"""Weights in int8, int4 and fp8: how far they are from what they stand for, and what they weigh."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from engine.kernels import FORMATS, dequantize, quantize  # noqa: E402
from simulator.errors import ConfigurationError, UnknownNameError  # noqa: E402


@pytest.fixture
def weight():
    return torch.randn(64, 256, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("name", "largest"), [("int8", 127), ("int4", 7)])
def test_rounding_is_at_most_half_a_step(weight, name, largest):
    steps = weight.reshape(64, 2, 128).abs().amax(dim=-1, keepdim=True) / largest
    error = (dequantize(quantize(weight, name), torch.float32) - weight).abs().reshape(64, 2, 128)
    assert (error <= steps / 2 * (1 + 1e-5)).all()


def test_fp8_keeps_three_bits_of_mantissa(weight):
    error = (dequantize(quantize(weight, "fp8"), torch.float32) - weight).abs()
    row = weight.abs().amax(dim=-1, keepdim=True)
    assert (error <= weight.abs() * 2**-4 + row / 448 * 2**-10).all()


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4), ("fp8", 8)])
def test_bytes(weight, name, bits):
    narrow = quantize(weight.bfloat16(), name)
    scales = 64 * 4 if name == "fp8" else 64 * 2 * 2
    assert narrow.nbytes == 64 * 256 * bits // 8 + scales


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_stay_zeros(name):
    assert (dequantize(quantize(torch.zeros(8, 128), name), torch.float32) == 0).all()


@pytest.mark.parametrize("columns", [100, 130])
def test_a_ragged_group_is_refused(columns):
    with pytest.raises(
        ConfigurationError, match=f"int8: {columns} input features are not a multiple of group_size 128"
    ):
        quantize(torch.zeros(8, columns), "int8")


def test_unknown_format():
    with pytest.raises(UnknownNameError, match="unknown weight format 'int5'"):
        quantize(torch.zeros(8, 128), "int5")
