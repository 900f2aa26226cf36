"""What may be chosen: axes, other options, prefill and decode apart, and what the bound says of each."""

from __future__ import annotations

import pytest

from simulator import simulate
from simulator.analytic import SteadyState, Traffic
from simulator.cluster import ClusterSpec
from simulator.deployment import Deployment
from simulator.errors import CapacityError, ConfigurationError, UnknownNameError
from simulator.sizing import Prices, Search, SearchSpace, find_capacity, parse_slo
from simulator.sizing.autoscaled import autoscaled
from simulator.sizing.candidates import Candidate, Skipped, ToBeat, screen
from simulator.sizing.capacity import Capacity
from simulator.sizing.evidence import evidence
from simulator.sizing.plan import Plan
from simulator.sizing.report import sizing_html
from simulator.sizing.split import Split
from simulator.sizing.wording import headline
from simulator.workload import Lengths, Trace, generate_trace

MODEL = Deployment.of(model="llama-3.1-8b")
SLO = parse_slo(["ttft:p99:2000", "tpot:p99:40"])
SMALL = {
    "gpus": ("l40s",),
    "tensor_parallel_sizes": (1,),
    "dtypes": (None,),
    "max_num_seqs": (None,),
    "max_num_batched_tokens": (None,),
}


def chat(n: int = 300, rate: float = 8.0, prompt: int = 1500) -> Trace:
    return generate_trace(
        n,
        request_rate=rate,
        input_length=Lengths.parse(f"lognormal:mean={prompt},sigma=0.6,max=8000"),
        output_length=Lengths.parse("lognormal:mean=150,sigma=0.5,max=600"),
        seed=2,
    )


def space(**changes: object) -> SearchSpace:
    return SearchSpace(MODEL, **(SMALL | changes))  # type: ignore[arg-type]


def test_the_space_is_the_product_of_its_axes() -> None:
    found = space(
        gpus=("l40s", "h100", "L40S"),
        pipeline_parallel_sizes=(1, 2),
        chunked_prefill=(None, False),
        splits=(None, Split(1, 2)),
        more={"kv_cache_dtype": (None, "fp8"), "options.watermark": (0.0, 0.01, 0.05)},
    )
    choices = list(found.choices())
    assert len(choices) == len(found) == 2 * 2 * 2 * 2 * 2 * 3
    assert len({choice.name for choice in choices}) == len(choices)
    last = choices[-1]
    assert last.deployment.options == {"watermark": 0.05}
    assert last.deployment.kv_cache_dtype == "fp8"
    assert last.deployment.pipeline_parallel_size == 2
    assert last.num_gpus == 2 * 3  # two stages, three replicas
    assert last.name == (
        "2 x h100-sxm-80gb, vllm, published weights, pipeline_parallel_size 2, no chunked prefill, "
        "kv_cache_dtype fp8, watermark 0.05, 1 prefill + 2 decode replicas"
    )


def test_what_is_no_option_cannot_be_varied() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'kv_cache_dtype'"):
        len(space(more={"kv_cache_type": (None,)}))
    with pytest.raises(UnknownNameError, match="option to vary 'num_replicas'"):
        len(space(more={"num_replicas": (1,)}))
    with pytest.raises(ConfigurationError, match="block_size needs at least one value"):
        len(space(more={"block_size": ()}))
    traffic = Traffic.of_trace(chat())
    odd = next(space(more={"options.no_such": (1,)}).choices())
    refused = screen(odd, traffic, Prices.load(), 0.04)
    assert isinstance(refused, Skipped)
    assert "has no option 'no_such'" in refused.why


def test_pools_are_parsed_and_refused() -> None:
    assert Split.parse("2:1") == Split(2, 1)
    for text in ("2", "a:b", "1:2:3", "-1:2"):
        with pytest.raises(ConfigurationError, match="must be PREFILL:DECODE"):
            Split.parse(text)
    with pytest.raises(ConfigurationError, match="at least one replica on each side"):
        Split.parse("0:1")
    with pytest.raises(ConfigurationError, match="KV bandwidth 0"):
        Split(1, 1, 0.0)


