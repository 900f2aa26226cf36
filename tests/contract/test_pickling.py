"""What another process simulated can be read here: every deployment and every result travels whole."""

from __future__ import annotations

import pickle

import pytest

from simulator import Deployment, Trace, simulate
from simulator.scheduling.system import System, list_systems

TRACE = Trace.from_columns([0.05 * i for i in range(12)], [300 + 40 * i for i in range(12)], [20] * 12)


@pytest.mark.parametrize("system", list_systems(), ids=lambda system: system.name)
def test_a_deployment_and_its_result_travel_between_processes(system: System) -> None:
    stated = Deployment.of(system=system.name, gpu="h200", default_max_tokens="exact")
    resolved = pickle.loads(pickle.dumps(stated.resolve()))
    there = pickle.loads(pickle.dumps(simulate(TRACE, resolved)))
    here = simulate(TRACE, stated)
    assert there.resolved.config == here.resolved.config
    assert there.summary.values == here.summary.values
    assert there.requests.equals(here.requests)
    assert there.timeseries.equals(here.timeseries)
