"""Offline throughput: the engine on a list of prompts, and transformers' static batching on the same.

Static batching (``generate`` of Hugging Face transformers) pads a batch to its longest prompt and keeps it
together until its longest answer is done. Two rules for the batch: a fixed number of requests, swept; and
that of the vLLM launch post's benchmark (June 2023), requests in their order while batch x (longest prompt
+ longest answer) stays within 2,048 tokens. Tokens that only padding produced do not count. Every prompt
gets exactly the output length that the list says.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from engine.config import DecoderConfig
from engine.lengths import sharegpt_like
from engine.llm import LLM
from engine.params import SamplingParams
from engine.settings import EngineSettings

__all__ = ["Workload", "fixed_batches", "main", "measure_engine", "measure_static", "padded_batches", "run"]

LAUNCH_POST_TOKENS = 2048
SWEEP = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Job:
    """A prompt and how many tokens it is continued by."""

    prompt: list[int]
    output: int


@dataclass(frozen=True)
class Result:
    """*seconds* for *requests*, of which *prompt_tokens* and *output_tokens* count."""

    name: str
    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    note: str = ""

    @property
    def output_rate(self) -> float:
        """Output tokens per second."""
        return self.output_tokens / self.seconds

    def line(self) -> str:
        """A row of the table."""
        total = (self.prompt_tokens + self.output_tokens) / self.seconds
        rate = self.requests / self.seconds
        return f"{self.name:<34} {rate:>9.2f} {self.output_rate:>12.1f} {total:>12.1f}  {self.note}"


HEADER = f"{'':<34} {'requests/s':>9} {'output tok/s':>12} {'total tok/s':>12}"


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
    return Result(name, len(jobs), _prompt_tokens(jobs), generated, seconds, f"{preemptions} preemptions")


def padded_batches(jobs: list[Job], limit: int = LAUNCH_POST_TOKENS) -> Iterator[list[Job]]:
    """In order, as many as fit: batch x (longest prompt + longest answer) within *limit* tokens; at least
    one.
    """
    batch: list[Job] = []
    for job in jobs:
        wider = [*batch, job]
        if batch and len(wider) * _width(wider) > limit:
            yield batch
            wider = [job]
        batch = wider
    if batch:
        yield batch


def fixed_batches(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    """In order, *size* at a time."""
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _width(batch: list[Job]) -> int:
    return max(len(job.prompt) for job in batch) + max(job.output for job in batch)


def _prompt_tokens(jobs: list[Job]) -> int:
    return sum(len(job.prompt) for job in jobs)


def measure_static(
    generate: Callable[[list[Job]], None], batches: Iterator[list[Job]], name: str, budget: float
) -> Result:
    """Run *batches* one after the other until they are done or *budget* seconds have passed."""
    done: list[Job] = []
    start = time.perf_counter()
    for batch in batches:
        generate(batch)
        done += batch
        if time.perf_counter() - start > budget:
            break
    seconds = time.perf_counter() - start
    return Result(name, len(done), _prompt_tokens(done), sum(job.output for job in done), seconds)


def transformers_generate(
    config: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> Callable[[list[Job]], None]:
    """A function that runs one padded batch through transformers' ``generate``, on a model of the same
    shape.
    """
    import transformers  # type: ignore[import-not-found, unused-ignore]

    model = _hf_model(transformers, config, dtype, device)

    def generate(batch: list[Job]) -> None:
        longest, output = max(len(job.prompt) for job in batch), max(job.output for job in batch)
        tokens = torch.zeros((len(batch), longest), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, job in enumerate(batch):
            tokens[row, longest - len(job.prompt) :] = torch.tensor(job.prompt)
            mask[row, longest - len(job.prompt) :] = 1
        with torch.inference_mode():
            model.generate(
                tokens.to(device),
                attention_mask=mask.to(device),
                do_sample=False,
                min_new_tokens=output,
                max_new_tokens=output,
                pad_token_id=0,
            )
        if device.type == "cuda":
            torch.cuda.synchronize()

    return generate


HF_NAMES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
}


def _hf_model(transformers: Any, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Any:
    name = HF_NAMES[config.family]
    shape = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "tie_word_embeddings": config.tied_embeddings,
    }
    if config.is_moe:
        shape |= {"num_local_experts": config.num_experts, "num_experts": config.num_experts}
        shape |= {
            "num_experts_per_tok": config.experts_per_token,
            "moe_intermediate_size": config.intermediate_size,
        }
    hf_config = getattr(transformers, f"{name}Config")(**shape)
    hf_config._attn_implementation = "sdpa"
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return getattr(transformers, f"{name}ForCausalLM")(hf_config).eval()
    finally:
        torch.set_default_dtype(previous)


def run(settings: EngineSettings, options: argparse.Namespace) -> int:
    """Measure, print the table; 0 when something was measured."""
    config = settings.decoder_config()
    lengths = sharegpt_like(options.num_prompts, settings.seed)
    if options.input_len:
        lengths[:, 0] = options.input_len
    if options.output_len:
        lengths[:, 1] = options.output_len
    work = Workload(lengths, config.vocab_size, settings.seed)
    ours, details = _engine(settings, work)
    results = [ours]
    if options.compare:
        results += _compare(settings, config, work, getattr(options, "budget", 40.0))
    _print(settings, results, details)
    if path := getattr(options, "json", None):
        with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump([asdict(result) for result in results], file, indent=1)
    return 0


def _engine(settings: EngineSettings, work: Workload) -> tuple[Result, list[str]]:
    llm = LLM.of(settings)
    try:
        print(llm.runner.decoder.kernels.describe(), flush=True)
        measure_engine(llm, [replace(job, output=min(job.output, 4)) for job in work.head(8)])  # warm-up
        llm.runner.timings.clear()
        return measure_engine(llm, work.jobs), _phases(llm)
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


def _compare(settings: EngineSettings, config: DecoderConfig, work: Workload, budget: float) -> list[Result]:
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed: its static batching is not measured", flush=True)
        return []
    generate = transformers_generate(config, settings.torch_dtype(config), settings.torch_device())
    generate([Job(work.jobs[0].prompt[:8], 2)])  # warm-up
    name = f"transformers, padded <= {LAUNCH_POST_TOKENS}"
    found = [measure_static(generate, padded_batches(work.jobs), name, budget)]
    for size in SWEEP:
        try:
            result = measure_static(
                generate, fixed_batches(work.jobs, size), f"transformers, batch {size}", budget
            )
        except torch.OutOfMemoryError:
            print(f"transformers, batch {size}: out of memory", flush=True)
            break
        found.append(result)
        print(result.line(), flush=True)
        if size >= len(work.jobs):
            break
    return found


def _print(settings: EngineSettings, results: list[Result], details: list[str]) -> None:
    device = settings.torch_device()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"\n{settings.name} on {where}, torch {torch.__version__}")
    print(HEADER)
    for result in results:
        print(result.line())
    print("\n".join(details))
    if len(results) > 1:
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
    parser.add_argument("--json", help="write the results here")
    options = parser.parse_args(arguments)
    options.compare = True
    if not torch.cuda.is_available():
        print("skipped: no CUDA device")
        return 0
    return run(EngineSettings(options.model, max_model_len=4096, load_format="dummy"), options)


if __name__ == "__main__":
    sys.exit(main())
