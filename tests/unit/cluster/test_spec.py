"""A cluster file says what it means, and what is wrong with it in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator import ClusterSpec, Deployment, simulate
from simulator.cluster.admission import AdmissionSpec
from simulator.cluster.resolve import resolve_pools
from simulator.errors import SimError
from simulator.models import load_model
from simulator.results import FINISHED, check_conservation
from simulator.workload import Trace

H100 = {"deployment": {"model": "llama-3.1-8b", "gpu": "h100"}}


@pytest.fixture
def trace() -> Trace:
    rng = np.random.default_rng(0)
    return Trace.from_columns(
        np.cumsum(rng.exponential(0.05, 200)), rng.integers(10, 2000, 200), rng.integers(2, 200, 200)
    )


def one(**pool: Any) -> ClusterSpec:
    return ClusterSpec.of(pools={"p": {**H100, **pool}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pools: {}", "pools: {}: Dictionary should have at least 1 item"),
        ("pools: {a: {replicas: 2}}", "pools.a.deployment: must be stated"),
        ("pools: {a: {deployment: {gpu: h100}, replicas: 0}}", "pools.a.replicas: 0: Input should be greater"),
        ("pools: {a: {deployment: {gpus: h100}}}", "unknown option 'pools.a.deployment.gpus'"),
        ("pools: {a: {deployment: {}, usd_per_hour: .nan}}", "pools.a.usd_per_hour: nan"),
        ("pools: {a: {deployment: {}}}\nslo: {x: {ttfb: 3}}", "unknown objective 'ttfb'"),
        ("pools: {a: {deployment: {}}}\nslo: {x: {ttft: -3}}", "x.ttft -3.0: must be above 0"),
        ("pools: [1, 2", "is not YAML"),
        ("3", "must hold a mapping"),
        ("pools: {a: {deployment: {}, autoscale: {signal: queue, target: 1, min_replicas: 3, max_replicas: 2}}}",
         "max_replicas 2: must be at least min_replicas 3"),
        ("pools: {a: {deployment: {}}}\nfailures: {events: [{kind: death, pool: a, at: 1, duration: 3}]}",
         "duration 3: a death has none"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SimError) as caught:
        ClusterSpec.load(path)
    assert message in str(caught.value) and str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pools": {"p": {**H100, "role": "prefill"}}}, "a prefill pool needs a decode pool"),
        ({"pools": {"p": H100}, "transfer": {"bandwidth": 1e9}}, "there are no prefill and decode pools"),
        ({"pools": {"p": {**H100, "role": "prefill"}, "d": {**H100, "role": "decode"}}}, "transfer: must be stated"),
        ({"pools": {"p": H100}, "ratio": {}}, "needs exactly one prefill and one decode pool"),
        ({"pools": {"p": H100}, "router": "least-loaded"}, "unknown router 'least-loaded'"),
        ({"pools": {"p": {**H100, "partition": 0.5, "gpus": "x"}}}, "two ways to share"),
        ({"pools": {"p": {"deployment": {"num_replicas": 3}}}}, "are the cluster's"),
        ({"pools": {"p": {"deployment": {"system": "sglang"}, "partition": 0.5}}}, "state num_gpu_blocks"),
        ({"pools": {"p": {**H100, "role": "prefill"},
                    "d": {"deployment": {"system": "tgi"}, "role": "decode"}}, "transfer": {"bandwidth": 1e9}},
         "system tgi cannot admit a request that brings its KV"),
        ({"pools": {"p": H100}, "failures": {"events": [{"kind": "cut", "pool": "p", "replica": 1, "at": 1}]}},
         "replica 1: must be below 1, the number of replicas"),
        ({"pools": {"p": H100}, "failures": {"events": [{"kind": "death", "pool": "q", "at": 1}]}}, "must be one of p"),
        ({"pools": {"a": {"deployment": {"default_max_tokens": 5}}, "b": {"deployment": {"default_max_tokens": 9}}}},
         "default_max_tokens: must be the same in all pools, not a 5, b 9"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(trace: Trace, values: Any, message: str) -> None:
    with pytest.raises(SimError, match=message):
        simulate(trace, ClusterSpec.of(**values))


def test_a_cluster_of_one_pool_is_a_deployment_with_replicas(trace: Trace) -> None:
    plain = simulate(trace, Deployment(gpu="h100", num_replicas=3))
    same = simulate(trace, one(replicas=3))
    looked_at = simulate(trace, one(replicas=3).model_copy(update={"admission": AdmissionSpec()}))
    for other in (same, simulate(trace, one(replicas=3, weight=2.0))):
        assert plain.records.finish_time.tobytes() == other.records.finish_time.tobytes()
    np.testing.assert_allclose(plain.records.finish_time, looked_at.records.finish_time, rtol=1e-9)


def test_different_gpus_and_systems_side_by_side(trace: Trace) -> None:
    pools = {"a": H100, "b": {"deployment": {"gpu": "l40s", "system": "sglang"}, "replicas": 2}}
    result = simulate(
        trace, ClusterSpec.of(pools=pools, router="least-outstanding"), goodput={"ttft": 1000.0}
    )
    assert result.records.count(FINISHED) == len(trace)
    assert list(result.replicas["gpu"]) == ["h100-sxm-80gb", "l40s-48gb", "l40s-48gb"]
    share = np.bincount(result.records.replica)
    assert share[0] > share[1]  # the faster one has fewer outstanding, so it gets more
    assert result.usd == pytest.approx(sum(result.replicas["usd"]))
    assert result.gpu_hours == pytest.approx(3 * result.end_time / 3600)
    assert result.classes[0].goodput == pytest.approx(result.summary["request_goodput"], rel=1e-9)


@pytest.mark.parametrize("until", [0.4, 2.0, 5.0])
@pytest.mark.parametrize("apart", [False, True])
def test_a_run_that_is_cut_off_adds_up(trace: Trace, until: float, apart: bool) -> None:
    roles = ("prefill", "decode") if apart else ("serve", "serve")
    spec = ClusterSpec.of(
        pools={f"{role}{i}": {**H100, "role": role} for i, role in enumerate(roles)},
        router="least-kv",
        transfer={"bandwidth": 1e9} if apart else None,
        failures={"mtbf": 1.0, "repair": 0.1},
    )
    result = simulate(trace, spec, until=until)
    check_conservation(result.records)
    assert result.end_time == pytest.approx(until)
    assert (
        result.records.count(FINISHED)
        < int(np.sum(trace.arrival_time <= until))
        == sum(result.records.counts().values())
    )


def test_a_replica_starts_as_fast_as_its_weights_come() -> None:
    spec = one(startup={"provision": 30, "load_bandwidth": 2e9, "warmup": 5})
    pool = resolve_pools(spec)[0].pool
    weights = load_model("llama-3.1-8b").total_parameters * 2  # bf16
    assert pool.startup == pytest.approx(30 + weights / 2e9 + 5, rel=1e-3)


def test_kv_on_the_link_is_the_models(trace: Trace) -> None:
    spec = ClusterSpec.of(
        pools={"p": {**H100, "role": "prefill"}, "d": {**H100, "role": "decode"}}, transfer={"bandwidth": 1e9}
    )
    result = simulate(trace, spec)
    # Llama-3.1-8B: 32 layers · 8 KV heads · 128 · 2 (K and V) · 2 B
    assert result.bytes_transferred == int(trace.input_length.sum()) * 32 * 8 * 128 * 2 * 2
    assert result.mean_transfer_s > float(trace.input_length.mean()) * 131072 / 1e9


def test_a_share_of_a_gpu_has_a_share_of_all() -> None:
    whole, half = resolve_pools(one())[0], resolve_pools(one(partition=0.5))[0]
    weights = whole.resolved.budget.items["weights"]
    assert half.pool.slowdown == 2 and half.pool.share == 0.5
    lost = whole.resolved.budget.kv_cache - half.resolved.budget.kv_cache
    assert lost == pytest.approx(0.5 * 0.92 * whole.resolved.budget.total, rel=1e-6)
    assert weights < half.resolved.budget.total
    turns = resolve_pools(ClusterSpec.of(pools={"a": {**H100, "gpus": "g"}, "b": {**H100, "gpus": "g"}}))
    assert [found.pool.share for found in turns] == [0.5, 0.5]
    assert turns[0].resolved.num_gpu_blocks == half.resolved.num_gpu_blocks


def test_models_go_to_their_pools_and_unknown_ones_nowhere(trace: Trace) -> None:
    pools = {"small": H100, "qwen": {"deployment": {"model": "qwen2.5-7b", "gpu": "h100"}}}
    names = ["llama-3.1-8b", "qwen2.5-7b", "gpt-5", "llama-3.1-8b"] * 50
    named = Trace.from_columns(trace.arrival_time, trace.input_length, trace.output_length, model=names)
    result = simulate(named, ClusterSpec.of(pools=pools, router="least-outstanding"))
    assert result.rejections == {"no pool serves model gpt-5": 50}
    assert set(result.records.replica[1::4].tolist()) == {1} and set(
        result.records.replica[0::4].tolist()
    ) == {0}
    assert {row.name for row in result.classes} == {"all", *names}
    assert simulate(trace, ClusterSpec.of(pools=pools)).rejections == {
        "the request names no model, and the pools hold several": 200
    }
    # one model for all: the trace's own names do not matter
    assert simulate(named, one()).records.count(FINISHED) == 200


def test_a_run_directory_holds_the_bill(trace: Trace, tmp_path: Path) -> None:
    import json

    from simulator.results import write_run

    result = simulate(
        trace, one(usd_per_hour=3.0, autoscale={"signal": "queue", "target": 1, "max_replicas": 2})
    )
    written = json.loads(
        (write_run(tmp_path / "run", result.run()) / "summary.json").read_text(encoding="utf-8")
    )
    assert written["cost_usd"] == pytest.approx(result.gpu_hours * 3.0)
    assert len(written["replicas"]) == len(result.bills) and written["classes"][0]["requests"] == 200
    again = simulate(trace, ClusterSpec.load(tmp_path / "run" / "config.yaml"))
    assert again.records.finish_time.tobytes() == result.records.finish_time.tobytes()
