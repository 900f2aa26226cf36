"""All claims, by name, and running them beside each other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import as_completed
from dataclasses import dataclass

from simulator.claims import (
    launch,
    parallel,
    prefixes,
    rates,
    sharing,
    speculative,
    stalls,
    token_costs,
    waste,
)
from simulator.claims.claim import Claim, Outcome
from simulator.claims.lengths import Workloads
from simulator.errors import UnknownNameError
from simulator.sizing.pool import local_executor

__all__ = ["Reproduced", "find_claims", "list_claims", "reproduce"]

MODULES = (launch, waste, sharing, rates, stalls, token_costs, parallel, prefixes, speculative)
_CLAIMS = {claim.id: claim for module in MODULES for claim in module.CLAIMS}
SLOW = ("orca-rates", "beam-search")
"""Started first, so that the last process to finish is not left alone with them."""


@dataclass(frozen=True)
class Reproduced:
    """A claim, what came of it, and the s it took."""

    claim: Claim
    outcome: Outcome
    seconds: float


def list_claims() -> list[Claim]:
    """Every claim, in the order in which they are told."""
    return list(_CLAIMS.values())


def find_claims(names: Iterable[str]) -> list[Claim]:
    """The claims called *names*, all if there are none. Raises `UnknownNameError`."""
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in _CLAIMS:
            raise UnknownNameError("claim", name, _CLAIMS)
    return [claim for claim in list_claims() if not wanted or claim.id in wanted]


def reproduce(claims: Iterable[Claim], workloads: Workloads, *, workers: int = 1) -> Iterator[Reproduced]:
    """Run *claims* in *workers* processes; each is yielded as soon as those before it are done too."""
    order = [claim.id for claim in claims]
    first = sorted(
        order, key=lambda name: (SLOW.index(name) if name in SLOW else len(SLOW), order.index(name))
    )
    with local_executor(workers) as pool:
        names = {pool.submit(_run, name, workloads): name for name in (order if workers == 1 else first)}
        done: dict[str, Reproduced] = {}
        for future in as_completed(names):
            outcome, seconds = future.result()
            done[names[future]] = Reproduced(_CLAIMS[names[future]], outcome, seconds)
            while order and order[0] in done:
                yield done[order.pop(0)]


def _run(name: str, workloads: Workloads) -> tuple[Outcome, float]:
    start = time.perf_counter()
    outcome = _CLAIMS[name].run(workloads)
    return outcome, time.perf_counter() - start
