"""The search on small spaces: the same winner as by exhaustion, capacities as on a fine grid, clear refusals."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np
import pytest

from simulator.analytic import Traffic
from simulator.deployment import Deployment
from simulator.errors import CapacityError, ConfigurationError, UnknownNameError
from simulator.sizing import (
    Prices,
    Quote,
    Search,
    SearchResult,
    SearchSpace,
    Skipped,
    find_capacity,
    local_executor,
    pareto_front,
    parse_slo,
    probe,
)
from simulator.sizing.candidates import Candidate, ToBeat, screen
from simulator.sizing.decision import Found
from simulator.sizing.evaluation import too_dear
from simulator.sizing.evidence import evidence
from simulator.sizing.over_time import size_over_time
from simulator.sizing.report import sizing_html
from simulator.workload import Lengths, Trace, generate_trace, piecewise_arrivals

SLO = parse_slo(["ttft:p99:1500", "tpot:p99:80"])
MODEL = Deployment.of(model="llama-3.1-8b")


def chat(n: int, rate: float, seed: int = 4) -> Trace:
    return generate_trace(
        n,
        request_rate=rate,
        input_length=Lengths.parse("lognormal:mean=900,sigma=0.8,max=6000"),
        output_length=Lengths.parse("lognormal:mean=150,sigma=0.6,max=800"),
        seed=seed,
    )


def space(**changes: object) -> SearchSpace:
    small: dict[str, object] = {
        "gpus": ("h100", "l40s", "l4"),
        "tensor_parallel_sizes": (1, 2),
        "dtypes": (None,),
        "max_num_seqs": (None,),
        "max_num_batched_tokens": (None, 2048),
    }
    return SearchSpace(MODEL, **(small | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trace() -> Trace:
    return chat(800, 30.0)


def test_the_winner_is_that_of_exhaustive_search(trace: Trace) -> None:
    search = Search(trace, SLO, space(gpus=("h100", "l40s")), requests=300, confirm_runs=2)
    with local_executor(1) as pool:
        quick, all_of_it = search.run(pool), replace(search, method="exhaustive").run(pool)
    assert quick.best.candidate == all_of_it.best.candidate
    assert quick.best.replicas == all_of_it.best.replicas
    assert len(quick.ranking) < len(all_of_it.ranking)
    assert any(one.stage == "bound" for one in quick.skipped)
    assert quick.best.run is not None
    assert quick.best.run.met
    assert quick.best.confirmation is not None
    assert quick.best.confirmation.met
    assert quick.best.confirmation.requests == 2 * len(trace)
    found = evidence(quick)
    _holds_together(found)
    _says_why_not(quick, found)


def _says_why_not(result: SearchResult, found: dict[str, Any]) -> None:
    """All that would be cheaper has its reason, and nothing that was searched is lost."""
    best, rows, page = result.best, found["cheaper"], sizing_html(found)
    assert all(row["why"] and row["usd_per_hour"] < best.usd_per_hour for row in rows)
    assert all(escape(row["why"]) in page for row in rows)
    known = {plan.candidate.name for plan in result.ranking} | {one.name for one in result.skipped}
    assert known == {choice.name for choice in result.search.space.choices()}
    for plan in result.ranking:  # one replica fewer was tried wherever a plan was run in full
        if plan.run is not None and plan.replicas > 1:
            fewer = plan.replicas - 1, plan.candidate.name
            assert fewer[0] in [one.replicas for one in plan.rejected]
            cost = fewer[0] * plan.candidate.usd_per_replica
            assert (cost >= best.usd_per_hour) or fewer in [(row["replicas"], row["name"]) for row in rows]


def _holds_together(found: dict[str, object]) -> None:
    """The accounts of one sizing add up."""
    best, cost, asked = found["best"], found["cost"], found["request"]
    assert isinstance(best, dict)
    assert isinstance(cost, dict)
    assert isinstance(asked, dict)
    per_hour = 3600 * asked["request_rate"] / 1e6
    spent = (
        cost["input"] * per_hour * asked["mean_input_length"]
        + cost["output"] * per_hour * asked["mean_output_length"]
    )
    assert spent == pytest.approx(best["usd_per_hour"], rel=1e-3)
    costs = [plan["usd_per_hour"] for plan in found["ranking"]]  # type: ignore[attr-defined]
    assert costs == sorted(costs)
    assert costs[0] == best["usd_per_hour"]
    assert sum(found["binding"]["time_shares"].values()) == pytest.approx(1)  # type: ignore[index]
    less, more = found["sensitivity"][:2]  # type: ignore[index]
    assert less["replicas"] <= best["deployment"]["num_replicas"] <= more["replicas"]


def test_the_capacity_is_within_three_percent_of_a_fine_grid(trace: Trace) -> None:
    deployment = MODEL.model_copy(update={"gpu": "l40s"})
    found = find_capacity(trace, deployment, SLO)
    grid = found.request_rate * np.arange(0.9, 1.1, 0.01)
    held = [rate for rate in grid if probe(trace.with_request_rate(rate), deployment, SLO).met]
    assert found.request_rate == pytest.approx(max(held), rel=0.03)
    assert found.binding is not None
    assert found.binding.request_rate > found.request_rate
    assert found.binding.request_rate <= 1.02 * found.request_rate * (1 + 1e-9)


def test_saturation_is_marked_where_the_queue_grows() -> None:
    """With a loose SLO the queue gives way first."""
    loose = parse_slo(["ttft:p50:1e9"])
    found = find_capacity(chat(1500, 30.0), MODEL.model_copy(update={"gpu": "l4"}), loose, tolerance=0.05)
    assert found.saturation is not None
    assert found.request_rate < found.saturation < 1.06 * found.request_rate
    assert found.saturation == pytest.approx(found.bound, rel=0.25)


def test_an_impossible_slo_names_the_nearest_choice_and_what_would_do() -> None:
    """The nearest is found again by looking at every choice with hardly any traffic: 2 % of what it could take."""
    trace, few = chat(150, 3.0), space(max_num_batched_tokens=(None,))
    fits = [screen(one, Traffic.of_trace(trace), Prices.load(), math.inf) for one in few.choices()]
    asked = parse_slo(["ttft:p99:20", "tpot:p99:0.5"])
    idle = {
        one.name: probe(trace.with_request_rate(0.02 * one.bound), one.deployment, asked)
        for one in fits
        if isinstance(one, Candidate)
    }
    nearest = min(idle, key=lambda name: idle[name].worst.ratio)
    with pytest.raises(CapacityError) as refused:
        Search(trace, asked, few, requests=150).run()
    said = str(refused.value)
    assert f"The nearest of {len(idle)} choices that run is {nearest}: " in said
    enough = parse_slo(re.findall(r"--slo ([^\s,;]+)", said))
    for one, wanted in zip(enough.objectives, idle[nearest].attained):
        assert one.wanted >= 0.99 * max(wanted.value, wanted.objective.wanted)
        assert (f"{wanted.objective}: {wanted.value:.4g}" in said) == (not wanted.met)
    easier = parse_slo([str(one.looser(1.05)) for one in enough.objectives])
    assert Search(trace, easier, few, requests=150).run().best.run


def test_a_bill_that_is_too_small_says_what_it_buys_and_what_would_do() -> None:
    trace = chat(300, 20.0)
    few = space(gpus=("h100", "l40s"), tensor_parallel_sizes=(1,), max_num_batched_tokens=(None,))
    one_h100 = Prices.load().of("h100-sxm-80gb").usd_per_hour
    asked = Search(trace, SLO, few, max_cost=0.6 * one_h100, requests=300)
    with pytest.raises(
        CapacityError, match=r"no plan within .*/h meets .* The nearest that it buys is"
    ) as refused:
        asked.run()
    said = str(refused.value)
    bill = float(re.findall(r"It would take \$([0-9.]+)/h", said)[0])
    assert asked.max_cost < bill
    assert replace(asked, max_cost=bill).run().best.usd_per_hour == bill
    looser = parse_slo(re.findall(r"--slo ([^\s,;]+)", said))
    assert replace(asked, slo=looser).run().best.usd_per_hour <= asked.max_cost
    less = float(re.findall(r"at most about ([0-9.]+) of the [0-9.]+ requests/s", said)[0])
    assert 0 < less < asked.request_rate
    with pytest.raises(
        CapacityError, match=r"within \$0\.5/h .*, which does not buy one replica. It would take \$"
    ):
        Search(chat(100, 4.0), SLO, replace(few, gpus=("l40s",)), max_cost=0.5, confirm_runs=2).run()


def test_a_plan_that_no_number_of_replicas_confirms_is_given_up() -> None:
    """The trace itself just meets the SLO with next to nothing to do; fresh traffic like it does not always."""
    trace = chat(120, 0.5)
    only = space(gpus=("h100",), tensor_parallel_sizes=(1,), max_num_batched_tokens=(None,))
    idle = probe(trace.with_request_rate(0.02), MODEL, parse_slo(["ttft:max:1000"])).attained[0].value
    asked = Search(trace, parse_slo([f"ttft:max:{1.05 * idle}"]), only, requests=120, confirm_runs=2)
    with pytest.raises(
        CapacityError, match=r"no plan meets .* 95% upper bound|no plan meets .*It would take --slo"
    ):
        asked.run()


def test_what_was_pruned_against_too_little_is_looked_at_again() -> None:
    candidate = screen(next(space().choices()), Traffic.of_trace(chat(200, 30.0)), Prices.load(), math.inf)
    assert isinstance(candidate, Candidate)
    rate = 3 * candidate.bound
    need = candidate.least_cost(rate)  # of three replicas
    found = Found()
    for target in (ToBeat(need, 0.5 * need), ToBeat(9 * need, 9 * need)):
        found.note(candidate, too_dear(candidate, rate, target), target, rate)
    assert found.reopen(ToBeat(need, 0.5 * need), rate) == []
    assert found.reopen(ToBeat(1.5 * need, 1.4 * need), rate) == [candidate]  # the dearer target said enough
    assert len(found.skipped) == 1
    assert len(found.reopen(ToBeat(), rate)) == 1


def test_what_cannot_be_searched_is_refused(trace: Trace) -> None:
    with pytest.raises(UnknownNameError, match="h10"):
        Search(trace, SLO, space(gpus=("h10",))).run()
    with pytest.raises(ConfigurationError, match="max_cost nan"):
        Search(trace, SLO, space(), max_cost=float("nan"))
    with pytest.raises(ConfigurationError, match="search space is empty"):
        Search(trace, SLO, space(tensor_parallel_sizes=())).run()
    with pytest.raises(CapacityError, match="no price for l4"):
        Search(trace, SLO, space(gpus=("l4",)), prices=Prices({})).run()


def test_a_price_changes_the_winner() -> None:
    dear = Prices({**Prices.load().quotes, "l4-24gb": Quote(50.0, "a bad contract")})
    two = space(gpus=("h100", "l4"), tensor_parallel_sizes=(1,), max_num_batched_tokens=(None,))
    slow = parse_slo(["ttft:p99:4000", "tpot:p99:200"])
    for prices, winner in ((Prices.load(), "l4-24gb"), (dear, "h100-sxm-80gb")):
        result = Search(chat(300, 6.0), slow, two, prices, requests=200, confirm_runs=2).run()
        assert result.best.candidate.deployment.gpu == winner


def test_what_is_skipped_says_why(trace: Trace) -> None:
    big = SearchSpace(
        Deployment.of(model="llama-3.1-70b"), ("l4", "h100"), tensor_parallel_sizes=(4,), dtypes=(None, "fp8")
    )
    result = Search(chat(300, 2.0), parse_slo(["tpot:p99:500"]), big, requests=200, confirm_runs=2).run()
    impossible = [one for one in result.skipped if one.stage == "impossible"]
    assert any("does not fit" in one.why for one in impossible)
    assert all(isinstance(one, Skipped) and one.why for one in result.skipped)


def test_a_pareto_front_holds_what_nothing_beats() -> None:
    points = [(1, 1), (2, 3), (3, 2), (4, 4), (1, 0)]
    assert pareto_front(points, lambda p: p[0], lambda p: p[1]) == [(1, 1), (2, 3), (4, 4)]


def test_over_time_needs_less_at_night_and_never_more_than_fixed() -> None:
    trace = generate_trace(
        2400,
        arrivals=lambda n, g: piecewise_arrivals(n, [4.0, 36.0], [60.0, 60.0], g),
        lengths_from=chat(500, 1.0),
        seed=3,
    )
    only = space(gpus=("l40s",), tensor_parallel_sizes=(1,), dtypes=(None,), max_num_batched_tokens=(None,))
    found = size_over_time(trace, SLO, only, interval=60.0)
    replicas = [one.replicas for one in found.intervals]
    assert max(replicas[::2]) < min(replicas[1::2])
    assert found.perfect.usd < found.fixed.usd
    assert found.fixed.peak_gpus == max(one.num_gpus for one in found.intervals)
    assert found.perfect.gpu_hours == pytest.approx(sum(n * 60 / 3600 for n in replicas))
    assert sum(one.requests for one in found.intervals) == len(trace)
    for one in found.autoscalers:  # no controller that only sees its signal beats the bound
        assert one["usd"] > found.perfect.usd or not one["met"]
        assert one["peak_gpus"] <= 2 * found.fixed.peak_gpus
    assert sizing_html(found.as_dict()).count("autoscaler on") == 2
    for i, one in enumerate(found.intervals[:2]):
        part = trace.window(60.0 * i, 60.0 * (i + 1))
        assert probe(part, one.plan.with_replicas(one.replicas).deployment, SLO).met
        if one.replicas > 1:
            assert not probe(part, one.plan.with_replicas(one.replicas - 1).deployment, SLO).met
