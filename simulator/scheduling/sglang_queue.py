"""The order in which SGLang tries its waiting requests, and which cached prefixes they keep recent.

Cache-aware policies look every waiting request up before each try: ``lpm`` takes the longest match first but
puts off a request that shares its start with an earlier one that is about to compute it; ``dfs-weight`` walks
the tree, heaviest branch first. The others only refresh the prefixes of the first 128 every 32nd try
(managers/schedule_policy.py: `SchedulePolicy`, SGLang 0.5.23). Sorting is stable and stays: arrivals and
retracted requests come last.
"""

from __future__ import annotations

from collections import deque

from simulator.errors import ConfigurationError
from simulator.scheduling.radix import RadixCache, RadixNode, dfs_weight_order
from simulator.scheduling.request import Request

__all__ = ["WaitingQueue"]

POLICIES = ("fcfs", "lpm", "dfs-weight", "lof")
IN_BATCH_CHECK = 32
IN_BATCH_SHARED = 32
MATCHED_REQUESTS = 128
REFRESH_INTERVAL = 32


class WaitingQueue:
    """Waiting requests in the order of *schedule_policy*; without *cache*, cache-aware ones are ``fcfs``."""

    def __init__(self, schedule_policy: str, cache: RadixCache | None) -> None:
        if schedule_policy not in POLICIES:
            raise ConfigurationError(
                f"schedule_policy {schedule_policy!r}: must be one of {', '.join(POLICIES)}"
            )
        if cache is None and schedule_policy in ("lpm", "dfs-weight"):
            schedule_policy = "fcfs"
        self.policy = schedule_policy
        self.requests: deque[Request] = deque()
        self._cache = cache
        self._tries = 0

    def __len__(self) -> int:
        return len(self.requests)

    def sort(self) -> None:
        """Bring the queue into order for a try to admit from it."""
        policy, cache = self.policy, self._cache
        if policy == "lof":
            self.requests = deque(sorted(self.requests, key=lambda r: -r.max_tokens))
        elif cache is not None and policy == "dfs-weight":
            nodes = [cache.match(r.held, r.target) for r in self.requests]
            requests = list(self.requests)
            self.requests = deque(requests[i] for i in dfs_weight_order(cache.root, nodes))
            return
        elif cache is not None and policy == "lpm" and len(self.requests) <= MATCHED_REQUESTS:
            self._sort_by_match(cache)
            return
        if cache is not None and self.requests:
            self._refresh(cache)

    def _sort_by_match(self, cache: RadixCache) -> None:
        matched: dict[Request, float] = {}
        ahead = RadixCache()
        for request in self.requests:
            node = cache.match(request.held, request.target)
            matched[request] = min(node.end, request.target - 1)
            if node.end <= IN_BATCH_CHECK and not self._is_first(ahead, request):
                matched[request] = float("-inf")
        self.requests = deque(sorted(self.requests, key=lambda r: -matched[r]))

    def _is_first(self, ahead: RadixCache, request: Request) -> bool:
        """Whether no request before this one in the queue has its first tokens."""
        node: RadixNode = ahead.match(request.held, request.target)
        if node.end >= IN_BATCH_SHARED:
            return False
        ahead.insert(request.held, request.target)
        return True

    def _refresh(self, cache: RadixCache) -> None:
        self._tries += 1
        if self._tries % REFRESH_INTERVAL != 1:
            return
        for request in reversed([r for r, _ in zip(self.requests, range(MATCHED_REQUESTS), strict=False)]):
            cache.match(request.held, request.target)
