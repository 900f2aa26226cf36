"""Transformers' static batching, to compare with: batches by two rules, and what one run of them gives.

``generate`` of Hugging Face transformers pads a batch to its longest prompt and keeps it together until its longest
answer is done. Two rules for the batch: a fixed number of requests; and that of the vLLM launch post's benchmark
(June 2023), requests in their order while batch x (longest prompt + longest answer) stays within 2,048 tokens.
Tokens that only padding produced do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from engine.config import DecoderConfig

__all__ = [
    "HEADER",
    "LAUNCH_POST_TOKENS",
    "Job",
    "Result",
    "fixed_batches",
    "measure_static",
    "padded_batches",
    "prompt_tokens",
    "transformers_generate",
]

LAUNCH_POST_TOKENS = 2048


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


def prompt_tokens(jobs: list[Job]) -> int:
    """Over all jobs."""
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
    return Result(name, len(done), prompt_tokens(done), sum(job.output for job in done), seconds)


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
