"""A trace through the real engine at its own arrival times, every request and step recorded.

Needs nothing but numpy and torch, so that a run is recorded on a bare GPU machine and compared with the
simulation anywhere. On a shared CPU the clock is that of the thread: while it computes it counts its own CPU time, and
a wait for the next arrival passes at once.
"""

from __future__ import annotations

import datetime
import gzip
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibrate.decisions import Decision, DecisionLog
from calibrate.measure.device import describe_device
from calibrate.measure.steps import describe_batch, greedy, watch_batches
from engine.llm import LLM, make_executor, policy_arguments
from engine.params import SamplingParams
from engine.realtime import Arrival, Clock, RealClock, Replay, StepClock, StepTrace, replay
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
    llm: LLM,
    jobs: Sequence[Job],
    clock: Clock,
    system: str = "vllm",
    seed: int = 0,
    options: dict[str, Any] | None = None,
    until: float = math.inf,
) -> dict[str, Any]:
    """Run *jobs* under *system* with its *options*; no two prompts share a prefix.

    Cut off after *until* seconds; requests that had not arrived by then are not in the recording.
    """
    prompts = draw_prompts(jobs, llm.runner.decoder.config.vocab_size, seed)
    arrivals = [
        Arrival(job.arrival, prompt, SamplingParams(temperature=0.0, max_tokens=job.output_length))
        for job, prompt in zip(jobs, prompts)
    ]
    replay(
        make_executor(llm.settings, llm.runner, system, options),
        [Arrival(0.0, *_short(a)) for a in arrivals[:WARM_UP]],
    )
    batches = watch_batches(llm.runner)
    llm.runner.clock = time.thread_time if isinstance(clock, ThreadClock) else time.perf_counter
    counts: list[int] = []
    try:
        executor = make_executor(llm.settings, llm.runner, system, options)
        executor.eos = frozenset()  # the trace says where an answer ends, and the policy is not told
        decisions = DecisionLog(executor.scheduler)
        noted = lambda _: counts.append(len(batches))  # noqa: E731
        run = replay(executor, arrivals, StepClock(clock), on_step=noted, until=until)
    finally:
        del llm.runner.run
    described = [describe_batch(batch) for batch in batches]
    return {
        **describe_device(llm.runner.decoder.device),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": str(llm.settings.model),
        "system": system,
        "policy": _stated(llm, system, options),
        "num_gpu_blocks": llm.runner.cache.num_blocks,
        "block_size": llm.runner.cache.block_size,
        "graph_sizes": [] if llm.runner.graphs is None else list(llm.runner.graphs.sizes),
        "clock": type(clock).__name__,
        "requests": [
            {
                **asdict(request),
                "token_times": [round(moment, 6) for moment in request.token_times],
                "max_tokens": job.output_length,
            }
            for request, job in zip(run.requests, jobs)
        ],
        "cut_short": len(run.requests) < len(jobs) or executor.has_work,
        "steps": list(_steps(run, counts, described, list(decisions))),
    }


def draw_prompts(jobs: Sequence[Job], vocab: int, seed: int) -> list[list[int]]:
    """Random tokens; the first differs as long as there are others, so that not even one token is shared."""
    rng = np.random.default_rng(seed)
    first = rng.permutation(vocab)
    return [
        [int(first[i % vocab]), *rng.integers(0, vocab, job.input_length - 1).tolist()]
        for i, job in enumerate(jobs)
    ]


def write_recording(recording: dict[str, Any], path: Path) -> None:
    """Write *recording* as JSON, compressed where *path* ends in ``.gz``, in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (json.dumps(recording) + "\n").encode()
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    partial.replace(path)


def _short(arrival: Arrival) -> tuple[list[int], Any]:
    return arrival.prompt, greedy(2)


def _stated(llm: LLM, system: str, options: dict[str, Any] | None) -> dict[str, Any]:
    """What the policy is given beside what makes it this system."""
    fixed = find_system(system).fixed
    arguments = policy_arguments(llm.settings, llm.runner, system, options)
    return {name: value for name, value in arguments.items() if name not in fixed}


def _steps(
    run: Replay, counts: list[int], batches: list[dict[str, Any]], decisions: list[Decision]
) -> Iterator[dict[str, Any]]:
    """Every step with its forward's batch (none where it had several) and what was decided, as a digest."""
    before = 0
    for step, count, decision in zip(run.steps, counts, decisions):  # the last may still be in flight
        batch = batches[before] if count == before + 1 else {}
        before = count
        yield {
            **_state(step),
            **batch,
            "batch": len(decision.decodes) + len(decision.prefills),
            "blocks_used": decision.blocks[0],
            "forwards": decision.num_forwards,
            "decision": decision.digest,
        }


def _state(step: StepTrace) -> dict[str, Any]:
    stats, timing = step.stats, step.timing
    spent = None if timing is None else timing.forward + timing.logits + timing.sample
    device = {} if spent is None else {"device_s": round(spent, 7)}
    return {
        **device,
        "start": round(step.start, 6),
        "seconds": round(step.end - step.start, 9),
        "num_running": stats.num_running,
        "num_waiting": stats.num_waiting,
    }


def set_threads(device: str) -> None:
    """One torch thread on a CPU, as when its profile was measured."""
    if device == "cpu":
        torch.set_num_threads(1)
