"""Prefill and decode on replicas of their own: so many of each make a unit, and a plan has so many units.

One replica that does both lets a long prompt delay everybody's next token; apart, each side is as large as its work
asks for (DistServe, Zhong et al. 2024; Splitwise, Patel et al. 2024). What that costs is the way of the KV cache from
one to the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.analytic import SteadyState
from simulator.cluster import ClusterSpec
from simulator.deployment import Deployment
from simulator.errors import ConfigurationError

__all__ = ["KV_BANDWIDTH", "Split"]

KV_BANDWIDTH = 25e9
"""B/s from a prefill replica to the decode replicas unless stated: a 200 Gbit/s network port, half of what a DGX H100
has for each GPU (400 Gbit/s; NVIDIA DGX H100 datasheet)."""
ROUTER = "least-outstanding"


@dataclass(frozen=True)
class Split:
    """*prefill* and *decode* replicas to a unit; each prefill replica sends KV at *bandwidth*, B/s."""

    prefill: int
    decode: int
    bandwidth: float = KV_BANDWIDTH

    def __post_init__(self) -> None:
        if self.prefill < 1 or self.decode < 1:
            raise ConfigurationError(f"pools {self}: needs at least one replica on each side")
        if not 0 < self.bandwidth < float("inf"):
            raise ConfigurationError(f"KV bandwidth {self.bandwidth}: must be above 0 and finite, B/s")

    def __str__(self) -> str:
        return f"{self.prefill}:{self.decode}"

    @classmethod
    def parse(cls, text: str, bandwidth: float = KV_BANDWIDTH) -> Split:
        """From ``PREFILL:DECODE``. Raises `ConfigurationError`."""
        prefill, _, decode = text.partition(":")
        if not (prefill.isdecimal() and decode.isdecimal()):
            raise ConfigurationError(f"pools {text!r}: must be PREFILL:DECODE replicas, such as 1:2")
        return cls(int(prefill), int(decode), bandwidth)

    @property
    def replicas(self) -> int:
        """Of a unit."""
        return self.prefill + self.decode

    def cluster(self, deployment: Deployment, units: int = 1) -> ClusterSpec:
        """*units* of these, every replica a *deployment*."""
        one = deployment.model_dump(exclude_unset=True, exclude={"num_replicas", "router"})
        return ClusterSpec.of(
            pools={
                role: {"deployment": one, "role": role, "replicas": units * getattr(self, role)}
                for role in ("prefill", "decode")
            },
            router=ROUTER,
            transfer={"bandwidth": self.bandwidth},
        )

    def bound(self, state: SteadyState, tpot_s: float) -> float:
        """Requests/s that no steady stream through a unit exceeds; 0 where not even one request is fast enough."""
        return min(self.prefill * state.prefill_limit(), self.decode * state.decode_limit(tpot_s))

    def busier(self, state: SteadyState) -> str:
        """The side that has less to spare."""
        spare = self.prefill * state.prefill_limit(), self.decode * state.decode_limit()
        return "prefill" if spare[0] < spare[1] else "decode"
