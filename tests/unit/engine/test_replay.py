"""Requests in real time and in recorded time, and the front without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from engine import LLM, Arrival, SamplingParams, replay  # noqa: E402
from engine.config import DecoderConfig  # noqa: E402
from engine.realtime import RecordedClock  # noqa: E402

TINY = DecoderConfig("llama", 300, 16, 16, 1, 1, 1, 16, max_position=512)


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)


def test_recorded_time_gives_the_events_of_a_hand_calculation() -> None:
    """Steps of 1 s, a budget of 10 tokens: the second prompt (12 tokens) is cut after 9 beside the first's
    decode.
    """
    llm = LLM(TINY, num_gpu_blocks=50, block_size=4, max_num_batched_tokens=10, max_num_seqs=2)
    arrivals = [
        Arrival(0.5, [5] * 8, greedy(4)),
        Arrival(1.0, [6] * 12, greedy(2)),
        Arrival(20.0, [7] * 600, greedy(1)),
    ]
    run = replay(llm.executor, arrivals, RecordedClock([1.0]))
    first, second, third = run.requests
    # 0.5: prompt 1. 1.5: decode + 9 of prompt 2. 2.5: decode + 3. 3.5: two decodes. 4.5: all done.
    assert (first.scheduled, first.token_times) == (0.5, [1.5, 2.5, 3.5, 4.5])
    assert (second.scheduled, second.token_times) == (1.5, [3.5, 4.5])
    assert [r.status for r in run.requests] == ["finished", "finished", "rejected"]
    assert third.reason is not None and "room" in third.reason
    assert [(s.start, s.end) for s in run.steps] == [(0.5, 1.5), (1.5, 2.5), (2.5, 3.5), (3.5, 4.5)]
    shapes = [(s.timing.num_decodes, s.timing.num_tokens) for s in run.steps if s.timing is not None]
    assert shapes == [(0, 8), (1, 10), (1, 4), (2, 2)]
    assert run.steps[-1].stats.blocks_used == 0


def test_real_time_keeps_the_order_of_events() -> None:
    llm = LLM(TINY, num_gpu_blocks=100, block_size=4, max_num_seqs=4)
    arrivals = [Arrival(0.01 * i, [5 + i] * 9, greedy(5)) for i in range(12)]
    run = replay(llm.executor, arrivals)
    for request in run.requests:
        assert request.status == "finished" and len(request.token_times) == 5
        assert request.arrival <= request.scheduled <= request.first_token <= request.finish
        assert request.token_times == sorted(request.token_times)
    assert all(step.timing is not None and step.timing.seconds <= step.end - step.start for step in run.steps)


def test_the_http_front_needs_no_torch() -> None:
    pytest.importorskip("fastapi")
    code = "import sys; sys.modules['torch'] = None; import engine.server, engine; engine.SamplingParams(n=2)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_static_batch_computes_its_padding_and_is_handed_out_at_its_end() -> None:
    """Prompts of 8 and 3 tokens, answers of 2 and 5: a rectangle of 16 tokens, then four steps of two rows."""
    llm = LLM(
        TINY, system="hf-static", scheduler_options={"max_batch_size": 2}, num_gpu_blocks=100, block_size=4
    )
    jobs = [([5] * 8, 2), ([6] * 3, 5), ([7] * 4, 1)]
    run = replay(llm.executor, [Arrival(0.0, p, greedy(n)) for p, n in jobs], RecordedClock([1.0]))
    assert [request.token_times for request in run.requests] == [[5.0] * 2, [5.0] * 5, [6.0]]
    shapes = [(s.timing.num_decodes, s.timing.num_tokens) for s in run.steps if s.timing is not None]
    assert shapes == [(0, 16), (2, 2), (2, 2), (2, 2), (2, 2), (0, 4)]
    alone = LLM(TINY, num_gpu_blocks=100, block_size=4).generate(
        [p for p, _ in jobs], [greedy(n) for _, n in jobs]
    )
    again = llm.generate([p for p, _ in jobs], [greedy(n) for _, n in jobs])
    assert [o.outputs[0].token_ids for o in again] == [o.outputs[0].token_ids for o in alone]
