"""Ollama before llama.cpp's server: permits, the loader's queue and idle models."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling import Batch, Request, Wait
from simulator.scheduling.ollama import Ollama
from simulator.scheduling.system import Device, find_system


def make(**options: Any) -> Ollama:
    return Ollama(**{"num_kv_cells": 65536, "num_ctx": 2048, "explicit": True, **options})


def finish_all(server: Ollama, now: float) -> list[str]:
    """Run until nobody is left, a step every 0.1 s; ids in the order of their ends."""
    order: list[str] = []
    while isinstance(batch := server.schedule(now), Batch):
        rows = [*(batch.decodes or ()), *batch.joining]
        ended = [r for r in rows if server.decoding.generated(r) == r.max_tokens]
        now += 0.1
        server.commit(batch, ended, now)
        order += [r.id for r in ended]
    return order


def test_one_request_at_a_time_and_first_come_first_served() -> None:
    server = make()
    for id in "abc":
        server.add(Request(id, 20, 3), 0.0)
    batch = server.schedule(0.0)
    assert isinstance(batch, Batch) and [r.id for r, _, _ in batch.prefills] == ["a"]
    assert len(server.held) == 2 and not server.deferred
    server.commit(batch, [], 0.1)
    assert finish_all(server, 0.1) == ["a", "b", "c"]


def test_each_permit_has_a_context_of_its_own() -> None:
    server = make(num_parallel=4)
    assert server.n_ctx == 2048 and len(server.slots) == 4
    assert server.num_blocks == 4 * 2048


def test_nothing_runs_while_the_model_loads() -> None:
    server = make(load_seconds=5.0)
    server.add(Request("a", 20, 3), 1.0)
    wait = server.schedule(1.0)
    assert isinstance(wait, Wait) and wait.until == 6.0
    assert isinstance(server.schedule(6.0), Batch)


def test_a_full_queue_turns_requests_away_while_the_model_loads() -> None:
    server = make(load_seconds=5.0, max_queue=3)
    for i in range(5):  # three in the channel, one being loaded for, one that blocks the loader
        server.add(Request(str(i), 20, 3), 0.0)
    with pytest.raises(CapacityError, match="busy"):
        server.add(Request("late", 20, 3), 0.0)
    server.add(Request("later", 20, 3), 6.0)
    assert len(finish_all(server, 6.0)) == 6


def test_an_idle_model_is_unloaded_with_what_it_remembers() -> None:
    server = make(load_seconds=5.0, keep_alive=60.0)
    content = ((1, 20),)
    for at, cached in ((0.0, 0), (30.0, 20), (500.0, 0)):
        request = Request(f"r{at}", 30, 3, content=content)
        server.add(request, at)
        ready = server.schedule(at)
        assert isinstance(ready, Wait) == (cached == 0)
        if isinstance(ready, Batch):
            server.commit(ready, [], at)
        finish_all(server, at + 5.0)
        assert request.cached_tokens == cached


def test_the_context_goes_by_the_memory_of_the_device() -> None:
    system = find_system("ollama")
    contexts = [system.defaults(Device("gpu", gib))["device_ctx"] for gib in (12, 40, 80)]
    assert contexts == [4096, 32768, 262144]
    assert Ollama(num_kv_cells=6000, device_ctx=32768).n_ctx == 6144  # all the memory, padded to 256


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigurationError):
        make(num_parallel=0)
    with pytest.raises(ConfigurationError):
        make(max_queue=-1)
    with pytest.raises(ConfigurationError):
        make(num_ctx=100_000)
