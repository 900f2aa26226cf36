"""Sharing of blocks between samples and beams, against block tables written out with reference counts."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.scheduling.blocks import BlockManager
from simulator.scheduling.groups import SequenceGroup, Sharing
from simulator.scheduling.request import Request


class Tables:
    """What a block-by-block manager does: a table per sequence, a count per block."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.tables: dict[Request, list[int]] = {}
        self.refs: Counter[int] = Counter()
        self.num_blocks = 0

    def _take(self) -> int:
        self.num_blocks += 1
        self.refs[self.num_blocks] = 1
        return self.num_blocks

    def allocate(self, sequence: Request, tokens: int) -> None:
        self.tables[sequence] = [self._take() for _ in range(-(-tokens // self.block_size))]

    def fork(self, parent: Request, child: Request) -> None:
        self.tables[child] = list(self.tables[parent])
        self.refs.update(self.tables[child])

    def append(self, sequence: Request, tokens: int) -> bool:
        """Room for token number *tokens*; whether a block was copied."""
        table = self.tables[sequence]
        if tokens // self.block_size == len(table):
            table.append(self._take())
            return False
        if self.refs[table[-1]] == 1:
            return False
        self.refs[table[-1]] -= 1
        table[-1] = self._take()
        return True

    def free(self, sequence: Request) -> None:
        self.refs.subtract(self.tables.pop(sequence))

    @property
    def used(self) -> int:
        return sum(count > 0 for count in self.refs.values())


class Counted:
    """The same operations on `Sharing`, as a scheduler uses it."""

    def __init__(self, block_size: int) -> None:
        self.blocks = BlockManager(10_000, block_size, prefix_caching=False)
        self.sharing = Sharing(self.blocks)

    def append(self, sequence: Request, tokens: int) -> bool:
        sharing = self.sharing
        copies = sharing.writes_shared(sequence, tokens)
        if copies:
            sharing.copy(sequence)
        sequence.num_blocks = sharing.own(sequence, tokens)
        self.blocks.grow(sequence, tokens + 1 - sharing.start(sequence) * self.blocks.block_size)
        return copies

    def free(self, sequence: Request, tokens: int) -> None:
        sequence.num_blocks = self.sharing.own(sequence, tokens)
        self.blocks.free(sequence)
        self.sharing.release(sequence)

    @property
    def used(self) -> int:
        return self.blocks.num_blocks - self.blocks.num_free


@settings(max_examples=150, deadline=None)
@given(
    prompt=st.integers(1, 20),
    block_size=st.sampled_from([1, 2, 4]),
    moves=st.lists(
        st.tuples(st.sampled_from(["step", "step", "fork", "drop"]), st.integers(0, 9)), max_size=60
    ),
)
def test_counted_sharing_is_that_of_block_tables(
    prompt: int, block_size: int, moves: list[tuple[str, int]]
) -> None:
    leader = Request("r", prompt, 99)
    group = SequenceGroup(leader, 10, beam=True)
    tables, counted = Tables(block_size), Counted(block_size)
    tables.allocate(leader, prompt)
    counted.blocks.grow(leader, prompt)
    tokens = prompt
    for move, which in moves:
        live = list(group.live)
        if not live:
            break
        sequence = live[which % len(live)]
        if move == "step":
            assert [tables.append(s, tokens) for s in live] == [counted.append(s, tokens) for s in live]
            tokens += 1
        elif move == "fork":
            child = group.child(sequence)
            tables.fork(sequence, child)
            counted.sharing.fork(sequence, child, tokens)
        else:
            tables.free(sequence)
            counted.free(sequence, tokens)
            del group.live[sequence]
        assert counted.used == tables.used
        saved = sum(len(tables.tables[s]) for s in group.live) - tables.used
        assert counted.sharing.num_saved == saved
    for sequence in group.live:
        counted.free(sequence, tokens)
    assert counted.used == counted.sharing.num_chained == counted.sharing.num_owned == 0


def test_a_group_counts_for_all_its_samples_until_they_exist() -> None:
    leader = Request("r", 8, 4, n=3)
    group = SequenceGroup(leader, 3)
    assert group.seats == 3
    group.child(leader)
    group.child(leader)
    group.forked = True
    del group.live[leader]
    assert group.seats == 2


def test_beams_keep_their_seats() -> None:
    group = SequenceGroup(Request("r", 8, 4), 4, beam=True)
    group.forked = True
    assert group.seats == 4


def test_a_child_is_named_after_its_leader() -> None:
    group = SequenceGroup(Request("r7", 8, 4, n=3), 3)
    assert group.child(group.leader).id == "r7-1"
    assert group.child(group.leader).id == "r7-2"
    assert group.child(group.leader, id="beam").id == "beam"
