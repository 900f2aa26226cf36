"""What must hold whatever the numbers are: relations between runs instead of values (metamorphic tests)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import list_profiles, load_profile
from simulator import Deployment, Trace, simulate
from simulator.models import load_model
from simulator.steptime import Parallelism, StepTime, load_traits
from simulator.steptime.laws import LawSet
from simulator.workload import Runs

DEVICES = [name for name in list_profiles() if "bf16" in load_profile(name).peak_flops]
batches = st.tuples(
    st.integers(0, 300),
    st.integers(1, 4000),
    st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 30_000)), max_size=4),
).filter(lambda batch: batch[0] or batch[2])


class TwiceAsFast:
    """Every law of a device, in half the time."""

    def __init__(self, laws: Any) -> None:
        self._laws = laws

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._laws, name)
        if name in ("bandwidth", "link_bandwidth"):
            return 2 * value
        if name == "peak_flops":
            return lambda dtype: 2 * value(dtype)
        return (lambda *args, **kw: value(*args, **kw) / 2) if callable(value) else value


def traffic(rate: float, n: int = 600, seed: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace.from_columns(
        np.cumsum(rng.exponential(1 / rate, n)), rng.integers(20, 2000, n), rng.integers(1, 300, n)
    )


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(batch=batches, model=st.sampled_from(["llama-3.1-8b", "qwen3-30b-a3b"]))
def test_no_step_is_faster_than_the_peaks_allow(device: str, batch: Any, model: str) -> None:
    steptime = step(device, model)
    decodes, context, prefills = batch
    total = decodes * context
    assert steptime.seconds(decodes, total, prefills) >= steptime.floor(decodes, total, prefills) * (1 - 1e-9)


_steps: dict[tuple[str, str], StepTime] = {}


def step(device: str, model: str) -> StepTime:
    if (device, model) not in _steps:
        profile = load_profile(device)
        traits = load_traits("vllm", host=profile.host)
        _steps[device, model] = StepTime(
            load_model(model), LawSet.from_profile(profile), Parallelism(), traits
        )
    return _steps[device, model]


def halved(costs: Any) -> Any:
    """*costs* with every duration, a number or one per law, halved."""
    half: dict[str, Any] = {}
    for field in dataclasses.fields(costs):
        value = getattr(costs, field.name)
        if field.name.endswith("_s"):
            half[field.name] = {k: v / 2 for k, v in value.items()} if isinstance(value, dict) else value / 2
    return dataclasses.replace(costs, **half)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(batch=batches)
def test_a_device_twice_as_fast_in_every_respect_halves_every_step(batch: Any) -> None:
    one = step("h100-sxm-80gb", "llama-3.1-8b")
    traits = halved(dataclasses.replace(one.traits, engine=halved(one.traits.engine)))
    two = StepTime(one.model, TwiceAsFast(one.laws), one.parallelism, traits, one.precision)  # type: ignore[arg-type]
    decodes, context, prefills = batch
    total = decodes * context
    expected = one.seconds(decodes, total, prefills) / 2
    assert two.seconds(decodes, total, prefills) == pytest.approx(expected, rel=1e-9)


def test_more_load_waits_longer() -> None:
    waits = []
    for rate in (4.0, 8.0, 16.0, 32.0):
        result = simulate(traffic(rate), Deployment(gpu="a100", max_num_seqs=32))
        waits.append(result.summary["mean_queue_time_ms"])
    assert waits == sorted(waits)
    assert waits[-1] > 2 * waits[0]


def test_a_prompt_cached_in_full_costs_at_most_one_block() -> None:
    prompt = 1600
    runs = Runs(np.array([0, 1, 2]), np.array([7, 7]), np.array([prompt, prompt]))
    trace = Trace.from_columns([0.0, 60.0], [prompt, prompt], [8, 8], content=runs)
    result = simulate(trace, Deployment())
    block = result.resolved.budget.block_size
    assert result.records.cached_tokens[0] == 0
    assert 0 < prompt - result.records.cached_tokens[1] <= block
    ttft = result.records.first_token_time - result.records.arrival_time
    assert ttft[1] < ttft[0]


def test_scarce_blocks_preempt_and_plenty_do_not() -> None:
    trace = traffic(30.0)
    scarce, plenty = (
        simulate(trace, Deployment(num_gpu_blocks=blocks, max_model_len=2400)).summary
        for blocks in (400, 25_000)
    )
    assert scarce["preemptions"] > 0 == plenty["preemptions"]
    assert scarce["mean_ttft_ms"] > plenty["mean_ttft_ms"]


def test_the_order_of_the_file_is_the_order_of_equal_arrivals() -> None:
    trace = Trace.from_columns([0.0] * 40, np.arange(40) * 7 + 50, np.full(40, 20))
    first = simulate(trace, Deployment(max_num_seqs=4)).records.first_scheduled_time
    assert np.all(np.diff(first) >= 0)


def test_a_seed_gives_the_same_bytes() -> None:
    trace = traffic(5.0, n=200, seed=3)
    first, second = (simulate(trace, Deployment()).records for _ in range(2))
    assert first.finish_time.tobytes() == second.finish_time.tobytes()
