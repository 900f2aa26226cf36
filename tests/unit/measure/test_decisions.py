"""Driven by the same recorded step times, the simulator decides batch by batch what the engine decided.

The engine runs a small random model on this CPU; its steps last as long as they last. The simulator is given those
durations: every batch has the same requests with the same chunks in the same order, the same preemptions and blocks,
and every token comes at the same moment.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from calibrate.decisions import Decision, DecisionLog, first_difference  # noqa: E402
from calibrate.measure.recording import Job, ThreadClock, record_run  # noqa: E402
from calibrate.recorded import RecordedSteps, resolve_recorded, simulate_same_steps  # noqa: E402
from engine import LLM  # noqa: E402
from engine.config import DecoderConfig  # noqa: E402
from simulator.errors import SimError  # noqa: E402
from simulator.scheduling import Batch, Request  # noqa: E402

TINY = DecoderConfig("llama", 300, 16, 16, 1, 1, 1, 16, max_position=160)
PREEMPTING = {"vllm", "vllm-0.6", "vllm-0.2", "sarathi", "lmdeploy", "tensorrt-llm-max-utilization"}
SYSTEMS: dict[str, dict[str, Any]] = {
    **{name: {} for name in sorted(PREEMPTING)},
    "hf-static": {},
    "orca-max": {},
    "orca-pow2": {},
    "deepspeed-fastgen": {"kv_block_size": 4, "num_blocks": 60},
    "lightllm": {},
    "sglang": {},
    "tgi": {},
    "llama.cpp": {"n_ubatch": 24, "n_batch": 64, "kv_unified": True, "num_kv_cells": 256},
    "xinference": {},
}


@pytest.fixture(scope="module")
def llm() -> LLM:
    """Small enough a cache that systems which preempt do."""
    torch.set_num_threads(1)
    limits = {"max_num_seqs": 6, "max_num_batched_tokens": 160, "max_model_len": 160}
    return LLM(TINY, num_gpu_blocks=75, swap_space_blocks=400, block_size=4, **limits)


def traffic() -> list[Job]:
    """24 requests, now in bursts, now alone, within a tenth of a second."""
    rng = np.random.default_rng(3)
    gaps = rng.exponential(0.002, 24) * rng.choice([0.0, 1.0, 4.0], 24)
    lengths = (rng.integers(2, 70, 24), rng.integers(1, 40, 24))
    return [Job(float(at), int(a), int(b)) for at, a, b in zip(np.cumsum(gaps), *lengths)]


def record(llm: LLM, system: str, options: dict[str, Any]) -> dict[str, Any]:
    recording = record_run(llm, traffic(), ThreadClock(), system, options=options)
    return dict(json.loads(json.dumps(recording)))  # as it would travel


@pytest.fixture(scope="module")
def shapes(tiny_model: Any) -> str:
    """Any model that the simulator knows: no law of it is asked for."""
    return str(tiny_model)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_batch_is_the_engines(llm: LLM, shapes: str, system: str) -> None:
    recording = record(llm, system, SYSTEMS[system])
    same = simulate_same_steps(recording, resolve_recorded(recording, "h100", shapes))
    assert same.difference is None, f"step {same.difference} of {same.count}: {same.decided}"
    assert same.count == len(recording["steps"]) > 50 and same.result is not None
    requests = same.result.requests
    ends = [r["token_times"][-1] if r["status"] == "finished" else np.nan for r in recording["requests"]]
    ours = requests["finish_time"].where(requests["status"] == "finished")
    np.testing.assert_allclose(ours, ends, rtol=0, atol=1e-9, equal_nan=True)
    preempted = [r["num_preemptions"] for r in recording["requests"]]
    assert requests["num_preemptions"].tolist() == preempted
    assert sum(preempted) or system not in PREEMPTING


def test_another_policy_is_told_apart(llm: LLM, shapes: str) -> None:
    """A cache of another size decides otherwise; the first such batch is named."""
    recording = record(llm, "vllm", {})
    recording["policy"]["num_gpu_blocks"] += 10
    same = simulate_same_steps(recording, resolve_recorded(recording, "h100", shapes))
    assert same.difference is not None and 0 < same.difference < same.count
    assert "blocks held" in str(same.decided)


def test_a_decision_says_who_computes_what() -> None:
    class Two:
        """Decides two batches, the second of two forwards."""

        blocks_used = 7

        def schedule(self, now: float) -> Batch | None:
            return batches.pop(0) if batches else None

    first, second = Request("a", 5, 9, index=0), Request("b", 8, 9, index=1)
    one, two, decode, prefill = (Batch() for _ in range(4))
    one.prefills, one.joining = [(first, 5, 0)], [first]
    decode.decodes, prefill.prefills = [first], [(second, 3, 0)]
    two.forwards, two.preempted, two.rejected = [decode, prefill], [first], [(second, "no room")]
    batches = [one, two]
    log = DecisionLog(policy := Two())  # type: ignore[arg-type]
    while policy.schedule(0.0) is not None:
        pass
    assert list(log) == [
        Decision((), ((0, 5, 0),), (0,), (), (), (7, 0, 0), 1),
        Decision((0,), ((1, 3, 0),), (), (0,), (1,), (7, 0, 0), 2),
    ]
    assert str(list(log)[1]) == "decodes r0; prefills r1 3+0; preempts r0; refuses r1; 7 blocks held"
    assert len({decision.digest for decision in log}) == 2


def test_recorded_steps_are_handed_out_by_forward() -> None:
    steps = RecordedSteps([0.5, 0.0, 0.3], [1, 0, 2])  # the second decision ran nothing
    assert [steps.seconds(1, 1) for _ in range(3)] == [0.5, 0.15, 0.15]
    with pytest.raises(SimError, match="only 2 iterations were recorded"):
        steps.seconds(1, 1)


def test_where_runs_part() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2
