"""The contract between a scheduling policy and whoever drives it.

A driver owns the clock. It hands requests to the policy, asks it for the next iteration, runs that
iteration (in the simulator by predicting its duration, in the engine with kernels) and reports back what
came of it. The policy owns the blocks and the queues and sees only what a real scheduler sees.

::

    add(request, now)                  a request arrives
    schedule(now) -> Batch | Wait | None   decide one iteration; blocks are taken here
    commit(batch, ended, now)          the iteration has run; `ended` are the requests that are complete
    cancel(request, now)               the client left, a replica died, a deadline passed
    repeats(batch, limit) -> int       how often schedule() would return this batch if nothing arrived or ended
    advance(batch, n)                  the same as committing and scheduling it n more times

Up to ``depth`` batches are in flight: a policy with depth 2 decides the next iteration while the last one runs
(asynchronous scheduling), so it learns of an end one iteration late.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import ClassVar

from simulator.compiled.attributes import mypyc_attr
from simulator.errors import ConfigurationError
from simulator.scheduling.decoding import DecodeSet
from simulator.scheduling.moves import FREE, BlockMoves
from simulator.scheduling.request import Request

__all__ = ["Batch", "Scheduler", "Wait"]


class Wait:
    """Nothing to run now; the answer may change at time *until* (s) without any event."""

    __slots__ = ("until",)

    def __init__(self, until: float) -> None:
        self.until = until


class Batch:
    """One iteration: which sequences compute how many tokens.

    ``num_decodes`` sequences compute one token each (``width`` with speculation) and attend to
    ``decode_context`` tokens of KV in sum, the new ones included; ``prefills`` are ``(request, chunk,
    context)``: *chunk* new tokens after *context* computed ones. ``joining`` are the requests whose last
    chunk this is: they get a token from it.
    """

    __slots__ = (
        "adapters_loaded",
        "blocks_copied",
        "blocks_swapped_in",
        "blocks_swapped_out",
        "cached",
        "decode_context",
        "decodes",
        "failed",
        "forwards",
        "idle_rows",
        "iteration",
        "joining",
        "notes",
        "num_decodes",
        "padded_tokens",
        "preempted",
        "prefills",
        "rejected",
        "repeatable",
        "stalled",
        "suspended",
        "width",
    )

    def __init__(self) -> None:
        self.num_decodes = 0
        self.decode_context = 0
        self.prefills: list[tuple[Request, int, int]] = []
        self.joining: list[Request] = []
        self.decodes: list[Request] | None = None
        """The decoding sequences one by one, where the policy was asked for them (``explicit``) or left some out."""
        self.stalled: list[Request] = []
        """Decoding sequences that this iteration leaves out: they stay one token behind."""
        self.preempted: list[Request] = []
        self.rejected: list[tuple[Request, str]] = []
        """Requests that can never run, with the reason."""
        self.failed: list[tuple[Request, str]] = []
        """Admitted requests that this iteration gives up, with the reason."""
        self.suspended: list[Request] = []
        """The driver's: preempted sequences that had tokens when they lost their blocks."""
        self.cached: dict[Request, int] = {}
        """Tokens found in the prefix cache, for each request admitted by this iteration."""
        self.blocks_copied = 0
        self.blocks_swapped_in = 0
        self.blocks_swapped_out = 0
        self.adapters_loaded = 0
        """LoRA adapters that are copied to the device before this iteration."""
        self.padded_tokens = 0
        """Tokens computed for nothing because a padded batch is rectangular."""
        self.idle_rows = 0
        """Of ``num_decodes``, rows whose sequence has ended: a static batch computes them for nothing."""
        self.width = 1
        self.iteration = 0
        """The count of decode iterations after this one: a sequence's last token comes with a known count."""
        self.repeatable = False
        """Decoding sequences and nothing else happens: nobody joins, leaves, stalls or is turned away."""
        self.forwards: list[Batch] | None = None
        """Where one iteration is several forwards (micro-batches), each of them."""
        self.notes: dict[str, object] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens computed, padding excluded."""
        return self.num_decodes * self.width + sum(chunk for _, chunk, _ in self.prefills)

    def rows(self) -> Iterator[tuple[Request, int]]:
        """Every scheduled request with its number of new tokens. Needs ``explicit`` scheduling."""
        if self.decodes is None and self.num_decodes:
            raise ConfigurationError(
                "a batch that was scheduled without `explicit` does not list its decodes"
            )
        for request in self.decodes or ():
            yield request, self.width
        for request, chunk, _ in self.prefills:
            yield request, chunk


@mypyc_attr(allow_interpreted_subclasses=True)
class Scheduler(ABC):
    """Base of every policy: the decoding set, the running set and the counters that reports need.

    *explicit* makes every batch list its decoding sequences (the engine and recorded-decision tests need it);
    it also switches off every short cut, so that explicit and counted decisions can be compared.
    """

    depth = 1
    """Batches in flight at most."""
    quiet: ClassVar[bool] = False
    """Whether `commit` has nothing to do for a batch in which nothing ended."""
    discards_in_flight: ClassVar[bool] = False
    """Whether a preempted sequence's token in flight is thrown away (``generated`` is then one less), not kept."""
    delivery = "step"
    """When a client gets its tokens: after each ``step``, or all of them when its ``batch`` is done."""
    takes_kv: ClassVar[bool] = False
    """Whether `add` accepts a request that brings its KV with it (``Request.ready``)."""
    keeps_kv: ClassVar[bool] = False
    """Whether the KV of a request that ``sends_kv`` stays until `release`; else it is free as soon as it ends."""
    forks: ClassVar[bool] = False
    """Whether the policy itself turns a request with ``n`` samples into sequences; else the front end does."""

    def __init__(self, *, max_num_seqs: int, block_size: int, explicit: bool = False) -> None:
        if max_num_seqs < 1:
            raise ConfigurationError(f"max_num_seqs {max_num_seqs}: must be at least 1")
        self.max_num_seqs = max_num_seqs
        self.explicit = explicit
        self.running: dict[Request, None] = {}
        self.decoding = DecodeSet(block_size)
        self.num_preemptions = 0
        self.moves: BlockMoves = FREE
        """What moving KV blocks costs; a deployment knows it."""

    @abstractmethod
    def add(self, request: Request, now: float) -> None:
        """A request arrives. Raises `CapacityError` with the reason if it can never run."""

    @abstractmethod
    def schedule(self, now: float) -> Batch | Wait | None:
        """Decide one iteration. None: there is nothing to do."""

    @abstractmethod
    def commit(self, batch: Batch, ended: Iterable[Request], now: float) -> None:
        """*batch* has run; the requests of *ended* produced their last token in it."""

    @abstractmethod
    def cancel(self, request: Request, now: float) -> None:
        """Drop *request* wherever it is; its blocks return."""

    def release(self, request: Request) -> None:
        """The KV of *request*, which ended and ``sends_kv``, has left."""
        raise NotImplementedError(f"{type(self).__name__} returns KV as soon as a request ends")

    def repeats(self, batch: Batch, limit: int) -> int:
        """For how many iterations, at most *limit*, `schedule` would return *batch* again if nothing arrived or ended.

        1 means only the batch itself: no short cut.
        """
        return 1

    def transfer_seconds(self, batch: Batch) -> float:
        """Seconds that *batch* waits for blocks that come from host memory, go there or are copied."""
        moves = self.moves
        return (
            moves.swap_in.seconds(batch.blocks_swapped_in)
            + moves.swap_out.seconds(batch.blocks_swapped_out)
            + moves.copy.seconds(batch.blocks_copied)
        )

    def transfers(self) -> dict[str, int]:
        """What came from host memory, counted: ``kv_blocks``, ``adapters``; empty for a policy without either."""
        return {}

    def advance(self, batch: Batch, n: int) -> None:
        """Do in one step what committing *batch* and scheduling it again *n* times does."""
        raise NotImplementedError(f"{type(self).__name__} schedules every iteration")

    @property
    @abstractmethod
    def num_waiting(self) -> int:
        """Requests that wait for their first or next admission."""

    @property
    def num_running(self) -> int:
        """Admitted requests."""
        return len(self.running)

    @property
    @abstractmethod
    def blocks_used(self) -> int:
        """KV blocks that requests hold."""

    @property
    @abstractmethod
    def num_blocks(self) -> int:
        """KV blocks there are."""

    @property
    def blocks_cached(self) -> int:
        """Free KV blocks that still carry matchable content."""
        return 0

    def waste(self) -> tuple[float, float, float, float]:
        """KV space without a token, in tokens: reserved for later, internal, external; and what sharing saves."""
        return 0.0, 0.0, 0.0, 0.0

    def levels(self) -> tuple[float, float, float, float, float, float, float]:
        """Waiting requests, blocks used, blocks cached and `waste`, in one call for the record of a run."""
        return (self.num_waiting, self.blocks_used, self.blocks_cached, *self.waste())
