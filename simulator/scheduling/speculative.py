"""Decoding sequences that each advance by their own stride: one token and the drafts that were accepted.

The same questions as `DecodeSet` answers on one counter are answered here member by member, so that a policy that asks
them works unchanged. A step reserves KV slots for every token it checks, before anybody knows what will be accepted;
what is rejected leaves computed tokens behind but the blocks stay. Where the next step is decided while this one runs,
it must assume that everything is accepted.
"""

from __future__ import annotations

from itertools import accumulate

from simulator.errors import ConfigurationError
from simulator.scheduling.acceptance import NOT_DRAFTED, Drafting
from simulator.scheduling.decoding import DecodeSet
from simulator.scheduling.request import Request

__all__ = ["DraftCounts", "SpeculativeDecodeSet"]

WASTED = 2
"""Steps that a sequence may be part of after its end, until the policy learns of it: one, where steps overlap."""


class DraftCounts:
    """What became of the drafts of a run. ``by_length[a]`` counts the drafts of which *a* tokens were accepted."""

    __slots__ = ("by_length", "num_draft_tokens", "plain")

    def __init__(self, depth: int) -> None:
        self.by_length = [0] * (depth + 1)
        self.num_draft_tokens = 0
        """Tokens that were drafted."""
        self.plain = 0
        """Steps of a sequence without a draft."""

    def note(self, accepted: list[int], tokens: int) -> None:
        """Steps of a sequence: how many tokens of each draft of *tokens* tokens were right."""
        for length in range(len(self.by_length)):
            self.by_length[length] += accepted.count(length)
        plain = accepted.count(NOT_DRAFTED)
        self.plain += plain
        self.num_draft_tokens += (len(accepted) - plain) * tokens

    def plus(self, other: DraftCounts) -> DraftCounts:
        """These and those of another replica, whose drafts may be longer or shorter."""
        depth = max(len(self.by_length), len(other.by_length)) - 1
        pooled = DraftCounts(depth)
        for counts in (self, other):
            for length, count in enumerate(counts.by_length):
                pooled.by_length[length] += count
        pooled.plain = self.plain + other.plain
        pooled.num_draft_tokens = self.num_draft_tokens + other.num_draft_tokens
        return pooled

    @property
    def num_drafts(self) -> int:
        """Drafts that were checked."""
        return sum(self.by_length)

    @property
    def num_accepted_tokens(self) -> int:
        """Drafted tokens that the target accepted."""
        return sum(length * count for length, count in enumerate(self.by_length))

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted over drafted tokens; None without drafts."""
        drafted = self.num_draft_tokens
        return self.num_accepted_tokens / drafted if drafted else None

    @property
    def acceptance_length(self) -> float | None:
        """Mean tokens of a step with a draft, the target's own included, as vLLM counts them; None without drafts."""
        drafts = self.num_drafts
        return 1 + self.num_accepted_tokens / drafts if drafts else None

    @property
    def per_position(self) -> list[float]:
        """Share of the drafts whose token at each position was accepted."""
        drafts = max(self.num_drafts, 1)
        return [sum(self.by_length[depth:]) / drafts for depth in range(1, len(self.by_length))]


