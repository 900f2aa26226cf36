"""What a run leaves behind: records, metrics, the printed table, the run directory."""

from simulator.results.classes import ClassRow, class_section, class_table
from simulator.results.distribution import Distribution
from simulator.results.goodput import parse_goodput
from simulator.results.invariants import ConservationError, check_conservation
from simulator.results.itl import InterTokenLatency
from simulator.results.latencies import LATENCIES
from simulator.results.metric import LatencyMetric, Metric
from simulator.results.metrics import METRICS
from simulator.results.overload import Overload, detect_overload
from simulator.results.records import (
    CANCELLED,
    FAILED,
    FINISHED,
    IN_TRANSFER,
    LOST,
    NOT_INJECTED,
    REJECTED,
    RUNNING,
    STATUS,
    SWAPPED,
    WAITING,
    Categories,
    Records,
    RecordsBuilder,
)
from simulator.results.report import Table
from simulator.results.rundir import Run, check_replaceable, write_run
from simulator.results.series import StepSeries
from simulator.results.summary import Intervals, Summary, summarize
from simulator.results.table import format_table

__all__ = [
    "CANCELLED",
    "FAILED",
    "FINISHED",
    "IN_TRANSFER",
    "LATENCIES",
    "LOST",
    "METRICS",
    "NOT_INJECTED",
    "REJECTED",
    "RUNNING",
    "STATUS",
    "SWAPPED",
    "WAITING",
    "Categories",
    "ClassRow",
    "ConservationError",
    "Distribution",
    "InterTokenLatency",
    "Intervals",
    "LatencyMetric",
    "Metric",
    "Overload",
    "Records",
    "RecordsBuilder",
    "Run",
    "StepSeries",
    "Summary",
    "Table",
    "check_conservation",
    "check_replaceable",
    "class_section",
    "class_table",
    "detect_overload",
    "format_table",
    "parse_goodput",
    "summarize",
    "write_run",
]
