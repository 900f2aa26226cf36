"""Decoding sequences that each advance by their own stride: one token and the drafts that were accepted.

The same questions as `DecodeSet` answers on one counter are answered here member by member, so that a policy that asks
them works unchanged. A step reserves KV slots for every token it checks, before anybody knows what will be accepted;
what is rejected leaves computed tokens behind but the blocks stay. Where the next step is decided while this one runs,
it must assume that everything is accepted.
"""

from __future__ import annotations

from simulator.errors import ConfigurationError
from simulator.scheduling.acceptance import NOT_DRAFTED, Drafting
from simulator.scheduling.decoding import DecodeSet
from simulator.scheduling.request import Request

__all__ = ["DraftCounts", "SpeculativeDecodeSet"]


class DraftCounts:
    """What became of the drafts of a run. ``by_length[a]`` counts the drafts of which *a* tokens were accepted."""

    __slots__ = ("by_length", "num_draft_tokens", "plain")

    def __init__(self, depth: int) -> None:
        self.by_length = [0] * (depth + 1)
        self.num_draft_tokens = 0
        """Tokens that were drafted."""
        self.plain = 0
        """Steps of a sequence without a draft."""

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
    """One member: what it has, what it holds, and what its next steps will accept."""

    __slots__ = (
        "accepted",
        "accepts",
        "blocks",
        "blocks_before",
        "computed",
        "gain",
        "generated",
        "known",
        "left",
        "start",
        "upper",
    )

    def __init__(self, request: Request) -> None:
        self.computed = self.start = self.upper = request.computed
        # start: computed tokens before the latest step; upper: the most that a decision must assume computed
        self.generated = request.generated
        self.known = request.generated - 1  # tokens generated before the latest step
        self.blocks = self.blocks_before = request.num_blocks
        self.accepts: list[int] = []  # accepted drafts of the steps to come, the next one last
        self.left = 0
        self.accepted: int | None = None  # of the latest step; None: it computed a sequence that had ended
        self.gain = 0


