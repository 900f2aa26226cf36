"""A scheduler watched at work: every iteration of a small trace, decided by the policy itself.

The policy is the one that simulates; `schedule` is only listened to. Explicit scheduling makes every batch list its
decoding sequences, and stepping takes every iteration by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import simpy

from simulator import Trace
from simulator.cluster import Cluster
from simulator.deployment import Resolved
from simulator.scheduling import Batch, Scheduler
from simulator.workload.limits import resolve_max_tokens

__all__ = ["MAX_STEPS", "Step", "walk", "words"]

MAX_STEPS = 2000


@dataclass(frozen=True)
class Step:
    """One decision: who computes how many tokens, and what the queue and the cache look like then."""

    time: float
    """s"""
    decodes: tuple[str, ...]
    prefills: tuple[tuple[str, int, int], ...]
    """(request, new tokens, tokens computed before)"""
    preempted: tuple[str, ...]
    rejected: tuple[tuple[str, str], ...]
    idle_rows: int
    padded_tokens: int
    num_waiting: int
    blocks_used: int
    num_blocks: int

    @property
    def tokens(self) -> dict[str, int]:
        """New tokens by request."""
        return dict.fromkeys(self.decodes, 1) | {name: chunk for name, chunk, _ in self.prefills}


class _EnoughError(Exception):
    """The walk is as long as anybody will read."""


def walk(trace: Trace, resolved: Resolved) -> list[Step]:
    """The first `MAX_STEPS` decisions of one replica on *trace*. Raises `SimError`."""
    steps: list[Step] = []
    policy = resolved.scheduler(**({"explicit": True} if _can_list(resolved) else {}))
    listened = cast(Any, policy)
    listened.schedule = _listening(policy, trace, steps)
    env = simpy.Environment()
    limits = resolve_max_tokens(trace, resolved.default_max_tokens)
    Cluster(env, trace, limits, lambda: policy, resolved.steptime, stepped=True)
    try:
        env.run()
    except _EnoughError:
        steps = steps[:MAX_STEPS]
    return steps


def _can_list(resolved: Resolved) -> bool:
    import inspect

    return "explicit" in inspect.signature(resolved.system.policy_class).parameters


def _listening(policy: Scheduler, trace: Trace, steps: list[Step]) -> Callable[[float], Any]:
    decide = policy.schedule

    def schedule(now: float) -> Any:
        batch = decide(now)
        if isinstance(batch, Batch):
            steps.append(_step(batch, policy, trace, now))
            if len(steps) >= MAX_STEPS:
                raise _EnoughError
        return batch

    return schedule


def _step(batch: Batch, policy: Scheduler, trace: Trace, now: float) -> Step:
    def name(request: Any) -> str:
        return trace.name(request.index)

    forwards = batch.forwards or [batch]
    decodes = [name(request) for part in [batch, *forwards] for request in part.decodes or ()]
    prefills = [(name(r), chunk, context) for forward in forwards for r, chunk, context in forward.prefills]
    return Step(
        now,
        tuple(dict.fromkeys(decodes)),
        tuple(prefills),
        tuple(name(request) for request in batch.preempted),
        tuple((name(request), reason) for request, reason in batch.rejected),
        batch.idle_rows,
        batch.padded_tokens,
        policy.num_waiting,
        policy.blocks_used,
        policy.num_blocks,
    )


def words(steps: Sequence[Step], i: int) -> str:
    """What the scheduler decided in iteration *i*, and who had to wait for it."""
    step = steps[i]
    parts = [_prefill_words(*prefill) for prefill in step.prefills]
    if step.decodes:
        parts.append(f"{_names(step.decodes)} {_verb(step.decodes, 'decode')} one token")
    parts += [f"{name} is preempted: its blocks are needed" for name in step.preempted]
    parts += [f"{name} is turned away: {reason}" for name, reason in step.rejected]
    if step.idle_rows:
        parts.append(f"{step.idle_rows} finished rows are computed for nothing until the batch is done")
    if step.padded_tokens:
        parts.append(f"{step.padded_tokens} tokens of padding make the batch rectangular")
    parts += _since(steps, i)
    if step.num_waiting:
        parts.append(f"{step.num_waiting} in the queue")
    return ". ".join(part[:1].upper() + part[1:] for part in parts) + "." if parts else "Nothing is computed."


def _since(steps: Sequence[Step], i: int) -> list[str]:
    """Who computed in the iteration before and does not now: ended, or made to wait."""
    if i == 0:
        return []
    later = {name for step in steps[i + 1 :] for name in step.tokens}
    gone = [name for name in steps[i - 1].tokens if name not in steps[i].tokens]
    paused, ended = tuple(n for n in gone if n in later), tuple(n for n in gone if n not in later)
    parts = [f"{_names(ended)} {'have' if len(ended) > 1 else 'has'} ended"] if ended else []
    return [*parts, f"{_names(paused)} {_verb(paused, 'pause')} meanwhile"] if paused else parts


def _verb(names: tuple[str, ...], verb: str) -> str:
    return verb if len(names) > 1 else f"{verb}s"


def _prefill_words(name: str, chunk: int, context: int) -> str:
    if context:
        return f"{name} computes {chunk} more tokens of its prompt, after {context}"
    return f"{name} starts: {chunk} tokens of its prompt"


def _names(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
