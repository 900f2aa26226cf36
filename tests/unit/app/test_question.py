"""The sizing page answers what `sim size` answers, number by number."""

from __future__ import annotations

import json
import shlex

import pytest
from typer.testing import CliRunner

from app import library
from app.question import Question
from app.view import View
from simulator.cli import app
from simulator.errors import ConfigurationError, InputError
from simulator.sizing import local_executor

VIEW = View.of({"num_prompts": 100, "request_rate": 4, "burstiness": 0.5, "max_num_seqs": 48, "dtype": "fp8"})


def typed(command: str) -> str:
    """What the terminal prints for *command*."""
    done = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def answer(question: Question) -> dict:
    with local_executor(1) as pool:
        return json.loads(json.dumps(question.prepare()(pool, lambda text: None)))


@pytest.mark.parametrize("interval", [0.0, 40.0])
def test_the_page_and_the_terminal_say_the_same(interval, tmp_path, monkeypatch):
    prices = library.store("prices", "mine.yaml", b"h100: 9.75\n")
    view = VIEW.model_copy(update={"num_prompts": 300}) if interval else VIEW
    question = Question(view, ("h100-sxm-80gb", "l40s-48gb"), (1,), ("fp8",), 0.0, prices, interval)
    here = answer(question)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("h100: 9.75\n")
    (tmp_path / "fixed.yaml").write_text(question.fixed_yaml)
    generate, size = question.command.splitlines()
    typed(generate)
    there = json.loads(typed(f"{size} --workers 1 --json"))
    if interval:
        assert here["over_time"] == there["over_time"]
        assert here["headline"] == there["headline"]
        return
    assert here["ranking"] == there["ranking"]
    assert here["best"] == there["best"]
    assert {plan["usd_per_hour"] / plan["num_gpus"] for plan in here["ranking"]} >= {9.75}
    assert all(plan["deployment"]["max_num_seqs"] == 48 for plan in here["ranking"])


def test_without_an_objective_there_is_no_question():
    view = View.of({"ttft": 0, "tpot": 0})
    with pytest.raises(ConfigurationError, match="objectives: none is set"):
        Question(view, ("h100-sxm-80gb",), (1,), ("published",)).prepare()


def test_a_price_list_that_is_none_is_refused_before_it_is_offered(tmp_path):
    key = library.store("prices", "list.yaml", b"h100: cheap\n")
    with pytest.raises(InputError, match="cheap"):
        _ = Question(VIEW, (), (), (), prices=key).quotes
