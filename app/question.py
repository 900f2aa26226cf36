"""A sizing question as a reader asks it, and as the command line would be asked."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import yaml

from app import library, work
from app.view import STATED, View
from simulator import Deployment, Trace
from simulator.errors import ConfigurationError
from simulator.sizing import Prices, Search, SearchSpace, parse_slo
from simulator.sizing.evidence import evidence
from simulator.sizing.over_time import size_over_time

__all__ = ["SHIPPED", "Question"]

SHIPPED = "shipped"
FIXED = {*STATED, "dtype"} - {"model"}
"""What the search chooses, or counts."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """What the traffic and objectives of *view* need, of some GPUs, widths and formats of weights."""

    view: View
    gpus: tuple[str, ...]
    widths: tuple[int, ...]
    formats: tuple[str, ...]
    most: float = 0.0
    """$ per hour; 0: no limit."""
    prices: str = SHIPPED
    """Key of an uploaded list."""
    interval: float = 0.0
    """Size every so many seconds by themselves; 0: the whole."""

    @property
    def quotes(self) -> Prices:
        """The prices. Raises `SimError`."""
        return Prices.load(None if self.prices == SHIPPED else library.path_of(self.prices))

    @property
    def slos(self) -> list[str]:
        """The objectives, in the words of the command line."""
        return [f"{name}:p99:{ms:g}" for name, ms in self.view.goodput.items()]

    @property
    def fixed(self) -> dict[str, Any]:
        """What the deployment states beyond what is searched."""
        stated = self.view.deployment().model_dump(exclude_unset=True)
        return {name: value for name, value in stated.items() if name not in FIXED}

    def space(self) -> SearchSpace:
        """The choices. Raises `SimError`."""
        base = Deployment.of(**self.fixed)
        dtypes = [None if name == "published" else name for name in self.formats]
        return SearchSpace(base, self.gpus, (self.view.system,), self.widths, dtypes, (None,), (None,))

    def prepare(self) -> Callable[[Executor, Progress], dict[str, Any]]:
        """What is to be done for an answer; checked as far as it can be before. Raises `SimError`."""
        if not self.slos:
            raise ConfigurationError("objectives: none is set; state at least one at the left")
        trace: Trace = work.trace_of(self.view, spread="uniform")
        slo, space, quotes = parse_slo(self.slos, self.view.model), self.space(), self.quotes
        if self.interval:
            interval = self.interval
            return lambda pool, say: size_over_time(
                trace, slo, space, quotes, interval=interval, executor=pool, progress=say
            ).as_dict()
        search = Search(trace, slo, space, quotes, self.most or float("inf"))
        return lambda pool, say: evidence(search.run(pool, progress=say), pool)

    @property
    def command(self) -> str:
        """What to type to get the same answer."""
        view = self.view
        words = ["sim", "size", "traffic.jsonl" if view.described else library.title_of(view.source)]
        words += ["--model", library.title_of(view.model), "--systems", view.system]
        words += ["--deployment", "fixed.yaml"] if len(self.fixed) > 1 else []
        for slo in self.slos:
            words += ["--slo", slo]
        words += ["--gpus", ",".join(self.gpus), "--tp", ",".join(map(str, self.widths))]
        words += ["--dtypes", ",".join(self.formats)]
        words += ["--max-num-seqs", "default", "--max-num-batched-tokens", "default"]
        words += ["--max-cost", f"{self.most:g}"] if self.most else []
        words += ["--prices", library.title_of(self.prices)] if self.prices != SHIPPED else []
        words += ["--over-time", "--interval", f"{self.interval:g}"] if self.interval else []
        line = shlex.join(words)
        return f"{view.generate_command}\n{line}" if view.described else line

    @property
    def fixed_yaml(self) -> str:
        """The file ``fixed.yaml`` of the command, where it names one."""
        values = {**self.fixed, "model": library.title_of(self.view.model)}
        if self.view.speculation:
            values["speculation"] = self.view.drafting(library.title_of(self.view.draft_model))
        return yaml.safe_dump(values, sort_keys=False)
