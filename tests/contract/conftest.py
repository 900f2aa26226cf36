"""Small serving systems and a fake clock, shared by the contract tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simpy

from simulator.cluster import Cluster
from simulator.results import summarize
from simulator.scheduling.system import System
from simulator.workload import Runs, Trace

SMALL = {
    "max_num_seqs": 6,
    "max_num_batched_tokens": 64,
    "max_model_len": 160,
    "block_size": 4,
}
"""Limits that make everything scarce; a system takes those it knows."""

OWN_SMALL: dict[str, dict[str, Any]] = {
    "vllm-0.2": {"max_num_batched_tokens": 160},
    "vllm-0.6": {"max_num_batched_tokens": 160},
    "sglang": {"max_running_requests": 6, "chunked_prefill_size": 32, "schedule_conservativeness": 0.2},
    "tgi": {"max_batch_prefill_tokens": 48},
    "tgi-2": {"max_batch_prefill_tokens": 96},
    "llama.cpp": {"n_parallel": 6, "n_batch": 64, "n_ubatch": 32},
    "lmdeploy": {"max_batch_size": 6, "max_prefill_token_num": 64, "session_len": 160},
    "ollama": {"num_parallel": 3, "num_batch": 32, "load_seconds": 0.5, "keep_alive": 1.0},
    "lmdeploy-turbomind": {"max_batch_size": 6, "max_prefill_token_num": 64, "session_len": 160},
    "llama-cpp-python": {"n_batch": 32},
    "powerinfer": {"n_parallel": 6, "n_batch": 64, "n_ubatch": 32},
    "airllm": {"max_batch_size": 6},
    "lightllm": {"running_max_req_size": 6, "chunked_prefill_size": 32},
    "hf-continuous": {"page_size": 4, "max_batch_tokens": 64, "max_requests_per_batch": 6},
    "tensorrt-llm": {"tokens_per_block": 4, "max_batch_size": 6, "max_num_tokens": 160},
    "tensorrt-llm-max-utilization": {"tokens_per_block": 4, "max_batch_size": 6, "max_num_tokens": 160},
    "tensorrt-llm-static": {"tokens_per_block": 4, "max_batch_size": 6, "max_num_tokens": 160},
    "deepspeed-fastgen": {"kv_block_size": 4, "max_ragged_batch_size": 64, "max_ragged_sequence_count": 6},
    "hf-static": {"max_batch_size": 6},
    "fastertransformer": {"max_batch_size": 6},
    "ctranslate2": {"max_batch_size": 6},
    "sarathi": {"chunk_size": 64},
    "orca-max": {"max_total_tokens": 512},
    "mlc-llm": {"kv_cache_page_size": 4, "max_num_sequence": 6, "prefill_chunk_size": 64},
    "rtp-llm": {"seq_size_per_block": 4, "max_generate_batch_size": 6, "max_seq_len": 160},
    "onnxruntime-genai": {"max_batch_size": 6, "max_scheduled_tokens": 64},
    "triton": {"max_batch_size": 6, "preferred_batch_size": (2, 4), "max_queue_delay_microseconds": 50_000},
}
"""The same for systems whose limits have names of their own."""

BLOCK_SIZES = (
    "block_size",
    "page_size",
    "kv_block_size",
    "tokens_per_block",
    "kv_cache_page_size",
    "seq_size_per_block",
)
"""What systems call the size of a block."""

TOKENS = 240
"""KV capacity of a small system, in tokens."""


class FakeStepTime:
    """Step times that are simple, smooth and growing in everything, so that order is told by the clock."""

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        work = float(sum(chunk * (1 + 0.001 * (context + chunk)) for chunk, context in prefills))
        return 0.010 + 0.0003 * num_decodes + 0.00001 * decode_context + 0.0002 * work

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        return [self.seconds(num_decodes, decode_context + i * num_decodes) for i in range(n)]


@pytest.fixture
def make_small() -> Callable[..., Any]:
    """``make_small(system, **options)``: a policy object with scarce limits."""

    def make(system: System, **options: Any) -> Any:
        limits = {name: value for name, value in SMALL.items() if name in system.options}
        limits |= OWN_SMALL.get(system.name.split("+")[0], {})
        sizes = [limits[name] for name in BLOCK_SIZES if name in limits]
        size = sizes[0] if sizes else system.block_size
        capacity = TOKENS if system.capacity_in_tokens else max(TOKENS // size, 4)
        return system.scheduler(**{system.capacity: capacity, **limits}, **options)

    return make


@pytest.fixture
def run_small(make_small: Callable[..., Any]) -> Callable[..., Any]:
    """``run_small(system, trace, stepped=…)``: records and replicas of a whole run on the fake clock."""

    def run(system: System, trace: Trace, **options: Any) -> Any:
        env = simpy.Environment()
        limits = np.where(trace.max_tokens > 0, trace.max_tokens, trace.output_length)
        cluster = Cluster(env, trace, limits, lambda: make_small(system), FakeStepTime(), **options)  # type: ignore[arg-type]
        env.run()
        records = cluster.records.build()
        itl = cluster.replicas[0].itl
        summary = summarize(records, itl, [r.series for r in cluster.replicas], injected=len(trace))
        return records, cluster.replicas, summary

    return run


@pytest.fixture
def random_trace() -> Callable[..., Trace]:
    """``random_trace(rng, n, …)``: lengths that may not fit, bursts, shared prefixes, limits above the truth."""

    def make(rng: np.random.Generator, n: int, *, load: float = 1.0, shared: bool = True) -> Trace:
        prompt = rng.integers(1, 90, n)
        output = rng.integers(1, 60, n)
        gaps = rng.exponential(0.05 / load, n) * rng.integers(0, 2, n)
        content = None
        if shared:
            group = rng.integers(-1, 3, n)
            tokens = np.where(group >= 0, np.minimum(rng.integers(1, 60, n), prompt), 0)
            kept = tokens > 0
            offsets = np.concatenate(([0], np.cumsum(kept)))
            content = Runs(
                offsets.astype(np.int64), group[kept].astype(np.int64), tokens[kept].astype(np.int64)
            )
        return Trace.from_columns(
            np.cumsum(gaps),
            prompt,
            output,
            max_tokens=output + rng.integers(0, 2, n) * rng.integers(0, 30, n),
            priority=rng.integers(0, 3, n),
            content=content,
        )

    return make
