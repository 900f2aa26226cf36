"""Keys and values spread over ranks by position: memory, attention, exchanges, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from simulator import Deployment
from simulator.errors import ConfigurationError
from simulator.models import load_model
from simulator.steptime import HostTraits, Parallelism, RooflineLaws, StepTime, step_work

FLOPS, BANDWIDTH, LINK = 989e12, 3.35e12, 450e9


class Peaks:
    bandwidth, link_bandwidth = BANDWIDTH, LINK

    def peak_flops(self, dtype: str) -> float:
        return FLOPS


def attention(parallel: Parallelism, *batch: Any) -> float:
    """Seconds of attention of Llama-3.1-70B at peak rates, its exchanges included."""
    step = StepTime(load_model("llama-3.1-70b"), RooflineLaws(Peaks()), parallel, HostTraits())
    return step.breakdown(*batch)["decode_attention" if batch[0] else "prefill_attention"]


def resolve(**stated: Any) -> Any:
    return Deployment.of(**{"model": "llama-3.1-70b", "gpu": "h100", **stated}).resolve()


def test_copies_of_kv_heads_become_room_for_tokens() -> None:
    copies, spread = (resolve(tensor_parallel_size=16, decode_context_parallel_size=dcp) for dcp in (None, 2))
    assert spread.budget.block_bytes == copies.budget.block_bytes / 2
    assert spread.num_gpu_blocks == pytest.approx(2 * copies.num_gpu_blocks, abs=1)
    assert spread.num_gpus == copies.num_gpus == 16


def test_decode_reads_its_part_and_exchanges_queries_and_outputs() -> None:
    rows, context, heads, d, layers = 8, 8 * 32_768, 64 // 16, 128, 80
    plain, spread = (attention(Parallelism(tp=16, dcp=dcp), rows, context) for dcp in (1, 2))
    read = 2 * d * 2 * context / BANDWIDTH
    assert plain == pytest.approx(layers * read, rel=1e-2)
    queries = outputs = 2.0 * rows * heads * 2 * d
    sums = 4.0 * rows * heads * 2 * 2
    assert spread == pytest.approx(layers * (read / 2 + (queries + outputs + sums) / 2 / LINK), rel=1e-2)
    assert spread < plain


def test_a_prompt_is_cut_over_the_gpus_of_a_ring() -> None:
    one, four = (attention(Parallelism(tp=8, pcp=pcp), 0, 0, [(65_536, 0)]) for pcp in (1, 4))
    pairs = 65_536 * 65_537 / 2
    assert one == pytest.approx(80 * 4 * 8 * 128 * pairs / FLOPS, rel=1e-2)
    assert four == pytest.approx(one / 4, rel=1e-2)  # longer than keys and values take around the ring


def test_a_short_chunk_after_a_long_context_waits_for_the_ring() -> None:
    time = attention(Parallelism(tp=8, pcp=4), 0, 0, [(4, 100_000)])
    assert time == pytest.approx(80 * 3 / 4 * 2 * 128 * 2 * 100_004 / LINK, rel=1e-2)


def test_linear_layers_see_a_share_of_the_prompt_and_all_decoding_rows() -> None:
    one, two = (resolve(tensor_parallel_size=8, prefill_context_parallel_size=pcp) for pcp in (None, 2))
    assert two.num_gpus == 2 * one.num_gpus
    assert two.budget.block_bytes == one.budget.block_bytes / 2
    flops = [
        next(item.flops for item in step_work(r.steptime, 0, 0, [(4096, 0)]) if item.name == "down_proj")
        for r in (one, two)
    ]
    assert flops[1] == flops[0] / 2
    decode = [
        next(i.flops for i in step_work(r.steptime, 9, 900) if i.name == "down_proj") for r in (one, two)
    ]
    assert decode[0] == decode[1]
    prompt = [r.steptime.seconds(0, 0, [(8192, 0)]) for r in (one, two)]
    assert 0.5 * prompt[0] < prompt[1] < 0.8 * prompt[0]


def test_latent_attention_has_a_copy_on_every_rank() -> None:
    spread = resolve(model="deepseek-v3", gpu="h200", tensor_parallel_size=8, decode_context_parallel_size=8)
    assert spread.budget.block_bytes == 61 * 576 * 2 * 16 / 8


def test_one_rank_is_no_context_parallelism() -> None:
    plain, stated = (resolve(tensor_parallel_size=8, decode_context_parallel_size=n) for n in (None, 1))
    assert plain.steptime.seconds(8, 80_000) == stated.steptime.seconds(8, 80_000)


def test_more_ranks_than_copies_are_refused() -> None:
    for stated, message in (
        ({"tensor_parallel_size": 8, "decode_context_parallel_size": 2}, "8 makes 1 for llama-3.1-70b"),
        ({"tensor_parallel_size": 16, "decode_context_parallel_size": 4}, "16 makes 2 for llama-3.1-70b"),
        ({"system": "tgi", "prefill_context_parallel_size": 2}, "tgi has no context parallelism; vllm has"),
        (
            {"prefill_context_parallel_size": 2, "flash_attention": False, "tensor_parallel_size": 8},
            "merged by what flash_attention keeps",
        ),
    ):
        with pytest.raises(ConfigurationError, match=message):
            resolve(**stated)
