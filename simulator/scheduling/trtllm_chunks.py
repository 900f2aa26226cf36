"""How TensorRT-LLM cuts prompts when they do not fit an iteration (microBatchScheduler, context chunking
policies).

``FIRST_COME_FIRST_SERVED`` gives each prompt in turn what is left; ``EQUAL_PROGRESS`` gives all of them one
unit more, round by round. A chunk that is not the last of its prompt is a multiple of the unit.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.errors import ConfigurationError

__all__ = ["check_policy", "cut_prompts"]


def cut_prompts(policy: str, remaining: Sequence[int], budget: int, unit: int) -> list[int]:
    """Tokens for each of the prompts, of which *remaining* are not computed: *budget* in sum, maybe none."""
    return _POLICIES[policy](remaining, budget, unit)


def _first_come_first_served(remaining: Sequence[int], budget: int, unit: int) -> list[int]:
    chunks = []
    for tokens in remaining:
        chunk = tokens if tokens <= budget else budget // unit * unit
        chunks.append(chunk)
        budget -= chunk
    return chunks


def _equal_progress(remaining: Sequence[int], budget: int, unit: int) -> list[int]:
    chunks = [0] * len(remaining)
    grew = True
    while grew:
        grew = False
        for i, tokens in enumerate(remaining):
            more = min(unit, tokens - chunks[i])
            if 0 < more <= budget:
                chunks[i] += more
                budget -= more
                grew = True
    return chunks


_POLICIES = {
    "FIRST_COME_FIRST_SERVED": _first_come_first_served,
    "EQUAL_PROGRESS": _equal_progress,
}


def check_policy(policy: str) -> None:
    """Raises `ConfigurationError` for a policy that does not exist."""
    if policy not in _POLICIES:
        known = " or ".join(_POLICIES)
        raise ConfigurationError(f"context_chunking_policy {policy!r}: must be {known}")
