"""``python -m calibrate measure``: raw samples of this machine, for `sim calibrate fit` here or elsewhere."""

from __future__ import annotations

import argparse
import datetime
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calibrate.measure.campaign import Campaign, Progress, plan_shots
from calibrate.measure.device import Thermometer, describe_device, read_gpu, thread_clock
from calibrate.measure.grid import operator_shots, step_shots
from calibrate.measure.records import RawFolder
from calibrate.measure.workbench import Workbench
from engine.kernels.timing import Timer
from engine.llm import LLM
from engine.settings import EngineSettings
from simulator.errors import ConfigurationError, SimError
from simulator.scheduling.system import find_system

__all__ = [
    "add_loads_options",
    "add_options",
    "add_replay_options",
    "measure",
    "read_budget",
    "record",
    "record_loads",
]

HOST_BLOCKS = 256
"""Blocks on the host, to measure swapping with."""
ROUNDS = 40
"""Rounds of whole steps where time allows."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``measure``."""
    _engine_options(parser)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of raw samples; resumed if it has some"
    )
    parser.add_argument("--budget", default="8m", help="time to measure, such as 90s, 8m, 1h")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="most workloads of whole steps")
    parser.add_argument("--repeat", type=float, help="seconds that a shot is repeated for")


def add_replay_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``replay``."""
    _engine_options(parser)
    parser.add_argument("--trace", type=Path, required=True, help="canonical JSONL, see `sim trace convert`")
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the recording")
    parser.add_argument("--limit", type=int, help="the first so many requests of the trace")
    parser.add_argument("--system", default="vllm", help="scheduling policy")
    parser.add_argument("--clock", help="wall, or thread: CPU time of the thread (default on a CPU)")


def add_loads_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``loads``."""
    _engine_options(parser)
    parser.add_argument("--trace", type=Path, required=True, help="canonical JSONL: its lengths are used")
    parser.add_argument("--loads", default="0.5,0.8,0.95", help="shares of the measured capacity")
    parser.add_argument("--out", type=Path, required=True, help="folder for the recordings")
    parser.add_argument("--budget", default="8m", help="time for everything, such as 90s, 8m, 1h")
    parser.add_argument("--system", default="vllm", help="scheduling policies, separated by commas")
    parser.add_argument("--clock", help="wall, or thread: CPU time of the thread (default on a CPU)")


def _engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", required=True, help="a Hugging Face directory, or a name of the zoo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--num-gpu-blocks", type=int)
    parser.add_argument("--kernels", default="auto")


def read_budget(text: str) -> float:
    """Seconds of ``90s``, ``8m``, ``1.5h`` or a plain number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not seconds:
        raise ConfigurationError(f"--budget {text!r}: must be a time above 0 such as 90s, 8m or 1h")
    return seconds


def measure(options: argparse.Namespace) -> int:
    """Measure; 0, also when the budget ended first (what is missing is said)."""
    seconds = read_budget(options.budget)
    start = time.monotonic()
    _prepare(options.device)
    workbench = make_workbench(options)
    folder = RawFolder(options.out)
    meta = describe_run(options, workbench)
    done = folder.open(meta)
    meta["ceilings"] = workbench.ceilings()
    folder.write_meta(meta)
    thermometer = Thermometer(read_gpu if options.device == "cuda" else lambda: None)
    common = {
        "gpu": meta["device"],
        "src": "bundled engine",
        "dtype": meta["dtype"],
        "kv_dtype": meta["dtype"],
    }
    common["kernel"] = workbench.kernels.name
    campaign = Campaign(workbench, folder, common, thermometer, options.seed)
    left = seconds - (time.monotonic() - start)
    wanted = operator_shots(workbench.config, workbench.limits)
    shots = plan_shots(
        wanted,
        left,
        meta["ceilings"],
        workbench.timer.budget,
        workbench.pause(),
    )
    meta["shots_left_out"] = len(wanted) - len(shots)
    meta["shots_left_out"] += campaign.run(shots, done, start + 0.8 * seconds, Progress("operators"))
    campaign.run(step_shots(options.rounds), done, start + seconds, Progress("whole steps"))
    meta["not_measured"] = workbench.not_measured
    folder.write_meta({**meta, "seconds": meta.get("seconds", 0.0) + time.monotonic() - start})
    if campaign.failed:
        print(f"{len(campaign.failed)} shots failed, see {options.out / 'failed.jsonl'}")
    if campaign.throttled:
        print(f"{len(campaign.throttled)} shots throttled, kept apart in {options.out / 'throttled.jsonl'}")
    print(f"raw samples: {options.out}")
    return 0


def record(options: argparse.Namespace) -> int:
    """Record a trace on the engine."""
    from calibrate.measure.recording import make_clock, read_jobs, record_run, write_recording

    _prepare(options.device)
    jobs = read_jobs(options.trace)[: options.limit]
    clock = make_clock(options.clock or ("thread" if options.device == "cpu" else "wall"))
    recording = record_run(LLM.of(_settings(options)), jobs, clock, options.system, options.seed)
    write_recording(recording, options.out)
    print(f"recorded {len(jobs)} requests, {len(recording['steps'])} steps: {options.out}")
    return 0


def record_loads(options: argparse.Namespace) -> int:
    """Record the engine at shares of its own capacity; a policy that fails does not lose the others."""
    from calibrate.measure.loads import Loads, read_loads
    from calibrate.measure.recording import make_clock, read_jobs

    loads, systems = read_loads(options.loads), options.system.split(",")
    for name in systems:
        find_system(name)
    _prepare(options.device)
    clock = options.clock or ("thread" if options.device == "cpu" else "wall")
    now = time.thread_time if clock == "thread" else time.monotonic
    deadline = now() + read_budget(options.budget)
    lengths = [(job.input_length, job.output_length) for job in read_jobs(options.trace)]
    llm, failed = LLM.of(_settings(options)), 0
    for count, name in enumerate(systems):
        until = now() + (deadline - now()) / (len(systems) - count)
        job = Loads(
            llm,
            lengths,
            partial(make_clock, clock),
            until,
            name,
            options.seed,
            now,
            partial(print, flush=True),
        )
        try:
            list(job.run(loads, options.out))
        except (SimError, RuntimeError) as error:  # torch says "out of memory" with a RuntimeError
            failed += 1
            llm.runner.abandon()
            print(f"{name}: failed: {error}", flush=True)
    return 1 if failed == len(systems) else 0


def _prepare(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("--device cuda: torch finds no GPU here; use --device cpu")
    if device == "cpu":
        torch.set_num_threads(1)  # with two, a step waits for whichever was descheduled


def _settings(options: argparse.Namespace) -> EngineSettings:
    return EngineSettings(
        options.model,
        device=options.device,
        kernels=options.kernels,
        load_format="dummy",
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        num_gpu_blocks=options.num_gpu_blocks,
        seed=options.seed,
    )


def make_workbench(options: argparse.Namespace) -> Workbench:
    """The engine and its bench, with the limits of *options*."""
    print(
        f"building {options.model} with random weights on {options.device}",
        flush=True,
    )
    llm = LLM.of(replace(_settings(options), swap_space_blocks=HOST_BLOCKS))
    device = llm.runner.decoder.device
    repeat = options.repeat or (0.15 if device.type == "cuda" else 0.03)
    return Workbench(llm, Timer(device, repeat, thread_clock(device)), options.seed)


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
