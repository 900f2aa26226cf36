"""A front end between client and scheduler: what it adds to a request, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator import Deployment, Trace, simulate
from simulator.cluster import ClusterSpec
from simulator.errors import ConfigurationError
from simulator.steptime import load_traits

OVERHEAD = 0.05


def deploy(overhead: Any = None, **stated: Any) -> Deployment:
    return Deployment.of(model="llama-3.1-8b", gpu="h100", request_overhead_ms=overhead, **stated)


def poisson(n: int = 60, **more: Any) -> Trace:
    rng = np.random.default_rng(1)
    return Trace.from_columns(np.cumsum(rng.exponential(0.05, n)), [300] * n, [40] * n, **more)


@pytest.mark.parametrize("router", ["round-robin", "least-outstanding", "central-queue"])
def test_an_open_loop_waits_for_it_once(router: str) -> None:
    """50 ms more to the first token and to the end; batches and gaps are the same, 50 ms later."""
    more = {"num_replicas": 2, "router": router}
    without, behind = (simulate(poisson(), deploy(ms, **more)) for ms in (None, 1e3 * OVERHEAD))
    np.testing.assert_allclose(behind.records.arrival_time, without.records.arrival_time, atol=1e-12)
    for name in ("first_scheduled_time", "first_token_time", "finish_time"):
        later = getattr(behind.records, name) - getattr(without.records, name)
        np.testing.assert_allclose(later, OVERHEAD, atol=1e-9)
    ttft = behind.summary["mean_ttft_ms"] - without.summary["mean_ttft_ms"]
    assert ttft == pytest.approx(1e3 * OVERHEAD)
    assert behind.summary["mean_tpot_ms"] == pytest.approx(without.summary["mean_tpot_ms"])


def test_a_session_sends_when_the_answer_is_there() -> None:
    trace = Trace.from_columns(
        [0.0, np.nan, np.nan], [100] * 3, [10] * 3, session=[0] * 3, turn=[0, 1, 2], delay=[0.0, 2.0, 2.0]
    )
    records = simulate(trace, deploy(1e3 * OVERHEAD)).records
    np.testing.assert_allclose(records.arrival_time[1:], records.finish_time[:-1] + 2.0, atol=1e-9)
    np.testing.assert_allclose(records.first_scheduled_time - records.arrival_time, OVERHEAD, atol=1e-9)


@pytest.mark.parametrize("limit", [1, 3])
def test_a_limited_client_keeps_its_limit(limit: int) -> None:
    """In the client's eyes *limit* requests are in flight: one is sent the moment another has ended."""
    n = 24
    trace = Trace.from_columns([0.0] * n, [200] * n, list(range(20, 20 + n))).with_max_concurrency(limit)
    records = simulate(trace, deploy(1e3 * OVERHEAD)).records
    sent, ended = np.sort(records.arrival_time), np.sort(records.finish_time)
    np.testing.assert_allclose(sent[limit:], ended[:-limit], atol=1e-9)
    np.testing.assert_allclose(sent[:limit], 0.0, atol=1e-9)
    assert (records.first_scheduled_time - records.arrival_time >= OVERHEAD - 1e-9).all()


def test_fitted_is_what_is_known_of_the_system() -> None:
    known = load_traits("vllm").engine.request_s
    assert known > 0
    resolved = deploy("fitted").resolve()
    assert resolved.front_end_s == known
    assert any(line.startswith("TTFT: from the client's sending") for line in resolved.provenance)
    assert any("without the front end" in line for line in deploy().resolve().provenance)
    assert deploy("12.5").resolve().front_end_s == 0.0125
    with pytest.raises(ConfigurationError, match="nothing is known of the front end of tgi"):
        deploy("fitted", system="tgi").resolve()
    for bad in ("-1", "soon", "inf"):
        with pytest.raises(
            ConfigurationError, match=rf"request_overhead_ms: '{bad}': must be a number, at least 0"
        ):
            deploy(bad)


def test_a_cluster_has_one_front_end() -> None:
    def cluster(*overheads: float | None) -> ClusterSpec:
        pools = {
            f"p{i}": {"replicas": 1, "deployment": deploy(ms).model_dump(exclude_unset=True)}
            for i, ms in enumerate(overheads)
        }
        return ClusterSpec.model_validate({"router": "least-outstanding", "pools": pools})

    without, behind = (simulate(poisson(), cluster(ms, ms)) for ms in (None, 1e3 * OVERHEAD))
    later = behind.records.first_token_time - without.records.first_token_time
    np.testing.assert_allclose(later, OVERHEAD, atol=1e-9)
    np.testing.assert_allclose(behind.records.arrival_time, without.records.arrival_time, atol=1e-12)
    with pytest.raises(
        ConfigurationError, match="request_overhead_ms: must be the same in all pools, not p0 0, p1 50"
    ):
        simulate(poisson(), cluster(None, 50.0))
