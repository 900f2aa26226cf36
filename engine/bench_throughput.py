"""Offline throughput: the engine on a list of prompts, and transformers' static batching on the same.

Every prompt gets exactly the output length that the list says. How static batches are made: `engine.static_batching`.
Results are printed and written one by one: what a time limit cuts off is the rest.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.config import DecoderConfig
from engine.lengths import sharegpt_like
from engine.llm import LLM
from engine.params import SamplingParams
from engine.settings import EngineSettings
from engine.static_batching import (
    HEADER,
    LAUNCH_POST_TOKENS,
    Job,
    Result,
    fixed_batches,
    measure_static,
    padded_batches,
    prompt_tokens,
    transformers_generate,
)

__all__ = ["Workload", "main", "measure_engine", "run"]

SWEEP = (256, 128, 64, 32, 16, 8, 4, 2, 1)  # the best are among the large ones, so these come first

Keep = Callable[[Result], None]


class Workload:
    """Prompts of random tokens with given lengths."""

    def __init__(self, lengths: Any, vocab_size: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.jobs = [
            Job(rng.integers(3, vocab_size, int(prompt)).tolist(), int(output)) for prompt, output in lengths
        ]

    def head(self, count: int) -> list[Job]:
        """The first *count* jobs."""
        return self.jobs[:count]


def measure_engine(llm: LLM, jobs: list[Job], name: str = "engine") -> Result:
    """All *jobs* at once, to the last token."""
    each = [SamplingParams(temperature=0.0, max_tokens=job.output, ignore_eos=True) for job in jobs]
    before = llm.executor.scheduler.num_preemptions
    start = time.perf_counter()
    outputs = llm.generate([job.prompt for job in jobs], each)
    seconds = time.perf_counter() - start
    generated = sum(len(output.outputs[0].token_ids) for output in outputs)
    preemptions = llm.executor.scheduler.num_preemptions - before
    return Result(name, len(jobs), prompt_tokens(jobs), generated, seconds, f"{preemptions} preemptions")


def run(settings: EngineSettings, options: argparse.Namespace) -> int:
    """Measure, print the table; 0 when something was measured."""
    config = settings.decoder_config()
    lengths = sharegpt_like(options.num_prompts, settings.seed)
    if options.input_len:
        lengths[:, 0] = options.input_len
    if options.output_len:
        lengths[:, 1] = options.output_len
    work = Workload(lengths, config.vocab_size, settings.seed)
    results: list[Result] = []
    path = getattr(options, "json", None)

    def keep(result: Result) -> None:
        results.append(result)
        print(result.line(), flush=True)
        if path:
            Path(path).write_text(json.dumps([asdict(one) for one in results], indent=1), encoding="utf-8")

    details = _engine(settings, work, keep)
    if options.compare:
        budget, limit = getattr(options, "budget", 40.0), getattr(options, "limit", 600.0)
        _compare(settings, config, work, keep, budget, limit)
    _print(settings, results, details)
    return 0


def _engine(settings: EngineSettings, work: Workload, keep: Keep) -> list[str]:
    """Measure the engine; the medians of its phases."""
    llm = LLM.of(settings)
    try:
        print(llm.runner.decoder.kernels.describe(), flush=True)
        measure_engine(llm, [replace(job, output=min(job.output, 4)) for job in work.head(8)])  # warm-up
        llm.runner.timings.clear()
        keep(measure_engine(llm, work.jobs))
        return _phases(llm)
    finally:
        llm.close()
        del llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _phases(llm: LLM) -> list[str]:
    """Median times of the phases of steps, by kind."""
    lines = []
    timings = llm.runner.timings
    for name, steps in (
        ("decode, graph", [t for t in timings if t.graph]),
        ("decode, eager", [t for t in timings if not t.graph and not t.num_prefills]),
        ("mixed", [t for t in timings if t.num_prefills]),
    ):
        if steps:
            parts = ", ".join(
                f"{phase} {statistics.median(getattr(t, phase) for t in steps) * 1e3:.2f}"
                for phase in ("prepare", "forward", "logits", "sample")
            )
            lines.append(f"  {name}: {len(steps)} steps, median ms: {parts}")
    return lines


def _compare(
    settings: EngineSettings, config: DecoderConfig, work: Workload, keep: Keep, budget: float, limit: float
) -> None:
    """Static batches, each size for *budget* seconds; none is begun after *limit* seconds."""
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed: its static batching is not measured", flush=True)
        return
    began = time.perf_counter()
    generate = transformers_generate(config, settings.torch_dtype(config), settings.torch_device())
    generate([Job(work.jobs[0].prompt[:8], 2)])  # warm-up
    name = f"transformers, padded <= {LAUNCH_POST_TOKENS}"
    keep(measure_static(generate, padded_batches(work.jobs), name, budget))
    for size in sweep_sizes(len(work.jobs)):
        name = f"transformers, batch {size}"
        if time.perf_counter() - began > limit:
            print(f"{name}: left out after {limit:.0f} s", flush=True)
            continue
        try:
            keep(measure_static(generate, fixed_batches(work.jobs, size), name, budget))
        except torch.OutOfMemoryError:
            print(f"{name}: out of memory", flush=True)


def sweep_sizes(num_jobs: int) -> list[int]:
    """Batch sizes worth measuring, the largest first: beyond the number of jobs one is enough."""
    return [size for size in SWEEP if size < 2 * num_jobs]


def _print(settings: EngineSettings, results: list[Result], details: list[str]) -> None:
    device = settings.torch_device()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"\n{settings.name} on {where}, torch {torch.__version__}")
    print(HEADER)
    for result in results:
        print(result.line())
    print("\n".join(details))
    if len(results) > 2:
        engine, padded, *swept = results
        print(
            f"engine / transformers padded to {LAUNCH_POST_TOKENS}: "
            f"{engine.output_rate / padded.output_rate:.1f}x"
        )
        best = max(swept, key=lambda result: result.output_rate)
        print(f"engine / best static batch ({best.name}): {engine.output_rate / best.output_rate:.1f}x")


def main(arguments: list[str] | None = None) -> int:
    """``python3 -m engine.bench_throughput``: the 8B shape on a GPU; skips with a reason elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llama-3.1-8b")
    parser.add_argument("--num-prompts", type=int, default=500)
    parser.add_argument("--input-len", type=int)
    parser.add_argument("--output-len", type=int)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each static batch size")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which no other size begins")
    parser.add_argument("--json", help="write the results here")
    options = parser.parse_args(arguments)
    options.compare = True
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return 0
    return run(EngineSettings(options.model, max_model_len=4096, load_format="dummy"), options)


if __name__ == "__main__":
    sys.exit(main())
