"""Two processes on this CPU measure what they send each other; a rank that is lost is one line, and not the end."""

from __future__ import annotations

import io
import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from calibrate.measure import RawFolder, Shot
from calibrate.measure.campaign import Progress
from calibrate.measure.collectives import OPERATIONS, Ranks, collective_shots, group_sizes
from calibrate.measure.job import make_ranks
from calibrate.tables import read_folder
from simulator.errors import ConfigurationError

from .conftest import known_meta, make_campaign

FOREVER = float("inf")


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Two processes."""
    with Ranks(2, "cpu", budget=0.01) as ranks:
        yield ranks


def quiet() -> Progress:
    return Progress("test", io.StringIO())


def small(name: str) -> list[Shot]:
    """4 KiB and 4 MiB."""
    shots = collective_shots(2, "cpu", (name,))
    return [shot for shot in shots if shot["bytes"] in (2**12, 2**22)]


def test_every_operation_is_measured_between_two_processes(
    ranks: Ranks, tmp_path: Path, tiny_model: Path
) -> None:
    """gloo has them all; no memory moves a message at more than 100 GB/s; a resumed run measures nothing twice."""
    assert ranks.missing() == {}
    folder = RawFolder(tmp_path)
    shots = [shot for name in OPERATIONS for shot in small(name)]
    campaign = make_campaign(ranks, folder)
    assert campaign.run(shots, folder.open(known_meta(tiny_model)), FOREVER, quiet()) == 0
    assert not campaign.failed
    frames = read_folder(tmp_path)
    assert set(frames) == set(OPERATIONS)
    for frame in frames.values():
        assert sorted(frame["message"]) == [2.0**12, 2.0**22]
        assert (frame["seconds"] > frame["message"] / 100e9).all()
        assert (frame["num_gpus"] == 2).all() and (frame["variant"] == "gloo").all()
    assert folder.open(known_meta(tiny_model)) == {shot.key for shot in shots}


def test_a_lost_rank_is_said_and_ends_the_others(ranks: Ranks, tmp_path: Path, tiny_model: Path) -> None:
    ranks.time("all_reduce", 2, 1024)
    ranks._processes[1].kill()
    ranks._processes[1].join()
    folder = RawFolder(tmp_path)
    campaign = make_campaign(ranks, folder)
    others = list(ranks._processes)
    campaign.run(small("all_reduce")[:1], folder.open(known_meta(tiny_model)), FOREVER, quiet())
    [failure] = [json.loads(line) for line in (tmp_path / "failed.jsonl").read_text().splitlines()]
    assert failure["op"] == "all_reduce" and failure["reason"]
    assert (
        not any(process.is_alive() for process in others) and not ranks._processes
    )  # the next shot starts anew


def test_groups_are_powers_of_two_and_all_ranks() -> None:
    assert [group_sizes(n) for n in (2, 3, 6, 8)] == [[2], [2, 3], [2, 4, 6], [2, 4, 8]]
    shots = collective_shots(6, "cuda")
    assert {(s["op"], s["num_gpus"]) for s in shots if s["op"] == "send_recv"} == {("send_recv", 2)}
    assert {s["num_gpus"] for s in shots if s["op"] == "all_reduce"} == {2, 4, 6}
    assert all(s["bytes"] % (2 * s["num_gpus"]) == 0 for s in shots)  # equal parts of whole bf16 numbers
    assert max(s["bytes"] for s in shots) >= 2**28 and min(s["bytes"] for s in shots) == 2**10
    assert len({s.key for s in shots}) == len(shots)


def test_ranks_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="--ranks 0: must be at least 1"):
        make_ranks(Namespace(ranks=0, device="cpu"))
    with pytest.raises(ConfigurationError, match="--ranks 2: 0 GPUs are here"):
        make_ranks(Namespace(ranks=2, device="cuda"))
    assert make_ranks(Namespace(ranks=None, device="cpu")) is None
