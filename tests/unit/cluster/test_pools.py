"""Pools hand requests over, grow and shrink, share GPUs, and cost what they cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from simulator.cluster.admission import AdmissionSpec
from simulator.cluster.autoscaler import AutoscaleSpec, RatioSpec, autoscale, balance
from simulator.cluster.bill import bills, gpus_over_time, total_usd
from simulator.cluster.failures import FailureSpec, Fault, install_failures
from simulator.cluster.handover import LinkSpec
from simulator.cluster.pool import Pool, State
from simulator.results import FINISHED, LOST, REJECTED
from simulator.results.classes import class_table
from simulator.scheduling import VllmV1
from simulator.scheduling.sglang import Sglang
from simulator.workload import Trace


class Constant:
    """Every step lasts 0.1 s."""

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        return 0.1

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        return [0.1] * n


def stages(records: Any, i: int = 0) -> tuple[float, float, float]:
    return records.first_scheduled_time[i], records.first_token_time[i], records.finish_time[i]


# prefill and decode


def disaggregated(make_pool: Any, **decode: Any) -> list[Any]:
    return [
        make_pool("p", 1, role="prefill", kv_bytes_per_token=10.0, steptime=Constant()),
        make_pool("d", 1, decode or None, role="decode", steptime=Constant()),
    ]


@pytest.mark.parametrize("ahead", [False, True])
def test_the_way_of_one_request_over_two_pools(run_fleet: Any, make_pool: Any, ahead: bool) -> None:
    trace = Trace.from_columns([0.0], [20], [4])
    fleet, records = run_fleet(
        trace, disaggregated(make_pool, async_scheduling=ahead), link=LinkSpec(1000.0, 0.3, "fair", False)
    )
    # prompt 0.1 s, 200 B at 1000 B/s + 0.3 s, then three tokens of 0.1 s
    assert stages(records) == pytest.approx((0.0, 0.1, 0.1 + 0.5 + 0.3))
    assert fleet.handover.bytes_sent == 200 and fleet.handover.seconds == [pytest.approx(0.5)]
    assert records.output_length[0] == 4 and records.replica[0] == 1
    gaps = fleet.members[1].replica.itl
    assert gaps.total == 3 and gaps.mean == pytest.approx((0.6 + 0.1 + 0.1) / 3)
    assert (
        fleet.members[1].replica.series.sum("prefill_tokens") == 1
    )  # the first output token, nothing of the prompt


def test_an_answer_of_one_token_needs_no_decode_pool(run_fleet: Any, make_pool: Any) -> None:
    fleet, records = run_fleet(
        Trace.from_columns([0.0], [20], [1]), disaggregated(make_pool), link=LinkSpec(1.0, 0.0, "fair", False)
    )
    assert records.finish_time[0] == pytest.approx(0.1) and fleet.handover.bytes_sent == 0


def test_handing_over_at_no_cost_takes_as_many_steps_as_one_replica(
    run_fleet: Any, make_pool: Any, random_trace: Any
) -> None:
    """One request at a time over a link that costs nothing: the same times as without the pools."""
    lengths = np.random.default_rng(1).integers(2, 40, (2, 20))
    trace = Trace.from_columns(10.0 * np.arange(20), lengths[0], lengths[1])
    _, apart = run_fleet(trace, disaggregated(make_pool), link=LinkSpec(1e30, 0.0, "fair", False))
    _, whole = run_fleet(trace, [make_pool("w", 1, steptime=Constant())])
    np.testing.assert_allclose(apart.first_token_time, whole.first_token_time)
    np.testing.assert_allclose(apart.finish_time, whole.finish_time)


def sglang(**options: Any) -> Sglang:
    limits: dict[str, Any] = {
        "max_total_tokens": 2000,
        "max_running_requests": 8,
        "num_reserved_decode_tokens": 20,
    }
    return Sglang(**limits | options)


def vllm() -> VllmV1:
    return VllmV1(
        num_gpu_blocks=60, block_size=4, max_num_seqs=6, max_num_batched_tokens=400, max_model_len=160
    )


@pytest.mark.parametrize("ahead", [False, True])
def test_sglang_takes_in_what_brings_its_kv(run_fleet: Any, make_pool: Any, ahead: bool) -> None:
    """Its prompt runs no forward, and nobody's decoding waits for it."""
    decode = Pool("d", lambda: sglang(disable_overlap_schedule=not ahead), Constant(), 1, role="decode")
    pools = [make_pool("p", 2, role="prefill", kv_bytes_per_token=10.0, steptime=Constant()), decode]
    trace = Trace.from_columns([0.0, 0.25], [20, 20], [9, 4])
    fleet, records = run_fleet(trace, pools, link=LinkSpec(1000.0, 0.0, "fair", False))
    assert stages(records, 0) == pytest.approx((0.0, 0.1, 0.1 + 0.2 + 0.8))
    first = records.first_token_time[1]
    assert first == pytest.approx(0.35)
    # its KV is there at 0.55, in the middle of a pass: it joins the next, or one later where that is decided already
    assert records.finish_time[1] == pytest.approx((0.7 if ahead else 0.6) + 3 * 0.1)
    series = fleet.members[2].replica.series
    assert series.sum("prefill_tokens") == 2  # the first output token of each, nothing of the prompts
    assert fleet.members[2].replica.scheduler.blocks_used == 0


