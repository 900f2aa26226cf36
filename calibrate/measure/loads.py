"""Runs of the engine at shares of its own capacity, planned to fit the time there is.

First the capacity: far more requests at once than can run, and the rate at which they are completed while others
wait. Then, for every load, Poisson arrivals at that share of the rate, for as long as the time allows; the lengths are
those of a trace, in its order. Needs nothing but numpy and torch.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibrate.measure.recording import Job, draw_prompts, record_run, write_recording
from engine.llm import LLM, make_executor
from engine.params import SamplingParams
from engine.realtime import Arrival, Clock, Replay, StepClock, replay
from simulator.errors import ConfigurationError

__all__ = ["Loads", "measure_capacity", "plan_load", "read_loads", "steady_rate"]

CAPACITY_SHARE = 0.2
"""Of the time, for the run that finds the capacity."""
DRAIN = 0.25
"""Of the time of a load, for what is still running when the last request has come."""
LEAST_ENDED = 8
"""Completions below which a rate says nothing."""


def read_loads(text: str) -> list[float]:
    """Shares of the capacity: ``0.5,0.8,0.95``."""
    try:
        loads = [float(part) for part in text.split(",")]
    except ValueError:
        loads = []
    if not loads or not all(0 < load <= 2 for load in loads):
        raise ConfigurationError(f"--loads {text!r}: must be shares of the capacity such as 0.5,0.8,0.95")
    return loads


@dataclass
class Loads:
    """Runs *llm* under *system* at shares of its capacity; *lengths* are (prompt, output) tokens.

    *deadline* is on *now*, in seconds, which runs as the clocks that *make_clock* gives each run.
    """

    llm: LLM
    lengths: Sequence[tuple[int, int]]
    make_clock: Callable[[], Clock]
    deadline: float
    system: str = "vllm"
    seed: int = 0
    now: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = print

    def run(self, loads: Sequence[float], out: Path) -> Iterator[Path]:
        """Measure the capacity, then record every load; each file as soon as it is written."""
        lengths = self._fitting()
        left = self.deadline - self.now()
        capacity = measure_capacity(
            self.llm, lengths, self.make_clock(), CAPACITY_SHARE * left, self.system, self.seed
        )
        self.say(
            f"capacity: {capacity:.4g} requests/s of {np.mean(lengths, axis=0).round(1).tolist()} tokens"
        )
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{self.system}-capacity.json").write_text(
            json.dumps({"system": self.system, "requests_per_s": capacity}) + "\n"
        )
        for count, load in enumerate(loads):
            seconds = (self.deadline - self.now()) / (len(loads) - count)
            if seconds <= 0:
                raise ConfigurationError(f"out of time before the load of {load:g}: give a larger --budget")
            yield self._record(load, capacity, lengths, seconds, out)

    def _record(
        self, load: float, capacity: float, lengths: Sequence[tuple[int, int]], seconds: float, out: Path
    ) -> Path:
        jobs = plan_load(lengths, load * capacity, (1 - DRAIN) * seconds, self.seed)
        recording = record_run(self.llm, jobs, self.make_clock(), self.system, self.seed, until=seconds)
        path = out / f"{self.system}-{100 * load:.0f}.json.gz"
        write_recording({**recording, "load": load, "capacity": capacity}, path)
        cut = ", cut short" if recording["cut_short"] else ""
        self.say(f"{100 * load:.0f} %: {len(jobs)} requests in {len(recording['steps'])} steps{cut}: {path}")
        return path

    def _fitting(self) -> list[tuple[int, int]]:
        """Those that the engine's longest sequence has room for."""
        longest = self.llm.settings.model_len(self.llm.runner.decoder.config)
        fitting = [(a, b) for a, b in self.lengths if a + b <= longest]
        if not fitting:
            raise ConfigurationError(f"no request of the trace fits --max-model-len {longest}")
        return fitting


def measure_capacity(
    llm: LLM,
    lengths: Sequence[tuple[int, int]],
    clock: Clock,
    seconds: float,
    system: str = "vllm",
    seed: int = 0,
) -> float:
    """Requests/s that are completed while others wait; at most *seconds* are spent."""
    jobs = [Job(0.0, *lengths[i % len(lengths)]) for i in range(max(16, 8 * llm.settings.max_num_seqs))]
    prompts = draw_prompts(jobs, llm.runner.decoder.config.vocab_size, seed)
    arrivals = [
        Arrival(0.0, prompt, SamplingParams(temperature=0.0, max_tokens=job.output_length, ignore_eos=True))
        for job, prompt in zip(jobs, prompts)
    ]
    executor = make_executor(llm.settings, llm.runner, system)
    try:
        return steady_rate(
            replay(executor, arrivals, StepClock(clock), until=seconds), llm.settings.max_num_seqs
        )
    finally:
        llm.runner.abandon()


def steady_rate(run: Replay, batch: int) -> float:
    """Completions/s from the first turn-over of the batch to the last moment at which somebody waited.

    Where that is too short to say anything, over the whole run.
    """
    ends = np.sort([r.finish for r in run.requests if r.status == "finished"])
    if len(ends) < LEAST_ENDED:
        raise ConfigurationError(
            f"only {len(ends)} requests ended while the capacity was measured: give a larger --budget"
        )
    waiting = [step.end for step in run.steps if step.stats.num_waiting]
    begin, end = ends[min(batch, len(ends) // 3) - 1], max(waiting, default=0.0)
    inside = int(((ends > begin) & (ends <= end)).sum())
    if inside < LEAST_ENDED:
        return len(ends) / float(ends[-1])
    return inside / float(end - begin)


def plan_load(lengths: Sequence[tuple[int, int]], rate: float, seconds: float, seed: int) -> list[Job]:
    """Poisson arrivals at *rate* requests/s for *seconds*, at least one; lengths in their order, over and over."""
    rng = np.random.default_rng([seed, round(1e6 * rate)])
    count = max(1, math.ceil(rate * seconds))
    times = np.cumsum(rng.exponential(1 / rate, count))
    start = int(rng.integers(len(lengths)))
    return [Job(float(at), *lengths[(start + i) % len(lengths)]) for i, at in enumerate(times)]
