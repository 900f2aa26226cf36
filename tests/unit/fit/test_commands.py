"""The commands: sim gpus, sim calibrate fit, sim validate operators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from simulator.cli import calibrate_fit, gpus, validate_operators
from simulator.errors import ConfigurationError, InputError, UnknownNameError

app = typer.Typer()
app.add_typer(gpus.app, name="gpus")
app.command("fit")(calibrate_fit.fit)
app.command("operators")(validate_operators.operators)
runner = CliRunner()

TABLE = """gpu,src,dtype,m,n,k,latency_us
h100_sxm,s,bfloat16,16,8192,8192,48
h100_sxm,s,bfloat16,16,1024,1024,5
h100_sxm,s,bf61,16,8192,8192,48
tpu,s,bfloat16,16,8192,8192,48
"""


def test_list_names_every_device() -> None:
    result = runner.invoke(app, ["gpus"])
    assert result.exit_code == 0
    assert "h100-sxm-80gb" in result.output and "scaled from a100-sxm-80gb" in result.output


def test_show_says_where_numbers_come_from(tmp_path: Path) -> None:
    figure = tmp_path / "h100.html"
    result = runner.invoke(app, ["gpus", "show", "h100", "--plot", str(figure)])
    assert result.exit_code == 0
    for text in ("gemm/bf16", "fitted", "default", "2026-08-21", "roofline"):
        assert text in result.output
    assert "GEMM bf16" in figure.read_text()


def test_show_as_json() -> None:
    shown = json.loads(runner.invoke(app, ["gpus", "show", "l4", "--json"]).output)
    assert shown["name"] == "l4-24gb"


def test_unknown_gpu_is_an_error() -> None:
    assert isinstance(runner.invoke(app, ["gpus", "show", "h10"]).exception, UnknownNameError)


def test_operators_counts_what_it_cannot_predict(tmp_path: Path) -> None:
    table, out, figure = tmp_path / "t.csv", tmp_path / "o.json", tmp_path / "p.html"
    table.write_text(TABLE)
    result = runner.invoke(app, ["operators", str(table), "--json", str(out), "--plot", str(figure)])
    assert result.exit_code == 0, result.exception
    assert "2 of 4 rows predicted" in result.output
    assert "1 rows not predicted: unknown gpu 'tpu'" in result.output
    groups = {group["operator"]: group for group in json.loads(out.read_text())}
    assert set(groups) == {"gemm", "gemm_l2_resident"}
    assert groups["gemm"]["rows"] == 1 and groups["gemm"]["mean_ape"] < 0.2
    assert {"operator", "gpu", "dtype", "rows", "mean_ape", "median_ape", "p90_ape"} <= set(groups["gemm"])
    assert "L2 cache" in groups["gemm_l2_resident"]["reason"]
    assert figure.stat().st_size > 1000


def test_operators_refuses_another_table(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a,b\n1,2\n")
    assert isinstance(runner.invoke(app, ["operators", str(table)]).exception, InputError)


@pytest.mark.parametrize("kind", ["guessed", ""])
def test_fit_refuses_an_unknown_kind(tmp_path: Path, kind: str) -> None:
    result = runner.invoke(app, ["fit", "--data", str(tmp_path), "--out", str(tmp_path), "--kind", kind])
    assert isinstance(result.exception, ConfigurationError)
