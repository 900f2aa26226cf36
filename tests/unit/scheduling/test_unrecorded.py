"""Sarathi, MLC-LLM, RTP-LLM, ONNX Runtime GenAI and Xinference: hand-worked iterations."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling import Request
from simulator.scheduling.system import find_system


def make(name: str, blocks: int, lengths: list[tuple[int, int]], **options: Any) -> tuple[Any, list[Request]]:
    system = find_system(name)
    scheduler = system.scheduler(**{system.capacity: blocks}, **options)
    made = [
        Request(f"r{i}", prompt, limit, arrival_time=float(i)) for i, (prompt, limit) in enumerate(lengths)
    ]
    for request in made:
        scheduler.add(request, 0.0)
    return scheduler, made


def step(scheduler: Any, *ended: Request) -> tuple[Any, dict[str, int]]:
    """One iteration, and what it computes of which prompt."""
    batch = scheduler.schedule(0.0)
    scheduler.commit(batch, ended, 0.0)
    return batch, {request.id: chunk for request, chunk, _ in batch.prefills}


# Sarathi-Serve


def test_sarathi_decodes_first_then_prompts_in_progress_then_new_ones() -> None:
    sarathi, _ = make("sarathi", 100, [(50, 9), (150, 9), (30, 9)], chunk_size=100, block_size=10)
    assert step(sarathi)[1] == {"r0": 50, "r1": 50}
    batch, chunks = step(sarathi)
    assert (batch.num_decodes, chunks) == (1, {"r1": 99})
    batch, chunks = step(sarathi)
    assert (batch.num_decodes, chunks) == (1, {"r1": 1, "r2": 30})
    assert step(sarathi)[0].num_decodes == 3


def test_sarathi_keeps_a_watermark_and_holds_blocks_for_whole_prompts() -> None:
    for second, chunks in ((970, {"r1": 99}), (980, {})):
        sarathi, _ = make("sarathi", 200, [(1000, 9), (second, 9)], chunk_size=100, block_size=10)
        step(sarathi)
        assert sarathi.blocks_used == 100  # all of the prompt, though 100 tokens are computed
        assert sarathi.num_waiting == 1
        for _ in range(9):
            step(sarathi)
        assert step(sarathi)[1] == chunks  # 99 are free, and two have to stay, which is 1 %


def test_sarathi_asks_for_a_free_block_where_none_is_needed() -> None:
    sarathi, (_, b) = make("sarathi", 4, [(14, 20), (14, 20)], chunk_size=100, block_size=10, watermark=0.0)
    assert step(sarathi)[1] == {"r0": 14, "r1": 14}
    batch, _ = step(sarathi)  # all four blocks are held, each has room for six more tokens
    assert batch.preempted == [b]
    assert batch.num_decodes == 1
    assert b.target == 15


# MLC-LLM


def test_mlc_prefills_beside_decodes_and_cuts_the_last_prompt() -> None:
    mlc, _ = make("mlc-llm", 4000, [(60, 9), (60, 9)], prefill_chunk_size=100)
    assert step(mlc)[1] == {"r0": 60, "r1": 40}
    batch, chunks = step(mlc)
    assert (batch.num_decodes, chunks) == (1, {"r1": 20})
    assert step(mlc)[0].num_decodes == 2


def test_mlc_in_chunked_mode_lets_decodes_stand_still() -> None:
    mlc, _ = make("mlc-llm", 4000, [(60, 9), (60, 9)], prefill_chunk_size=100, prefill_mode="chunked")
    step(mlc)
    batch, chunks = step(mlc)
    assert (batch.num_decodes, chunks) == (0, {"r1": 20})


def test_mlc_keeps_eight_steps_of_everybody_free() -> None:
    # 200 + 200 tokens and 8 · 2 more: 416
    for total, admitted in ((416, 2), (415, 1)):
        mlc, _ = make("mlc-llm", total, [(200, 9), (200, 9)], prefill_chunk_size=1000, kv_cache_page_size=1)
        assert len(step(mlc)[1]) == admitted


def test_mlc_preempts_the_last_where_a_sequence_finds_no_page() -> None:
    mlc, (a, b) = make("mlc-llm", 60, [(20, 40), (20, 40)], kv_cache_page_size=10, prefill_chunk_size=1000)
    step(mlc)
    assert not step(mlc)[0].preempted
    batch, _ = step(mlc)  # both hold three pages with room for nine tokens, and none is free
    assert batch.preempted == [b]
    assert list(mlc.running) == [a]


# RTP-LLM


def test_rtp_takes_prompts_only_when_nobody_runs() -> None:
    options = {"max_generate_batch_size": 8, "seq_size_per_block": 10}
    rtp, (a, b, _) = make("rtp-llm", 100, [(50, 9), (40, 9), (30, 9)], max_batch_tokens_size=120, **options)
    assert step(rtp)[1] == {"r0": 50, "r1": 40}  # 3 · 50 would not be below 120
    batch, chunks = step(rtp, a)
    assert (batch.num_decodes, chunks) == (2, {})
    assert step(rtp, b)[0].num_decodes == 1
    assert step(rtp)[1] == {"r2": 30}
    mixed, _ = make(
        "rtp-llm", 100, [(50, 9), (30, 9)], max_batch_tokens_size=90, load_python_model=False, **options
    )
    assert step(mixed)[1] == {"r0": 50}
    batch, chunks = step(mixed)
    assert (batch.num_decodes, chunks) == (1, {"r1": 30})


def test_rtp_falls_back_from_the_last() -> None:
    rtp, (_, b) = make(
        "rtp-llm", 4, [(20, 20), (20, 20)], seq_size_per_block=10, max_generate_batch_size=8, max_seq_len=100
    )
    step(rtp)
    batch, _ = step(rtp)
    assert batch.preempted == [b]
    assert rtp.waiting[0] is b


# ONNX Runtime GenAI


def test_genai_gives_every_admitted_prompt_a_token() -> None:
    genai, _ = make(
        "onnxruntime-genai", 100, [(150, 9), (80, 9), (70, 9)], max_scheduled_tokens=100, block_size=10
    )
    assert step(genai)[1] == {"r0": 98, "r1": 1, "r2": 1}
    batch, chunks = step(genai)
    assert (batch.num_decodes, chunks) == (0, {"r0": 52, "r1": 47, "r2": 1})
    batch, chunks = step(genai)
    assert (batch.num_decodes, chunks) == (1, {"r1": 32, "r2": 67})
    assert genai.blocks_used == 16 + 8 + 7


def test_genai_leaves_behind_who_finds_no_block() -> None:
    genai, (a, b) = make("onnxruntime-genai", 5, [(20, 20), (20, 20)], block_size=10)
    step(genai)
    batch, _ = step(genai)  # both step into a new block, one is free
    assert (batch.num_decodes, batch.stalled, batch.decode_context) == (1, [b], 21)
    for _ in range(9):
        assert step(genai)[0].stalled == [b]
    batch, _ = step(genai)  # now both need one
    assert batch.preempted == [b]
    assert list(genai.running) == [a]


# Xinference


def test_xinference_joins_between_rounds_of_sixteen_steps() -> None:
    xinference, (a, _) = make("xinference", 10_000, [(10, 40), (30, 40)])
    late = Request("late", 20, 40)
    batch, chunks = step(xinference)
    assert (chunks, batch.padded_tokens) == ({"r0": 10, "r1": 30}, 20)
    xinference.add(late, 0.0)
    batch, _ = step(xinference, a)
    assert (batch.num_decodes, batch.idle_rows, batch.decode_context) == (2, 0, 2 * 31)
    for i in range(15):
        batch, _ = step(xinference)
        assert (batch.num_decodes, batch.idle_rows, batch.decode_context) == (2, 1, 2 * (32 + i))
    assert step(xinference)[1] == {"late": 20}
    assert step(xinference)[0].decode_context == 2 * 47  # as wide as the widest


# all


@pytest.mark.parametrize(
    ("name", "blocks", "prompt"),
    [
        ("sarathi", 10, 200),
        ("mlc-llm", 100, 100),
        ("rtp-llm", 10, 2000),
        ("onnxruntime-genai", 2, 600),
        ("xinference", 100, 90),
    ],
)
def test_what_can_never_run_is_refused(name: str, blocks: int, prompt: int) -> None:
    with pytest.raises(CapacityError, match=r"no room for output|tokens of KV"):
        make(name, blocks, [(prompt, 9)])


def test_impossible_limits_are_named() -> None:
    with pytest.raises(ConfigurationError, match="chunk_size 0: must be at least 1"):
        make("sarathi", 10, [], chunk_size=0)
    with pytest.raises(ConfigurationError, match="prefill_mode 'mixed': must be hybrid or chunked"):
        make("mlc-llm", 100, [], prefill_mode="mixed")
    with pytest.raises(
        ConfigurationError, match="scheduler_reserve_resource_ratio 100: must be from 0 to 99"
    ):
        make("rtp-llm", 10, [], scheduler_reserve_resource_ratio=100)
