"""Intervals: what they hold, what they do not change, and that a seed fixes them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from simulator.cluster import ClusterSpec
from simulator.deployment import Deployment
from simulator.errors import ConfigurationError
from simulator.intervals import simulate_with_intervals, stratified
from simulator.simulation import simulate
from simulator.steptime.engine_costs import Spread
from simulator.workload import Trace

TRACE = Trace.from_columns(np.arange(40) * 1.0, np.full(40, 300), np.full(40, 40))
DEPLOYMENT = Deployment.of(model="llama-3.1-8b", gpu="h100", default_max_tokens="exact")


def with_spread(spread):
    """The deployment, believed to be off by *spread*."""
    resolved = DEPLOYMENT.resolve()
    step = resolved.steptime
    engine = replace(step.traits.engine, spread=spread, seen={})
    traits = replace(step.traits, engine=engine)
    return replace(
        resolved, steptime=type(step)(step.model, step.laws, step.parallelism, traits, step.precision)
    )


def test_an_interval_holds_the_value_of_the_undrawn_run():
    result = simulate_with_intervals(TRACE, DEPLOYMENT, 8)
    plain = simulate(TRACE, DEPLOYMENT)
    for key in ("mean_tpot_ms", "mean_ttft_ms", "output_throughput", "duration"):
        low, high = result.summary.intervals.values[key]
        assert low < result.summary[key] < high
        assert result.summary[key] == plain.summary[key]
    assert result.summary.intervals.values["completed"] == (40, 40)


def test_same_seed_same_interval():
    first, second, other = (
        simulate_with_intervals(TRACE, DEPLOYMENT, 4, seed=seed).summary.intervals.values
        for seed in (1, 1, 2)
    )
    assert first == second != other


def test_the_interval_of_tpot_is_as_wide_as_the_spread_says():
    # lightly loaded: TPOT is nearly one step, so its spread is the step's; ttft's own comes on top
    spread = Spread(step=0.2, ttft=0.5)
    values = simulate_with_intervals(TRACE, with_spread(spread), 32, level=0.9).summary.intervals.values
    for key, sigma, tolerance in (("mean_tpot_ms", 0.2, 0.15), ("mean_ttft_ms", 0.5, 0.35)):
        low, high = values[key]
        assert math.log(high / low) == pytest.approx(2 * 1.645 * sigma, rel=tolerance)


def test_a_higher_level_is_wider():
    narrow, wide = (
        simulate_with_intervals(TRACE, DEPLOYMENT, 16, level=level).summary.intervals.values["mean_tpot_ms"]
        for level in (0.5, 0.9)
    )
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_stratified_draws_are_standard_normal_already_for_few():
    draws = stratified(32, np.random.default_rng(0))
    assert draws.mean() == pytest.approx(0, abs=1e-12)
    assert draws.std() == pytest.approx(1, abs=0.03)
    assert np.quantile(draws, 0.95, method="hazen") == pytest.approx(1.645, abs=0.01)


@pytest.mark.parametrize("wrong", [{"n": 1}, {"level": 0.0}, {"level": 1.0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigurationError, match=r"at least 2|between 0 and 1"):
        simulate_with_intervals(TRACE, DEPLOYMENT, **{"n": 4, **wrong})


def cluster(**pools):
    return ClusterSpec.of(pools=pools, router="round-robin")


def test_a_cluster_of_one_pool_is_as_uncertain_as_its_deployment():
    """Replicas of one kind are wrong together: more of them make nothing surer."""
    alone = simulate_with_intervals(TRACE, DEPLOYMENT.model_copy(update={"num_replicas": 2}), 6)
    one = simulate_with_intervals(TRACE, cluster(a={"deployment": DEPLOYMENT, "replicas": 2}), 6)
    assert one.summary.intervals.values == alone.summary.intervals.values
    halves = cluster(a={"deployment": DEPLOYMENT}, b={"deployment": DEPLOYMENT})
    two = simulate_with_intervals(TRACE, halves, 6).summary.intervals.values
    for key in ("mean_tpot_ms", "mean_ttft_ms"):
        assert two[key] == pytest.approx(alone.summary.intervals.values[key])


def test_pools_of_different_kinds_are_wrong_by_themselves():
    other = DEPLOYMENT.model_copy(update={"gpu": "l40s"})
    mixed = cluster(a={"deployment": DEPLOYMENT}, b={"deployment": other})
    result = simulate_with_intervals(TRACE, mixed, 8)
    low, high = result.summary.intervals.values["mean_tpot_ms"]
    assert low < result.summary["mean_tpot_ms"] < high
    assert result.bills  # what only a cluster has is kept
