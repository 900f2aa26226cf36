"""A pipeline that is kept full: rounds of micro-batches, and what they gain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator import Deployment, Trace, simulate
from simulator.steptime import StepTime


def resolve(**stated: Any) -> Any:
    return Deployment.of(**{"model": "llama-3.1-8b", "gpu": "h100", **stated}).resolve()


def alone(resolved: Any) -> StepTime:
    """One micro-batch after the other."""
    step = resolved.steptime
    return StepTime(step.model, step.laws, step.parallelism, step.traits, step.precision)


def test_a_round_is_the_largest_micro_batch_through_all_stages() -> None:
    resolved = resolve(pipeline_parallel_size=4)
    steps, one = resolved.steptime, alone(resolved)
    assert steps.seconds(100, 80_000) == one.seconds(25, 20_000)
    assert steps.seconds(101, 101_000) == one.seconds(26, 26_000)
    assert steps.seconds(1, 500) == one.seconds(1, 500)
    assert steps.seconds(8, 8000, [(500, 0), (300, 64), (200, 0), (100, 0), (90, 0)]) == one.seconds(
        2, 2000, [(500, 0)]
    )
    assert steps.segment(7, 7000, 40)[39] == steps.seconds(7, 7000 + 39 * 7)
    assert sum(steps.breakdown(100, 80_000).values()) == pytest.approx(steps.seconds(100, 80_000))
    assert steps.with_laws(steps.laws).seconds(100, 80_000) == steps.seconds(100, 80_000)
    assert steps.floor(100, 80_000) < steps.seconds(100, 80_000)


def test_a_long_chunk_is_cut_to_the_budget_of_a_micro_batch() -> None:
    resolved = resolve(pipeline_parallel_size=2, max_num_batched_tokens=1024)
    assert resolved.scheduler().max_num_batched_tokens == 2048  # both micro-batches together
    assert resolved.limits["max_num_batched_tokens"] == 1024
    assert resolved.steptime.seconds(0, 0, [(2048, 0)]) == alone(resolved).seconds(0, 0, [(1024, 1024)])


@pytest.mark.parametrize("pp", [2, 4])
def test_a_full_pipeline_is_nearly_as_quick_as_its_gpus_together(pp: int) -> None:
    n = 600
    trace = Trace.from_columns(np.zeros(n), np.full(n, 700), np.full(n, 200), max_tokens=np.full(n, 200))
    one, many = (
        simulate(trace, resolve(pipeline_parallel_size=size, max_num_seqs=512)).summary["output_throughput"]
        for size in (1, pp)
    )
    assert 0.6 * pp < many / one < 1.1 * pp


def test_systems_without_micro_batches_run_stage_after_stage() -> None:
    resolved = resolve(system="llama.cpp", pipeline_parallel_size=2)
    assert type(resolved.steptime) is StepTime
    assert resolved.steptime.seconds(4, 4000) == alone(resolved).seconds(4, 4000)
