"""One policy, two clocks: with equal step times the engine and the simulator make the same decisions.

Every iteration lasts 0.01 s on both. The simulator predicts ends from the trace and skips what repeats; the engine
runs a real model and learns of an end from its sampler. Every request is scheduled, gets its first token and ends at
the same moment, under every system, with few enough blocks that the systems that preempt do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import simpy  # noqa: E402

from engine import LLM, Arrival, SamplingParams, replay  # noqa: E402
from engine.config import DecoderConfig  # noqa: E402
from engine.llm import policy_arguments  # noqa: E402
from engine.realtime import RecordedClock  # noqa: E402
from simulator.cluster import Cluster  # noqa: E402
from simulator.scheduling.system import System, find_system, list_systems  # noqa: E402
from simulator.workload import Trace  # noqa: E402

# LightLLM's iterations are one or two forward passes: a clock of equal iterations does not compare them.
SYSTEMS = [system.name for system in list_systems() if system.same_as is None and system.name != "lightllm"]
STEP = 0.01  # s
BLOCK, CAPACITY = 4, 60
LIMITS = {"max_num_seqs": 6, "max_num_batched_tokens": 256, "max_model_len": 128, "block_size": BLOCK}
TINY = DecoderConfig("llama", 300, 16, 16, 1, 1, 1, 16, max_position=128)  # knows no end of text


class ConstantStep:
    """A device on which every iteration lasts the same."""

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        return STEP

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        return [STEP] * n


def traffic(seed: int) -> Trace:
    """40 requests, now in bursts, now alone; every prompt is its own."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(0.03, 40) * rng.choice([0.0, 1.0, 4.0], 40)
    lengths = (rng.integers(2, 50, 40), rng.integers(1, 30, 40))
    return Trace.from_columns(np.cumsum(gaps), *(column.astype(np.int64) for column in lengths))


def simulated(name: str, trace: Trace, options: dict[str, Any]) -> np.ndarray:
    """``[n, 3]``: first scheduled, first token, finish."""
    system = find_system(name)
    options = {key: value for key, value in options.items() if key in system.options}
    env = simpy.Environment()
    cluster = Cluster(env, trace, trace.output_length, lambda: system.scheduler(**options), ConstantStep())
    env.run()
    records = cluster.records
    return np.array([records.first_scheduled_time, records.first_token_time, records.finish_time]).T


def make_llm(name: str) -> LLM:
    system = find_system(name)
    return LLM(
        TINY,
        system=name,
        scheduler_options=capacity(system),
        num_gpu_blocks=400,
        swap_space_blocks=400,
        **LIMITS,
    )


def capacity(system: System) -> dict[str, int]:
    return {system.capacity: CAPACITY * BLOCK if system.capacity_in_tokens else CAPACITY}


def executed(llm: LLM, trace: Trace) -> np.ndarray:
    """The same of the engine."""
    rng = np.random.default_rng(1)
    arrivals = [
        Arrival(
            float(at),
            rng.integers(3, 300, prompt).tolist(),
            SamplingParams(temperature=0, max_tokens=int(output)),
        )
        for at, prompt, output in zip(trace.arrival_time, trace.input_length, trace.output_length)
    ]
    run = replay(llm.executor, arrivals, RecordedClock([STEP]))
    return np.array([(r.scheduled, r.first_token, r.finish) for r in run.requests])


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_engine_and_the_simulator_agree_on_every_moment(name: str) -> None:
    trace, llm = traffic(7), make_llm(name)
    options = policy_arguments(llm.settings, llm.runner, name, capacity(find_system(name)))
    np.testing.assert_allclose(
        executed(llm, trace), simulated(name, trace, options), rtol=1e-9, equal_nan=True
    )
