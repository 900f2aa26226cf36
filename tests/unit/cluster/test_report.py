"""What a cluster's report shows beyond a replica's: classes, the bill, and the time of all pools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator import ClusterSpec, simulate
from simulator.cluster.bill import bill_section, total_usd
from simulator.results import class_section, write_run
from simulator.workload import Trace

GPU = {"model": "llama-3.1-8b", "gpu": "l40s"}


@pytest.fixture(scope="module")
def result() -> Any:
    n = 60
    trace = Trace.from_columns(
        np.arange(n) * 0.3, np.full(n, 400), np.full(n, 30), slo_class=["chat", "batch"] * (n // 2)
    )
    pools = {
        "prefill": {"deployment": GPU, "role": "prefill"},
        "decode": {"deployment": GPU, "role": "decode", "replicas": 2, "usd_per_hour": 2.0},
    }
    spec = ClusterSpec.of(pools=pools, transfer={"bandwidth": 25e9}, slo={"chat": {"ttft": 500}})
    return simulate(trace, spec)


def test_the_bill_by_pool_adds_up(result: Any) -> None:
    table = bill_section(result.bills, result.end_time)
    assert [row[0] for row in table.rows] == ["prefill", "decode", "all"]
    hours = [float(row[table.columns.index("GPU-hours")]) for row in table.rows]
    assert hours[0] + hours[1] == pytest.approx(hours[2], abs=0.002)
    assert hours[2] == pytest.approx(result.gpu_hours, abs=0.001)
    per_hour = [float(row[-1].strip("$")) for row in table.rows]
    assert per_hour == [1.0, 4.0, 5.0]  # a price of one's own overrules the profile's
    assert table.rows[2][table.columns.index("$")] == f"${total_usd(result.bills):,.2f}"


def test_the_time_of_all_replicas_is_in_the_breakdown(result: Any) -> None:
    busy = sum(float(series.points()["duration_s"].sum()) for series in result.series)
    assert sum(result.time_breakdown.values()) == pytest.approx(busy)
    assert result.time_breakdown["attention, prefill"] > 0
    assert result.time_breakdown["attention, decode"] > 0


def test_the_report_holds_classes_bill_and_breakdown(result: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", result.run())
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for heading in ("Classes and tenants", "What it cost", "Where the time goes"):
        assert f"<h2>{heading}</h2>" in text
    assert "slo class chat" in text
    assert class_section(result.classes[:1]) == []  # a trace that names nothing needs no table
