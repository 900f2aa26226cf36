"""The report of a sizing: the recommendation first, then the evidence; one HTML file that opens offline, or
Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from simulator.sizing.wording import CHEAPER_HEADINGS, cheaper_rows, headline, paragraphs

__all__ = ["page", "sizing_html", "sizing_markdown", "table_html", "table_markdown"]

PLOT_CONFIG = {"responsive": True, "plotlyServerURL": "", "displayModeBar": False}
Rows = Sequence[Sequence[str]]


def sizing_html(found: Mapping[str, Any]) -> str:
    """The page as text, from what `evidence` or `OverTime.as_dict` says."""
    if "over_time" in found:
        return _over_time_html(found)
    sections = [
        _section("Recommendation", _list(paragraphs(dict(found)))),
        _section("What would change the answer", _list(found["would_change"] or ["Nothing near was found."])),
        _section("Cost against latency", _figure(_cost_figure(found["pareto"]))),
        _section("Throughput against speed for a user", _figure(_speed_figure(found["pareto"]))),
        _section("Load and latency of the recommended replica", _figure(_load_figure(found["best"]))),
        _section("Plans", table_html(PLAN_HEADINGS, _plan_rows(found))),
        _section("Cheaper, and why not", _cheaper(found)),
        _section("If it were different", table_html(SENSITIVITY_HEADINGS, _sensitivity_rows(found))),
        _section("Not followed to the end", table_html(("choice", "stage", "why"), _skipped_rows(found))),
        _section("What the numbers rest on", _list(found["provenance"])),
        _section(
            "Question", table_html(("", ""), [(key, str(value)) for key, value in found["request"].items()])
        ),
    ]
    return page(headline(dict(found)), _subtitle(found), "\n".join(sections))


def sizing_markdown(found: Mapping[str, Any]) -> str:
    """The same as Markdown, without the figures."""
    if "over_time" in found:
        return _over_time_markdown(found)
    parts = [f"# {headline(dict(found))}", "", *(f"- {line.strip()}" for line in paragraphs(dict(found))), ""]
    parts += ["## What would change the answer", "", *(f"- {line}" for line in found["would_change"]), ""]
    parts += ["## Plans", "", table_markdown(PLAN_HEADINGS, _plan_rows(found)), ""]
    parts += ["## Cheaper, and why not", "", *_cheaper_markdown(found), ""]
    parts += [
        "## If it were different",
        "",
        table_markdown(SENSITIVITY_HEADINGS, _sensitivity_rows(found)),
        "",
    ]
    parts += ["## What the numbers rest on", "", *(f"- {line}" for line in found["provenance"]), ""]
    return "\n".join(parts)


def page(title: str, subtitle: str, body: str) -> str:
    """A self-contained HTML page with the style and the plotting library in it."""
    from plotly.offline import get_plotlyjs

    style = files("simulator.results").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n"
        f"<body>\n<main>\n<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>\n{body}\n"
        "<footer>Simulated, not measured. Latencies count from the arrival of a request; definitions are those of "
        "vLLM's benchmark.</footer>\n</main>\n</body>\n</html>\n"
    )


def table_html(headings: Sequence[str], rows: Rows) -> str:
    """A table; cells that read as numbers are aligned to the right."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def table_markdown(headings: Sequence[str], rows: Rows) -> str:
    """A table in GitHub's Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join(
        [*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]
    )


NOTHING_CHEAPER = "Nothing that was searched costs less."
PLAN_HEADINGS = ("plan", "replicas", "GPUs", "$/h", "requests/s per replica", "nearest limit")
SENSITIVITY_HEADINGS = ("change", "replicas", "$/h")


def _cell(value: str) -> str:
    number = value.replace(",", "").replace(".", "").replace(" %", "").strip().isdecimal()
    return f'<td class="number">{escape(value)}</td>' if number else f"<td>{escape(value)}</td>"


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def _list(lines: Sequence[str]) -> str:
    return '<ul class="lines">' + "".join(f"<li>{escape(line.strip())}</li>" for line in lines) + "</ul>"


def _subtitle(found: Mapping[str, Any]) -> str:
    asked = found["request"]
    return (
        f"{asked['requests']:,} requests, {asked['mean_input_length']:.0f} + {asked['mean_output_length']:.0f} "
        f"tokens on average; {', '.join(asked['slo'])} ({asked['slo_source']})"
    )


def _plan_rows(found: Mapping[str, Any]) -> Rows:
    rows = []
    for plan in found["ranking"]:
        run = plan["run"]
        worst = max(run["objectives"], key=lambda one: one["ratio"] or float("inf")) if run else None
        rows.append(
            (
                plan["name"],
                str(plan["deployment"]["num_replicas"]),
                str(plan["num_gpus"]),
                f"{plan['usd_per_hour']:.2f}",
                f"{plan['capacity']['request_rate']:.2f}",
                f"{100 * worst['ratio']:.0f} % of {worst['objective']}" if worst else "not run in full",
            )
        )
    return rows


def _cheaper(found: Mapping[str, Any]) -> str:
    rows = cheaper_rows(dict(found))
    return table_html(CHEAPER_HEADINGS, rows) if rows else _list([NOTHING_CHEAPER])


def _cheaper_markdown(found: Mapping[str, Any]) -> list[str]:
    rows = cheaper_rows(dict(found))
    return [table_markdown(CHEAPER_HEADINGS, rows) if rows else NOTHING_CHEAPER]


def _sensitivity_rows(found: Mapping[str, Any]) -> Rows:
    return [
        (row["change"], str(row.get("replicas", "")), row.get("problem") or f"{row['usd_per_hour']:.2f}")
        for row in found["sensitivity"]
    ]


def _skipped_rows(found: Mapping[str, Any]) -> Rows:
    return [(one["name"], one["stage"], one["why"]) for one in found["skipped"]]


def _figure(figure: Any) -> str:
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=PLOT_CONFIG))


def _layout(figure: Any, x: str, y: str) -> Any:
    figure.update_layout(template="plotly_white", height=380, margin={"l": 60, "r": 20, "t": 20, "b": 50})
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


def _scatter(figure: Any, points: Sequence[Mapping[str, Any]], x: str, y: str, name: str, mode: str) -> None:
    import plotly.graph_objects as go

    texts = [point["name"] for point in points]
    figure.add_trace(
        go.Scatter(x=[p[x] for p in points], y=[p[y] for p in points], text=texts, name=name, mode=mode)
    )


def _cost_figure(pareto: Mapping[str, Any]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    _scatter(figure, pareto["cost_latency"], "usd_per_hour", "worst_ratio", "plans", "markers")
    _scatter(figure, pareto["cost_latency_front"], "usd_per_hour", "worst_ratio", "Pareto front", "lines")
    figure.add_hline(y=1, line_dash="dot")
    return _layout(figure, "$ per hour", "nearest objective / limit")


def _speed_figure(pareto: Mapping[str, Any]) -> Any:
    import plotly.graph_objects as go

    figure, names = go.Figure(), ("tokens_per_s_per_user", "tokens_per_s_per_gpu")
    _scatter(figure, [p for p in pareto["throughput_speed"] if p["met"]], *names, "meets the SLO", "markers")
    _scatter(figure, [p for p in pareto["throughput_speed"] if not p["met"]], *names, "misses it", "markers")
    _scatter(figure, pareto["throughput_speed_front"], *names, "Pareto front", "lines")
    return _layout(figure, "output tokens/s of a user", "output tokens/s per GPU")


def _load_figure(best: Mapping[str, Any]) -> Any:
    import plotly.graph_objects as go

    figure, capacity = go.Figure(), best["capacity"]
    for i, first in enumerate(capacity["probes"][0]["objectives"]):
        points = [(p["request_rate"], p["objectives"][i]["ratio"]) for p in capacity["probes"]]
        shown = [(rate, ratio) for rate, ratio in points if ratio is not None and ratio < 5]
        figure.add_trace(
            go.Scatter(
                x=[p[0] for p in shown],
                y=[p[1] for p in shown],
                name=first["objective"],
                mode="lines+markers",
            )
        )
    figure.add_hline(y=1, line_dash="dot")
    figure.add_vline(x=capacity["request_rate"], line_dash="dash", annotation_text="capacity")
    if capacity["saturation"]:
        figure.add_vline(x=capacity["saturation"], line_dash="dash", annotation_text="saturation")
    return _layout(figure, "requests/s of a replica", "objective / limit")


def _over_time_html(found: Mapping[str, Any]) -> str:
    import plotly.graph_objects as go

    over, figure = found["over_time"], go.Figure()
    hours = [one["start_s"] / 3600 for one in over["intervals"]]
    figure.add_trace(
        go.Scatter(x=hours, y=[one["num_gpus"] for one in over["intervals"]], name="least", line_shape="hv")
    )
    figure.add_hline(y=over["fixed"]["peak_gpus"], line_dash="dot", annotation_text="fixed")
    sections = [
        _section("Provisioning", table_html(OVER_TIME_HEADINGS, over_time_rows(over))),
        _section("GPUs over time", _figure(_layout(figure, "hours", "GPUs"))),
        _section("Intervals", table_html(INTERVAL_HEADINGS, _interval_rows(over))),
        _section("What the numbers rest on", _list(found["provenance"])),
    ]
    return page(found["headline"], found["subtitle"], "\n".join(sections))


def _over_time_markdown(found: Mapping[str, Any]) -> str:
    over = found["over_time"]
    parts = [
        f"# {found['headline']}",
        "",
        found["subtitle"],
        "",
        table_markdown(OVER_TIME_HEADINGS, over_time_rows(over)),
    ]
    return "\n".join(
        [*parts, "", "## Intervals", "", table_markdown(INTERVAL_HEADINGS, _interval_rows(over)), ""]
    )


OVER_TIME_HEADINGS = ("provisioning", "peak GPUs", "mean GPUs", "GPU-hours", "$", "SLO")
INTERVAL_HEADINGS = ("start, h", "requests/s", "plan", "replicas", "GPUs", "$/h")


def over_time_rows(over: Mapping[str, Any]) -> Rows:
    """The cells under `OVER_TIME_HEADINGS`."""
    return [
        (
            name,
            str(one["peak_gpus"]),
            f"{one['mean_gpus']:.1f}",
            f"{one['gpu_hours']:.1f}",
            f"{one['usd']:.2f}",
            slo,
        )
        for name, one, slo in provisionings(over)
    ]


def provisionings(over: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """(name, figures, whether the SLO holds) of every way to provision."""
    found = [("perfect autoscaler", over["perfect"], "met"), ("fixed", over["fixed"], "met")]
    for one in over["autoscalers"]:
        missed = [o["objective"] for o in one["objectives"] if not o["met"]]
        found.append((one["name"], one, "met" if one["met"] else f"misses {', '.join(missed)}"))
    return found


def _interval_rows(over: Mapping[str, Any]) -> Rows:
    return [
        (
            f"{one['start_s'] / 3600:.2f}",
            f"{one['request_rate']:.2f}",
            one["name"],
            str(one["replicas"]),
            str(one["num_gpus"]),
            f"{one['usd_per_hour']:.2f}",
        )
        for one in over["intervals"]
    ]
