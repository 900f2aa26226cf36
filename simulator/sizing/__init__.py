"""How many of which GPU: objectives, prices, capacity, search, provisioning over time, sweeps, reports."""

from simulator.sizing.candidates import Candidate, SearchSpace, Skipped
from simulator.sizing.capacity import Capacity, Probe, find_capacity, probe
from simulator.sizing.directory import check_directory, write_sizing
from simulator.sizing.plan import Confirmation, Plan, pareto_front
from simulator.sizing.pool import SerialExecutor, local_executor
from simulator.sizing.prices import Prices, Quote
from simulator.sizing.search import Search, SearchResult
from simulator.sizing.slo import SLO_METRICS, Attained, Objective, Slo, parse_slo, slo_presets
from simulator.sizing.traffic import part_of, resampled

__all__ = [
    "SLO_METRICS",
    "Attained",
    "Candidate",
    "Capacity",
    "Confirmation",
    "Objective",
    "Plan",
    "Prices",
    "Probe",
    "Quote",
    "Search",
    "SearchResult",
    "SearchSpace",
    "SerialExecutor",
    "Skipped",
    "Slo",
    "check_directory",
    "find_capacity",
    "local_executor",
    "pareto_front",
    "parse_slo",
    "part_of",
    "probe",
    "resampled",
    "slo_presets",
    "write_sizing",
]
