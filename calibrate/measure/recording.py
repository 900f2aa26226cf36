"""A trace through the real engine at its own arrival times, every request and step recorded.

Needs nothing but numpy and torch, so that a run is recorded on a bare GPU machine and compared with the
simulation anywhere. On a shared CPU the clock is that of the thread: while it computes it counts its own CPU time, and
a wait for the next arrival passes at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibrate.measure.device import describe_device
from calibrate.measure.steps import describe_batch, greedy, watch_batches
from engine.llm import LLM, make_executor
from engine.realtime import Arrival, Clock, RealClock, Replay, StepTrace, replay
from simulator.errors import ConfigurationError, InputError
from simulator.scheduling.system import find_system

__all__ = ["Job", "ThreadClock", "make_clock", "read_jobs", "record_run", "write_recording"]

WARM_UP = 4
"""Requests that run before the clock starts: first calls allocate and choose kernels."""


@dataclass(frozen=True)
class Job:
    """A request: arrival in seconds from the start, lengths in tokens."""

    arrival: float
    input_length: int
    output_length: int


class ThreadClock:
    """CPU time of this thread (s); waiting takes none of it and moves the clock at once."""

    def __init__(self, now: Callable[[], float] = time.thread_time) -> None:
        self._now, self._skipped = now, 0.0

    def __call__(self) -> float:
        return self._now() + self._skipped

    def wait_until(self, moment: float) -> None:
        self._skipped += max(0.0, moment - self())

    def stepped(self) -> None:
        pass


def make_clock(name: str) -> Clock:
    """``wall`` or ``thread``."""
    if name not in ("wall", "thread"):
        raise ConfigurationError(f"--clock {name!r}: wall or thread")
    return ThreadClock() if name == "thread" else RealClock()


def read_jobs(path: Path) -> list[Job]:
    """The requests of a canonical trace (JSONL; ``timestamp`` in ms, ``input_length``, ``output_length``)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    jobs = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            jobs.append(Job(row["timestamp"] / 1e3, int(row["input_length"]), int(row["output_length"])))
        except (ValueError, KeyError, TypeError) as error:
            needed = "must be JSON with timestamp (ms), input_length and output_length"
            raise InputError(path, f"{needed}: {error}", line=number) from error
    return jobs


def record_run(
    llm: LLM, jobs: Sequence[Job], clock: Clock, system: str = "vllm", seed: int = 0
) -> dict[str, Any]:
    """Run *jobs* under *system*; prompts are random tokens, so that none share a prefix."""
    rng = np.random.default_rng(seed)
    vocab = llm.runner.decoder.config.vocab_size
    arrivals = [
        Arrival(job.arrival, rng.integers(0, vocab, job.input_length).tolist(), greedy(job.output_length))
        for job in jobs
    ]
    replay(
        make_executor(llm.settings, llm.runner, system),
        [Arrival(0.0, *_short(a)) for a in arrivals[:WARM_UP]],
    )
    batches = watch_batches(llm.runner)
    counts: list[int] = []
    try:
        executor = make_executor(llm.settings, llm.runner, system)
        run = replay(executor, arrivals, clock, on_step=lambda _: counts.append(len(batches)))
    finally:
        del llm.runner.run
    described = [describe_batch(batch) for batch in batches]
    return {
        **describe_device(llm.runner.decoder.device),
        "model": str(llm.settings.model),
        "system": system,
        "limits": _limits(llm, system),
        "num_gpu_blocks": llm.runner.cache.num_blocks,
        "block_size": llm.runner.cache.block_size,
        "graph_sizes": [] if llm.runner.graphs is None else list(llm.runner.graphs.sizes),
        "clock": type(clock).__name__,
        "requests": [asdict(request) for request in run.requests],
        "steps": list(_steps(run, counts, described)),
    }


def write_recording(recording: dict[str, Any], path: Path) -> None:
    """Write *recording* as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recording) + "\n", encoding="utf-8")


def _short(arrival: Arrival) -> tuple[list[int], Any]:
    return arrival.prompt, greedy(2)


def _limits(llm: LLM, system: str) -> dict[str, Any]:
    """What `engine.llm.make_scheduler` gives the policy beside the size of the cache."""
    settings, named = llm.settings, find_system(system)
    limits = {
        "block_size": settings.block_size,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "max_model_len": settings.model_len(llm.runner.decoder.config),
        "num_cpu_blocks": llm.runner.cache.num_host_blocks,
        "explicit": True,
    }
    known = signature(named.policy_class).parameters
    return {name: value for name, value in limits.items() if name in known and name not in named.fixed}


def _steps(run: Replay, counts: list[int], batches: list[dict[str, Any]]) -> Any:
    """Every step with its forward's batch (none where it had several)."""
    before = 0
    for step, count in zip(run.steps, counts):
        batch = batches[before] if count == before + 1 else {}
        before = count
        yield {**_state(step), **batch}


def _state(step: StepTrace) -> dict[str, Any]:
    stats = step.stats
    return {
        "start": step.start,
        "seconds": step.end - step.start,
        "num_running": stats.num_running,
        "num_waiting": stats.num_waiting,
        "blocks_used": stats.blocks_used,
    }


def set_threads(device: str) -> None:
    """One torch thread on a CPU, as when its profile was measured."""
    if device == "cpu":
        torch.set_num_threads(1)
