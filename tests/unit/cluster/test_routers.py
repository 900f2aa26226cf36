"""Routers send requests where they say, and looking at replicas costs no exactness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster import ROUTERS, Cluster
from simulator.errors import SimError
from simulator.workload import Runs, Trace

relaxed = settings(
    max_examples=5, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
seeds = st.integers(0, 10_000)
TIMES = ("first_scheduled_time", "first_token_time", "finish_time")


def same(one: Any, other: Any, rtol: float = 1e-9) -> None:
    for name in ("status", "replica", "num_preemptions", "cached_tokens", "output_length"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for name in TIMES:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol, err_msg=name)


@pytest.mark.parametrize("router", sorted(ROUTERS))
@pytest.mark.parametrize("options", [{}, {"async_scheduling": True}], ids=["one", "ahead"])
@relaxed
@given(seed=seeds, closed=st.booleans(), staleness=st.sampled_from([0.0, 0.13]))
def test_skipping_equals_stepping_behind_every_router(
    router: str, options: Any, run_fleet: Any, make_pool: Any, random_trace: Any,
    seed: int, closed: bool, staleness: float,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    trace = random_trace(rng, 50, load=float(rng.uniform(0.5, 4)), closed=closed)
    pools = [
        make_pool("big", 2, options),
        make_pool("small", 1, options | {"max_num_seqs": 2}, weights={"chat": 3.0}),
    ]
    run = {"router": router, "staleness": staleness, "seed": seed, "imbalance": 3}
    (fast, skipped), (slow, stepped) = (run_fleet(trace, pools, stepped=s, **run) for s in (False, True))
    same(skipped, stepped)
    for a, b in zip(fast.members, slow.members, strict=True):
        assert a.replica.series.sum("iterations") == b.replica.series.sum("iterations")
        assert a.replica.itl.total == b.replica.itl.total


@pytest.mark.parametrize("router", ["round-robin", "random"])
@relaxed
@given(seed=seeds)
def test_the_fast_way_for_blind_routers_does_the_same(
    router: str, run_fleet: Any, make_pool: Any, random_trace: Any, seed: int
) -> None:
    trace, pool = random_trace(np.random.default_rng(seed), 60, load=2.0), make_pool(replicas=3)
    _, dynamic = run_fleet(trace, [pool], router=router, seed=seed)
    env = simpy.Environment()
    fast = Cluster(
        env,
        trace,
        trace.max_tokens,
        pool.make_scheduler,
        pool.steptime,
        num_replicas=3,
        router=router,
        seed=seed,
    )
    env.run()
    same(fast.records.build(), dynamic)


def spread(trace: Trace, run_fleet: Any, pools: Any, **options: Any) -> np.ndarray:
    return np.asarray(run_fleet(trace, pools, **options)[1].replica)


def test_least_outstanding_prefers_the_empty_replica(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns([0.0, 0.01, 0.02, 0.03, 5.0], [8] * 5, [100, 2, 2, 2, 2])
    assert spread(trace, run_fleet, [make_pool(replicas=3)], router="least-outstanding").tolist() == [
        0,
        1,
        2,
        0,
        0,
    ]


def test_least_kv_sees_tokens_and_not_requests(run_fleet: Any, make_pool: Any) -> None:
    # one long prompt on replica 0; the short ones all go to replica 1, although it has more requests
    trace = Trace.from_columns([0.0, 0.1, 0.2, 0.3], [120, 4, 4, 4], [40, 40, 40, 40])
    assert spread(trace, run_fleet, [make_pool(replicas=2)], router="least-kv").tolist() == [0, 1, 1, 1]


def test_an_old_picture_sends_the_herd_to_one_replica(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns(0.01 * np.arange(1, 9), [8] * 8, [90] * 8)
    old = spread(trace, run_fleet, [make_pool(replicas=2)], router="least-outstanding", staleness=1.0)
    new = spread(trace, run_fleet, [make_pool(replicas=2)], router="least-outstanding")
    assert np.bincount(old, minlength=2).tolist() == [8, 0]
    assert np.bincount(new).tolist() == [4, 4]


def test_a_session_stays_where_it_began(run_fleet: Any, make_pool: Any, random_trace: Any) -> None:
    trace = random_trace(np.random.default_rng(3), 80)
    where = spread(trace, run_fleet, [make_pool(replicas=4)], router="session-affinity")
    homes = [set(where[trace.session == s].tolist()) for s in range(20)]
    assert all(len(home) <= 1 for home in homes)
    assert len(set().union(*homes)) == 4


def prefixes(n: int) -> Trace:
    """*n* requests over four long shared prompts, in random order."""
    group = np.random.default_rng(1).integers(0, 4, n)
    runs = Runs(np.arange(n + 1), group.astype(np.int64), np.full(n, 40))
    return Trace.from_columns(0.05 * np.arange(n), [60] * n, [4] * n, content=runs)


def test_prefix_aware_finds_more_in_the_caches(run_fleet: Any, make_pool: Any) -> None:
    trace, pools = prefixes(60), [make_pool(replicas=4)]
    hits = {}
    for router, staleness in (("round-robin", 0.0), ("prefix-aware", 0.0), ("prefix-aware", 1.0)):
        records = run_fleet(trace, pools, router=router, staleness=staleness)[1]
        hits[router, staleness] = int(records.cached_tokens.sum())
    assert hits["prefix-aware", 0.0] == 40 * (60 - 4)  # each prompt is computed once
    assert hits["round-robin", 0.0] < hits["prefix-aware", 1.0] < hits["prefix-aware", 0.0]


def test_weights_are_kept_per_class(run_fleet: Any, make_pool: Any) -> None:
    n = 60
    trace = Trace.from_columns(0.1 * np.arange(n), [8] * n, [4] * n, slo_class=["chat", "batch"] * (n // 2))
    pools = [make_pool("a", 1, weights={"chat": 3.0, "batch": 0.0}), make_pool("b", 1)]
    where = spread(trace, run_fleet, pools, router="weighted")
    assert np.bincount(where[0::2]).tolist() == [23, 7] or np.bincount(where[0::2]).tolist() == [22, 8]
    assert set(where[1::2].tolist()) == {1}


def test_a_central_queue_fills_places_and_no_more(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns(np.zeros(30), [8] * 30, [20] * 30)
    fleet, records = run_fleet(trace, [make_pool(replicas=2)], router="central-queue")
    assert max(m.replica.series.points()["num_waiting"].max() for m in fleet.members) == 0
    assert np.all(np.diff(records.first_scheduled_time) >= 0)


def test_each_models_pool_is_routed_by_itself(run_fleet: Any, make_pool: Any) -> None:
    """Two models in turn: each pool's round robin goes over both of its replicas, and its old picture is its own."""
    n = 200
    trace = Trace.from_columns(0.02 * np.arange(n), [8] * n, [20] * n, model=["a", "b"] * (n // 2))
    for router, staleness in (("least-outstanding", 0.1), ("round-robin", 0.0)):
        pools = [make_pool(name, 2, serves=frozenset({name})) for name in "ab"]
        where = spread(trace, run_fleet, pools, router=router, staleness=staleness)
        counts = np.bincount(where, minlength=4)
        assert counts.min() >= (n // 4 if router == "round-robin" else n // 8), f"{router}: {counts}"


def test_a_central_queue_is_one_queue_for_all_models(run_fleet: Any, make_pool: Any) -> None:
    names = ["a", "b"] * 15
    trace = Trace.from_columns(0.001 * np.arange(30), [8] * 30, [20] * 30, model=names)
    pool = make_pool("pool", 1, serves=frozenset("ab"))
    _, records = run_fleet(trace, [pool], router="central-queue")
    assert np.all(np.diff(records.first_scheduled_time) >= 0)


def test_unknown_routers_and_staleness_are_named(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns([0.0], [8], [4])
    with pytest.raises(SimError, match="did you mean 'least-kv'"):
        run_fleet(trace, [make_pool()], router="least-kw")
    with pytest.raises(SimError, match="staleness -1"):
        run_fleet(trace, [make_pool()], staleness=-1)
