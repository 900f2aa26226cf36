"""From prefill to decode: KV on its way."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import simpy

from simulator.cluster.link import Link
from simulator.cluster.pool import Member
from simulator.scheduling import Request

__all__ = ["Handover", "LinkSpec"]


class LinkSpec(NamedTuple):
    """*bandwidth* in B/s, *latency* in s; *sharing* is ``fair`` or ``fifo``; *shared*: one link for all senders."""

    bandwidth: float
    latency: float = 0.0
    sharing: str = "fair"
    shared: bool = False


class Handover:
    """Transfers under way. *arrived* is called with the request and its sender when all its KV is there."""

    def __init__(
        self, env: simpy.Environment, link: LinkSpec, arrived: Callable[[Request, Member], None]
    ) -> None:
        self.env = env
        self.bytes_sent = 0.0
        self.seconds: list[float] = []
        """How long each transfer took, waiting for the link included."""
        self._spec = link
        self._arrived = arrived
        self._links: dict[int | None, Link] = {}
        self._moving: dict[Request, tuple[Member, simpy.Process]] = {}

    def send(self, request: Request, member: Member) -> None:
        """*member* sends the KV of the prompt of *request*."""
        self._moving[request] = member, self.env.process(self._transfer(request, member))

    def is_sending(self, member: Member) -> bool:
        """Whether KV of *member* is on its way."""
        return any(sender is member for sender, _ in self._moving.values())

    def give_up(self, member: Member) -> list[Request]:
        """*member* died: the requests whose KV it was sending."""
        lost = [request for request, (sender, _) in self._moving.items() if sender is member]
        for request in lost:
            self._moving.pop(request)[1].interrupt()
        return lost

    def _transfer(self, request: Request, member: Member) -> Generator[simpy.Event, Any, None]:
        spec, start = self._spec, self.env.now
        key = None if spec.shared else member.index
        if key not in self._links:
            self._links[key] = Link(self.env, spec.bandwidth, spec.latency, spec.sharing)
        size = request.prompt_length * member.pool.kv_bytes_per_token
        try:
            yield from self._links[key].send(size)
        except simpy.Interrupt:  # the sender died
            return
        del self._moving[request]
        self.bytes_sent += size
        self.seconds.append(self.env.now - start)
        self._arrived(request, member)
