"""Sequences of one prompt: parallel samples and beams share its blocks until they write.

A request with *n* samples is one `SequenceGroup`. Its prompt is computed once; then the sequence forks.
Forked sequences share every block there is, and the first to write into a shared, partly filled block gets
a copy of it (copy-on-write, vLLM paper, sec. 4.4). Full blocks stay shared until the last sequence over
them ends.

Blocks are counted, not listed: what sequences share is a chain of `Branch` objects, each a run of blocks
after its parent's; what a sequence holds beyond its branch is its own. So a fork, a copy and an end cost
the same at any length.
"""

from __future__ import annotations

from collections.abc import Iterable

from simulator.scheduling.blocks import BlockManager
from simulator.scheduling.request import Request

__all__ = ["Branch", "SequenceGroup", "Sharing"]


class SequenceGroup:
    """The sequences of *leader*'s prompt, at most *size* at a time.

    ``live`` are those that have not ended; before the fork that is the leader alone. With *beam* the
    executor decides after every token which sequences fork and which are dropped, so that the group keeps
    *size* seats to its end.
    """

    __slots__ = ("beam", "forked", "leader", "live", "num_forks", "size")

    def __init__(self, leader: Request, size: int, *, beam: bool = False) -> None:
        self.leader = leader
        self.size = size
        self.beam = beam
        self.forked = False
        self.live: dict[Request, None] = {leader: None}
        self.num_forks = 0

    @property
    def seats(self) -> int:
        """Sequences the group counts for in `max_num_seqs`: all it may still have."""
        return self.size if self.beam or not self.forked else len(self.live)

    def child(self, parent: Request, *, id: str | None = None) -> Request:
        """A new live sequence with all that *parent* has, sharing nothing yet."""
        self.num_forks += 1
        child = Request(
            id or f"{self.leader.id}-{self.num_forks}",
            parent.prompt_length,
            parent.max_tokens,
            arrival_time=parent.arrival_time,
            index=parent.index,
            priority=parent.priority,
            adapter=parent.adapter,
        )
        child.group = self
        child.status, child.target = parent.status, parent.target
        child.computed, child.generated = parent.computed, parent.generated
        child.payload, child.deadline = parent.payload, parent.deadline
        self.live[child] = None
        return child


class Branch:
    """Shared blocks after those of *parent*, up to block *end*; ``refs`` count what stands on them."""

    __slots__ = ("end", "holder", "parent", "refs")

    def __init__(self, parent: Branch | None, holder: Request, end: int) -> None:
        self.parent = parent
        self.holder = holder
        self.end = end
        self.refs = 1

    @property
    def start(self) -> int:
        """The first block of this branch."""
        return 0 if self.parent is None else self.parent.end


class Sharing:
    """Which blocks the sequences of *blocks* share. A sequence's branch is its ``state``."""

    def __init__(self, blocks: BlockManager) -> None:
        self.blocks = blocks
        self.num_chained = 0
        """Shared blocks under all sequences, counted once for each sequence."""
        self.num_owned = 0
        """The same blocks, counted once."""

    @property
    def num_saved(self) -> int:
        """Blocks that sharing saves."""
        return self.num_chained - self.num_owned

    def start(self, sequence: Request) -> int:
        """How many leading blocks of *sequence* are its branch's and not its own."""
        branch: Branch | None = sequence.state
        return 0 if branch is None else branch.end

    def own(self, sequence: Request, tokens: int) -> int:
        """Blocks of its own that *sequence* needs for *tokens* tokens."""
        return max(-(-tokens // self.blocks.block_size) - self.start(sequence), 0)

    def fork(self, parent: Request, child: Request, tokens: int) -> None:
        """*child* shares all *tokens* tokens of *parent*. Takes no block."""
        parent.num_blocks = self.own(parent, tokens)
        full, rest = divmod(tokens, self.blocks.block_size)
        if full > self.start(parent):
            self._share(parent, full)
        if rest and full == self.start(parent):
            self._share(parent, full + 1)
        branch: Branch = parent.state
        branch.refs += 1
        child.state = branch
        self.num_chained += branch.end

    def _share(self, sequence: Request, end: int) -> None:
        """The own blocks of *sequence* up to block *end* become a branch."""
        count = end - self.start(sequence)
        holder = Request(f"{sequence.id} (shared)", 0, 0)
        holder.num_blocks = count
        sequence.num_blocks -= count
        holder.held, sequence.held, sequence.cursor = sequence.held, [], None
        holder.registered, sequence.registered = sequence.registered, 0
        sequence.state = Branch(sequence.state, holder, end)
        self.num_chained += count
        self.num_owned += count

    def writes_shared(self, sequence: Request, tokens: int) -> bool:
        """Whether token number *tokens* of *sequence* falls into a block that others use too."""
        branch: Branch | None = sequence.state
        return branch is not None and branch.refs > 1 and branch.end > tokens // self.blocks.block_size

    def copy(self, sequence: Request) -> None:
        """*sequence* takes a block of its own in place of its branch's last one."""
        branch: Branch = sequence.state
        self.blocks.take(1)
        branch.refs -= 1
        sequence.state = branch.parent
        if branch.parent is not None:
            branch.parent.refs += 1
        self.num_chained -= branch.end - branch.start

    def release(self, sequence: Request) -> None:
        """*sequence* lets go of its branch; what nobody stands on any more is free."""
        branch: Branch | None = sequence.state
        sequence.state = None
        if branch is None:
            return
        self.num_chained -= branch.end
        while branch is not None:
            branch.refs -= 1
            if branch.refs:
                return
            self.num_owned -= branch.end - branch.start
            self.blocks.free(branch.holder)
            branch = branch.parent

    # the branches of a whole group, for swapping

    def branches(self, sequences: Iterable[Request]) -> list[Branch]:
        """Every branch under *sequences*, once."""
        found: dict[Branch, None] = {}
        for sequence in sequences:
            branch: Branch | None = sequence.state
            while branch is not None and branch not in found:
                found[branch] = None
                branch = branch.parent
        return list(found)

    def park(self, sequences: Iterable[Request]) -> None:
        """Return the blocks of all branches under *sequences*; the branches stay as they are."""
        sequences = list(sequences)
        self.num_chained -= sum(self.start(sequence) for sequence in sequences)
        for branch in self.branches(sequences):
            self.num_owned -= branch.end - branch.start
            self.blocks.free(branch.holder)

    def unpark(self, sequences: Iterable[Request]) -> None:
        """Take the blocks again that `park` returned."""
        sequences = list(sequences)
        self.num_chained += sum(self.start(sequence) for sequence in sequences)
        for branch in self.branches(sequences):
            count = branch.end - branch.start
            self.num_owned += count
            self.blocks.grow(branch.holder, count * self.blocks.block_size)
