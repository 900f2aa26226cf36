"""Every serving system behind a router that looks at it, with replicas that die: exact, and nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster import Fleet, Pool
from simulator.results import check_conservation
from simulator.scheduling.system import System, list_systems


class GrowingStep:
    """Step times that grow in everything, so that order is told by the clock."""

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        work = sum(chunk * (1 + 0.001 * (context + chunk)) for chunk, context in prefills)
        return 0.010 + 0.0003 * num_decodes + 0.00001 * decode_context + 0.0002 * work

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        return [self.seconds(num_decodes, decode_context + i * num_decodes) for i in range(n)]


@pytest.mark.parametrize("system", list_systems(), ids=lambda system: system.name)
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 10_000), samples=st.sampled_from([1, 3]))
def test_skipping_equals_stepping_behind_a_router(
    system: System, make_small: Any, random_trace: Any, seed: int, samples: int
) -> None:
    rng = np.random.default_rng(seed)
    trace = random_trace(rng, 30, load=float(rng.uniform(0.5, 3)))
    if samples > 1:
        trace = trace.replace(n=rng.integers(1, samples + 1, len(trace)))
    limits = np.where(trace.max_tokens > 0, trace.max_tokens, trace.output_length)
    death = float(rng.uniform(0, 2))
    runs = []
    for stepped in (False, True):
        pool = Pool("pool", lambda: make_small(system), GrowingStep(), 3)  # type: ignore[arg-type]
        fleet = Fleet(simpy.Environment(), trace, limits, [pool], router="least-kv", stepped=stepped)
        fleet.env.timeout(death).callbacks.append(lambda _, fleet=fleet: fleet.kill(fleet.members[0]))
        fleet.env.run(fleet.finished)
        records = fleet.records.build()
        check_conservation(records, len(trace))
        runs.append(records)
    skipped, stepped_ = runs
    for name in ("status", "replica", "num_preemptions", "cached_tokens", "output_length"):
        assert np.array_equal(getattr(skipped, name), getattr(stepped_, name)), name
    for name in ("first_scheduled_time", "first_token_time", "finish_time"):
        np.testing.assert_allclose(getattr(skipped, name), getattr(stepped_, name), rtol=1e-9, err_msg=name)
