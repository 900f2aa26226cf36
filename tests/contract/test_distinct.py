"""A system counts as one of its own only if it decides or costs otherwise than every other.

Every system runs the same small workloads under the same scarce limits, on a clock that knows nothing of systems:
what differs then is decided differently. What a step costs is compared on one model and device. A system that
differs in neither must say whose it is (`System.same_as`), and one that says so must be it.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator import Deployment
from simulator.scheduling.system import System, find_system, list_systems
from simulator.workload.limits import resolve_max_tokens

STEPS: tuple[tuple[int, int, list[tuple[int, int]]], ...] = (
    (1, 100, []),
    (7, 3000, []),
    (100, 50_000, []),
    (0, 0, [(37, 0)]),
    (0, 0, [(700, 0), (90, 200)]),
    (20, 9000, [(300, 100)]),
)
"""Decodes, their context, prompt chunks."""


@cache
def step_costs(name: str) -> tuple[float, ...]:
    """Seconds of some steps of an 8B model on one H100."""
    steps = Deployment.of(model="llama-3.1-8b", gpu="h100", system=name).resolve().steptime
    return tuple(round(steps.seconds(*step), 12) for step in STEPS)


@pytest.fixture
def decisions(run_small: Any, random_trace: Any) -> Any:
    """``decisions(system)``: when each request of some workloads ran, and what it lost and found."""

    def run(system: System) -> tuple[bytes, ...]:
        found: list[bytes] = []
        for seed, load in ((1, 0.3), (2, 1.0), (3, 3.0)):
            stated = random_trace(np.random.default_rng(seed), 40, load=load)
            trace = dataclasses.replace(stated, max_tokens=np.zeros_like(stated.max_tokens))
            limits = resolve_max_tokens(trace, system.default_max_tokens or "pow2")
            records, _, _ = run_small(system, dataclasses.replace(trace, max_tokens=limits))
            found += [
                np.round(records.first_token_time, 9).tobytes(),
                np.round(records.finish_time, 9).tobytes(),
                records.num_preemptions.tobytes(),
                records.cached_tokens.tobytes(),
                records.status.tobytes(),
            ]
        return tuple(found)

    return run


def test_every_system_differs_from_every_other_or_says_whose_it_is(decisions: Any) -> None:
    own = [system for system in list_systems() if system.same_as is None]
    decided = {system.name: decisions(system) for system in own}
    alike = [
        (a, b)
        for a, b in combinations(decided, 2)
        if decided[a] == decided[b] and step_costs(a) == step_costs(b)
    ]
    assert not alike, "systems that decide and cost the same, and do not say so"


def test_what_is_another_name_is_the_same_system(decisions: Any) -> None:
    for system in list_systems():
        if system.same_as is not None:
            other = find_system(system.same_as)
            assert other.same_as is None
            assert decisions(system) == decisions(other)
            assert step_costs(system.name) == step_costs(other.name)


def test_a_copy_would_be_found(decisions: Any) -> None:
    vllm = find_system("vllm")
    assert decisions(dataclasses.replace(vllm, name="copy")) == decisions(vllm)
    plain = dataclasses.replace(vllm, name="plain", fixed={**vllm.fixed, "enable_prefix_caching": False})
    assert decisions(plain) != decisions(vllm)


def test_every_system_is_described_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "systems.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in guide.splitlines() if line.startswith("| `")]
    described = {name.strip(" `") for row in rows for name in row.split(",")}
    assert described == {system.name for system in list_systems()}