class SpeculativeDecodeSet(DecodeSet):
    """Members that check *drafting*'s tokens in every step; *depth* batches are in flight, *limit* is the longest
    sequence.

    `steps` must be told how many tokens a member will have before it takes part.
    """

    __slots__ = (
        "attended",
        "counts",
        "depth",
        "drafting",
        "full",
        "gains",
        "limit",
        "paths",
        "room",
        "width",
    )

    def __init__(self, block_size: int, drafting: Drafting, *, depth: int = 1, limit: int = 2**62) -> None:
        super().__init__(block_size)
        self.drafting = drafting
        self.width = drafting.width
        self.room = drafting.width + drafting.lookahead
        """Tokens behind the computed ones for which a step needs slots."""
        self.depth = depth
        self.limit = limit
        self.paths: dict[Request, Path] = {}
        self.counts = DraftCounts(drafting.tokens)
        self.gains: dict[int, int] = {}
        """Tokens that each iteration in flight yields, by its count."""
        self.attended = 0
        """Tokens of KV that the latest step attended to, those it checked included."""
        self.full: list[Request] = []
        """Members whose latest step certainly yields their last token, by ``max_tokens``."""

    def steps(self, request: Request, left: int) -> int:
        """*request* will have *left* more tokens: in how many steps it gets them."""
        path = self.paths[request]
        path.left = left
        path.accepts = self.drafting.accepted(request.index, request.id, path.generated, left)
        path.accepts.reverse()
        return len(path.accepts)

    def join(self, request: Request) -> None:
        self.paths[request] = Path(request)
        self.members[request] = None
        self.count += 1
        self.computed += request.computed
        request.phase = 0

    def leave(self, request: Request) -> None:
        path = self.paths.pop(request)
        del self.members[request]
        self.count -= 1
        self.computed -= path.computed
        request.computed, request.generated, request.num_blocks = path.computed, path.generated, path.blocks
        request.phase = -1

    def tokens(self, request: Request) -> int:
        return self.paths[request].computed

    def generated(self, request: Request) -> int:
        return self.paths[request].generated

    def settled(self, request: Request) -> int:
        """Computed tokens of a member without those of a batch in flight."""
        path = self.paths[request]
        return path.start if self.depth > 1 else path.computed

    def advance(self, n: int = 1) -> None:
        if n != 1:
            raise ConfigurationError(f"{n} steps at once: accepted drafts differ from step to step")
        size, room, limit, width, ahead = self.block_size, self.room, self.limit, self.width, self.depth > 1
        by_length, gained, drafts = self.counts.by_length, 0, 0
        self.iteration += 1
        self.attended = self.computed + self.count * width
        self.full = []
        for request, path in self.paths.items():
            top = path.upper + room
            need = -(-(top if top < limit else limit) // size)
            path.blocks_before = path.blocks
            if need > path.blocks:
                path.blocks = need
            path.start = start = path.computed
            path.known = path.generated
            if ahead:
                path.upper = start + width
                if path.generated + 1 >= request.max_tokens:
                    self.full.append(request)
            if not path.accepts:
                path.accepted, path.gain = None, 0
                continue
            path.accepted = accepted = path.accepts.pop()
            if accepted == NOT_DRAFTED:
                self.counts.plain += 1
                gain = 1
            else:
                by_length[accepted] += 1
                drafts += 1
                gain = accepted + 1
            if gain > path.left:
                gain = path.left
            path.left -= gain
            path.gain = gain
            path.generated += gain
            path.computed = start + gain
            if not ahead:
                path.upper = start + gain
            gained += gain
        self.computed += gained
        self.counts.num_draft_tokens += drafts * (width - 1)
        self.gains[self.iteration] = gained

    def stall(self, request: Request) -> None:
        path = self.paths[request]
        gain, accepted = path.gain, path.accepted
        path.computed = path.upper = path.start
        path.generated -= gain
        path.known = path.generated - 1
        path.left += gain
        path.blocks = path.blocks_before
        path.gain = 0
        self.computed -= gain
        self.gains[self.iteration] -= gain
        self.attended -= path.start + self.width
        if request in self.full:
            self.full.remove(request)
        if accepted is None:
            return
        path.accepts.append(accepted)
        path.accepted = None
        if accepted == NOT_DRAFTED:
            self.counts.plain -= 1
        else:
            self.counts.by_length[accepted] -= 1
            self.counts.num_draft_tokens -= self.width - 1

    def certain(self, request: Request) -> bool:
        """Whether the latest step yields the last token that ``max_tokens`` allows, whatever is accepted in it."""
        return self.paths[request].known + 1 >= request.max_tokens

    def grant(self, request: Request) -> int:
        """*request* gets its blocks for the next step before `advance` counts it: how many there are new."""
        need = self.needs_block(request)
        self.paths[request].blocks += need
        return need

    def top(self, request: Request) -> int:
        """Tokens for which *request* needs slots in the next step."""
        top = self.paths[request].upper + self.room
        return top if top < self.limit else self.limit

    def held(self, request: Request) -> int:
        """Blocks of a member."""
        return self.paths[request].blocks

    def needs_block(self, request: Request) -> int:  # type: ignore[override]
        """How many blocks *request* needs for the next step: more than one where drafts are as long as a block."""
        need = -(-self.top(request) // self.block_size) - self.paths[request].blocks
        return need if need > 0 else 0

    @property
    def blocks_next(self) -> int:
        size, room, limit, total = self.block_size, self.room, self.limit, 0
        for path in self.paths.values():
            top = path.upper + room
            need = -(-(top if top < limit else limit) // size) - path.blocks
            if need > 0:
                total += need
        return total

    def blocks_over(self, n: int) -> int:
        if n != 1:
            raise ConfigurationError(f"{n} steps at once: accepted drafts differ from step to step")
        return self.blocks_next

    def iterations_within(self, blocks: int, limit: int) -> int:
        return 0  # no two steps are alike
