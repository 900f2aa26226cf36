"""TGI's router: reservation up front, chunks beside decodes, the stall rule, and a trie of prompts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import CapacityError
from simulator.scheduling.base import Batch
from simulator.scheduling.request import Request
from simulator.scheduling.tgi import Tgi
from simulator.scheduling.tgi_cache import PromptTrie


def make(**options: Any) -> Tgi:
    return Tgi(**({"max_batch_total_tokens": 10_000} | options))


def run(scheduler: Tgi, *ended: Request) -> tuple[list[tuple[str, int, int]], int]:
    """The next forward: its prompts with chunk and context, and how many sequences decode."""
    batch = scheduler.schedule(0.0)
    assert isinstance(batch, Batch)
    scheduler.commit(batch, ended, 0.0)
    return [(request.id, chunk, context) for request, chunk, context in batch.prefills], batch.num_decodes


def test_prompt_and_outputs_are_reserved_at_admission() -> None:
    """Three of 1,000 + 4,000 tokens in 10,000: two take 4,999 each, the third waits on 2,000 used."""
    scheduler = make()
    for name in "abc":
        scheduler.add(Request(name, 1000, 4000), 0.0)
    prompts, _ = run(scheduler)
    assert [name for name, _, _ in prompts] == ["a", "b"]
    assert scheduler.blocks_used == 2 * 4999
    assert run(scheduler) == ([], 2)
    assert scheduler.num_waiting == 1


def test_a_prompt_is_cut_to_the_budget_and_goes_on_with_the_others() -> None:
    scheduler = make(max_batch_prefill_tokens=100)
    for name, prompt in (("a", 60), ("b", 90), ("c", 30)):
        scheduler.add(Request(name, prompt, 10), 0.0)
    assert run(scheduler) == ([("a", 60, 0), ("b", 40, 0)], 0)
    # b's remaining 50 and a's token leave 49 of the budget for c, in the same forward
    assert run(scheduler) == ([("c", 30, 0), ("b", 50, 40)], 1)
    assert run(scheduler) == ([], 3)


def test_a_forward_of_the_whole_batch_follows_each_admission() -> None:
    scheduler = make(max_batch_prefill_tokens=50)
    for name in "abc":
        scheduler.add(Request(name, 40, 10), 0.0)
    assert run(scheduler) == ([("a", 40, 0), ("b", 10, 0)], 0)
    assert run(scheduler) == ([("c", 19, 0), ("b", 30, 10)], 1)
    assert run(scheduler) == ([("c", 21, 19)], 2)
    assert run(scheduler) == ([], 3)


@pytest.mark.parametrize(("waiting", "forwards"), [(3, 0), (2, 19)])
def test_without_chunks_prompts_stall_the_batch_only_if_they_are_many_or_waited(
    waiting: int, forwards: int
) -> None:
    """Ten run, so three (0.3 of them) are worth it at once; two wait for 20 forwards, the prefill counted."""
    scheduler = make(prefill_chunking=False)
    for i in range(10):
        scheduler.add(Request(f"r{i}", 10, 100), 0.0)
    assert len(run(scheduler)[0]) == 10
    for i in range(waiting):
        scheduler.add(Request(f"w{i}", 10, 100), 0.0)
    for _ in range(forwards):
        assert run(scheduler) == ([], 10)
    prompts, decodes = run(scheduler)
    assert (len(prompts), decodes) == (waiting, 0)
    assert run(scheduler) == ([], 10 + waiting)


def test_only_prompts_are_kept_and_a_whole_hit_computes_one_token() -> None:
    scheduler = make()
    first = Request("a", 50, 5, content=((1, 50),), output_id=9)
    scheduler.add(first, 0.0)
    run(scheduler, first)
    assert scheduler.blocks_used == 0
    assert scheduler.blocks_cached == 50
    scheduler.add(Request("b", 50, 5, content=((1, 50),)), 0.0)
    scheduler.add(Request("c", 60, 5, content=((1, 50), (9, 4))), 0.0)
    assert run(scheduler)[0] == [("b", 1, 49), ("c", 10, 50)]


def test_eviction_cuts_the_last_leaf_to_what_is_needed() -> None:
    trie = PromptTrie(2)
    old, new = [((0, 1), 99)], [((0, 2), 99)]
    assert (trie.insert(old, 20), trie.insert(new, 20)) == (0, 0)
    assert trie.evict(6) == 6
    assert trie.find(old, 20)[1] == 14
    assert trie.find(new, 20)[1] == 20
    assert trie.tokens == 34


@given(sequences=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 12)), max_size=12))
def test_the_trie_finds_the_longest_common_prefix_in_whole_blocks(
    sequences: list[tuple[int, int, int]],
) -> None:
    trie, seen = PromptTrie(4), []
    for own, (group, shared, rest) in enumerate(sequences):
        runs = [((0, group), shared), ((shared, 100 + own), 99)]
        tokens = [(0, group)] * shared + [(shared, 100 + own)] * rest
        common = [sum(1 for _ in _agreeing(tokens, other)) // 4 * 4 for other in seen]
        assert trie.find(runs, len(tokens))[1] == max(common, default=0)
        trie.insert(runs, len(tokens))
        seen.append(tokens[: len(tokens) // 4 * 4])


def _agreeing(one: list[Any], other: list[Any]) -> Any:
    for a, b in zip(one, other, strict=False):
        if a != b:
            return
        yield a


def test_tgi_2_counts_whole_blocks_of_prompt_and_of_output() -> None:
    """100 tokens in blocks of 16: 17 + 17 tokens count 64 when they are taken, 48 once they run."""
    scheduler = make(
        max_batch_total_tokens=100,
        block_size=16,
        padded_blocks=True,
        prefix_caching=False,
        prefill_chunking=False,
    )
    for name in "ab":
        scheduler.add(Request(name, 17, 17), 0.0)
    assert len(run(scheduler)[0]) == 1
    assert scheduler.blocks_used == 3
    with pytest.raises(CapacityError):
        scheduler.add(Request("c", 49, 48), 0.0)


def test_more_than_the_concurrent_requests_are_turned_away() -> None:
    scheduler = make(max_concurrent_requests=2)
    scheduler.add(Request("a", 10, 10), 0.0)
    scheduler.add(Request("b", 10, 10), 0.0)
    with pytest.raises(CapacityError, match="overloaded: 2 requests"):
        scheduler.add(Request("c", 10, 10), 0.0)
