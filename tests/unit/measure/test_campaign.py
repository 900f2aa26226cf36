"""Measuring survives kills, throttling and short budgets, and needs nothing but numpy and torch."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.measure import Limits, RawFolder, Sample, Shot, operator_shots, step_shots
from calibrate.measure.campaign import Progress, estimate, plan_shots
from calibrate.measure.device import Reading, Thermometer
from calibrate.measure.preparation import read_budget
from calibrate.tables import read_folder
from engine.config import DecoderConfig
from simulator.errors import ConfigurationError

from .conftest import LIMITS, TINY, KnownBench, known_meta, make_campaign

CONFIG = DecoderConfig.from_mapping(TINY)
FEW = Limits(max_num_seqs=4, max_num_batched_tokens=32, max_model_len=128, num_tokens=1024, block_bytes=4096)
CEILINGS = {"copy_bytes_per_s": 1e10, "gemm_flops_per_s": 1e11}
FOREVER = float("inf")


def quiet() -> Progress:
    return Progress("test", io.StringIO())


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, tiny_model: Path) -> None:
    shots = [*operator_shots(CONFIG, FEW), *step_shots(2)]
    bench = KnownBench(tiny_model)

    class Killed(KnownBench):
        def measure(self, shot: Shot) -> Sample:
            if len(self.taken) == len(shots) // 2:
                raise KeyboardInterrupt
            return super().measure(shot)

    folder, killed = RawFolder(tmp_path), Killed(tiny_model)
    with pytest.raises(KeyboardInterrupt):
        make_campaign(killed, folder).run(shots, folder.open(known_meta(tiny_model)), FOREVER, quiet())
    with (tmp_path / "gemm.csv").open("a") as file:
        file.write("CPU known,known,bfloat16,1,2")  # the kill came in the middle of a line
    done = folder.open(known_meta(tiny_model))
    assert len(done) == len(killed.taken)
    make_campaign(bench, folder).run(shots, done, FOREVER, quiet())
    assert {shot.key for shot in bench.taken} == {shot.key for shot in shots} - done
    assert folder.open(known_meta(tiny_model)) == {shot.key for shot in shots}
    fitted = sum(len(frame) for frame in read_folder(tmp_path).values())
    assert fitted == sum(shot.table != "steps" for shot in shots)


def test_a_shot_that_fails_does_not_lose_the_others(tmp_path: Path, tiny_model: Path) -> None:
    """The kernels of one operator raise; a device that fails at everything is given up, and what there is is kept."""

    class Broken(KnownBench):
        broken = ("attn_prefill",)

        def measure(self, shot: Shot) -> Sample:
            if shot.table in self.broken:
                raise RuntimeError("CUDA error: out of memory\nmore lines")
            return super().measure(shot)

    shots, out = operator_shots(CONFIG, FEW), io.StringIO()
    folder, bench = RawFolder(tmp_path), Broken(tiny_model)
    few = [shot for shot in shots if shot.table == "attn_prefill"][:3]
    rest = [shot for shot in shots if shot.table != "attn_prefill"]
    campaign = make_campaign(bench, folder)
    assert campaign.run([*few, *rest], folder.open(known_meta(tiny_model)), FOREVER, quiet()) == 0
    assert {shot.key for shot in campaign.failed} == {shot.key for shot in few}
    assert folder.open(known_meta(tiny_model)) == {shot.key for shot in rest}
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "failed.jsonl").read_text().splitlines()]
    assert reasons == ["CUDA error: out of memory"] * 3
    bench.broken = tuple({shot.table for shot in shots})
    lost = RawFolder(tmp_path / "lost")
    left = make_campaign(bench, lost).run(
        shots, lost.open(known_meta(tiny_model)), FOREVER, Progress("test", out, lambda: 0.0)
    )
    assert left > len(shots) - 10 and "5 shots in a row failed" in out.getvalue()


def test_what_is_measured_covers_every_operator_of_a_step() -> None:
    """Swaps per block and as one copy, graphs and eager steps where there are any, experts of a mixture."""
    with_all = replace(LIMITS, host_blocks=64, block_bytes=4096, graph_sizes=(1, 2, 4, 8, 16, 24, 32))
    shots = operator_shots(CONFIG, with_all)
    moves = {(shot["op"], shot["pattern"]) for shot in shots if shot.table == "moves"}
    assert {
        ("swap_out", "each"),
        ("swap_in", "gathered"),
        ("swap_in", "coalesced"),
        ("block_copy", "run"),
    } <= moves
    launches = {(shot["launch"], shot["num_seqs"]) for shot in shots if shot.table == "launches"}
    assert {("eager", 1), ("graph", 1), ("eager", 32), ("graph", 32)} <= launches
    of_64 = [
        shot for shot in shots if shot.table == "moves" and (shot["op"], shot["blocks"]) == ("swap_in", 64)
    ]
    assert {shot["pattern"]: shot["copies"] for shot in of_64} == {"each": 512, "gathered": 8, "coalesced": 8}
    assert not [shot for shot in operator_shots(CONFIG, LIMITS) if shot.table in ("launches", "moe")]
    moe = DecoderConfig.from_mapping({**TINY, "model_type": "mixtral", "num_local_experts": 4})
    experts = [shot for shot in operator_shots(moe, LIMITS) if shot.table == "moe"]
    assert {1, 16, 17, 512} <= {shot["num_tokens"] for shot in experts}
    assert {(shot["topk"], shot["num_experts"]) for shot in experts} == {(2, 4)}


def test_another_model_needs_another_folder(tmp_path: Path, tiny_model: Path) -> None:
    RawFolder(tmp_path).open(known_meta(tiny_model))
    with pytest.raises(ConfigurationError, match=r"holds samples with model .* not 'other'"):
        RawFolder(tmp_path).open({**known_meta(tiny_model), "model": "other"})


def test_throttled_samples_are_taken_again_and_else_kept_apart(tmp_path: Path, tiny_model: Path) -> None:
    clocks = iter([1980.0, 1200.0, 1975.0, *[1200.0] * 100])
    thermometer = Thermometer(lambda: Reading(next(clocks), 84.0))
    folder, rests = RawFolder(tmp_path), list[float]()
    done, bench = folder.open(known_meta(tiny_model)), KnownBench(tiny_model)
    campaign = make_campaign(bench, folder, thermometer=thermometer, rest=rests.append)
    shots = [shot for shot in operator_shots(CONFIG, FEW) if shot.table == "gemm"][:3]
    campaign.run(shots, done, FOREVER, quiet())
    assert len(bench.taken) == 1 + 2 + 3  # calm; calm at the second try; never calm
    assert len(rests) == 1 + 2
    assert len(read_folder(tmp_path)["gemm"]) == 2
    apart = [json.loads(line) for line in (tmp_path / "throttled.jsonl").read_text().splitlines()]
    assert [row["clock_mhz"] for row in apart] == [1200.0]
    assert len(campaign.throttled) == 1


def test_the_deadline_ends_a_campaign_with_what_there_is(tmp_path: Path, tiny_model: Path) -> None:
    ticks: Iterator[int] = iter(range(10**6))
    folder, out = RawFolder(tmp_path), io.StringIO()
    done = folder.open(known_meta(tiny_model))
    campaign = make_campaign(KnownBench(tiny_model), folder, clock=lambda: float(next(ticks)))
    shots = operator_shots(CONFIG, FEW)
    left = campaign.run(shots, done, 20.0, Progress("test", out, lambda: 0.0))
    assert 0 < left < len(shots)
    assert f"{left} of {len(shots)} shots left out" in out.getvalue()
    coarse = {shot.key for shot in shots if shot.level == 0}
    assert folder.open(known_meta(tiny_model)) <= coarse


@settings(max_examples=30, deadline=None)
@given(st.floats(0.5, 2000.0), st.floats(0.01, 0.3))
def test_a_plan_fits_its_budget_and_more_time_means_more_shots(seconds: float, repeat: float) -> None:
    shots = operator_shots(CONFIG, LIMITS)
    plan = plan_shots(shots, seconds, CEILINGS, repeat)
    assert sum(estimate(shot, CEILINGS, repeat) for shot in plan) <= seconds
    assert len({shot.key for shot in plan}) == len(plan)
    richer = plan_shots(shots, 4 * seconds, CEILINGS, repeat)
    assert len(richer) >= len(plan)


def test_products_are_measured_on_both_sides_of_tile_edges() -> None:
    tokens = {shot["m"] for shot in operator_shots(CONFIG, LIMITS) if shot.table == "gemm"}
    assert {16, 17, 32, 33, 64, 65, 128, 129, 256, 257} <= tokens


def test_skewed_batches_have_the_sum_of_even_ones() -> None:
    lens = [shot["kv_lens"] for shot in operator_shots(CONFIG, LIMITS) if shot.table == "attn_decode"]
    batches = [[int(part) for part in text.split(";")] for text in lens]
    even = {(len(batch), sum(batch)) for batch in batches if min(batch) == max(batch)}
    skewed = [batch for batch in batches if max(batch) > 2 * min(batch)]
    near = [any(n == len(batch) and 0 <= s - sum(batch) < n for n, s in even) for batch in skewed]
    assert len(skewed) > 5 and all(near)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("8m", 480), ("1.5h", 5400), ("30", 30)])
def test_budgets(text: str, seconds: float) -> None:
    assert read_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "8 minutes", "-3s", "0m", "m"])
def test_bad_budgets(text: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a time above 0"):
        read_budget(text)


def test_a_bare_machine_measures(real_raw: Path) -> None:
    """numpy and torch alone: the real kernels, a few seconds, tables that the fit reads."""
    frames = read_folder(real_raw)
    assert {"gemm", "prefill_attention", "elementwise"} <= set(frames)
    assert all((frame["seconds"] > 0).all() for frame in frames.values())
    steps = RawFolder(real_raw).steps()
    assert steps and all(step["seconds"] > 0 for step in steps)
    meta = RawFolder(real_raw).meta()
    assert meta["not_measured"]["graph launches"] == "no CUDA graphs are captured here"
    assert "collectives" in meta["not_measured"] and meta["memory"]["kv_bytes_per_block"] > 0
    assert "swap_in,coalesced" in (real_raw / "moves.csv").read_text()
