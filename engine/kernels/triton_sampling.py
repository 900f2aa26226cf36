# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: N803  (compile-time arguments are in capitals, as is the custom)
"""From logits to a token in Triton: thresholds instead of a sort, mass in integers, one program per row.

As in the CUDA form, top-k and top-p are thresholds on the order-preserving bits of a logit, found here bit
by bit; mass is in units of 2^-40 of the most likely token, so sums do not depend on the order of addition.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["draw", "process_logits"]

MAX_TILE = 4096


def tile_of(vocabulary: int) -> int:
    """Logits that a program looks at together."""
    return min(MAX_TILE, max(128, 1 << (vocabulary - 1).bit_length()))


@triton.jit
def ordered(x):
    """A float32's bits as an int64 whose order is the numbers' order."""
    bits = x.to(tl.int32, bitcast=True)
    signed = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return signed.to(tl.int64) + 2147483648


@triton.jit
def mass_of(x, maximum):
    """Probability mass in units of 2^-40 of the largest."""
    return (tl.exp(x - maximum) * 1099511627776.0 + 0.5).to(tl.int64)


@triton.jit
def weight_above(row, vocabulary, threshold, maximum, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """Number or mass of the logits whose key reaches *threshold*."""
    total = tl.zeros((TILE,), tl.int64)
    for start in range(0, vocabulary, TILE):
        at = start + tl.arange(0, TILE)
        x = tl.load(row + at, mask=at < vocabulary, other=float("-inf"))
        weight = tl.where(at < vocabulary, 1, 0).to(tl.int64)
        if BY_MASS:
            weight = mass_of(x, maximum)
        total += tl.where(ordered(x) >= threshold, weight, 0)
    return tl.sum(total, axis=0)


@triton.jit
def cut(row, vocabulary, maximum, wanted, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """Leave the fewest largest logits whose weight reaches *wanted* (and those equal to the last of them)."""
    threshold = wanted * 0
    for i in range(32):
        candidate = threshold + (tl.full((), 1, tl.int64) << (31 - i))
        weight = weight_above(row, vocabulary, candidate, maximum, BY_MASS, TILE)
        threshold = tl.where(weight >= wanted, candidate, threshold)
    for start in range(0, vocabulary, TILE):
        at = start + tl.arange(0, TILE)
        x = tl.load(row + at, mask=at < vocabulary, other=float("-inf"))
        tl.store(row + at, float("-inf"), mask=(at < vocabulary) & (ordered(x) < threshold))
    tl.debug_barrier()


@triton.jit
def process_kernel(
    out, logits, vocabulary, stride, temperature, top_k, top_p, min_p, repetition, presence, frequency,
    prompt, counts, TILE: tl.constexpr,
):  # fmt: skip
    """Grid (row). Absent parameters are None."""
    index = tl.program_id(0).to(tl.int64)
    row = out + index * vocabulary
    divisor = 1.0
    greedy = False
    if temperature is not None:
        divisor = tl.load(temperature + index)
        greedy = divisor == 0.0
        divisor = tl.where(greedy, 1.0, divisor)
    maximum = float("-inf")
    winner = 0
    for start in range(0, vocabulary, TILE):
        at = start + tl.arange(0, TILE)
        mask = at < vocabulary
        x = tl.load(logits + index * stride + at, mask=mask, other=float("-inf")).to(tl.float32)
        seen = at < 0
        if prompt is not None:
            seen = seen | (tl.load(prompt + index * vocabulary + at, mask=mask, other=0) != 0)
        if counts is not None:
            count = tl.load(counts + index * vocabulary + at, mask=mask, other=0)
            seen = seen | (count > 0)
        if repetition is not None:
            factor = tl.load(repetition + index)
            x = tl.where(seen, tl.where(x > 0, x / factor, x * factor), x)
        if counts is not None:
            if frequency is not None:
                x -= tl.load(frequency + index) * count.to(tl.float32)
            if presence is not None:
                x -= tl.where(count > 0, tl.load(presence + index), 0.0)
        x = x / divisor
        tl.store(row + at, x, mask=mask)
        high, place = tl.max(x, axis=0, return_indices=True)
        winner = tl.where(high > maximum, start + place, winner)
        maximum = tl.maximum(maximum, high)
    tl.debug_barrier()
    if greedy:
        for start in range(0, vocabulary, TILE):
            at = start + tl.arange(0, TILE)
            tl.store(row + at, float("-inf"), mask=(at < vocabulary) & (at != winner))
    else:
        if min_p is not None:
            least = maximum + tl.log(tl.load(min_p + index))
            for start in range(0, vocabulary, TILE):
                at = start + tl.arange(0, TILE)
                x = tl.load(row + at, mask=at < vocabulary, other=float("-inf"))
                tl.store(row + at, float("-inf"), mask=(at < vocabulary) & (x < least))
            tl.debug_barrier()
        if top_k is not None:
            k = tl.load(top_k + index)
            if (k > 0) & (k < vocabulary):
                cut(row, vocabulary, maximum, k.to(tl.int64), False, TILE)
        if top_p is not None:
            p = tl.load(top_p + index)
            if p < 1.0:
                total = weight_above(row, vocabulary, tl.full((), 0, tl.int64), maximum, True, TILE)
                wanted = tl.ceil(p.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
                cut(row, vocabulary, maximum, tl.minimum(tl.maximum(wanted, 1), total), True, TILE)


@triton.jit
def draw_kernel(tokens, logits, vocabulary, uniforms, TILE: tl.constexpr):
    """Grid (row): the token at which the cumulative mass passes ``u`` of the total."""
    index = tl.program_id(0).to(tl.int64)
    row = logits + index * vocabulary
    maximum = float("-inf")
    for start in range(0, vocabulary, TILE):
        at = start + tl.arange(0, TILE)
        x = tl.load(row + at, mask=at < vocabulary, other=float("-inf"))
        maximum = tl.maximum(maximum, tl.max(x, axis=0))
    total = weight_above(row, vocabulary, tl.full((), 0, tl.int64), maximum, True, TILE)
    target = (tl.load(uniforms + index) * total.to(tl.float64)).to(tl.int64)
    target = tl.minimum(target, total - 1)
    before = target * 0
    token = target * 0
    for start in range(0, vocabulary, TILE):
        at = start + tl.arange(0, TILE)
        x = tl.load(row + at, mask=at < vocabulary, other=float("-inf"))
        mass = mass_of(x, maximum)
        through = before + tl.cumsum(mass, axis=0)
        token += tl.sum(tl.where((at < vocabulary) & (through <= target), 1, 0).to(tl.int64), axis=0)
        before += tl.sum(mass, axis=0)
    tl.store(tokens + index, token)


def process_logits(
    logits: Tensor,
    temperature: Tensor | None,
    top_k: Tensor | None,
    top_p: Tensor | None,
    min_p: Tensor | None,
    repetition: Tensor | None,
    presence: Tensor | None,
    frequency: Tensor | None,
    prompt: Tensor | None,
    counts: Tensor | None,
) -> Tensor:
    """See `engine.kernels.interface.Kernels.process_logits`."""
    rows, vocabulary = logits.shape
    out = torch.empty(rows, vocabulary, dtype=torch.float32, device=logits.device)
    floats = [as_type(t, torch.float32) for t in (temperature, top_p, min_p, repetition, presence, frequency)]
    if rows:
        process_kernel[(rows,)](
            out, logits, vocabulary, logits.stride(0), floats[0], as_type(top_k, torch.int32), *floats[1:],
            as_type(prompt, torch.int8), as_type(counts, torch.int32), TILE=tile_of(vocabulary), num_warps=8,
        )  # fmt: skip
    return out


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One token per row, from a float64 in [0, 1) each."""
    rows, vocabulary = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        wide = logits.float().contiguous()
        draw_kernel[(rows,)](tokens, wide, vocabulary, uniforms, TILE=tile_of(vocabulary), num_warps=8)
    return tokens


def as_type(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()
