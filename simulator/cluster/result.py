"""What came of a cluster's run."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.breakdown import time_breakdown
from simulator.cluster.bill import ReplicaBill, bill_section, gpus_over_time, total_usd
from simulator.cluster.resolve import ResolvedPool
from simulator.cluster.spec import ClusterSpec
from simulator.deployment import Resolved
from simulator.results import LOST, REJECTED, InterTokenLatency, Records, Run, StepSeries, Summary
from simulator.results.classes import ClassRow, class_section
from simulator.validity import excursions
from simulator.workload import Trace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ClusterResult"]


@dataclass(frozen=True)
class ClusterResult:
    """A finished run of a cluster. Times in seconds of the simulated clock, from the trace's start."""

    trace: Trace
    spec: ClusterSpec
    pools: Sequence[ResolvedPool]
    records: Records
    series: Sequence[StepSeries]
    itl: InterTokenLatency
    summary: Summary
    num_iterations: int
    end_time: float
    classes: Sequence[ClassRow]
    """How each SLO class, tenant and model fared."""
    bills: Sequence[ReplicaBill]
    """One per replica that was ever started."""
    num_retries: int
    bytes_transferred: float
    mean_transfer_s: float
    """NaN where nothing was transferred."""

    @property
    def requests(self) -> pd.DataFrame:
        """One row per request."""
        return self.records.to_frame()

    @property
    def replicas(self) -> pd.DataFrame:
        """One row per replica that was ever started: when, for how long, at what cost."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(line) for line in self.bills])

    @property
    def timeseries(self) -> pd.DataFrame:
        """Batch, queue and KV cache over time, one row per point and replica."""
        import pandas as pd

        return pd.concat([series.to_frame() for series in self.series], ignore_index=True)

    @property
    def gpus_over_time(self) -> tuple[np.ndarray, np.ndarray]:
        """(s, GPUs that are paid for from then on)."""
        return gpus_over_time(self.bills, self.end_time)

    @property
    def gpu_hours(self) -> float:
        """Of all replicas, from their machines' start to their stop."""
        return sum(line.gpu_hours for line in self.bills)

    @property
    def usd(self) -> float | None:
        """Cost of the run; None where a GPU has no price."""
        return total_usd(self.bills)

    @cached_property
    def time_breakdown(self) -> dict[str, float]:
        """Seconds in iterations by operator family, all replicas together."""
        return time_breakdown(self)

    @property
    def deployed(self) -> list[tuple[StepSeries, Resolved]]:
        """What each replica did, with what was deployed on it."""
        pools = {pool.pool.name: pool.resolved for pool in self.pools}
        return [(series, pools[self.bills[series.replica].pool]) for series in self.series]

    @property
    def rejections(self) -> dict[str, int]:
        """How many requests were turned away, by reason."""
        return self.records.reason_counts(REJECTED)

    @property
    def title(self) -> str:
        """What is deployed, in a few words."""
        roles = {"serve": "", "prefill": ", prefill", "decode": ", decode"}
        parts = [
            f"{p.pool.name}: {p.pool.replicas} × ({p.resolved.title}{roles[p.pool.role]})" for p in self.pools
        ]
        return f"{'; '.join(parts)}; router {self.spec.router}"

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before believing the numbers."""
        lines = [f"pool {p.pool.name}: {line}" for p in self.pools for line in p.resolved.warnings]
        lines += [f"{count} requests rejected: {reason}" for reason, count in self.rejections.items()]
        lines += [
            f"{count} requests lost: {reason}" for reason, count in self.records.reason_counts(LOST).items()
        ]
        if self.summary.overload is not None and self.summary.overload.overloaded:
            lines.append(self.summary.overload.text())
        for name in sorted(set(self.spec.slo) - set(self.trace.slo_class.names)):
            lines.append(f"slo: no request of the trace is of class {name}")
        for gpu in sorted({line.gpu for line in self.bills if line.usd is None}):
            lines.append(f"no price for {gpu}: state usd_per_hour in its pool")
        return [*lines, *self._outside_the_data()]

    def _outside_the_data(self) -> list[str]:
        lines = []
        for p in self.pools:
            own = [series for series, resolved in self.deployed if resolved is p.resolved]
            for excursion in excursions(p.resolved.steptime, own, self.records):
                lines.append(f"pool {p.pool.name}: outside the data: {excursion.text()}")
        return lines

    def run(self, **metadata: Any) -> Run:
        """What goes into a run directory or a report."""
        trace, models = self.trace, sorted({p.resolved.model.name for p in self.pools})
        config = {name: p.resolved.config for name, p in zip(self.spec.pools, self.pools, strict=True)}
        cluster = self.spec.model_dump(mode="json", exclude_unset=True)
        return Run(
            summary=self.summary,
            title=self.title,
            config={"cluster": cluster, "resolved": config, "trace": dict(trace.meta)},
            metadata={
                "date": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"),
                "backend": "cluster (simulated)",
                "label": None,
                "model_id": ",".join(models),
                "tokenizer_id": ",".join(models),
                "num_prompts": len(trace),
                "request_rate": "inf" if trace.request_rate == float("inf") else trace.request_rate,
                "max_concurrency": trace.max_concurrency,
                "gpu_hours": self.gpu_hours,
                "cost_usd": self.usd,
                "num_retries": self.num_retries,
                "classes": [row.to_json() for row in self.classes],
                "replicas": [_json(line) for line in self.bills],
                **metadata,
            },
            tables=[*class_section(self.classes), bill_section(self.bills, self.end_time)],
            time_breakdown=self.time_breakdown,
            provenance=[f"pool {p.pool.name}: {line}" for p in self.pools for line in p.resolved.provenance],
            defaults=[f"pool {p.pool.name}: {line}" for p in self.pools for line in p.resolved.chosen],
            warnings=[line for line in self.warnings if not line.startswith("Overload")],
        )


def _json(row: Any) -> dict[str, Any]:
    """A row as JSON knows it: NaN is null."""
    return {
        name: None if isinstance(value, float) and value != value else value
        for name, value in dataclasses.asdict(row).items()
    }
