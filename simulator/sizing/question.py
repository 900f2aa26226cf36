"""What a sizing is asked: the traffic, the SLO, the choices, what they cost, and how sure the answer is to be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from simulator.errors import ConfigurationError, UnknownNameError
from simulator.sizing.candidates import LARGE_SPACE, SearchSpace
from simulator.sizing.capacity import PROBE_REQUESTS
from simulator.sizing.prices import Prices
from simulator.sizing.slo import Slo
from simulator.sizing.traffic import check_open
from simulator.workload import Trace

__all__ = ["METHODS", "Question"]

METHODS = {
    "auto": "the analytic bound, or Optuna in a large space",
    "bound": "the analytic bound: every choice is screened, what cannot be the cheapest of its GPU type is pruned",
    "exhaustive": "exhaustion: nothing is pruned",
    "optuna": "Optuna: draws, then a descent from the best",
}


@dataclass(frozen=True)
class Question:
    """What is asked. *max_cost*: $ per hour. *confirm_runs*: independent runs for the confidence *level*."""

    trace: Trace
    slo: Slo
    space: SearchSpace
    prices: Prices = field(default_factory=Prices.load)
    max_cost: float = math.inf
    confirm_runs: int = 3
    level: float = 0.95
    requests: int = PROBE_REQUESTS
    seed: int = 0
    method: str = "auto"
    """One of `METHODS`."""
    trials: int = 200
    """Draws of ``optuna``."""

    def __post_init__(self) -> None:
        check_open(self.trace)
        if self.method not in METHODS:
            raise UnknownNameError("search method", self.method, METHODS)
        if self.trials < 1:
            raise ConfigurationError(f"trials {self.trials}: must be at least 1")
        if not self.max_cost > 0:
            raise ConfigurationError(f"max_cost {self.max_cost}: must be above 0, $ per hour")
        if self.confirm_runs < 2:
            raise ConfigurationError(f"{self.confirm_runs} confirming runs: a confidence needs at least 2")
        if not 0 < self.level < 1:
            raise ConfigurationError(f"confidence {self.level}: must be between 0 and 1")

    @property
    def request_rate(self) -> float:
        """Of the whole trace, 1/s."""
        return self.trace.request_rate

    @property
    def chosen_method(self) -> str:
        """What ``auto`` comes to in this space."""
        if self.method != "auto":
            return self.method
        return "bound" if len(self.space) <= LARGE_SPACE else "optuna"
