"""Our decisions are those of the real schedulers, wherever they were recorded."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from simulator.conformance import check, load_case
from simulator.conformance.case import REPLAYS
from simulator.errors import InputError, UnknownNameError

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "conformance"
CASES = sorted(RECORDED.glob("*.json.gz")) if RECORDED.is_dir() else []
RECORDED_PREFIXES = [p for p in sorted(REPLAYS) if any(c.name.startswith(p) for c in CASES)] or ["none"]


@pytest.mark.skipif(
    not CASES, reason="recorded decisions of real schedulers are not at ../shared/data/conformance"
)
@pytest.mark.parametrize("prefix", RECORDED_PREFIXES)
def test_recorded_decisions_are_reproduced(prefix: str) -> None:
    verdicts = [check(load_case(path)) for path in CASES if path.name.startswith(prefix)]
    assert not [f"{v.case.path.name}: {v.difference}" for v in verdicts if not v.identical]


def one_step_case(**changes: Any) -> dict[str, Any]:
    """A case of our own: one prompt of 20 tokens in a budget of 16, so that it takes two steps, then one decode."""
    steps = [
        {"step": 0, "scheduled": {"a": 16}, "new_cached": {"a": 0}, "preempted": [], "finished": []},
        {"step": 1, "scheduled": {"a": 4}, "new_cached": {}, "preempted": [], "finished": []},
        {"step": 2, "scheduled": {"a": 1}, "new_cached": {}, "preempted": [], "finished": ["a"]},
    ]
    config = {
        "num_blocks": 11,
        "block_size": 4,
        "max_num_seqs": 2,
        "max_num_batched_tokens": 16,
        "max_model_len": 40,
    }
    request = {"id": "a", "arrival_step": 0, "arrival_time": 0.0, "prompt_len": 20, "output_len": 2}
    return {
        "source": "vllm-0.33.0",
        "config": {**config, "enable_prefix_caching": True},
        "requests": [request],
        "steps": steps,
        **changes,
    }


def write(path: Path, case: Any) -> Path:
    path.write_bytes(gzip.compress(json.dumps(case).encode()))
    return path


def test_a_case_that_agrees_is_identical(tmp_path: Path) -> None:
    verdict = check(load_case(write(tmp_path / "vllm-0.33.0-own.json.gz", one_step_case())))
    assert verdict.identical
    assert verdict.steps == 3


def test_the_first_difference_is_told_with_both_sides(tmp_path: Path) -> None:
    case = one_step_case()
    case["steps"][1]["scheduled"] = {"a": 3}
    verdict = check(load_case(write(tmp_path / "vllm-0.33.0-own.json.gz", case)))
    assert verdict.steps == 1
    assert str(verdict.difference) == 'step 1: scheduled: ours {"a": 4} theirs {"a": 3}'


def test_what_is_not_a_case_is_refused_in_one_line(tmp_path: Path) -> None:
    for content in (b"not gzip", gzip.compress(b"{"), gzip.compress(b"[]"), gzip.compress(b"{}")):
        path = tmp_path / "bad.json.gz"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.json\.gz: is not"):
            load_case(path)
    with pytest.raises(InputError, match="cannot be read"):
        load_case(tmp_path / "missing.json.gz")


def test_an_unknown_system_is_named(tmp_path: Path) -> None:
    case = load_case(write(tmp_path / "other-1.json.gz", one_step_case(source="other-1.0")))
    with pytest.raises(UnknownNameError, match="recorded system"):
        check(case)
