"""When a request was preempted and came back is on record, for every system that preempts."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest

from simulator import Deployment, Trace, simulate
from simulator.results import FINISHED
from simulator.scheduling.system import System, list_systems

TRACE = Trace.from_columns([0.01 * i for i in range(40)], [100 + 7 * i for i in range(40)], [200] * 40)


def run(system: System):
    blocks = 4000 // system.block_size
    stated = {"system": system.name, "num_gpu_blocks": blocks, "default_max_tokens": 4096}
    return simulate(TRACE, Deployment.of(gpu="l40s", **stated))


@pytest.mark.parametrize("system", list_systems(), ids=lambda system: system.name)
def test_every_preemption_is_followed_by_a_return(system: System) -> None:
    result = run(system)
    events = sorted(result.events, key=lambda event: event[1])
    counted = np.zeros(len(TRACE), int)
    for i, own in groupby(events, key=lambda event: event[1]):
        own = list(own)
        names = [name for _, _, name in own]
        counted[i] = names.count("PREEMPTED")
        assert names == ["PREEMPTED", "SCHEDULED"] * (len(names) // 2) or result.records.status[i] != FINISHED
        times = [time for time, _, _ in own]
        assert times == sorted(times)
        assert times[0] >= result.records.first_scheduled_time[i]
    assert counted.tolist() == result.records.num_preemptions.tolist()
