"""Radix caches: what they find, what locks hold, and what goes first, against plain tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ConfigurationError
from simulator.scheduling.lightllm_cache import PromptCache
from simulator.scheduling.radix import RadixCache, RadixNode, RadixTree, Run, dfs_weight_order
from simulator.scheduling.request import Request

END = 1 << 60
sequences = st.lists(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=4), min_size=1, max_size=12
)


def runs_of(parts: list[tuple[int, int]]) -> tuple[list[Run], list[tuple[int, int]]]:
    """A sequence as runs and as plain tokens, which say where their run starts and what it is."""
    runs: list[Run] = []
    tokens: list[tuple[int, int]] = []
    for content, length in parts:
        start = len(tokens)
        runs.append(((start, content), start + length))
        tokens += [(start, content)] * length
    runs[-1] = (runs[-1][0], END)
    return runs, tokens


def common(one: list[Any], other: list[Any]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def sizes(node: RadixNode) -> int:
    return node.size + sum(sizes(child) for child in node.children.values())


@pytest.mark.parametrize("page", [1, 4])
@given(parts=sequences)
def test_a_lookup_finds_the_longest_prefix_that_was_inserted(page: int, parts: list[Any]) -> None:
    cache, seen, distinct = RadixCache(page), [], set()
    for part in parts:
        runs, tokens = runs_of(part)
        whole = len(tokens) // page * page
        expected = max((common(tokens[:whole], other) // page * page for other in seen), default=0)
        assert cache.match(runs, len(tokens)).end == expected
        node, found = cache.insert(runs, len(tokens))
        assert (found, node.end) == (expected, whole)
        seen.append(tokens[:whole])
        distinct |= {tuple(tokens[:stop]) for stop in range(page, whole + 1, page)}
    assert cache.tokens == sizes(cache.root) == page * len(distinct)


@pytest.mark.parametrize("tree", [RadixCache, PromptCache])
@given(parts=sequences, evictions=st.lists(st.integers(1, 30), max_size=5))
def test_locked_paths_stay_and_everything_else_can_go(
    tree: type[RadixTree], parts: list[Any], evictions: list[int]
) -> None:
    cache: Any = tree()
    held = []
    for i, part in enumerate(parts):
        runs, tokens = runs_of(part)
        cache.insert(runs, len(tokens))
        if i % 2:
            node = cache.match(runs, len(tokens))
            cache.lock(node)
            held.append((runs, len(tokens), node))
    for tokens in evictions:
        before, room = cache.tokens, cache.evictable
        freed = cache.evict(tokens)
        assert freed >= min(tokens, room)
        assert cache.tokens == before - freed == sizes(cache.root)
    for runs, length, node in held:
        assert cache.match(runs, length).end == length
        cache.unlock(node)
    assert cache.protected == 0
    left = cache.tokens
    assert (cache.evict(left), cache.tokens) == (left, 0)


def test_the_least_recently_used_leaf_goes_first_and_whole() -> None:
    cache = RadixCache()
    for content in (1, 2, 3):
        cache.insert([((0, content), END)], 10)
    cache.match([((0, 1), END)], 10)
    assert cache.evict(11) == 20
    assert [cache.match([((0, content), END)], 10).end for content in (1, 2, 3)] == [10, 0, 0]


def test_a_parent_without_children_is_a_leaf_in_turn() -> None:
    cache = RadixCache()
    for content in (1, 2):
        cache.insert([((0, 0), 6), ((6, content), END)], 10)
    assert cache.tokens == 14
    assert cache.evict(9) == 14


def test_in_lightllm_a_parent_is_more_recent_than_its_children() -> None:
    cache = PromptCache()
    cache.insert([((0, 1), 5), ((5, 2), END)], 10)
    cache.match([((0, 1), 5), ((5, 3), END)], 10)
    upper = cache.root.children[0, 1]
    lower = upper.children[5, 2]
    assert lower.time < upper.time < cache.root.time


def test_depth_first_order_takes_the_branch_with_most_requests_first() -> None:
    cache = RadixCache()
    light, heavy, deep = (cache.insert([((0, content), END)], 4)[0] for content in (1, 2, 3))
    assert dfs_weight_order(cache.root, [light, heavy, cache.root, heavy, deep]) == [1, 3, 0, 4, 2]


def test_runs_are_the_content_then_the_own_tokens_or_the_named_output() -> None:
    tree = RadixTree()
    named = Request("a", 10, 5, content=((7, 6), (8, 4)), output_id=99)
    assert tree.runs(named) == [((0, 7), 6), ((6, 8), 10), ((10, 99), END)]
    own = tree.runs(Request("b", 10, 5, content=((7, 6),)))
    assert own[0] == ((0, 7), 6)
    assert own[1][0][0] == 6
    assert own[1][0][1] < 0 and own[1][1] == END
    assert tree.runs(Request("c", 10, 5)) != tree.runs(Request("d", 10, 5))


def test_a_page_has_at_least_one_token() -> None:
    with pytest.raises(ConfigurationError, match="page_size 0"):
        RadixTree(0)
