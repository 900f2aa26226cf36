"""``python -m calibrate measure``: raw samples of this machine, for `sim calibrate fit` here or elsewhere.

The model is built, its operators and whole steps are measured; then it is dropped, and the collectives are measured
between all devices. Building counts: everything together ends within ``--budget``.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from calibrate.measure.campaign import Bench, Campaign, Progress, plan_shots
from calibrate.measure.collectives import OPERATIONS, Ranks, collective_shots
from calibrate.measure.device import Thermometer, describe_device, read_gpu, thread_clock
from calibrate.measure.grid import operator_shots, step_shots
from calibrate.measure.preparation import engine_settings, prepare, read_budget
from calibrate.measure.records import RawFolder
from calibrate.measure.shot import Shot
from calibrate.measure.workbench import Workbench
from engine.kernels.timing import Timer
from engine.llm import LLM
from engine.parallel import SINGLE
from engine.room import check_room
from simulator.errors import ConfigurationError

__all__ = ["describe_run", "make_workbench", "measure"]

HOST_BLOCKS = 256
"""Blocks on the host, to measure swapping with."""
OPERATOR_SHARE = 0.8
"""Of the model's time; whole steps get the rest."""
COLLECTIVE_SHARE = 0.15
"""Of the budget, where there are several ranks, besides what starting them takes."""
STARTING = 15.0
"""Seconds until processes with torch have found each other."""
COLLECTIVE_REPEAT = 0.05
"""Seconds that a collective is repeated for."""
BUILDING_SHARE = 0.6
"""Of the budget, that drawing the weights may take."""


def measure(options: argparse.Namespace) -> int:
    """Measure; 0, also when the budget ended first (what is missing is said)."""
    seconds = read_budget(options.budget)
    prepare(options.device)
    job = Job(options, RawFolder(options.out), seconds, time.monotonic())
    ranks = make_ranks(options)
    job.measure_model(0.0 if ranks is None else min(0.5 * seconds, STARTING + COLLECTIVE_SHARE * seconds))
    if ranks is None:
        job.not_measured["collectives"] = "one device; --ranks says between how many"
    else:
        gc.collect()  # the model leaves its room to the ranks
        if options.device == "cuda":
            torch.cuda.empty_cache()
        with ranks:
            job.measure_collectives(ranks)
    job.end()
    return 0


@dataclass
class Job:
    """One run of ``measure``: *seconds* from *start* on."""

    options: argparse.Namespace
    folder: RawFolder
    seconds: float
    start: float
    meta: dict[str, Any] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    building: float = 0.0
    failed: int = 0
    throttled: int = 0
    _done: set[tuple[str, ...]] = field(default_factory=set)

    def measure_model(self, kept: float) -> None:
        """Operators and whole steps; *kept* seconds of the budget are left for what comes after."""
        deadline = self.start + self.seconds - kept
        workbench = make_workbench(self.options, deadline - time.monotonic())
        self.building = time.monotonic() - self.start
        self._open(describe_run(self.options, workbench))
        self.meta["ceilings"] = workbench.ceilings()
        self.folder.write_meta(self.meta)
        self.not_measured |= workbench.not_measured
        wanted, left = operator_shots(workbench.config, workbench.limits), deadline - time.monotonic()
        ceilings, repeat = self.meta["ceilings"], workbench.timer.budget
        shots = plan_shots(wanted, left, ceilings, repeat, workbench.pause())
        common = {**self._common(), "kernel": workbench.kernels.name}
        ahead = deadline - (1 - OPERATOR_SHARE) * max(0.0, left)
        missing = self._run(workbench, shots, common, ahead, "operators")
        self.meta["shots_left_out"] = len(wanted) - len(shots) + missing
        self._run(workbench, step_shots(self.options.rounds), common, deadline, "whole steps")

    def measure_collectives(self, ranks: Ranks) -> None:
        """Everything that *ranks* can do together."""
        print(f"starting {ranks.size} ranks ({ranks.backend})", flush=True)
        missing = ranks.missing()
        self.not_measured |= missing
        self.meta["ranks"] = {"number": ranks.size, "backend": ranks.backend}
        there = tuple(name for name in OPERATIONS if name not in missing)
        shots = collective_shots(ranks.size, ranks.kind, there)
        common = {**self._common(), "impl": ranks.backend}
        left = self._run(ranks, shots, common, self.start + self.seconds, "collectives")
        self.meta["shots_left_out"] += left

    def end(self) -> None:
        """Keep what is known of the run and say where the samples are; `ConfigurationError` if there are none."""
        spent = time.monotonic() - self.start
        self.folder.write_meta({**self.meta, "not_measured": self.not_measured, "seconds": spent})
        if not self.folder.has_samples:
            raise ConfigurationError(
                f"--budget {self.options.budget}: building {self.options.model} took {self.building:.0f} s, and "
                "nothing could be measured in what was left: give more time"
            )
        if self.failed:
            print(f"{self.failed} shots failed, see {self.options.out / 'failed.jsonl'}")
        if self.throttled:
            print(f"{self.throttled} shots throttled, kept apart in {self.options.out / 'throttled.jsonl'}")
        print(f"raw samples: {self.options.out}")

    def _open(self, meta: dict[str, Any]) -> None:
        self.meta, self._done = meta, self.folder.open(meta)

    def _common(self) -> dict[str, Any]:
        """Columns that all rows share."""
        dtype = self.meta["dtype"]
        return {"gpu": self.meta["device"], "src": "bundled engine", "dtype": dtype, "kv_dtype": dtype}

    def _run(
        self, bench: Bench, shots: list[Shot], common: dict[str, Any], deadline: float, label: str
    ) -> int:
        """How many of *shots* were left out."""
        thermometer = Thermometer(read_gpu if self.options.device == "cuda" else lambda: None)
        campaign = Campaign(bench, self.folder, common, thermometer, self.options.seed)
        left = campaign.run(shots, self._done, deadline, Progress(label))
        self.failed += len(campaign.failed)
        self.throttled += len(campaign.throttled)
        return left


