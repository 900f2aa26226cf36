"""A discrete-event simulator of LLM serving: what a system will do on given hardware under given traffic.

>>> from simulator import Deployment, read_trace, simulate           # doctest: +SKIP
>>> result = simulate(read_trace("trace.jsonl"), Deployment(gpu="h100", model="llama-3.1-8b"))  # doctest: +SKIP
>>> result.summary["p99_ttft_ms"], result.requests.head()            # doctest: +SKIP

Names are loaded when they are first used, so that ``simulator.scheduling`` and ``simulator.models`` work where only
the standard library and numpy are installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from simulator import compiled

if TYPE_CHECKING:
    from simulator.cluster import ClusterSpec
    from simulator.deployment import Deployment
    from simulator.errors import SimError
    from simulator.simulation import Result, simulate
    from simulator.workload import Trace, read_trace

__all__ = ["ClusterSpec", "Deployment", "Result", "SimError", "Trace", "read_trace", "simulate"]

_HOMES = {
    "ClusterSpec": "simulator.cluster",
    "Deployment": "simulator.deployment",
    "Result": "simulator.simulation",
    "SimError": "simulator.errors",
    "Trace": "simulator.workload",
    "read_trace": "simulator.workload",
    "simulate": "simulator.simulation",
}


compiled.install()  # before anything that it may stand for is imported


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'simulator' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