class Path:
    """One member: what its steps will accept, where it is among them, and what it holds.

    ``marks[i]`` are its output tokens after *i* steps; *offset* more tokens are computed. *next* are the blocks that
    it must hold for the next step. *limit* tokens are the longest it may need slots for.
    """

    __slots__ = ("accepted", "at", "before", "blocks", "limit", "marks", "max_tokens", "next", "offset")

    def __init__(self, request: Request, block_size: int, limit: int) -> None:
        self.accepted: list[int] = []
        self.marks = [request.generated] * (1 + WASTED)
        self.at = 0
        self.offset = request.computed - request.generated
        # a policy that reserves by other rules does not keep count of blocks
        self.blocks = self.before = max(request.num_blocks, -(-request.computed // block_size))
        self.next = 0
        self.limit = limit
        self.max_tokens = request.max_tokens

    @property
    def generated(self) -> int:
        """Output tokens, those of batches in flight included."""
        return self.marks[self.at]

    @property
    def computed(self) -> int:
        """Computed tokens, likewise."""
        return self.marks[self.at] + self.offset

    @property
    def before_latest(self) -> int:
        """Output tokens before the latest step."""
        return self.marks[self.at - 1] if self.at else self.marks[0] - 1

    @property
    def taken(self) -> list[int]:
        """Accepted drafts of the steps so far."""
        return self.accepted[: self.at]


class SpeculativeDecodeSet(DecodeSet):
    """Members that check *drafting*'s tokens in every step; *depth* batches are in flight, *limit* is the longest
    sequence.

    A member never needs slots beyond its own ``max_tokens`` with *own_limit*. With *returns* the slots of rejected
    tokens come back after the step. *room*: slots behind the computed tokens that a step needs; by default those of
    the tokens it checks and of the lookahead. `steps` must be told how many tokens a member will have before it takes
    part.
    """

    __slots__ = (
        "attended",
        "depth",
        "drafting",
        "full",
        "gains",
        "growth",
        "limit",
        "new_blocks",
        "own_limit",
        "past",
        "paths",
        "returns",
        "room",
        "width",
    )

    def __init__(
        self,
        block_size: int,
        drafting: Drafting,
        *,
        depth: int = 1,
        limit: int = 2**62,
        room: int | None = None,
        own_limit: bool = False,
        returns: bool = False,
    ) -> None:
        super().__init__(block_size)
        self.drafting = drafting
        self.width = drafting.width
        self.room = drafting.width + drafting.lookahead if room is None else room
        self.depth = depth
        self.limit = limit
        self.own_limit = own_limit
        self.returns = returns
        self.paths: dict[Request, Path] = {}
        self.past = DraftCounts(drafting.tokens)
        """What became of the drafts of those who have left."""
        self.gains: dict[int, int] = {}
        """Tokens that each iteration in flight yields, by its count."""
        self.attended = 0
        """Tokens of KV that the latest step attended to, those it checked included."""
        self.full: list[Request] = []
        """Members whose latest step certainly yields their last token, by ``max_tokens``, where steps overlap."""
        self.growth = 0
        """New blocks that the members need for the next step."""
        self.new_blocks = 0
        """Blocks that the latest step left its members beyond those before it."""

    @property
    def counts(self) -> DraftCounts:
        """What became of all drafts so far."""
        now = DraftCounts(self.drafting.tokens)
        for path in self.paths.values():
            now.note(path.taken, self.width - 1)
        return self.past.plus(now)

    def steps(self, request: Request, left: int) -> int:
        """*request* will have *left* more tokens: in how many steps it gets them."""
        path = self.paths[request]
        first = path.generated
        path.accepted = self.drafting.accepted(request.index, request.id, first, left)
        gains = [accepted + 1 if accepted > 0 else 1 for accepted in path.accepted]
        path.marks = marks = [*accumulate(gains, initial=first), *[first + left] * WASTED]
        marks[len(gains)] = first + left  # the end cuts the last step
        path.at = 0
        return len(gains)

    # members

    def join(self, request: Request) -> None:
        limit = self.limit
        if self.own_limit:
            limit = min(limit, request.prompt_length + request.max_tokens)
        self.paths[request] = path = Path(request, self.block_size, limit)
        self.members[request] = None
        self.count += 1
        self.computed += request.computed
        request.phase = 0
        self._foresee(path)

    def leave(self, request: Request) -> None:
        path = self.paths.pop(request)
        self.past.note(path.taken, self.width - 1)
        del self.members[request]
        self.count -= 1
        self.computed -= path.computed
        self.growth -= max(path.next - path.blocks, 0)
        request.computed, request.generated, request.num_blocks = path.computed, path.generated, path.blocks
        request.phase = -1

    def _foresee(self, path: Path) -> None:
        """What *path* needs for its next step if nothing of it is in flight."""
        path.next = -(-min(path.computed + self.room, path.limit) // self.block_size)
        self.growth += max(path.next - path.blocks, 0)

    def tokens(self, request: Request) -> int:
        return self.paths[request].computed

    def generated(self, request: Request) -> int:
        return self.paths[request].generated

    def gain(self, request: Request) -> int:
        """Tokens that the latest step yielded a member."""
        path = self.paths[request]
        return path.generated - path.before_latest

    def settled(self, request: Request) -> int:
        """Computed tokens of a member without those of a batch in flight."""
        path = self.paths[request]
        return path.before_latest + path.offset if self.depth > 1 and path.at else path.computed

    def certain(self, request: Request) -> bool:
        """Whether the latest step yields the last token that ``max_tokens`` allows, whatever is accepted in it."""
        return self.paths[request].before_latest + 1 >= request.max_tokens

    def held(self, request: Request) -> int:
        """Blocks of a member."""
        return self.paths[request].blocks

    # steps

    def advance(self, n: int = 1) -> None:
        _one(n)
        size, room, width, ahead = self.block_size, self.room, self.width, self.depth > 1
        gained = growth = new = 0
        self.iteration += 1
        self.attended = self.computed + self.count * width
        full = self.full = []
        for request, path in self.paths.items():  # the innermost loop of a simulation with speculation
            at, marks, blocks = path.at, path.marks, path.blocks
            path.before = before = blocks
            if path.next > blocks:
                blocks = path.next
            start = marks[at]
            path.at = at + 1
            end = marks[at + 1]
            gained += end - start
            if self.returns:
                blocks = -(-(end + path.offset) // size)
            path.blocks = blocks
            new += blocks - before
            top = (start + width if ahead else end) + path.offset + room
            path.next = more = -(-(top if top < path.limit else path.limit) // size)
            if more > blocks:
                growth += more - blocks
            if ahead and start + 1 >= path.max_tokens:
                full.append(request)
        self.computed += gained
        self.gains[self.iteration] = gained
        self.growth, self.new_blocks = growth, new

    def stall(self, request: Request) -> None:
        path = self.paths[request]
        computed = path.computed
        path.at -= 1
        gain = computed - path.computed
        self.computed -= gain
        self.gains[self.iteration] -= gain
        self.attended -= path.computed + self.width
        self.new_blocks -= path.blocks - path.before
        self.growth -= max(path.next - path.blocks, 0)
        path.blocks = path.before
        self._foresee(path)
        if request in self.full:
            self.full.remove(request)

    def needs_block(self, request: Request) -> int:  # type: ignore[override]
        """How many blocks *request* needs for the next step: more than one where drafts are as long as a block."""
        path = self.paths[request]
        return max(path.next - path.blocks, 0)

    def grant(self, request: Request) -> int:
        """*request* gets its blocks for the next step before `advance` counts it: how many there are new."""
        need = self.needs_block(request)
        self.paths[request].blocks += need
        self.growth -= need
        return need

    def blocks_over(self, n: int) -> int:
        _one(n)
        return self.growth

    @property
    def blocks_next(self) -> int:
        return self.growth

    def iterations_within(self, blocks: int, limit: int) -> int:
        return 0  # no two steps are alike


def _one(n: int) -> None:
    if n != 1:
        raise ConfigurationError(f"{n} steps at once: accepted drafts differ from step to step")
