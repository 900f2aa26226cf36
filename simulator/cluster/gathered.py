"""What the replicas of a run leave, put together: records, gaps between tokens, the run over time, its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from simulator.replica import Replica, pooled_drafts
from simulator.results import (
    Categories,
    InterTokenLatency,
    Records,
    RecordsBuilder,
    StepSeries,
    Summary,
    summarize,
)
from simulator.scheduling.speculative import DraftCounts
from simulator.workload import Trace
from simulator.workload.columns import Categorical

__all__ = ["Gathered", "gather"]


@dataclass(frozen=True)
class Gathered:
    """Of all replicas together; *series* one each."""

    records: Records
    itl: InterTokenLatency
    series: list[StepSeries]
    drafts: DraftCounts | None
    summary: Summary

    @property
    def num_iterations(self) -> int:
        """Of all replicas."""
        return int(sum(series.sum("iterations") for series in self.series))


def gather(
    trace: Trace,
    builder: RecordsBuilder,
    replicas: Sequence[Replica],
    *,
    goodput: Mapping[str, float] | None,
    percentiles: Sequence[float],
    until: float | None,
    injected: int | None,
    front_end: float = 0.0,
) -> Gathered:
    """What *replicas* made of *trace*; *injected* is the driver's count of arrivals, the rest as in `summarize`.

    The records' arrival is when the client sent the request, *front_end* seconds before the scheduler had it.
    """
    itl = replicas[0].itl
    for replica in replicas[1:]:
        itl.merge(replica.itl)
    series = [replica.series for replica in replicas]
    records = builder.build(
        model=_categories(trace.model),
        tenant=_categories(trace.tenant),
        slo_class=_categories(trace.slo_class),
        request_id=trace.request_id,
    )
    if front_end:
        records = replace(records, arrival_time=records.arrival_time - front_end)
    drafts = pooled_drafts(replicas)
    summary = summarize(
        records,
        itl,
        series,
        goodput=goodput,
        percentiles=percentiles,
        end_time=until,
        injected=injected,
        drafts=drafts,
    )
    return Gathered(records, itl, series, drafts, summary)


def _categories(column: Categorical) -> Categories | None:
    return Categories(column.codes, column.names) if len(column.names) else None
