"""The table of techniques: every side is a deployment or is refused with a reason, and the page and picture show it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from simulator.deployment import Resolved
from simulator.errors import SimError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def techniques() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "techniques_benchmark", ROOT / "benchmarks" / "techniques.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", ["8B, 1 H100", "70B, 4 A100"])
def test_each_side_is_a_deployment_or_says_why_not(techniques: ModuleType, case: str) -> None:
    refused = []
    for technique in techniques.TECHNIQUES:
        assert technique.on != technique.off
        for side in (technique.on, technique.off):
            try:
                assert isinstance(techniques.deployment(case, side), Resolved)
            except SimError as error:
                refused.append(str(error))
    assert len(refused) == (0 if "H100" in case else 1)  # the A100 has no FP8
    assert all("does not multiply in it" in reason for reason in refused)


def side(tokens_s: float, rejected: int = 0) -> dict[str, Any]:
    return {"ttft": 50.0, "tpot": 10.0, "tokens_s": tokens_s, "kv_tokens": 1000, "rejected": rejected}


def test_a_row_says_what_changed_and_what_did_not_fit(techniques: ModuleType) -> None:
    row = {"case": "8B, 1 H100", "trace": "azure", "rate": 2.0, "technique": "FP8 KV"}
    row |= {"off": side(100.0, 3), "on": side(250.0)}
    page = techniques.as_markdown([row])
    assert "| FP8 KV | 50 | 10.0 | 100 → 250 | 1,000 | off: 3 requests never fit |" in page
    assert list(techniques.gains([row])) == []  # the sides did not serve the same requests
    row["off"] = side(100.0)
    assert list(techniques.gains([row])) == [("FP8 KV", "8B, 1 H100", "azure", 2.5)]
    row["on"] = {"refused": "no such thing"}
    assert "on: no such thing" in techniques.as_markdown([row])


def test_the_picture_has_a_dot_for_each_gain(techniques: ModuleType) -> None:
    rows = [
        {
            "case": case,
            "trace": "azure",
            "rate": 2.0,
            "technique": "FP8 KV",
            "off": side(100),
            "on": side(200),
        }
        for case in techniques.CASES
    ]
    picture = ElementTree.fromstring(techniques.as_svg(rows))
    titles = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(techniques.CASES)
    assert "FP8 KV, 8B, 1 H100, Azure conversations: 2.00 ×" in titles


def test_the_page_in_the_docs_is_of_these_techniques(techniques: ModuleType) -> None:
    page = (ROOT / "docs" / "techniques" / "measured.md").read_text(encoding="utf-8")
    for technique in techniques.TECHNIQUES:
        assert page.count(f"| {technique.name} |") == len(techniques.CASES) * len(techniques.REQUESTS)