def test_better_is_cheaper_or_the_same_with_more_to_spare() -> None:
    candidate = Candidate(next(space().choices()), 2.0, 1, bound=10.0)
    assert candidate.rate_to_beat(ToBeat(), 30.0) == 0
    assert candidate.rate_to_beat(ToBeat(7.0, 6.5), 30.0) == 10  # 3 replicas for $6
    assert candidate.rate_to_beat(ToBeat(6.0, 5.0), 30.0) == 12  # 2.5 of 3 replicas, which beats 2 of them
    assert candidate.rate_to_beat(ToBeat(1.5, 1.5), 30.0) == float("inf")
    assert candidate.may_beat(ToBeat(6.0, 5.6), 30.0)
    assert not candidate.may_beat(ToBeat(6.0, 5.0), 30.0)


def test_apart_is_no_faster_than_its_bound_and_each_side_matters() -> None:
    trace, state = (
        chat(),
        SteadyState(MODEL.model_copy(update={"gpu": "l40s"}).resolve(), Traffic.of_trace(chat())),
    )
    bounds = {text: Split.parse(text).bound(state, 0.04) for text in ("1:1", "1:2", "2:1", "2:2")}
    assert bounds["2:2"] == pytest.approx(2 * bounds["1:1"])
    assert (
        bounds["1:1"]
        <= min(bounds["1:2"], bounds["2:1"])
        <= max(bounds["1:2"], bounds["2:1"])
        <= bounds["2:2"]
    )
    replica = MODEL.model_copy(update={"gpu": "l40s"})
    for split in (Split(1, 1), Split(2, 1)):
        found = find_capacity(trace, replica, SLO, requests=200, split=split, tolerance=0.1)
        assert 0 < found.request_rate < 1.1 * split.bound(state, 0.04)


def test_long_prompts_and_a_short_tpot_are_served_apart() -> None:
    """What disaggregation is for: beside long prompts no round is short enough."""
    strict = parse_slo(["ttft:p99:3000", "tpot:p99:34"])
    together_or_not = space(splits=(None, Split(1, 1), Split(2, 1)))
    result = Search(chat(150, 6.0), strict, together_or_not, requests=100, confirm_runs=2).run()
    split = result.best.candidate.choice.split
    assert split is not None
    found = evidence(result)
    best = found["best"]
    assert best["num_gpus"] == best["deployment"]["num_replicas"] * split.replicas
    assert "unit" in headline(found)
    assert found["binding"]["side"] in ("prefill", "decode")
    assert sum(found["binding"]["time_shares"].values()) == pytest.approx(1)
    again = simulate(chat(150, 6.0), ClusterSpec.of(**best["cluster"]))
    assert again.summary["completed"] == 150
    assert "prefill + " in sizing_html(found)


def test_a_system_that_takes_no_kv_is_not_served_apart() -> None:
    only = space(systems=("tgi",), splits=(Split(1, 1),))
    with pytest.raises(CapacityError, match="cannot admit a request that brings its KV"):
        Search(chat(), SLO, only, requests=200).run()


def test_an_autoscaler_grows_both_pools_of_a_plan_apart() -> None:
    choice = next(space(splits=(Split(1, 2),)).choices())
    candidate = Candidate(choice, 1.0, 3, 8.0)
    plan = Plan(candidate, Capacity(choice.deployment, 6.0, 8.0, ()), 6.0, 1)
    found = autoscaled(chat(150, 6.0), plan, SLO, 1, "queue")
    assert 2 <= found["mean_gpus"] <= found["peak_gpus"] <= 2 * 3
    assert found["usd"] == pytest.approx(found["gpu_hours"])  # at $1
