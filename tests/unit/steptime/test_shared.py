"""Tables that deployments share: one evaluation for the same kernels, the same seconds whoever asked before."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles import load_profile
from simulator.deployment import Deployment
from simulator.models import load_model
from simulator.steptime import Parallelism, StepTime, load_traits
from simulator.steptime.laws import LawSet
from simulator.steptime.shared import KEPT, shared

BATCHES = st.lists(
    st.tuples(
        st.integers(1, 600),
        st.integers(1, 30_000),
        st.lists(st.tuples(st.integers(1, 20_000), st.integers(0, 200_000)), max_size=3),
    ),
    max_size=4,
)


def on_its_own(name: str = "llama-3.1-8b") -> StepTime:
    """A step whose tables nobody has read."""
    for i in range(KEPT):
        shared(list, [i])
    return StepTime(load_model(name), LawSet(load_profile("h100")), Parallelism(), load_traits("vllm"))


@settings(max_examples=25, deadline=None)
@given(BATCHES, st.integers(1, 600), st.integers(1, 30_000), st.integers(1, 20_000), st.integers(0, 200_000))
def test_what_was_asked_before_changes_nothing(before, rows, mean, chunk, context):
    used = on_its_own()
    for num_decodes, each, prefills in before:
        used.seconds(num_decodes, num_decodes * each, prefills)
    fresh = on_its_own()
    assert used._operator_times is not fresh._operator_times
    assert used.seconds(rows, rows * mean) == fresh.seconds(rows, rows * mean)
    assert used.seconds(rows, rows * mean, [(chunk, context)]) == fresh.seconds(
        rows, rows * mean, [(chunk, context)]
    )


def test_limits_share_the_tables_of_their_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    law = LawSet.prefill_attention
    monkeypatch.setattr(LawSet, "prefill_attention", lambda *a, **k: calls.append(1) or law(*a, **k))

    def seconds(**options: object) -> float:
        given = {"model": "llama-3.1-8b", "gpu": "h100", **options}
        return Deployment.of(**given).resolve().steptime.seconds(3, 3000, [(500, 0)])

    on_its_own()
    one = seconds(max_num_seqs=64)
    evaluated = len(calls)
    assert evaluated and seconds(max_num_seqs=65) == one
    assert len(calls) == evaluated
    assert seconds(gpu="a100") != one != seconds(kv_cache_dtype="fp8")
    assert len(calls) > evaluated


def test_every_thread_has_its_own() -> None:
    here, there = shared(list, (1, 2)), []
    thread = threading.Thread(target=lambda: there.append(shared(list, (1, 2))))
    thread.start()
    thread.join()
    assert shared(list, (1, 2)) is here
    assert there == [[1, 2]] and there[0] is not here


def test_the_tables_used_last_are_kept() -> None:
    first = shared(list, "first")
    for i in range(2 * KEPT):
        shared(list, str(i))
        assert shared(list, "first") is first
    for i in range(KEPT):
        shared(list, str(i))
    assert shared(list, "first") is not first
