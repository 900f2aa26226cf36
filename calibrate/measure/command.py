"""What ``python -m calibrate`` is asked: the options of its commands, and the two that record the engine's own runs."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch

from calibrate.measure.preparation import engine_settings, prepare, read_budget
from engine.llm import LLM
from simulator.errors import SimError
from simulator.scheduling.system import find_system

__all__ = [
    "add_loads_options",
    "add_options",
    "add_replay_options",
    "record",
    "record_loads",
]

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
    parser.add_argument(
        "--ranks", type=int, help="devices between which collectives are measured; default: all GPUs"
    )


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


def record(options: argparse.Namespace) -> int:
    """Record a trace on the engine."""
    from calibrate.measure.recording import make_clock, read_jobs, record_run, write_recording

    prepare(options.device)
    jobs = read_jobs(options.trace)[: options.limit]
    clock = make_clock(options.clock or ("thread" if options.device == "cpu" else "wall"))
    recording = record_run(LLM.of(engine_settings(options)), jobs, clock, options.system, options.seed)
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
    prepare(options.device)
    clock = options.clock or ("thread" if options.device == "cpu" else "wall")
    now = time.thread_time if clock == "thread" else time.monotonic
    deadline = now() + read_budget(options.budget)
    lengths = [(job.input_length, job.output_length) for job in read_jobs(options.trace)]
    llm, failed = LLM.of(engine_settings(options)), 0
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
