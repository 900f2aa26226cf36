"""Orca: who joins, who waits, and what contiguous reservation wastes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling import Request
from simulator.scheduling.contiguous import BuddyMemory
from simulator.scheduling.orca import Orca


def test_one_that_does_not_fit_holds_up_all_younger_ones() -> None:
    orca = Orca(max_total_tokens=1024, max_model_len=1024)
    for name, prompt, limit in (("a", 400, 100), ("b", 500, 500), ("c", 10, 10)):
        orca.add(Request(name, prompt, limit), 0.0)
    batch = orca.schedule(0.0)
    assert [(r.id, chunk) for r, chunk, _ in batch.prefills] == [("a", 400)]  # b wants 1024, half is left
    assert orca.num_waiting == 2
    orca.commit(batch, [batch.prefills[0][0]], 1.0)
    assert [r.id for r, _, _ in orca.schedule(1.0).prefills] == ["b"]


def test_prompts_run_beside_the_others_next_tokens() -> None:
    orca = Orca(max_total_tokens=4096)
    orca.add(Request("a", 30, 20), 0.0)
    orca.commit(orca.schedule(0.0), [], 1.0)
    orca.add(Request("b", 50, 20), 1.0)
    batch = orca.schedule(1.0)
    assert (batch.num_decodes, batch.decode_context) == (1, 31)
    assert [(r.id, chunk) for r, chunk, _ in batch.prefills] == [("b", 50)]


def test_what_is_reserved_makes_the_variant() -> None:
    context = Orca(max_total_tokens=8192, max_model_len=2048, reserve="context")
    limit = Orca(max_total_tokens=8192, max_model_len=2048)
    for orca in (context, limit):
        for i in range(8):
            orca.add(Request(f"r{i}", 100, 28), 0.0)
        orca.schedule(0.0)
    assert len(context.running) == 4
    assert context.waste()[0] == 4 * (2048 - 100)
    assert len(limit.running) == 8
    assert limit.waste()[:2] == (8 * 28, 0)


def test_waste_by_kind() -> None:
    orca = Orca(max_total_tokens=256, max_model_len=200)
    orca.add(Request("a", 100, 30), 0.0)  # 130 slots in a piece of 256
    orca.add(Request("b", 10, 6), 0.0)
    orca.schedule(0.0)
    reserved, internal, external, shared = orca.waste()
    assert (reserved, internal, external, shared) == (30, 126, 0, 0)
    assert orca.num_waiting == 1


def test_what_can_never_fit_is_refused_with_the_reason() -> None:
    orca = Orca(max_total_tokens=512, max_model_len=4096)
    with pytest.raises(CapacityError, match="larger than the largest piece"):
        orca.add(Request("a", 400, 400), 0.0)
    with pytest.raises(CapacityError, match="no room for output within max_model_len 4096"):
        orca.add(Request("b", 4096, 1), 0.0)
    with pytest.raises(ConfigurationError, match="reserve 'all': must be limit or context"):
        Orca(max_total_tokens=512, reserve="all")


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 20)), max_size=60), st.integers(64, 3000))
def test_buddies_never_overlap_and_join_again(steps: list[tuple[int, int]], capacity: int) -> None:
    memory, held = BuddyMemory(capacity), []
    whole = {size: set(free) for size, free in memory._free.items() if free}
    for i, (tokens, drop) in enumerate(steps):
        if memory.fits(tokens):
            request = Request(f"r{i}", 1, 1)
            memory.take(request, tokens)
            held.append(request)
        if drop < len(held):
            memory.free(held.pop(drop))
        pieces = sorted((start, start + size) for start, size, _ in memory._held.values())
        assert all(a_end <= b for (_, a_end), (b, _) in itertools.pairwise(pieces))
        assert memory.used <= memory.capacity
    for request in held:
        memory.free(request)
    assert {size: free for size, free in memory._free.items() if free} == whole
    assert memory.used == memory.reserved == 0
