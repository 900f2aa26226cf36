"""Workloads: the trace schema, one importer per format, arrival processes, lengths and sessions."""

from __future__ import annotations

from simulator.workload.content import OUTPUT_ID_BASE, Runs, common_prefix
from simulator.workload.reader import read_trace
from simulator.workload.trace import Categorical, Trace

__all__ = ["OUTPUT_ID_BASE", "Categorical", "Runs", "Trace", "common_prefix", "read_trace"]
