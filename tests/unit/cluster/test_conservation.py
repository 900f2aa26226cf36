"""Nothing is lost: at every moment, whatever fails, every request that arrived is in exactly one state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster import ROUTERS, Fleet
from simulator.cluster.admission import AdmissionSpec
from simulator.cluster.autoscaler import AutoscaleSpec, RatioSpec, autoscale, balance
from simulator.cluster.failures import FailureSpec, Fault, install_failures
from simulator.cluster.handover import LinkSpec
from simulator.cluster.pool import State
from simulator.results import FINISHED, IN_TRANSFER, LOST, check_conservation

relaxed = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@st.composite
def failures(draw: Any, pools: list[str]) -> FailureSpec:
    faults = st.builds(
        lambda kind, pool, replica, at, duration: Fault(
            kind=kind, pool=pool, replica=replica, at=at, duration=None if kind == "death" else duration, factor=3.0
        ),
        st.sampled_from(["death", "slow", "cut"]), st.sampled_from(pools), st.integers(0, 2),
        st.floats(0, 3), st.floats(0.01, 2),
    )  # fmt: skip
    return FailureSpec(
        events=tuple(draw(st.lists(faults, max_size=6))),
        mtbf=draw(st.sampled_from([None, 0.5, 3.0])),
        repair=draw(st.sampled_from([0.0, 0.4])),
        max_retries=draw(st.integers(0, 3)),
    )


def build(make_pool: Any, split: bool) -> list[Any]:
    if not split:
        return [
            make_pool("a", 2, startup=0.1),
            make_pool("b", 1, {"max_num_seqs": 2}, gpus="x"),
            make_pool("c", 1, gpus="x"),
        ]
    return [
        make_pool("a", 2, role="prefill", kv_bytes_per_token=1000.0, startup=0.1),
        make_pool("b", 1, role="decode"),
        make_pool("c", 1, {"async_scheduling": True}, role="decode"),
    ]


@st.composite
def worlds(draw: Any) -> dict[str, Any]:
    """Everything that may happen to a fleet, drawn."""
    split = draw(st.booleans())
    return {
        "seed": draw(st.integers(0, 10_000)),
        "split": split,
        "router": draw(st.sampled_from(sorted(ROUTERS))),
        "staleness": draw(st.sampled_from([0.0, 0.17])),
        "admission": AdmissionSpec(
            max_queue=draw(st.sampled_from([None, 5])), max_wait=draw(st.sampled_from([None, 0.2137]))
        ),
        "link": LinkSpec(1e5, 0.01, draw(st.sampled_from(["fair", "fifo"])), draw(st.booleans())),
        "failures": draw(failures(["a", "b", "c"])),
        "signal": draw(st.sampled_from(["queue", "kv", "ttft"])),
    }


def build_world(world: dict[str, Any], make_pool: Any, random_trace: Any, *, stepped: bool = False) -> Fleet:
    rng, env = np.random.default_rng(world["seed"]), simpy.Environment()
    trace = random_trace(rng, 40, load=float(rng.uniform(0.5, 3)), closed=bool(rng.integers(2)))
    pools, spec = build(make_pool, world["split"]), world["failures"]
    options = {name: world[name] for name in ("router", "staleness", "admission", "link", "seed")}
    fleet = Fleet(
        env, trace, trace.max_tokens, pools, max_retries=spec.max_retries, stepped=stepped, **options
    )
    install_failures(fleet, spec)
    scaling = AutoscaleSpec(
        signal=world["signal"], target=0.5, max_replicas=4, interval=0.2917, scale_down_delay=0.5
    )
    env.process(autoscale(fleet, pools[0], scaling))
    if world["split"]:
        env.process(
            balance(fleet, pools[0], pools[1], RatioSpec(interval=0.1931, imbalance=1.0, switch=0.05))
        )
    return fleet


@relaxed
@given(world=worlds())
def test_every_request_is_somewhere_at_every_moment(world: Any, make_pool: Any, random_trace: Any) -> None:
    fleet = build_world(world, make_pool, random_trace)
    env, rng, trace = fleet.env, np.random.default_rng(world["seed"]), fleet.trace
    while not fleet.over:
        env.run(env.now + float(rng.exponential(0.1)))
        check_conservation(fleet.records.build(), fleet.injected)
        serving = [m for m in fleet.members if m.state in (State.READY, State.DRAINING)]
        held = [i for m in serving for i in m.outstanding]
        assert len(held) == len(set(held)) <= fleet.num_inside
        assert env.now < 1000
    records = fleet.records.build()
    check_conservation(records, len(trace))
    done = records.status == FINISHED
    assert np.array_equal(records.output_length[done], trace.output_length[done])
    for member in fleet.members:
        if member.state is State.READY:
            assert not member.outstanding
            assert member.replica.scheduler.blocks_used == 0
            assert member.replica.scheduler.num_running == member.replica.scheduler.num_waiting == 0


@relaxed
@given(world=worlds())
def test_skipping_equals_stepping_whatever_happens(world: Any, make_pool: Any, random_trace: Any) -> None:
    runs = []
    for stepped in (False, True):
        fleet = build_world(world, make_pool, random_trace, stepped=stepped)
        fleet.env.run(fleet.finished)
        runs.append((fleet, fleet.records.build()))
    (fast, skipped), (slow, stepped_) = runs
    assert fast.retries == slow.retries
    for name in ("status", "replica", "num_preemptions", "cached_tokens", "output_length"):
        assert np.array_equal(getattr(skipped, name), getattr(stepped_, name)), name
    for name in ("first_scheduled_time", "first_token_time", "finish_time"):
        np.testing.assert_allclose(getattr(skipped, name), getattr(stepped_, name), rtol=1e-9, err_msg=name)
    for a, b in zip(fast.members, slow.members, strict=True):
        assert (a.name, a.state) == (b.name, b.state)
        np.testing.assert_allclose([a.ready_time, a.stop_time], [b.ready_time, b.stop_time], rtol=1e-9)


@pytest.mark.parametrize("retries", [0, 3])
def test_a_death_costs_its_requests_or_starts_them_again(
    run_fleet: Any, make_pool: Any, random_trace: Any, retries: int
) -> None:
    trace = random_trace(np.random.default_rng(5), 60, load=3.0)
    death = FailureSpec(events=(Fault(kind="death", pool="pool", at=0.5),), max_retries=retries)
    fleet, records = run_fleet(
        trace, [make_pool(replicas=2)], lambda f: install_failures(f, death), max_retries=retries
    )
    lost = records.reason_counts(LOST)
    assert lost == ({} if retries else {"replica pool/0 died": records.count(LOST)})
    assert sum(fleet.retries) == (sum(r > 0 for r in fleet.retries) if retries else 0)
    assert (records.count(LOST) > 0) == (retries == 0)
    assert fleet.members[0].state is State.DEAD and fleet.members[0].stop_time == 0.5
    # nothing that began after the death is with the dead
    assert not np.any(records.first_scheduled_time[records.replica == 0] > 0.5)


def test_with_nobody_left_requests_are_lost_and_not_forgotten(
    run_fleet: Any, make_pool: Any, random_trace: Any
) -> None:
    trace = random_trace(np.random.default_rng(5), 40)
    death = FailureSpec(events=(Fault(kind="death", pool="pool", at=1.0),))
    _, records = run_fleet(trace, [make_pool(replicas=1)], lambda f: install_failures(f, death))
    assert records.reason_counts(LOST) == {"no replica is left to serve it": records.count(LOST)}
    assert records.count(LOST) > 0 < records.count(FINISHED)


def test_in_transfer_is_a_state_of_its_own(make_pool: Any, random_trace: Any) -> None:
    trace, env = random_trace(np.random.default_rng(2), 20), simpy.Environment()
    pools = [make_pool("p", 1, role="prefill", kv_bytes_per_token=1000.0), make_pool("d", 1, role="decode")]
    fleet = Fleet(env, trace, trace.max_tokens, pools, link=LinkSpec(1e4, 0.0, "fifo", False))
    env.run(2.0)
    records = fleet.records.build()
    check_conservation(records, fleet.injected)
    assert records.count(IN_TRANSFER) > 3
