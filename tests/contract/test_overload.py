"""Far more requests than a system can serve: each is finished or refused with a reason, none is dropped in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.results import FINISHED, REJECTED
from simulator.scheduling.system import System, list_systems


@pytest.mark.parametrize("system", list_systems(), ids=lambda system: system.name)
def test_nothing_is_dropped_in_silence(system: System, run_small: Any, random_trace: Any) -> None:
    trace = random_trace(np.random.default_rng(5), 200, load=100.0)
    records, replicas, summary = run_small(system, trace)
    done, refused = records.status == FINISHED, records.status == REJECTED
    assert np.all(done | refused)
    assert summary["completed"] + summary["rejected"] == len(trace)
    assert sum(records.reason_counts(REJECTED).values()) == refused.sum()
    assert "" not in records.reason_counts(REJECTED)
    assert np.array_equal(records.output_length[done], trace.output_length[done])
    scheduler = replicas[0].scheduler
    assert scheduler.num_running == scheduler.num_waiting == scheduler.blocks_used == 0
    assert replicas[0].series.maximum("kv_blocks_used") <= scheduler.num_blocks
    assert done.sum() > 50
