"""Collectives between the GPUs of one node: latency plus bytes over the link.

A ring sends f(n) = 2 (n - 1)/n of the message per GPU for an all-reduce, (n - 1)/n for all-gather, reduce-
scatter and all-to-all (message: the whole result). vLLM's *custom* all-reduce is one kernel over peer
memory and wins for small messages; launched eagerly (``custom_eager``) it costs 20 us of CPU. NCCL wins for
large ones; NVLink SHARP reduces in the switch, sends the message once and not 2 (n - 1)/n times, and so
beats the ring's bound.
"""

from __future__ import annotations

from simulator.steptime.law_form import Number, OperatorLaw, at_least, p_norm

__all__ = ["CUSTOM_LIMIT", "CollectiveLaw", "traffic_share"]

CUSTOM_LIMIT = 8 * 2**20
"""Largest message that vLLM hands to its custom all-reduce, bytes."""


def traffic_share(op: str, num_gpus: Number) -> Number:
    """Share of the message that every GPU of a ring sends."""
    share = (num_gpus - 1.0) / num_gpus
    return 2.0 * share if op == "all_reduce" else share


class CollectiveLaw(OperatorLaw):
    """Seconds for arguments (message bytes, num_gpus); *dtype* holds the operation's name.

    Coefficients: ``t0`` s, ``per_gpu`` s, ``eb`` of the link, ``p``.
    """

    def _wire(self, message: Number, num_gpus: Number) -> Number:
        return traffic_share(self.dtype, num_gpus) * message / self.device.link

    def smooth(self, message: Number, num_gpus: Number) -> Number:
        """Latency against the wire."""
        c = self.coefficients
        return p_norm(c["t0"] + c["per_gpu"] * num_gpus, self._wire(message, num_gpus) / c["eb"], c["p"])

    def coordinates(self, message: Number, num_gpus: Number) -> tuple[Number, ...]:
        """The message and the number of GPUs."""
        return message, num_gpus

    def floor(self, message: Number, num_gpus: Number) -> Number:
        """Every GPU must send its share once: (n - 1)/n of the message, even with reduction in the switch."""
        return at_least(message * (num_gpus - 1.0) / num_gpus / self.device.link, 0.0)
