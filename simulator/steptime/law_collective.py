"""Collectives between the GPUs of one node: latency plus bytes over the link.

A ring sends f(n) = 2 (n - 1)/n of the message per GPU for an all-reduce, (n - 1)/n for all-gather, reduce-
scatter and all-to-all (message: the whole result). vLLM's *custom* all-reduce is one kernel over peer
memory and wins for small messages; launched eagerly (``custom_eager``) it costs 20 us of CPU. NCCL wins for
large ones; NVLink SHARP reduces in the switch, sends the message once and not 2 (n - 1)/n times, and so
beats the ring's bound.
"""

from __future__ import annotations

import math
from dataclasses import replace

from simulator.steptime.law_form import Number, OperatorLaw, at_least, choose, log2, p_norm

__all__ = ["CUSTOM_LIMIT", "CollectiveLaw", "SendLaw", "traffic_share"]

CUSTOM_LIMIT = 8 * 2**20
"""Largest message that vLLM hands to its custom all-reduce, bytes."""


def traffic_share(op: str, num_gpus: Number) -> Number:
    """Share of the message that every GPU of a ring sends."""
    share = (num_gpus - 1.0) / num_gpus
    return 2.0 * share if op == "all_reduce" else share


ONE_SHOT = ((2.0, math.inf), (4.0, 512 * 1024.0), (8.0, 256 * 1024.0))
"""Up to how many GPUs a message below how many bytes is reduced in one shot (vLLM custom_all_reduce.cuh)."""


class CollectiveLaw(OperatorLaw):
    """Seconds for arguments (message bytes, num_gpus); *dtype* holds the operation's name.

    Coefficients: ``t0_2 t0_4 t0_8`` s and ``eb_2 eb_4 eb_8`` (share of the link) for 2, 4 and 8 GPUs,
    ``p``. Between those numbers they are interpolated in log n; beyond 8 latency grows with n and the share
    stays. ``shots``
    2 marks a kernel that reads every peer's whole message when it is small (one shot: n - 1 messages), and
    else reduces a part each and gathers (two shots: a ring's traffic, ``second`` s of further latency);
    ``hands_over`` 1 one that leaves messages from `CUSTOM_LIMIT` to NCCL (``relay`` s of further latency).
    """

    def smooth(self, message: Number, num_gpus: Number) -> Number:
        """Latency against the wire."""
        latency = self._at("t0", num_gpus) * at_least(num_gpus / 8.0, 1.0)
        traffic = traffic_share(self.dtype, num_gpus) * message
        if self.coefficients.get("shots") == 2.0:
            small = one_shot(message, num_gpus)
            latency = choose(small, latency, latency + self.coefficients["second"])
            traffic = choose(small, (num_gpus - 1.0) * message, traffic)
        if self.coefficients.get("hands_over") == 1.0:
            latency = latency + choose(message >= CUSTOM_LIMIT, self.coefficients["relay"], 0.0)
        wire = traffic / (self._at("eb", num_gpus) * self.device.link)
        return p_norm(latency, wire, self.coefficients["p"])

    def as_stated(self, bus_bandwidth: float) -> None:
        """Take *bus_bandwidth* (B/s) of large messages, whatever the number of GPUs, instead of shares of the link."""
        self.device = replace(self.device, link=bus_bandwidth)
        self.coefficients |= dict.fromkeys(("eb_2", "eb_4", "eb_8"), 1.0)

    def _at(self, name: str, num_gpus: Number) -> Number:
        """Coefficient *name* at *num_gpus*, interpolated geometrically."""
        low, middle, high = (self.coefficients[f"{name}_{count}"] for count in (2, 4, 8))
        place = at_least(log2(num_gpus), 1.0)
        lower = low * (middle / low) ** (place - 1.0)
        upper = middle * (high / middle) ** (at_least(2.0 - place, -1.0) * -1.0)
        return choose(place < 2.0, lower, upper)

    def coordinates(self, message: Number, num_gpus: Number) -> tuple[Number, ...]:
        """The message and the number of GPUs."""
        return message, num_gpus

    def floor(self, message: Number, num_gpus: Number) -> Number:
        """Every GPU must send its share once: (n - 1)/n of the message, even with reduction in the switch."""
        return message * (num_gpus - 1.0) / num_gpus / self.device.link


def one_shot(message: Number, num_gpus: Number) -> Number:
    """Whether the custom kernel reduces the message in one shot."""
    limit: Number = 0.0
    for count, size in reversed(ONE_SHOT):
        limit = choose(num_gpus <= count, size, limit)
    return message < limit


class SendLaw(OperatorLaw):
    """Seconds for argument (message bytes): from one GPU to another. Coefficients: ``t0`` s, ``eb``."""

    def smooth(self, message: Number) -> Number:
        """Latency, then the wire."""
        return self.coefficients["t0"] + message / (self.coefficients["eb"] * self.device.link)

    def coordinates(self, message: Number) -> tuple[Number, ...]:
        """The message."""
        return (message,)

    def floor(self, message: Number) -> Number:
        """The link's bandwidth."""
        return message / self.device.link
