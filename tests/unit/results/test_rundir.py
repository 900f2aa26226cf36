"""The run directory appears whole or not at all, and reads back as it was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from simulator.errors import ConfigurationError
from simulator.results import Categories, Run, Summary, summarize, write_run
from simulator.results.rundir import RUN_FILES


@pytest.fixture
def run(summary: Summary) -> Run:
    config = {"gpu": "h100", "limits": {"max_num_seqs": np.int64(256), "path": Path("t.jsonl")}}
    return Run(summary, title="a run", config=config, metadata={"model_id": "m", "request_rate": "inf"})


def test_all_files_are_there_and_readable(run: Run, tmp_path: Path) -> None:
    target = write_run(tmp_path / "deep" / "out", run, detailed=True)
    assert sorted(path.name for path in target.iterdir()) == sorted(RUN_FILES)
    config = yaml.safe_load((target / "config.yaml").read_text())
    assert config == {"gpu": "h100", "limits": {"max_num_seqs": 256, "path": "t.jsonl"}}
    numbers = json.loads((target / "summary.json").read_text())
    assert numbers["model_id"] == "m" and numbers["completed"] == 3 and len(numbers["ttfts"]) == 3
    assert json.loads((target / "timeline.json").read_text())["traceEvents"]
    assert len(pd.read_parquet(target / "series.parquet")) == 9


def test_requests_round_trip(three: Any, tmp_path: Path) -> None:
    builder, itl, series = three
    builder.leave(2, 5, "too long", 2.0)
    builder.first_token_time[2] = builder.first_scheduled_time[2] = np.nan
    tenant = Categories(np.array([0, 1, -1], np.int32), ["a", "b"])
    records = builder.build(tenant=tenant, request_id=["x", "y", "z"])
    run = Run(summarize(records, itl, series), title="t", config={})
    read = pd.read_parquet(write_run(tmp_path / "out", run) / "requests.parquet")
    frame = records.to_frame()
    assert list(read.columns) == list(frame.columns)
    assert read["request_id"].tolist() == ["x", "y", "z"]
    assert read["status"].tolist() == ["finished", "finished", "rejected"]
    assert read["reason"].tolist()[2] == "too long" and read["reason"].isna().tolist() == [True, True, False]
    assert read["tenant"].tolist()[:2] == ["a", "b"] and read["tenant"].isna().tolist()[2]
    for name in ("arrival_time", "first_token_time", "finish_time", "input_length", "num_preemptions"):
        np.testing.assert_array_equal(read[name], frame[name])


def test_an_earlier_run_is_replaced(run: Run, tmp_path: Path) -> None:
    write_run(tmp_path / "out", run)
    again = Run(run.summary, title="a run", config={"gpu": "a100"})
    write_run(tmp_path / "out", again)
    assert "a100" in (tmp_path / "out" / "config.yaml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_directory_may_be_used(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_run(tmp_path / "out", run)
    assert (tmp_path / "out" / "report.html").exists()


def test_a_foreign_directory_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigurationError, match=r"'thesis.tex', which is not part of a run"):
        write_run(tmp_path, run)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigurationError, match="not a directory"):
        write_run(tmp_path / "thesis.tex", run)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_failure_leaves_nothing_behind(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    if earlier:
        write_run(tmp_path / "out", run)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def disk_full(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("simulator.results.rundir.report_html", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_run(tmp_path / "out", run)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
