"""What a sizing found, in sentences: the same for the terminal, the page and the Markdown."""

from __future__ import annotations

from typing import Any

from simulator.sizing.candidates import LARGE_SPACE

__all__ = ["CHEAPER_HEADINGS", "cheaper_rows", "headline", "paragraphs"]

CHEAPER_HEADINGS = ("would be cheaper", "$/h", "why not")


def headline(found: dict[str, Any]) -> str:
    """The recommendation in a sentence."""
    best, asked = found["best"], found["request"]
    return (
        f"Run {_how_many(best)} of {best['name']}: {_gpus(best['num_gpus'])}, "
        f"${best['usd_per_hour']:,.2f} per hour, for {asked['request_rate']:.3g} requests/s of {asked['model']}"
    )


def cheaper_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(plan, $/h, why not) of all that would cost less than the recommendation."""
    return [
        (f"{one['replicas']} x ({one['name']})", f"{one['usd_per_hour']:.2f}", one["why"])
        for one in found["cheaper"]
    ]


def _how_many(plan: dict[str, Any]) -> str:
    replicas, word = plan["deployment"]["num_replicas"], "unit" if "split" in plan else "replica"
    return f"{replicas} {word}{'' if replicas == 1 else 's'}"


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"


def paragraphs(found: dict[str, Any]) -> list[str]:
    """Attainment, confidence, what binds, headroom, costs and energy, one line each."""
    return [
        *_attainment(found),
        _binding(found),
        _headroom(found),
        _cost(found),
        _energy(found),
        _pruned(found),
    ]


def _attainment(found: dict[str, Any]) -> list[str]:
    confirmation = found["best"]["confirmation"]
    runs = len(confirmation["objectives"][0]["runs"])
    lines = [
        f"Confirmed with {confirmation['level']:.0%} confidence by {runs} independent simulations of "
        f"{confirmation['requests_per_run']:,} fresh requests each:"
    ]
    for one in confirmation["objectives"]:
        shown = f"{one['mean']:.1%}" if one["objective"].startswith("attainment") else f"{one['mean']:.0f} ms"
        within = "" if one["share_within"] is None else f", {one['share_within']:.2%} of requests within"
        lines.append(f"  {one['objective']}: {shown}, at most {one['upper_ratio']:.2f} of the limit{within}")
    return lines


def _binding(found: dict[str, Any]) -> str:
    b = found["binding"]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in b["time_shares"].items())
    saturation = (
        f"the queue grows without end from {b['saturation']:.2f}"
        if b["saturation"]
        else "saturation lies above every probe"
    )
    side = f" on the {b['side']} side, the busier one" if b["side"] else ""
    return (
        f"Bound by {b['resource']} ({b['meaning']}){side}; time of a step at capacity: {shares}; "
        f"KV cache {b['kv_usage']:.0%} full. "
        f"A {'unit' if b['side'] else 'replica'} takes {b['capacity']:.2f} requests/s before {b['objective']} "
        f"gives way; {saturation}."
    )


def _headroom(found: dict[str, Any]) -> str:
    return f"Headroom: {100 * found['headroom']:.0f} % more traffic before the SLO gives way."


def _cost(found: dict[str, Any]) -> str:
    cost = found["cost"]
    return (
        f"Cost: ${cost['input']:.3f} per million input tokens, ${cost['output']:.3f} per million output tokens "
        f"(${cost['all']:.3f} over all tokens)."
    )


def _energy(found: dict[str, Any]) -> str:
    e = found["energy"]
    if e is None:
        return "Energy: the power of this device is not known."
    return (
        f"Energy: at most {e['joule_per_output_token_at_most']:.2f} J per output token "
        f"({e['watts_at_most'] / 1000:.1f} kW of thermal design power, host and cooling not counted)."
    )


def _pruned(found: dict[str, Any]) -> str:
    stages: dict[str, int] = {}
    for one in found["skipped"]:
        stages[one["stage"]] = stages.get(one["stage"], 0) + 1
    words = {
        "impossible": "do not fit or are not supported",
        "price": "have no price",
        "bound": "pruned by the analytic bound",
        "simulation": "ruled out by a simulation",
    }
    counts = [f"{count} {words[stage]}" for stage, count in sorted(stages.items())]
    return (
        f"{_searched(found['request'])}: {len(found['ranking'])} plans with a capacity; "
        f"{', '.join(counts) or 'nothing was pruned'}."
    )


def _searched(request: dict[str, Any]) -> str:
    choices, looked_at = request["choices"], request["looked_at"]
    if request["search"] != "optuna":
        return f"Searched all {choices:,} choices"
    return (
        f"Searched {looked_at:,} of {choices:,} choices: drawn by Optuna (seed {request['seed']}), then one axis at a "
        f"time from the cheapest (`--search auto` draws above {LARGE_SPACE:,} choices, `--search bound` looks at all)"
    )