def test_what_runs_keeps_room_before_sglang_takes_in_more(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns([0.0, 0.0, 0.0], [20] * 3, [6] * 3)
    finish = []
    for reserved in (0, 400):
        decode = Pool(
            "d",
            lambda reserved=reserved: sglang(max_total_tokens=900, num_reserved_decode_tokens=reserved),  # type: ignore[misc]
            Constant(),
            1,
            role="decode",
        )
        pools = [make_pool("p", 3, role="prefill", kv_bytes_per_token=1.0, steptime=Constant()), decode]
        finish.append(np.sort(run_fleet(trace, pools, link=LinkSpec(1e9, 0.0, "fair", False))[1].finish_time))
    np.testing.assert_allclose(finish[0], finish[0][0])  # together
    assert np.all(np.diff(finish[1])[1:] > 0.4)  # 2 x 400 tokens are kept free beside the first two


def test_kv_occupies_the_prefill_replica_until_it_has_left(run_fleet: Any, make_pool: Any) -> None:
    """60 blocks of 4 tokens hold two prompts of 100; the third waits for the first transfer to end."""
    trace = Trace.from_columns([0.0, 0.0, 0.0], [100] * 3, [2] * 3)
    slow, fast = LinkSpec(1000.0, 0.0, "fifo", False), LinkSpec(1e12, 0.0, "fifo", False)
    starts = []
    for make in (vllm, lambda: sglang(max_total_tokens=240, disable_overlap_schedule=True)):
        for link in (slow, fast):
            pools = [
                Pool("p", make, Constant(), 1, role="prefill", kv_bytes_per_token=10.0),
                make_pool("d", 3, role="decode", steptime=Constant()),
            ]
            fleet, records = run_fleet(trace, pools, link=link)
            starts.append(np.sort(records.first_scheduled_time))
            assert fleet.members[0].replica.scheduler.blocks_used == 0  # all of it is back in the end
    for held, free in (starts[:2], starts[2:]):
        assert held == pytest.approx([0.0, 0.0, 0.1 + 1.0])  # 1000 B at 1000 B/s
        assert free == pytest.approx([0.0, 0.0, 0.1])


@pytest.mark.parametrize("system", ["vllm", "sglang"])
def test_samples_of_one_prompt_share_what_was_sent_once(run_fleet: Any, make_pool: Any, system: str) -> None:
    trace = Trace.from_columns([0.0, 0.05], [20, 12], [5, 4], n=[3, 1])
    make = vllm if system == "vllm" else sglang
    decode = Pool("d", make, Constant(), 1, role="decode")
    pools = [make_pool("p", 1, role="prefill", kv_bytes_per_token=10.0, steptime=Constant()), decode]
    fleet, records = run_fleet(trace, pools, link=LinkSpec(1000.0, 0.0, "fair", True))
    assert fleet.handover.bytes_sent == 200 + 120
    assert records.output_length.tolist() == [15, 4]
    assert (
        records.finish_time[0] < 1.2
    )  # together: four more tokens each, a sequence after the other would take 12
    scheduler = fleet.members[1].replica.scheduler
    assert scheduler.blocks_used == 0 and scheduler.num_running == 0


def test_a_dead_prefill_replica_takes_its_transfers_along(run_fleet: Any, make_pool: Any) -> None:
    pools = [
        make_pool("p", 2, role="prefill", kv_bytes_per_token=10.0, steptime=Constant()),
        disaggregated(make_pool)[1],
    ]
    death = FailureSpec(events=(Fault(kind="death", pool="p", at=0.5),))
    fleet, records = run_fleet(
        Trace.from_columns([0.0], [20], [4]),
        pools,
        lambda f: install_failures(f, death),
        link=LinkSpec(200.0, 0.0, "fair", False),
    )
    assert fleet.retries == [1]
    assert stages(records) == pytest.approx((0.5, 0.6, 0.6 + 1.0 + 0.3))


def test_replicas_change_sides_where_one_side_waits(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns(np.linspace(0, 2, 60), [60] * 60, [2] * 60)  # all prompt
    pools = [
        make_pool("p", 1, role="prefill", kv_bytes_per_token=1.0, steptime=Constant()),
        make_pool("d", 3, role="decode", steptime=Constant()),
    ]
    link = LinkSpec(1e9, 0.0, "fair", False)

    def adapt(fleet: Any) -> None:
        fleet.env.process(balance(fleet, *pools, RatioSpec(interval=0.5, imbalance=3.0, switch=0.1)))

    _, fixed = run_fleet(trace, pools, link=link)
    fleet, moved = run_fleet(trace, pools, adapt, link=link)
    assert len(fleet.of(pools[0], State.READY)) == 3
    assert moved.finish_time.max() < 0.6 * fixed.finish_time.max()
    # a machine that changes sides is paid for once
    assert gpus_over_time(bills(fleet.members, 10.0), 10.0)[1].max() == 4


# growing and shrinking


def test_a_pool_grows_with_its_queue_and_shrinks_again(run_fleet: Any, make_pool: Any) -> None:
    burst = np.concatenate((np.linspace(0, 1, 80), [30.0, 60.0]))
    trace = Trace.from_columns(burst, [8] * 82, [20] * 82)
    pool = make_pool("pool", 1, steptime=Constant(), startup=1.5, usd_per_hour=3600.0)
    spec = AutoscaleSpec(signal="queue", target=5, max_replicas=4, interval=1.0, scale_down_delay=5.0)
    fleet, records = run_fleet(
        trace, [pool], lambda f: f.env.process(autoscale(f, pool, spec)), router="central-queue"
    )
    _, fixed = run_fleet(trace, [pool])
    lines = bills(fleet.members, fleet.env.now)
    assert len(lines) == 4
    assert all(line.ready == pytest.approx(line.start + 1.5) for line in lines[1:])
    assert all(line.state == "stopped" for line in lines[1:]) and lines[0].state == "ready"
    assert records.finish_time.max() == pytest.approx(fixed.finish_time.max(), rel=0.01)  # the stragglers
    assert records.finish_time[:80].max() < fixed.finish_time[:80].max()
    seconds = sum((line.stop if line.stop == line.stop else fleet.env.now) - line.start for line in lines)
    assert total_usd(lines) == pytest.approx(seconds)  # 3600 $ per hour
    times, gpus = gpus_over_time(lines, fleet.env.now)
    assert gpus[0] == 1 and gpus.max() == 4 and gpus[-1] == 0
    assert float(np.sum(np.diff(times) * gpus[:-1])) == pytest.approx(seconds)


def test_a_pool_keeps_what_it_began_with_for_the_delay(run_fleet: Any, make_pool: Any) -> None:
    """Kubernetes notes the number at hand as the first recommendation (horizontal.go), so an idle start keeps it."""
    trace = Trace.from_columns([0.0, 20.0], [8, 8], [4, 4])
    pool = make_pool("pool", 3, steptime=Constant())
    spec = AutoscaleSpec(signal="queue", target=5, max_replicas=4, interval=1.0, scale_down_delay=7.5)
    fleet, _ = run_fleet(trace, [pool], lambda f: f.env.process(autoscale(f, pool, spec)))
    stops = sorted(line.stop for line in bills(fleet.members, fleet.env.now) if line.stop == line.stop)
    assert stops == [8.0, 8.0]


def test_a_pool_grows_to_what_the_signal_asks_for_and_not_one_more(run_fleet: Any, make_pool: Any) -> None:
    """Seven run, 29 wait, one may wait per replica: 29 replicas, though in floating point 7 (29 / 7) is more."""
    assert math.ceil(7 * (29 / 7)) == 30
    trace = Trace.from_columns([0.0] * 36, [8] * 36, [30] * 36)
    pool = make_pool("pool", 7, {"max_num_seqs": 1}, steptime=Constant())
    spec = AutoscaleSpec(signal="queue", target=1, max_replicas=100, interval=1.0)
    fleet, _ = run_fleet(
        trace, [pool], lambda f: f.env.process(autoscale(f, pool, spec)), router="central-queue"
    )
    assert len(fleet.members) == 29


@pytest.mark.parametrize(("signal", "target"), [("kv", 0.2), ("ttft", 300.0)])
def test_other_signals_scale_too(run_fleet: Any, make_pool: Any, signal: str, target: float) -> None:
    trace = Trace.from_columns(np.linspace(0, 20, 150), [30] * 150, [20] * 150)
    pool = make_pool("pool", 1, steptime=Constant())
    spec = AutoscaleSpec(signal=signal, target=target, max_replicas=3, interval=1.0)  # type: ignore[arg-type]
    fleet, _ = run_fleet(
        trace, [pool], lambda f: f.env.process(autoscale(f, pool, spec)), router="least-outstanding"
    )
    assert len(fleet.members) == 3


def test_a_drained_replica_finishes_what_it_has(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns([0.0, 0.0, 1.0, 1.1], [8] * 4, [30] * 4)

    def drain(fleet: Any) -> None:
        fleet.env.timeout(0.5).callbacks.append(lambda _: fleet.drain(fleet.members[0]))

    fleet, records = run_fleet(trace, [make_pool(steptime=Constant())], drain)
    assert records.replica.tolist() == [0, 1, 1, 1] and records.count(FINISHED) == 4
    assert fleet.members[0].stop_time == pytest.approx(3.0)


# trouble


def test_a_slow_replica_takes_longer_while_it_is_slow(run_fleet: Any, make_pool: Any) -> None:
    slow = FailureSpec(events=(Fault(kind="slow", pool="pool", at=0.95, duration=1.0, factor=2.0),))
    _, records = run_fleet(
        Trace.from_columns([0.0], [8], [30]),
        [make_pool(replicas=1, steptime=Constant())],
        lambda f: install_failures(f, slow),
    )
    # ten steps end by 1.0; those that begin before 1.95 last 0.2 s each: five; the rest 0.1 s
    assert records.finish_time[0] == pytest.approx(1.0 + 5 * 0.2 + 15 * 0.1)


def test_a_cut_keeps_new_requests_away_and_answers_come_through(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns([0.0, 0.5, 0.6], [8] * 3, [20] * 3)
    cut = FailureSpec(events=(Fault(kind="cut", pool="pool", at=0.1, duration=3.0),))
    _, two = run_fleet(
        trace,
        [make_pool(steptime=Constant())],
        lambda f: install_failures(f, cut),
        router="least-outstanding",
    )
    assert two.replica.tolist() == [0, 1, 1] and two.finish_time[0] == pytest.approx(2.0)
    _, one = run_fleet(
        trace, [make_pool(replicas=1, steptime=Constant())], lambda f: install_failures(f, cut)
    )
    assert one.first_scheduled_time.tolist() == pytest.approx([0.0, 3.1, 3.1])


# models, classes, limits


def test_requests_go_where_their_model_is(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns(0.1 * np.arange(6), [8] * 6, [4] * 6, model=["x", "y", "z"] * 2)
    pools = [make_pool("a", 1, serves=frozenset("x")), make_pool("b", 2, serves=frozenset("xy"))]
    _, records = run_fleet(trace, pools)
    assert records.status[2] == records.status[5] == REJECTED
    assert records.reason_counts(REJECTED) == {"no pool serves model z": 2}
    assert set(records.replica[[1, 4]].tolist()) <= {1, 2}


def test_faults_that_overlap_each_end_for_themselves(run_fleet: Any, make_pool: Any) -> None:
    """Twice as slow from 1 to 9 s, three times from 3 to 5 s; cut from 1 to 9 s and from 3 to 5 s."""
    spans = ((1.0, 8.0, 2.0), (3.0, 2.0, 3.0))
    for kind in ("slow", "cut"):
        events = tuple(
            Fault(kind=kind, pool="pool", at=at, duration=lasts, factor=by) for at, lasts, by in spans
        )  # type: ignore[arg-type]
        seen: list[tuple[float, bool]] = []

        def install(fleet: Any, events: Any = events, seen: Any = seen) -> None:
            def look() -> Any:
                for _ in range(6):
                    yield fleet.env.timeout(2.0)
                    seen.append((fleet.members[0].paced.slow, fleet.members[0].reachable))

            install_failures(fleet, FailureSpec(events=events))
            fleet.env.process(look())

        trace = Trace.from_columns([0.0, 14.0], [8, 8], [4, 4])
        run_fleet(trace, [make_pool("pool", 1, steptime=Constant())], install)
        factors = [2.0, 6.0, 2.0, 2.0, 1.0, 1.0] if kind == "slow" else [1.0] * 6
        reached = [True] * 6 if kind == "slow" else [False] * 4 + [True] * 2
        assert seen == list(zip(factors, reached))


def test_replicas_that_take_turns_slow_each_other_down_only_while_both_work(
    run_fleet: Any, make_pool: Any
) -> None:
    trace = Trace.from_columns([0.0, 1.0], [8, 8], [30, 5], model=["x", "y"])
    pools = [make_pool(name, 1, steptime=Constant(), serves=frozenset(name), gpus="g") for name in ("x", "y")]
    _, records = run_fleet(trace, pools)
    assert records.finish_time[1] == pytest.approx(1.0 + 5 * 0.2, abs=0.11)
    assert records.finish_time[0] == pytest.approx(3.0 + 5 * 0.1, abs=0.11)


def test_a_bucket_lets_through_its_rate_and_its_burst(run_fleet: Any, make_pool: Any) -> None:
    n = 50
    trace = Trace.from_columns(0.1 * np.arange(n), [8] * n, [2] * n, tenant=["a", "b"] * (n // 2))
    limits = AdmissionSpec(rate=2.0, burst=3)
    _, records = run_fleet(trace, [make_pool(steptime=Constant())], admission=limits)
    assert records.count(FINISHED) == 3 + int(4.9 * 2)
    assert list(records.reason_counts(REJECTED)) == ["rate limit: 2 requests/s, bursts of 3"]
    _, each = run_fleet(
        trace, [make_pool(steptime=Constant())], admission=AdmissionSpec(rate=2.0, burst=3, per_tenant=True)
    )
    assert each.count(FINISHED) == 2 * (3 + int(4.8 * 2))


def test_queues_are_bounded_where_they_are_told_to(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns(0.01 * np.arange(40), [8] * 40, [30] * 40)
    pool = make_pool(replicas=1, steptime=Constant())
    fleet, records = run_fleet(trace, [pool], admission=AdmissionSpec(max_queue=4))
    assert fleet.members[0].replica.series.points()["num_waiting"].max() <= 4
    assert records.reason_counts(REJECTED) == {
        "overload: 4 requests wait (max_queue)": records.count(REJECTED)
    }
    _, records = run_fleet(trace, [pool], admission=AdmissionSpec(max_outstanding=7))
    assert records.count(FINISHED) == 7
    _, records = run_fleet(trace, [pool], router="central-queue", admission=AdmissionSpec(max_wait=0.5))
    left = records.status == REJECTED
    assert records.count(FINISHED) > 0 < records.count(REJECTED)
    np.testing.assert_allclose(records.finish_time[left] - records.arrival_time[left], 0.5)


def test_what_can_wait_is_shed_first(run_fleet: Any, make_pool: Any) -> None:
    n = 40
    trace = Trace.from_columns(0.01 * np.arange(n), [8] * n, [30] * n, slo_class=["chat", "batch"] * (n // 2))
    pool = make_pool(replicas=1, steptime=Constant())
    _, records = run_fleet(trace, [pool], admission=AdmissionSpec(max_queue_by_class={"batch": 3}))
    assert np.all(records.status[0::2] == FINISHED)
    assert records.reason_counts(REJECTED) == {
        "overload: 3 requests wait (max_queue_by_class batch)": records.count(REJECTED)
    }
    assert 0 < records.count(REJECTED) < n // 2


def test_attainment_counts_those_who_got_nothing(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns(
        np.zeros(20),
        [8] * 20,
        [10] * 20,
        slo_class=["chat", "batch"] * 10,
        tenant=["t"] * 20,
        request_id=None,
    )
    _, records = run_fleet(
        trace, [make_pool(replicas=1, steptime=Constant())], admission=AdmissionSpec(max_outstanding=12)
    )
    from simulator.results import Categories

    records = records.__class__(
        **{**records.__dict__, "slo_class": Categories(trace.slo_class.codes, trace.slo_class.names)}
    )
    rows = {
        row.name: row
        for row in class_table(records, 2.0, {"chat": {"ttft": 150.0}, "batch": {"e2el": 1e6}}, {})
    }
    # 12 are let in, six run at once: three of each class get their first token after 0.1 s
    assert rows["chat"].requests == 10 and rows["chat"].finished == 6
    assert rows["chat"].attainment == pytest.approx(0.3) and rows["batch"].attainment == pytest.approx(0.6)
    assert rows["all"].goodput == pytest.approx((3 + 6) / 2.0)


def test_a_replica_that_is_cut_off_for_good_is_no_hope(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns([0.0, 0.5], [8] * 2, [20] * 2)
    cut = FailureSpec(events=(Fault(kind="cut", pool="pool", at=0.1),))
    _, records = run_fleet(
        trace, [make_pool(replicas=1, steptime=Constant())], lambda f: install_failures(f, cut)
    )
    assert records.status.tolist() == [FINISHED, LOST]


def test_an_autoscaler_replaces_the_dead(run_fleet: Any, make_pool: Any) -> None:
    trace = Trace.from_columns([0.0, 0.5], [8] * 2, [20] * 2)
    pool = make_pool(replicas=1, steptime=Constant(), startup=2.0)
    death = FailureSpec(events=(Fault(kind="death", pool="pool", at=0.1),))

    def faults(fleet: Any) -> None:
        install_failures(fleet, death)
        fleet.env.process(
            autoscale(fleet, pool, AutoscaleSpec(signal="queue", target=9, max_replicas=1, interval=1.0))
        )

    fleet, records = run_fleet(trace, [pool], faults)
    assert records.first_scheduled_time.tolist() == pytest.approx([3.0, 3.0]) and fleet.retries == [1, 0]
