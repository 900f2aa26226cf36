"""Observing the simulated server gives what the simulator says of the same requests, as far as a busy machine can."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("aiohttp")
pytest.importorskip("uvicorn")
from calibrate.observe.observation import Observation
from calibrate.observe.replay import Settings, observe
from engine.server import Limits
from engine.server.serve import make_server
from hwprofiles import load_profile
from hwprofiles.datasheet import write_profile
from simulator.cli.serve import make_loop
from simulator.deployment import Deployment
from simulator.simulation import simulate
from simulator.workload import Trace

SLOWER = 4
"""An L4 of a quarter of its speed: steps of 250 ms and more, beside which a busy machine's own work is small."""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    profile = load_profile("l4")
    sheet = profile.datasheet
    peaks = {name: value / SLOWER for name, value in sheet.peak_flops.items()}
    slow = sheet.model_copy(update={"peak_flops": peaks, "memory_bandwidth": sheet.memory_bandwidth / SLOWER})
    path = tmp_path_factory.mktemp("slow") / "slow.yaml"
    write_profile(profile.model_copy(update={"datasheet": slow}), path)
    return Deployment.of(model="llama-3.1-8b", gpu=str(path))


@pytest.fixture(scope="module")
def url(deployment: Deployment) -> Iterator[str]:
    server = make_server(make_loop(deployment.resolve()), Limits(drain_seconds=0.1), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def seen(url: str, tmp_path_factory: pytest.TempPathFactory) -> Observation:
    rng = np.random.default_rng(2)
    arrivals = np.cumsum(rng.exponential(0.3, 8))
    trace = Trace.from_columns(arrivals, rng.integers(40, 400, 8), rng.integers(2, 9, 8))
    out: Path = tmp_path_factory.mktemp("seen") / "o.jsonl"
    return observe(trace, Settings(url, interval=0.1), out)


def test_times_are_those_of_the_simulator(seen: Observation, deployment: Deployment) -> None:
    predicted = simulate(seen.trace(), deployment, percentiles=(50,)).summary
    measured = seen.summary((50,))
    assert measured["completed"] == 8
    bounds = {
        "tpot": (0.85, 1.25),
        "itl": (0.85, 1.25),
        "e2el": (0.9, 1.25),
        "ttft": (0.8, 1.5),
    }  # TTFT: a step missed
    for name, (low, high) in bounds.items():
        assert low < measured[f"mean_{name}_ms"] / predicted[f"mean_{name}_ms"] < high, name
    assert 0.9 < measured["duration"] / predicted["duration"] < 1.25


def test_it_states_its_cache_and_how_full_it_is(seen: Observation, deployment: Deployment) -> None:
    budget = deployment.resolve().budget
    assert (seen.header.num_gpu_blocks, seen.header.block_size) == (budget.num_gpu_blocks, 16)
    assert max(sample.running for sample in seen.samples) >= 2
    assert 0 < max(sample.kv_usage for sample in seen.samples) < 0.2


def test_a_shared_prefix_is_found_in_the_cache(url: str, tmp_path: Path) -> None:
    from simulator.workload import Runs

    content = Runs(np.array([0, 1, 2]), np.array([5, 5]), np.array([256, 256]))
    trace = Trace.from_columns([0.0, 1.5], [300, 280], [2, 2], content=content)
    first, second = observe(trace, Settings(url, warmup=0, seed=9), tmp_path / "o.jsonl").requests
    assert (first.cached_tokens, second.cached_tokens) == (0, 256)
    again = observe(trace, Settings(url, warmup=0, seed=10), tmp_path / "o.jsonl").requests
    assert again[0].cached_tokens == 0  # other tokens
