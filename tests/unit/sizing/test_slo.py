from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.deployment import Deployment
from simulator.errors import ConfigurationError, UnknownNameError
from simulator.results import FINISHED, REJECTED
from simulator.simulation import Result, simulate
from simulator.sizing import parse_slo, slo_presets
from simulator.workload import Lengths, generate_trace


@pytest.fixture(scope="module")
def result() -> Result:
    trace = generate_trace(
        300,
        request_rate=4,
        input_length=Lengths.parse("uniform:low=100,high=900"),
        output_length=Lengths.parse("uniform:low=1,high=80"),
        seed=3,
    )
    return simulate(trace, Deployment.of(model="llama-3.1-8b", gpu="h100"))


@pytest.mark.parametrize("metric", ["ttft", "tpot", "itl", "e2el", "queue_time", "normalized_latency"])
@pytest.mark.parametrize("statistic", ["mean", "median", "p90", "p99", "max"])
def test_the_value_is_the_one_that_the_run_reports(result: Result, metric: str, statistic: str) -> None:
    (attained,) = parse_slo([f"{metric}:{statistic}:100"]).attained(result)
    assert attained.value == pytest.approx(result.summary[f"{statistic}_{metric}_ms"], rel=1e-6)
    assert attained.ratio == pytest.approx(attained.value / 100)
    assert attained.met == (attained.value <= 100)


def test_attainment_is_the_share_that_meets_every_limit(result: Result) -> None:
    records = result.records
    ttft = records.first_token_time - records.arrival_time
    middle = float(np.median(ttft)) * 1000
    (attained,) = parse_slo([f"attainment:90:ttft={middle}"]).attained(result)
    assert attained.value == pytest.approx(0.5, abs=0.01)
    assert not attained.met
    both = parse_slo([f"attainment:40:ttft={middle},e2el=100000"]).attained(result)[0]
    assert both.value == attained.value
    assert both.met


def test_turning_requests_away_never_helps(result: Result) -> None:
    status = result.records.status.copy()
    assert (status == FINISHED).all()
    status[:30] = REJECTED
    worse = dataclasses.replace(result, records=dataclasses.replace(result.records, status=status))
    for text in ("ttft:p99:1e6", "tpot:mean:1e6", "itl:p99:1e6", "attainment:95:ttft=1000000"):
        before, after = (parse_slo([text]).attained(one)[0] for one in (result, worse))
        assert before.met
        assert not after.met
        assert after.ratio > before.ratio


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ttft:p99", "no objective|unknown SLO preset|expected METRIC"),
        ("ttft:p99:0", "above 0"),
        ("ttft:p99:nan", "above 0 and finite"),
        ("ttft:p99:-5", "above 0"),
        ("ttft:p99:fast", "'fast' is not a number"),
        ("ttft:p100:5", "between p0 and p100"),
        ("ttft:often:5", "'often' must be mean"),
        ("attainment:0:ttft=5", "above 0 and at most 100"),
        ("attainment:90:ttft", "attainment:PERCENT:METRIC=MILLISECONDS"),
    ],
)
def test_a_bad_objective_is_quoted_with_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        parse_slo([text])


@pytest.mark.parametrize(
    ("text", "near"), [("tfft:p99:5", "ttft"), ("attainment:9:itl=5", "ttft"), ("mlperf", "mlperf")]
)
def test_an_unknown_name_names_what_there_is(text: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=near):
        parse_slo([text])


def test_no_objective_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="--slo"):
        parse_slo([])


def test_presets_say_where_they_come_from_and_follow_the_model() -> None:
    for name, entry in slo_presets().items():
        slo = parse_slo([name])
        assert slo.objectives
        assert slo.source == entry["source"]
        assert len(entry["source"]) > 20
    # MLPerf Inference v5.1, inference_rules.adoc: Llama-3.1-8B 2000/100 ms, Llama-2-70B interactive 450/40 ms
    assert str(parse_slo(["mlperf-server"], "llama-3.1-8b")) == "ttft:p99:2000 tpot:p99:100"
    assert str(parse_slo(["mlperf-interactive"], "llama-2-70b")) == "ttft:p99:450 tpot:p99:40"


@given(
    st.sampled_from(["ttft", "tpot", "itl", "e2el"]),
    st.sampled_from(["mean", "median", "p50", "p99", "p99.9"]),
    st.floats(0.1, 1e6),
)
def test_an_objective_reads_back_as_it_is_written(metric: str, statistic: str, limit: float) -> None:
    text = f"{metric}:{statistic}:{limit:g}"
    assert str(parse_slo([text])) == text


def test_the_limit_of_a_metric_is_the_tightest_that_bounds_its_typical_value() -> None:
    slo = parse_slo(["tpot:p99:200", "tpot:mean:150", "tpot:p10:3", "attainment:90:ttft=5,tpot=180"])
    assert slo.limit("tpot") == 0.15
    assert slo.limit("ttft") == 0.005
    assert slo.limit("e2el") == math.inf
