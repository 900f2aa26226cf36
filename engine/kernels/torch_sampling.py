"""From logits to a token, in torch.

Filters keep every token at least as likely as the last one kept, so equal logits are kept or cut together and
the result does not depend on how a sort breaks ties. Top-p: Holtzman et al. 2020; min-p: Nguyen et al. 2024;
repetition penalty: Keskar et al. 2019; presence and frequency penalties as in OpenAI's API.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw", "process_logits", "uniform"]

NEVER = -torch.inf


def process_logits(
    logits: Tensor,
    *,
    temperature: Tensor | None = None,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    repetition_penalty: Tensor | None = None,
    presence_penalty: Tensor | None = None,
    frequency_penalty: Tensor | None = None,
    prompt_mask: Tensor | None = None,
    output_counts: Tensor | None = None,
) -> Tensor:
    """See `engine.kernels.interface.Kernels.process_logits`."""
    logits = logits.float()
    logits = _repetition(logits, repetition_penalty, prompt_mask, output_counts)
    if output_counts is not None and frequency_penalty is not None:
        logits = logits - frequency_penalty[:, None] * output_counts
    if output_counts is not None and presence_penalty is not None:
        logits = logits - presence_penalty[:, None] * (output_counts > 0)
    if temperature is not None:
        greedy = (temperature == 0)[:, None]
        largest = torch.zeros_like(logits, dtype=torch.bool)
        largest.scatter_(1, logits.argmax(dim=-1, keepdim=True), True)
        logits = logits / torch.where(greedy[:, 0], 1.0, temperature)[:, None]
        logits = logits.masked_fill(greedy & ~largest, NEVER)
    if min_p is not None:
        logits = _cut_below(logits, logits.amax(dim=-1) + min_p.log())
    if top_k is not None or top_p is not None:
        logits = _top_k_top_p(logits, top_k, top_p)
    return logits


def _repetition(
    logits: Tensor, penalty: Tensor | None, prompt: Tensor | None, counts: Tensor | None
) -> Tensor:
    if penalty is None or (prompt is None and counts is None):
        return logits
    seen = torch.zeros_like(logits, dtype=torch.bool)
    if prompt is not None:
        seen = seen | prompt
    if counts is not None:
        seen = seen | (counts > 0)
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def _cut_below(logits: Tensor, threshold: Tensor) -> Tensor:
    return logits.masked_fill(logits < threshold[:, None], NEVER)


def _top_k_top_p(logits: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> Tensor:
    """One descending sort serves both; top-p looks at what top-k left."""
    ordered = logits.sort(dim=-1, descending=True).values
    if top_k is not None:
        vocabulary = logits.shape[-1]
        k = torch.where(top_k > 0, top_k, vocabulary).clamp(max=vocabulary).long()
        kth = ordered.gather(1, (k - 1)[:, None])
        logits = _cut_below(logits, kth[:, 0])
        ordered = ordered.masked_fill(ordered < kth, NEVER)
    if top_p is not None:
        probabilities = ordered.double().softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities  # mass of the tokens ahead
        kept = before < top_p[:, None]
        kept[:, 0] = True
        kept |= (top_p >= 1)[:, None]  # off: rounding of the sum must not cut the tail
        last = ordered.masked_fill(~kept, torch.inf).amin(dim=-1)
        logits = _cut_below(logits, last)
    return logits


def draw(
    logits: Tensor,
    seeds: Tensor | None = None,
    steps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """See `engine.kernels.interface.Kernels.draw`: inversion of the cumulative distribution, one number per
    row."""
    if seeds is None or steps is None:
        u = torch.rand(logits.shape[0], dtype=torch.float64, device=logits.device, generator=generator)
    else:
        u = uniform(seeds, steps)
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    # Searched for in units of the sum, whose last digit is not exactly 1; a token of no mass is never hit.
    target = (u * cumulative[:, -1])[:, None]
    token = torch.searchsorted(cumulative, target, right=True)
    return token.clamp(max=logits.shape[-1] - 1).squeeze(1)


def uniform(seeds: Tensor, steps: Tensor) -> Tensor:
    """A number in [0, 1) that depends on (seed, step) alone: SplitMix64 (Steele et al. 2014), 53 bits,
    float64."""
    z = seeds.long() + (steps.long() + 1) * _signed(0x9E3779B97F4A7C15)
    z = _mix(_mix(z) + _signed(0x9E3779B97F4A7C15))
    return _shift(z, 11).double() * 2.0**-53


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of 64 bits held in a signed integer."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
