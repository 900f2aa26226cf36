"""Synthetic workloads: arrivals × lengths, shared prefixes, sessions; one seed, one stream per purpose.

The order of drawing does not couple the parts: changing the lengths leaves the arrivals as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigurationError
from simulator.workload.arrivals import poisson_arrivals
from simulator.workload.content import Runs
from simulator.workload.lengths import Lengths, empirical_pairs
from simulator.workload.merging import compile_runs
from simulator.workload.sessions import accumulated
from simulator.workload.trace import Trace

__all__ = ["Arrivals", "generate_trace"]

Ints = NDArray[np.int64]
Arrivals = Callable[[int, np.random.Generator], NDArray[np.float64]]
"""Makes n arrival times, e.g. ``lambda n, g: gamma_arrivals(n, 5.0, 0.5, g)``."""


def generate_trace(
    num_prompts: int,
    *,
    request_rate: float = float("inf"),
    arrivals: Arrivals | None = None,
    input_length: Lengths | None = None,
    output_length: Lengths | None = None,
    lengths_from: Trace | None = None,
    turns: Lengths | None = None,
    think_time: float = 0.0,
    num_prefixes: int = 0,
    prefix_length: Lengths | None = None,
    samples: int = 1,
    num_adapters: int = 0,
    max_concurrency: int | None = None,
    seed: int = 0,
) -> Trace:
    """A trace of *num_prompts* requests.

    Parameters
    ----------
    request_rate, arrivals: Poisson arrivals per s (infinite: all at once), or a process of one's own; with
    sessions they
        govern when sessions start
    input_length, output_length: tokens of the message and of the output; or *lengths_from*, pairs drawn from
    a trace turns: requests per session. A later turn's prompt is the whole conversation so far, the outputs
    by their content
        ids, and its message; it is sent `delay` after the turn before has completed
    think_time: mean s of that delay, exponential
    num_prefixes, prefix_length: every session (or request) starts with one of so many shared prefixes, evenly
    drawn, in
        addition to its message
    samples: outputs of every request (``n``)
    num_adapters: every session (or request) uses one of so many LoRA adapters, evenly drawn
    max_concurrency: closed loop, see `Trace`
    """
    if num_prompts < 1:
        raise ConfigurationError(f"num_prompts {num_prompts}: must be at least 1")
    if not 0 <= think_time < float("inf"):
        raise ConfigurationError(f"think time {think_time} s: must be at least 0 and finite")
    for name, value, least in (("samples", samples, 1), ("num_adapters", num_adapters, 0)):
        if value < least:
            raise ConfigurationError(f"{name} {value}: must be at least {least}")
    streams = np.random.default_rng(seed).spawn(6)
    new, output = _lengths(num_prompts, input_length, output_length, lengths_from, streams[0])
    session, turn = _sessions(num_prompts, turns, streams[1])
    starts = turn == 0
    arrival = np.full(num_prompts, np.nan)
    process = arrivals or (lambda n, g: poisson_arrivals(n, request_rate, g))
    arrival[starts] = process(int(starts.sum()), streams[2])
    content = _prefixes(num_prompts, num_prefixes, prefix_length, starts, streams[3])
    new = new + np.diff(np.concatenate(([0], np.cumsum(content.tokens)))[content.offsets])
    columns: dict[str, Any] = {}
    if samples > 1:
        columns["n"] = np.full(num_prompts, samples)
    if num_adapters:
        drawn = streams[5].integers(0, num_adapters, int(starts.sum()))
        columns["lora"] = [f"adapter-{i}" for i in drawn[np.cumsum(starts) - 1].tolist()]
    if turns is not None:
        new, content = accumulated(session, turn, new, output, content)
        delay = np.where(starts, 0.0, streams[4].exponential(think_time, num_prompts))
        columns |= {"session": session, "turn": turn, "delay": delay}
    return Trace.from_columns(
        arrival,
        new,
        output,
        content=compile_runs(content),
        max_concurrency=max_concurrency,
        meta={"format": "generated", "seed": seed},
        **columns,
    )


def _lengths(
    n: int, new: Lengths | None, output: Lengths | None, pairs: Trace | None, generator: np.random.Generator
) -> tuple[Ints, Ints]:
    """Message and output lengths; the two are drawn independently unless they come in pairs."""
    if pairs is not None:
        if new is not None or output is not None:
            raise ConfigurationError(
                "lengths: either from a trace, or input and output distributions, not both"
            )
        return empirical_pairs(pairs, n, generator)
    if new is None or output is None:
        raise ConfigurationError(
            "lengths: needs input and output distributions, or a trace to draw pairs from"
        )
    return new.draw(n, generator), output.draw(n, generator)


def _sessions(n: int, turns: Lengths | None, generator: np.random.Generator) -> tuple[Ints, Ints]:
    """Session and turn of each of *n* requests, session by session; the last session may be cut short."""
    if turns is None:
        return np.full(n, -1, np.int64), np.zeros(n, np.int64)
    counts = turns.draw(n, generator)  # at least 1 each, so n sessions are enough
    session = np.repeat(np.arange(n), np.minimum(counts, n))[:n]
    first = np.searchsorted(session, session)
    return session, np.arange(n) - first


def _prefixes(
    n: int,
    num_prefixes: int,
    length: Lengths | None,
    starts: NDArray[np.bool_],
    generator: np.random.Generator,
) -> Runs:
    """One run of a shared prefix for each request that starts a session."""
    if num_prefixes < 0 or (num_prefixes > 0) != (length is not None):
        raise ConfigurationError(f"{num_prefixes} prefixes: needs a prefix length if and only if above 0")
    if length is None:
        return Runs.empty(n)
    tokens = length.draw(num_prefixes, generator)
    group = generator.integers(0, num_prefixes, int(starts.sum()))
    return Runs(np.concatenate(([0], np.cumsum(starts))).astype(np.int64), group, tokens[group])
