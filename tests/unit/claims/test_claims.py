"""Claims: what counts as agreement, that a claim answers what was published, and the command."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from simulator.claims import Published, Range, Workloads, compare, find_claims, list_claims, reproduce
from simulator.claims.runs import bisect
from simulator.claims.speculative import break_even
from simulator.claims.wording import (
    MARKERS,
    between_markers,
    published_rows,
    put_between_markers,
    verdict_words,
)
from simulator.cli import main
from simulator.errors import ConfigurationError, InputError, UnknownNameError

README = Path(__file__).parents[3] / "README.md"


@pytest.mark.parametrize(
    ("published", "ours", "verdict"),
    [
        (Published("", 14, 24), Range(20, 30), "agrees"),
        (Published("", 14, 24), Range(24, 30), "agrees"),
        (Published("", 10, 20), Range(21, 30), "agrees"),
        (Published("", 10, 20), Range(23, 30), "close"),
        (Published("", 10, 20), Range(25, 30), "higher"),
        (Published("", 10, 20), Range(1, 7.9), "lower"),
        (Published("", 4, 4, "%", "under"), Range(1.7, 1.7), "agrees"),
        (Published("", 4, 4, "%", "under"), Range(9.1, 12), "higher"),
        (Published("", 60, 80, "%"), Range(56, 59.1), "agrees"),
        (Published("", 60, 80, "%"), Range(56, 57), "close"),
    ],
)
def test_agreement_is_that_two_ranges_meet_or_nearly_do(
    published: Published, ours: Range, verdict: str
) -> None:
    assert compare(published, ours) == verdict


def test_a_difference_says_how_large_it_is() -> None:
    assert verdict_words(Published("", 22, 22, "×", "up to"), Range(3, 11)) == "lower: × 0.50"
    assert verdict_words(Published("", 60, 80, "%"), Range(90, 95)) == "10 points higher"


def test_figures_are_written_as_they_were_put() -> None:
    assert Published("", 60, 80, "%").text == "60 to 80 %"
    assert Published("", 22, 22, "×", "up to").text == "up to 22 ×"


def test_every_claim_says_where_it_comes_from() -> None:
    for claim in list_claims():
        assert claim.source and claim.setup and claim.unknown and claim.why and claim.published
        labels = [figure.label for figure in claim.published]
        assert len(set(labels)) == len(labels)


def test_a_claim_answers_all_that_was_published_and_says_with_which_lengths() -> None:
    for result in reproduce(find_claims(["orca-batch", "tensor-parallel"]), Workloads()):
        assert set(result.outcome.ours) == {figure.label for figure in result.claim.published}
        assert result.outcome.lengths


def test_claims_come_in_their_order_however_they_are_asked_for() -> None:
    assert [claim.id for claim in find_claims(["orca-batch", "kv-waste"])] == ["kv-waste", "orca-batch"]
    with pytest.raises(UnknownNameError, match="unknown claim 'kv-wast': did you mean 'kv-waste'"):
        find_claims(["kv-wast"])


def test_a_folder_of_traces_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a folder of traces"):
        Workloads(tmp_path / "none")


def test_sharegpt_is_read_and_selected_as_vllms_benchmark_does(tmp_path: Path) -> None:
    turns = [
        ("x" * 400, "y" * 800),
        ("x" * 400, "y" * 8),
        ("x" * 9000, "y" * 100),
    ]  # a short answer, a long prompt
    conversations = [
        {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in turns
    ]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "ShareGPT_V3.json").write_text(json.dumps(conversations))
    prompt, output, source = Workloads(tmp_path).sharegpt(5)
    assert set(prompt) == {100} and set(output) == {200}
    assert "ShareGPT_V3.json" in source


def test_the_command_prints_both_figures_and_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "claims.json"
    monkeypatch.setattr(sys, "argv", ["sim", "reproduce", "orca-batch", "--json", str(path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    printed = capsys.readouterr().out
    (claim,) = json.loads(path.read_text())
    for figure in claim["figures"]:
        assert figure["case"] in printed
        assert f"{figure['published'][0]:.3g} ×" in printed and f"{figure['ours'][0]:.3g} ×" in printed


def test_the_list_runs_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["sim", "reproduce", "--list"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    for claim in list_claims():
        assert f"{claim.id}: {claim.title}" in printed
        assert all(figure.text in printed for figure in claim.published)


def test_the_readme_has_every_claim_as_it_was_published() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in between_markers(README).splitlines()
        if line.startswith("| ")
    ][1:]
    shown, name = [], ""
    for first, case, published, ours, verdict in rows:
        name = first.split("`")[1] if first else name
        assert ours and verdict
        shown.append((name, case, published))
    assert shown == published_rows(list_claims())


def test_the_readme_tells_set_ups_and_reasons_as_the_code_does() -> None:
    lines = [line for line in between_markers(README).splitlines() if line.startswith("- `")]
    for claim, line in zip(list_claims(), lines, strict=True):
        told, _, why = line.partition(" Differs: ")
        assert told == f"- `{claim.id}` ({claim.source}): {claim.setup}. Unknown: {claim.unknown}."
        assert why in ("", f"{claim.why}.")


def test_a_table_goes_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{MARKERS[0]}\nold\n{MARKERS[1]}\nbelow\n")
    put_between_markers(page, "| new |")
    assert page.read_text().split() == [
        "above",
        *MARKERS[0].split(),
        "|",
        "new",
        "|",
        *MARKERS[1].split(),
        "below",
    ]
    page.write_text("no markers")
    with pytest.raises(InputError, match="must hold the lines"):
        put_between_markers(page, "| new |")


@pytest.mark.parametrize("edge", [0.1, 1.7, 40.0])
def test_bisection_finds_the_edge_within_and_beyond_its_bounds(edge: float) -> None:
    assert bisect(lambda x: x <= edge, 1.0, 4.0, steps=12) == pytest.approx(edge, rel=0.01)


@pytest.mark.parametrize("answer", [True, False])
def test_bisection_gives_up_where_there_is_no_edge(answer: bool) -> None:
    with pytest.raises(ConfigurationError, match="bearable"):
        bisect(lambda x: answer, 1.0, 4.0)


def test_the_break_even_lies_where_the_gain_crosses_one() -> None:
    assert break_even((1, 4, 16), [3.0, 2.0, 1.5]) == math.inf
    assert break_even((1, 4, 16), [3.0, 1.5, 0.5]) == pytest.approx(8.0)
    assert break_even((1, 4, 16), [0.9, 0.8, 0.5]) == 1.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--json none/claims.json", "none/claims.json: cannot be written: its folder does not exist"),
        ("--into none.md", "none.md: must hold the lines"),
        ("--traces none", "none: must be a folder of traces"),
        ("--workers 0", "workers 0: must be at least 1"),
        ("orca-rate", "unknown claim 'orca-rate': did you mean 'orca-rates'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    options: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sim", "reproduce", *options.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert not printed.out
