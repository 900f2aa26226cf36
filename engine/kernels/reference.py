"""The operators' definitions, written out in fp64: slow, plain, and sharing no code with any form.

Attention is computed per sequence and head from lists of keys and values, never from the cache.
`plain_attention` is the same formula in the working dtype: its error is the yardstick for the kernels'
(FlashAttention's tests use this rule, with a factor).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["attention", "nucleus", "penalised", "plain_attention", "rms_norm", "rope"]


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int = 0) -> Tensor:
    """In fp64, causal attention of a sequence's last Q tokens to all its L.

    *q* is ``[Q, heads, dim]``, *k* and *v* are ``[L, kv_heads, dim]``.
    """
    return plain_attention(q.double(), k.double(), v.double(), scale, window)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int = 0) -> Tensor:
    """Softmax of scaled products, times values, in the inputs' dtype."""
    queries, heads, _ = q.shape
    context, kv_heads, _ = k.shape
    k, v = (side.repeat_interleave(heads // kv_heads, dim=1).transpose(0, 1) for side in (k, v))
    scores = (q.transpose(0, 1) @ k.transpose(1, 2)) * scale  # [heads, Q, L]
    asking = torch.arange(context - queries, context, device=q.device)[:, None]
    asked = torch.arange(context, device=q.device)[None, :]
    hidden = (asked > asking) | ((asked <= asking - window) if window else False)
    weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
    return (weights @ v).transpose(0, 1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zhang and Sennrich 2019, eq. 4, in fp64."""
    x = x.double()
    return x / (x.square().mean(dim=-1, keepdim=True) + eps).sqrt() * weight.double()


def rope(x: Tensor, positions: Tensor, cos_sin: Tensor) -> Tensor:
    """Each pair (i, i + half), as a complex number, turned by its angle (Su et al. 2021, sec. 3.2)."""
    half = cos_sin.shape[1] // 2
    turn = torch.complex(cos_sin[positions, :half].double(), cos_sin[positions, half:].double())
    pairs = torch.complex(x[..., :half].double(), x[..., half : 2 * half].double()) * turn.unsqueeze(1)
    return torch.cat((pairs.real, pairs.imag, x[..., 2 * half :].double()), dim=-1)


def penalised(
    logits: list[float],
    prompt: set[int],
    counts: dict[int, int],
    repetition: float,
    presence: float,
    frequency: float,
) -> list[float]:
    """One row's logits after the three penalties, token by token."""
    result = []
    for token, logit in enumerate(logits):
        count = counts.get(token, 0)
        if token in prompt or count:
            logit = logit / repetition if logit > 0 else logit * repetition
        result.append(logit - frequency * count - (presence if count else 0.0))
    return result


def nucleus(logits: Tensor, top_k: int, top_p: float, min_p: float) -> tuple[set[int], set[int]]:
    """The tokens that must be kept and those that may be (equal ones, and masses that a rounding decides)."""
    weights = torch.softmax(logits.double(), dim=0)
    kept, near = (weights >= min_p * weights.max() * (1 + slack) for slack in (1e-5, -1e-5))
    if top_k > 0:
        least = logits[near].sort(descending=True).values[:top_k][-1]
        kept, near = kept & (logits >= least), near & (logits >= least)
    if top_p < 1:
        left = torch.where(near, weights, 0.0)
        ahead = ((logits[None, :] > logits[:, None]) * left).sum(
            dim=1
        ) / left.sum()  # mass of likelier tokens
        kept, near = kept & (ahead < top_p - 1e-6), near & (ahead < top_p + 1e-6)
    return {int(i) for i in kept.nonzero()}, {int(i) for i in near.nonzero()}
