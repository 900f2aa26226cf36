"""Workloads: the trace schema, one importer per format, arrival processes, lengths and sessions."""

from __future__ import annotations

from simulator.workload.arrivals import (
    constant_arrivals,
    gamma_arrivals,
    mmpp_arrivals,
    piecewise_arrivals,
    poisson_arrivals,
    ramp_arrivals,
    weibull_arrivals,
)
from simulator.workload.columns import Categorical
from simulator.workload.content import OUTPUT_ID_BASE, Runs, common_prefix
from simulator.workload.formats import FORMATS
from simulator.workload.generate import generate_trace
from simulator.workload.lengths import Lengths
from simulator.workload.limits import resolve_max_tokens
from simulator.workload.reader import read_trace
from simulator.workload.trace import Trace

__all__ = [
    "FORMATS",
    "OUTPUT_ID_BASE",
    "Categorical",
    "Lengths",
    "Runs",
    "Trace",
    "common_prefix",
    "constant_arrivals",
    "gamma_arrivals",
    "generate_trace",
    "mmpp_arrivals",
    "piecewise_arrivals",
    "poisson_arrivals",
    "ramp_arrivals",
    "read_trace",
    "resolve_max_tokens",
    "weibull_arrivals",
]
