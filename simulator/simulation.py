"""One simulation: a trace, a deployment, and what came of it."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import simpy

from simulator.breakdown import time_breakdown
from simulator.cluster import Cluster, ClusterResult, ClusterSpec, simulate_cluster
from simulator.cluster.gathered import gather
from simulator.deployment import Deployment, Resolved
from simulator.errors import ConfigurationError
from simulator.results import (
    REJECTED,
    ClassRow,
    InterTokenLatency,
    Records,
    Run,
    StepSeries,
    Summary,
    class_section,
    class_table,
)
from simulator.results.records import RequestEvent
from simulator.scheduling.speculative import DraftCounts
from simulator.validity import excursions
from simulator.workload import Trace
from simulator.workload.limits import resolve_max_tokens

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Result", "simulate"]

PROGRESS_STEPS = 200


@dataclass(frozen=True)
class Result:
    """A finished simulation. Times in seconds of the simulated clock, from the trace's start."""

    trace: Trace
    resolved: Resolved
    records: Records
    series: Sequence[StepSeries]
    itl: InterTokenLatency
    summary: Summary
    num_iterations: int
    drafts: DraftCounts | None = None
    """What became of the drafts, with speculation."""
    transfers: Mapping[str, int] = field(default_factory=dict)
    """What came from host memory: ``kv_blocks``, ``adapters``; empty where nothing can."""
    events: Sequence[RequestEvent] = ()
    """When requests were preempted and scheduled again."""

    @property
    def requests(self) -> pd.DataFrame:
        """One row per request."""
        return self.records.to_frame()

    @property
    def timeseries(self) -> pd.DataFrame:
        """Batch, queue and KV cache over time, one row per point and replica."""
        import pandas as pd

        return pd.concat([series.to_frame() for series in self.series], ignore_index=True)

    @property
    def rejections(self) -> dict[str, int]:
        """How many requests were turned away, by reason."""
        return self.records.reason_counts(REJECTED)

    @property
    def deployed(self) -> list[tuple[StepSeries, Resolved]]:
        """What each replica did, with what was deployed on it."""
        return [(series, self.resolved) for series in self.series]

    @property
    def classes(self) -> list[ClassRow]:
        """How each SLO class, tenant and model of the trace fared, by the objectives of the run."""
        summary = self.summary
        return class_table(self.records, summary.sample.duration, {}, summary.goodput)

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing the numbers."""
        lines = list(self.resolved.warnings)
        if self.resolved.deployment.enable_lora and not self.trace.lora.names:
            lines.append("no request names an adapter (column lora): steps are priced as if all had one")
        if self.trace.lora.names and not self.resolved.deployment.enable_lora:
            lines.append("requests name adapters (column lora): priced without, since enable_lora is not set")
        lines += [f"{count} requests rejected: {reason}" for reason, count in self.rejections.items()]
        if self.summary.overload is not None and self.summary.overload.overloaded:
            lines.append(self.summary.overload.text())
        beyond = excursions(self.resolved.steptime, self.series, self.records)
        return [*lines, *(f"outside the data: {excursion.text()}" for excursion in beyond)]

    def run(self, **metadata: Any) -> Run:
        """What goes into a run directory or a report."""
        resolved, trace = self.resolved, self.trace
        stated = resolved.deployment.model_dump(mode="json", exclude_unset=True)
        return Run(
            summary=self.summary,
            title=resolved.title,
            config={"deployment": stated, "resolved": resolved.config, "trace": dict(trace.meta)},
            metadata={
                "date": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"),
                "backend": f"{resolved.system.name} {resolved.system.version} (simulated)",
                "label": None,
                "model_id": resolved.model.name,
                "tokenizer_id": resolved.model.name,
                "num_prompts": len(trace),
                "request_rate": "inf" if trace.request_rate == float("inf") else trace.request_rate,
                "max_concurrency": trace.max_concurrency,
                "classes": [row.to_json() for row in self.classes],
                **metadata,
            },
            provenance=resolved.provenance,
            defaults=resolved.chosen,
            time_breakdown=time_breakdown(self),
            events=self.events,
            tables=class_section(self.classes),
            warnings=[line for line in self.warnings if not line.startswith("Overload")],
        )


@overload
def simulate(
    trace: Trace,
    deployment: Deployment | Resolved,
    *,
    goodput: Mapping[str, float] | None = ...,
    percentiles: Sequence[float] = ...,
    progress: Callable[[float], None] | None = ...,
    stepped: bool = ...,
    until: float | None = ...,
    seed: int = ...,
) -> Result: ...


@overload
def simulate(
    trace: Trace,
    deployment: ClusterSpec,
    *,
    goodput: Mapping[str, float] | None = ...,
    percentiles: Sequence[float] = ...,
    progress: Callable[[float], None] | None = ...,
    stepped: bool = ...,
    until: float | None = ...,
    seed: int = ...,
) -> ClusterResult: ...


def simulate(
    trace: Trace,
    deployment: Deployment | Resolved | ClusterSpec,
    *,
    goodput: Mapping[str, float] | None = None,
    percentiles: Sequence[float] = (50, 90, 95, 99),
    progress: Callable[[float], None] | None = None,
    stepped: bool = False,
    until: float | None = None,
    seed: int = 0,
) -> Result | ClusterResult:
    """Replay *trace* against *deployment*, or against a cluster of several.

    *goodput*: objectives in ms by metric (`ttft`, `tpot`, `e2el`). *progress* is called with the fraction
    of the requests that have left. *stepped* takes every iteration by itself (slow; the same decisions).
    *until* (s) cuts the run off; *seed* is for a router that draws and for what speculation accepts. Raises
    `SimError`.
    """
    if isinstance(deployment, ClusterSpec):
        return simulate_cluster(
            trace,
            deployment,
            goodput=goodput,
            percentiles=percentiles,
            progress=progress,
            stepped=stepped,
            until=until,
            seed=seed,
        )
    resolved = (deployment if isinstance(deployment, Resolved) else deployment.resolve()).with_seed(seed)
    if until is not None and not until > 0:
        raise ConfigurationError(f"until {until}: must be above 0")
    max_tokens = resolve_max_tokens(trace, resolved.default_max_tokens)
    env = simpy.Environment()
    cluster = Cluster(
        env,
        trace,
        max_tokens,
        resolved.scheduler_factory,
        resolved.steptime,
        num_replicas=resolved.deployment.num_replicas,
        router=resolved.deployment.router,
        seed=seed,
        stepped=stepped,
        horizon=math.inf if until is None else until,
        front_end=resolved.front_end_s,
    )
    _run(env, cluster, trace, progress, until)
    done = gather(
        trace,
        cluster.records,
        cluster.replicas,
        goodput=goodput,
        percentiles=percentiles,
        until=until,
        injected=None if until is not None else len(trace),
        front_end=resolved.front_end_s,
    )
    transfers: Counter[str] = Counter()
    for replica in cluster.replicas:
        transfers.update(replica.scheduler.transfers())
    return Result(
        trace,
        resolved,
        done.records,
        done.series,
        done.itl,
        done.summary,
        done.num_iterations,
        done.drafts,
        dict(transfers),
        cluster.records.events,
    )


def _run(
    env: simpy.Environment,
    cluster: Cluster,
    trace: Trace,
    progress: Callable[[float], None] | None,
    until: float | None,
) -> None:
    if progress is None:
        env.run(until)
        return
    env.process(_report(env, cluster, trace, progress))
    env.run(until)
    progress(1.0)


def _report(env: simpy.Environment, cluster: Cluster, trace: Trace, progress: Callable[[float], None]) -> Any:
    """Tell how far the run is, at a few hundred moments of the simulated clock."""
    span, total = max(trace.duration, 1.0) / PROGRESS_STEPS, len(trace)
    while True:
        yield env.timeout(span)
        left = np.count_nonzero(~np.isnan(np.array(cluster.records.finish_time)))
        progress(left / total)
        if left >= total:
            return
