"""The repeated run is the run, and its block tables say who shares what."""

from __future__ import annotations

import numpy as np
import pytest

from app import blockmap
from app.occupancy import Occupancy, occupancy
from app.views.systems import small_deployment
from simulator import Deployment, Trace, simulate
from simulator.scheduling.system import list_systems
from simulator.workload import Lengths, Runs, generate_trace

TRACE = generate_trace(
    60,
    request_rate=30,
    input_length=Lengths.parse("lognormal:mean=200,sigma=1"),
    output_length=Lengths.parse("lognormal:mean=60,sigma=1"),
    num_prefixes=2,
    prefix_length=Lengths.parse("100"),
)


def at(trace: Trace, deployment: Deployment, time: float, replica: int = 0) -> Occupancy:
    stated = deployment.model_dump_json(exclude_unset=True)
    return occupancy(trace, stated, time, replica, lambda fraction: None)


@pytest.mark.parametrize("name", [system.name for system in list_systems()])
def test_what_is_held_then_is_what_the_run_says(name):
    deployment = small_deployment(name, 16_384)
    series = simulate(TRACE, deployment, stepped=True).series[0].points()
    moment = float(series["time"][len(series["time"]) // 3]) + 1e-5
    then = int(np.searchsorted(series["time"], moment, side="right")) - 1
    seen = at(TRACE, deployment, moment)
    assert seen.used == pytest.approx(series["kv_blocks_used"][then])
    assert seen.cached == pytest.approx(series["kv_blocks_cached"][then])
    if seen.tables is not None:
        assert len(seen.holders) == seen.used
        assert len(set(seen.cached_ids)) == len(seen.cached_ids) <= seen.cached
        assert not set(seen.holders) & set(seen.cached_ids)
        unfilled = sum(seen.unfilled(request) for request in seen.tables)
        assert unfilled == pytest.approx(seen.waste["internal"])


def test_two_prompts_share_the_blocks_of_their_common_prefix():
    content = Runs(np.array([0, 1, 2]), np.array([7, 7]), np.array([70, 70]))
    trace = Trace.from_columns([0.0, 1.0], [100, 120], [200, 200], content=content)
    seen = at(trace, small_deployment("vllm", 8192), 1.5)
    assert seen.sharers("r1") == {"r0": 4}  # 70 tokens are four whole blocks of 16, and six tokens more
    assert seen.tables["r0"][:4] == seen.tables["r1"][:4]
    assert seen.waste["shared"] == 64
    rows = blockmap.table(seen, "r1")
    assert rows["request"].tolist() == ["r1", "r0"]
    assert rows["of them shared"].tolist() == [4, 4]


def test_the_map_has_a_cell_for_every_block_in_use():
    seen = Occupancy(1.0, 300, 16, 4, 1, {}, {"a": [0, 1, 200], "b": [1, 2]}, {"a": 40, "b": 20}, [130])
    kinds = np.array(blockmap.figure(seen, "b").data[0].z).ravel()
    assert kinds[[0, 1, 2, 3, 130, 200]].tolist() == [2, 4, 4, 0, 1, 2]
    assert seen.unfilled("b") == 12
    assert blockmap.table(seen, "b")["block numbers"].tolist() == ["1–2", "0–1, 200"]
