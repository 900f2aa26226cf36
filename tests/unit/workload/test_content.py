"""Merging and chaining of content against a naive reference."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simulator.workload import OUTPUT_ID_BASE, Runs, common_prefix, read_trace
from simulator.workload.content import Blocks
from simulator.workload.merging import compile_blocks, compile_runs

quick = settings(deadline=None, max_examples=300)
items = st.lists(
    st.lists(st.tuples(st.sampled_from([0, 1, 2, OUTPUT_ID_BASE]), st.integers(0, 3)), max_size=4),
    min_size=1,
    max_size=8,
)


def csr(prompts: list[list[tuple[int, int]]]) -> Runs:
    flat = [item for prompt in prompts for item in prompt]
    counts = [len(prompt) for prompt in prompts]
    ids, tokens = ([item[k] for item in flat] for k in (0, 1))
    return Runs(
        np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        np.array(ids, np.int64),
        np.array(tokens, np.int64),
    )


def spelled(prompt: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(name, i) for name, tokens in prompt for i in range(tokens)]


def leading(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> int:
    shared = 0
    while shared < min(len(a), len(b)) and a[shared] == b[shared]:
        shared += 1
    return shared


@quick
@given(items)
@example([[(0, 3)], [(0, 2), (1, 1)]])  # an end that reaches beyond where the other goes on
@example([[(0, 2), (1, 1)], [(0, 3), (1, 1)]])
@example([[(0, 2), (1, 1)], [(1, 1), (0, 2)], [(1, 1), (1, 1)]])
def test_compiling_keeps_every_common_prefix(prompts: list[list[tuple[int, int]]]) -> None:
    prompts = [[item for item in prompt if item[1]] for prompt in prompts]
    runs = compile_runs(csr(prompts))
    for i, a in enumerate(prompts):
        for j, b in enumerate(prompts):
            assert (
                common_prefix(runs, i, j)
                == common_prefix(csr(prompts), i, j)
                == leading(spelled(a), spelled(b))
            )


@quick
@given(items)
def test_an_id_names_everything_before_it(prompts: list[list[tuple[int, int]]]) -> None:
    runs = compile_runs(csr(prompts))
    before: dict[int, list[tuple[int, int]]] = {}
    for row in range(len(prompts)):
        entries = range(runs.offsets[row], runs.offsets[row + 1])
        chain = [(int(runs.ids[e]), int(runs.tokens[e])) for e in entries]
        for place, (name, _) in enumerate(chain):
            if name < OUTPUT_ID_BASE:
                assert before.setdefault(name, chain[:place]) == chain[:place]


@quick
@given(items)
def test_outputs_keep_their_ids_and_tokens(prompts: list[list[tuple[int, int]]]) -> None:
    runs = compile_runs(csr(prompts))
    named = runs.ids == OUTPUT_ID_BASE
    assert runs.tokens[named].tolist() == [
        n for prompt in prompts for name, n in prompt if name == OUTPUT_ID_BASE and n
    ]


@quick
@given(items)
def test_totals_stay(prompts: list[list[tuple[int, int]]]) -> None:
    runs = compile_runs(csr(prompts))
    for row, prompt in enumerate(prompts):
        assert runs.tokens[runs.offsets[row] : runs.offsets[row + 1]].sum() == sum(n for _, n in prompt)


@quick
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.integers(1, 4)),
        min_size=1,
        max_size=8,
    )
)
def test_blocks_compile_as_runs(rows: list[tuple[list[int], int]]) -> None:
    counts = np.array([len(ids) for ids, _ in rows])
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    lengths = np.array([4 * (len(ids) - 1) + last for ids, last in rows], np.int64)
    blocks = Blocks(offsets, np.array([i for ids, _ in rows for i in ids], np.int64), 4, lengths)
    fast, general = compile_blocks(blocks), compile_runs(blocks.runs())
    for i in range(len(rows)):
        for j in range(len(rows)):
            assert common_prefix(fast, i, j) == common_prefix(general, i, j)
    assert np.array_equal(np.add.reduceat(fast.tokens, fast.offsets[:-1]), lengths)


def test_a_chain_without_branches_is_one_run() -> None:
    runs = compile_runs(csr([[(5, 16), (6, 16), (7, 9)], [(5, 16), (6, 16)], [(8, 3)]]))
    assert runs.tokens.tolist() == [41, 32, 3]


def test_the_aiperf_documentation_example_has_unchained_ids() -> None:
    prompts = [[(i, 512) for i in ids] for ids in ([0, 1, 2], [0, 3, 4, 5], [1, 4, 6])]
    runs = compile_runs(csr(prompts))
    assert [common_prefix(runs, i, j) for i, j in ((0, 1), (0, 2), (1, 2))] == [512, 0, 0]


def test_mooncake_prompts_have_few_runs_and_unchanged_prefixes(real) -> None:
    trace = read_trace(real("mooncake/conversation_trace.jsonl"))
    assert len(trace.content_ids) < 4 * len(trace)
    import json

    with real("mooncake/conversation_trace.jsonl").open() as file:
        records = [json.loads(line) for line in file]
    generator = np.random.default_rng(0)
    for i, j in generator.integers(0, len(trace), (300, 2)):
        a, b = records[i], records[j]
        shared = leading(a["hash_ids"], b["hash_ids"])
        expected = min(512 * shared, a["input_length"], b["input_length"])
        assert common_prefix(trace.content, i, j) == expected


def test_prompt_lengths_clip_the_last_block() -> None:
    runs = Runs.of_blocks(np.array([0, 2]), np.array([3, 4]), 512).clipped(np.array([600]))
    assert runs.tokens.tolist() == [512, 88]


@pytest.mark.parametrize("scale", [1, 10**12])
def test_ids_may_be_large_hashes(scale: int) -> None:
    runs = compile_runs(csr([[(1 * scale, 4), (2 * scale, 4)], [(1 * scale, 4), (3 * scale, 4)]]))
    assert common_prefix(runs, 0, 1) == 4
