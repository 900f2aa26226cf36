"""`sim trace` end to end; errors are turned into one line by the command line's wrapper."""

import json

import pytest
from typer.testing import CliRunner

from simulator.cli.trace import app
from simulator.errors import SimError
from simulator.workload import read_trace

CSV = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "".join(
    f"2023-11-16 18:15:{k:02}.6805900,{100 + k},{1 + k}\r\n" for k in range(50)
)


def sim(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, SimError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_stats(write) -> None:
    text = sim("stats", write(CSV, "t.csv"))
    assert "azure" in text and "50 rows" in text and "1 per s" in text


def test_stats_as_json(write) -> None:
    numbers = json.loads(sim("stats", write(CSV, "t.csv"), "--json", "--limit", 10))
    assert numbers["requests"] == 10 and numbers["input_length"]["max"] == 109
    assert numbers["prefix_reuse"] is None and numbers["meta"]["rows_read"] == 50


def test_convert(write, tmp_path) -> None:
    source, target = write(CSV, "t.csv"), tmp_path / "out.jsonl"
    assert "50 requests" in sim("convert", source, target)
    assert read_trace(target).input_length.tolist() == read_trace(source).input_length.tolist()
    assert json.loads((tmp_path / "out.jsonl.meta.json").read_text())["format"] == "azure"


def test_cutting_and_stretching(write, tmp_path) -> None:
    target = tmp_path / "out.jsonl"
    sim("convert", write(CSV, "t.csv"), target, "--window", "10:30", "--request-rate", "4")
    trace = read_trace(target)
    assert len(trace) == 20 and trace.request_rate == pytest.approx(4)
    assert trace.input_length[0] == 110


def test_columns_by_name(write) -> None:
    path = write("when,p,o\n1,2,3\n2,2,3\n", "t.csv")
    names = ["--column", "timestamp=when", "--column", "input_length=p", "--column", "output_length=o"]
    assert "2 rows" in sim("stats", path, *names, "--time-unit", "s")


@pytest.mark.parametrize(
    "arrival",
    [
        ["poisson", "--request-rate", "5"],
        ["constant", "--request-rate", "5"],
        ["gamma", "--request-rate", "5", "--burstiness", "0.5"],
        ["weibull", "--request-rate", "5", "--shape", "0.5"],
        ["mmpp", "--rates", "1,9", "--durations", "10,10"],
        ["piecewise", "--rates", "1,9", "--durations", "10,10"],
        ["ramp", "--rates", "1,9"],
        ["exponential-ramp", "--rates", "1,9"],
    ],
)
def test_generate(tmp_path, arrival: list[str]) -> None:
    target = tmp_path / "out.jsonl"
    lengths = ["--input-length", "lognormal:mean=100,sigma=1", "--output-length", "20"]
    sim("generate", target, "--num-prompts", 300, "--arrival", *arrival, *lengths)
    trace = read_trace(target)
    assert len(trace) == 300 and set(trace.output_length) == {20} and trace.duration > 0


def test_generate_sessions_with_lengths_from_a_trace(write, tmp_path) -> None:
    target = tmp_path / "out.jsonl"
    pairs = write(CSV, "t.csv")
    prefixes = ["--num-prefixes", 2, "--prefix-length", 64]
    sim(
        "generate",
        target,
        "--num-prompts",
        30,
        "--lengths-from",
        pairs,
        "--turns",
        3,
        "--think-time",
        9,
        *prefixes,
    )
    trace = read_trace(target)
    assert len(trace) == 30 and trace.turn.max() == 2 and (trace.input_length > 64).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "gone.csv"], "no such file"),
        (["generate", "out.jsonl"], "needs input and output"),
        (["generate", "out.jsonl", "--arrival", "poison"], "did you mean 'poisson'"),
        (
            ["generate", "out.jsonl", "--input-length", "5", "--output-length", "5", "--arrival", "ramp"],
            "needs two",
        ),
        (["generate", "out.jsonl", "--rates", "a,b"], "must be numbers"),
        (["stats", "gone.csv", "--column", "x"], "our_name=their_name"),
        (["stats", "gone.csv", "--window", "x"], "START:END"),
    ],
)
def test_user_errors(tmp_path, monkeypatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SimError, match=message):
        sim(*arguments)
    assert list(tmp_path.iterdir()) == []
