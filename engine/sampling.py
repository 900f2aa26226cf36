"""A batch's requests turned into the sampler's tensors.

Every sequence draws from its own stream of random numbers, named by its seed and by how many tokens it has
(`engine.kernels.Kernels.draw`): the text does not depend on the batch it was computed in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows
from typing import Any

import torch
from torch import Tensor

from engine.kernels import Kernels
from engine.params import SamplingParams
from engine.sequence import Sequence, TokenLogprobs

__all__ = ["Sampler", "logprobs"]


class Sampler:
    """Chooses one token per row of logits, and the log probabilities that were asked for."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def sample(self, logits: Tensor, rows: Rows[Sequence], ahead: Rows[int] = ()) -> Tensor:
        """Tokens int64 ``[rows]`` on the device; *ahead* counts tokens assumed after a sequence's last."""
        params = [row.params for row in rows]
        penalties = self._penalties(logits, rows) if any(p.penalised for p in params) else {}
        if all(p.greedy for p in params):
            return self.kernels.sample(logits, greedy=True, **penalties)
        device = logits.device
        filters = self._filters(params, device)
        seeds = torch.tensor([row.seed for row in rows], dtype=torch.int64).to(device, non_blocking=True)
        counts = [row.num_output + k for row, k in zip(rows, ahead or [0] * len(rows))]
        steps = torch.tensor(counts, dtype=torch.int64).to(device, non_blocking=True)
        return self.kernels.sample(logits, seeds=seeds, steps=steps, **filters, **penalties)

    def probabilities(self, logits: Tensor, rows: Rows[Sequence]) -> Tensor:
        """fp64 ``[rows, vocabulary]``: the distribution that `sample` draws from."""
        params = [row.params for row in rows]
        penalties = self._penalties(logits, rows) if any(p.penalised for p in params) else {}
        processed = self.kernels.process_logits(logits, **self._filters(params, logits.device), **penalties)
        return processed.double().softmax(dim=-1)

    @staticmethod
    def _filters(params: list[SamplingParams], device: torch.device) -> dict[str, Any]:
        """Tensors of the filters that anybody uses."""
        filters = {"temperature": _column([p.temperature for p in params], device)}
        if any(p.top_k > 0 for p in params):
            filters["top_k"] = torch.tensor([p.top_k for p in params]).to(device, non_blocking=True)
        if any(p.top_p < 1 for p in params):
            filters["top_p"] = _column([p.top_p for p in params], device)
        if any(p.min_p > 0 for p in params):
            filters["min_p"] = _column([p.min_p for p in params], device)
        return filters

    @staticmethod
    def _penalties(logits: Tensor, rows: Rows[Sequence]) -> dict[str, Any]:
        device = logits.device
        params = [row.params for row in rows]
        prompt = torch.zeros(logits.shape, dtype=torch.bool)
        counts = torch.zeros(logits.shape, dtype=torch.int32)
        for i, row in enumerate(rows):
            prompt[i, row.prompt] = True
            seen = Counter(row.output)
            if seen:
                counts[i, list(seen)] = torch.tensor(list(seen.values()), dtype=torch.int32)
        return {
            "repetition_penalty": _column([p.repetition_penalty for p in params], device),
            "presence_penalty": _column([p.presence_penalty for p in params], device),
            "frequency_penalty": _column([p.frequency_penalty for p in params], device),
            "prompt_mask": prompt.to(device),
            "output_counts": counts.to(device),
        }


def logprobs(logits: Tensor, rows: Rows[Sequence], tokens: list[int]) -> list[TokenLogprobs | None]:
    """For each row that asks: the chosen token's log probability and the likeliest ones' (of the raw
    logits).
    """
    found: list[TokenLogprobs | None] = [None] * len(rows)
    asking = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    if not asking:
        return found
    table = logits[asking].log_softmax(dim=-1)
    width = max(rows[i].params.logprobs or 0 for i in asking)
    values, ids = table.topk(width, dim=-1) if width else (table[:, :0], table[:, :0].long())
    chosen = table.gather(1, torch.tensor([[tokens[i]] for i in asking], device=table.device))
    for i, own, best, names in zip(asking, chosen[:, 0].tolist(), values.tolist(), ids.tolist()):
        keep = rows[i].params.logprobs or 0
        found[i] = TokenLogprobs(own, dict(zip(names[:keep], best[:keep])))
    return found


def _column(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)
