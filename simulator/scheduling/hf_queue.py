"""The waiting requests of transformers' continuous batching, findable by the blocks they need.

The scheduler asks every waiting request in every step, and those that do not fit are passed over. Where
thousands wait most of them do not fit, so here they also stand in lanes by the blocks of their whole
prompt: who fits is found without asking the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from simulator.scheduling.hf_blocks import SharedBlocks
from simulator.scheduling.request import SWAPPED, Request

__all__ = ["WaitingRequests"]


class WaitingRequests:
    """Requests in the order of their arrival or return; those with KV on the host stand apart."""

    def __init__(self, blocks: SharedBlocks) -> None:
        self._blocks = blocks
        self._fresh: dict[Request, int] = {}
        self._offloaded: dict[Request, int] = {}
        self._lanes: dict[int, dict[Request, None]] = {}
        self.num_single = 0
        """Of them those that have one token to compute."""
        self._num_added = 0
        self._asked = -1  # version of the blocks at which none of them matched anything

    def __len__(self) -> int:
        return len(self._fresh) + len(self._offloaded)

    def append(self, request: Request) -> None:
        """*request* waits behind the others."""
        self._num_added += 1
        if request.status is SWAPPED:
            self._offloaded[request] = self._num_added
            return
        self._fresh[request] = self._num_added
        self.num_single += request.target == 1
        self._lanes.setdefault(self._blocks.blocks_for(request.target), {})[request] = None
        if request.content and self._blocks.match(request, request.target - 1):
            self._asked = -1

    def remove(self, request: Request) -> None:
        """*request* does not wait any more, if it did."""
        self._offloaded.pop(request, None)
        if self._fresh.pop(request, None) is None:
            return
        self.num_single -= request.target == 1
        need = self._blocks.blocks_for(request.target)
        lane = self._lanes[need]
        del lane[request]
        if not lane:
            del self._lanes[need]

    def in_order(self) -> Iterator[Request]:
        """Offloaded and other requests take turns, an offloaded one first."""
        if not self._offloaded:
            return iter(self._fresh)
        offloaded, fresh = deque(self._offloaded), deque(self._fresh)
        order = []
        while offloaded or fresh:
            order += [queue.popleft() for queue in (offloaded, fresh) if queue]
        return iter(order)

    def asked(self) -> None:
        """All of them have just been asked, and none of those that still wait matched cached blocks."""
        self._asked = self._blocks.version

    @property
    def unmatched(self) -> bool:
        """Whether it is known that nobody finds cached blocks, and nobody returns from the host."""
        return not self._offloaded and self._asked == self._blocks.version

    def first_fitting(self, tokens: int, behind: int) -> Request | None:
        """The first behind place *behind* that fits the free blocks if *tokens* tokens may be computed."""
        free = self._blocks.free
        cut_fits = self._blocks.blocks_for(tokens) <= free
        best, found = self._num_added + 1, None
        for need, lane in self._lanes.items():
            if need > free and not cut_fits:
                continue
            request = next((request for request in lane if self._fresh[request] > behind), None)
            if request is not None and self._fresh[request] < best:
                best, found = self._fresh[request], request
        return found

    def place(self, request: Request) -> int:
        """Where a request that is not on the host stands."""
        return self._fresh[request]