def make_ranks(options: argparse.Namespace) -> Ranks | None:
    """What the collectives are measured between; None for one device alone."""
    number = options.ranks
    if number is None:
        number = torch.cuda.device_count() if options.device == "cuda" else 1
    if number < 1:
        raise ConfigurationError(f"--ranks {number}: must be at least 1")
    return Ranks(number, options.device, COLLECTIVE_REPEAT) if number > 1 else None


def make_workbench(options: argparse.Namespace, seconds: float) -> Workbench:
    """The engine and its bench, with the limits of *options*; refused where building takes most of *seconds*."""
    settings = replace(engine_settings(options), swap_space_blocks=HOST_BLOCKS)
    config, device = settings.decoder_config(), settings.torch_device()
    check_room(settings, config, device, SINGLE)
    expected = config.num_weights * seconds_per_weight(device)
    if expected > BUILDING_SHARE * seconds:
        raise ConfigurationError(
            f"--budget {options.budget}: drawing the weights of {options.model} takes about {expected:.0f} s here; "
            f"give at least {math.ceil(expected / BUILDING_SHARE)}s, or a smaller model"
        )
    print(f"building {options.model} with random weights on {options.device}", flush=True)
    llm = LLM.of(settings)
    repeat = options.repeat or (0.15 if device.type == "cuda" else 0.03)
    return Workbench(llm, Timer(device, repeat, thread_clock(device)), options.seed)


def seconds_per_weight(device: torch.device, numbers: int = 2**20) -> float:
    """What drawing a random number takes, by drawing *numbers* of them three times."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        float((torch.randn(numbers, device=device) * 0.02)[0])  # waits for the device
        times.append(time.perf_counter() - start)
    return min(times) / numbers


def describe_run(options: argparse.Namespace, workbench: Workbench) -> dict[str, Any]:
    """What the samples depend on."""
    llm = workbench.llm
    graphs = llm.runner.graphs
    return {
        **describe_device(workbench.device),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "model": str(options.model),
        "config": {
            name: getattr(workbench.config, name)
            for name in (
                *("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size"),
                *("intermediate_size", "num_experts", "experts_per_token"),
            )
        },
        "dtype": str(workbench.dtype).removeprefix("torch."),
        "seed": options.seed,
        "kernels": workbench.kernels.describe(),
        "limits": vars(workbench.limits),
        "depth": llm.executor.scheduler.depth,
        "graph_sizes": [] if graphs is None else list(graphs.sizes),
        "memory": {
            "weight_bytes": workbench.decoder.weights.nbytes,
            "kv_bytes_per_block": workbench.cache.bytes_per_block,
            "num_blocks": workbench.cache.num_blocks,
        },
    }
