"""A machine whose laws are known is measured by its own clock and fitted: the fit must find those laws again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibrate.fit.raw import RawFit, fit_raw, read_frames
from calibrate.report import write_fit_report
from hwprofiles import load_profile
from hwprofiles.datasheet import save_profile
from hwprofiles.law_block import MAX_POINTS
from simulator import Deployment, Trace, simulate
from simulator.errors import InputError
from simulator.scheduling.moves import FREE
from simulator.steptime.laws import LawSet
from simulator.steptime.measured_points import SIZE, measured_points

from .conftest import BANDWIDTH, GATHERED, HOST, KNOWN, LINK, PCIE, RINGS, SEND, known_laws, known_profile

WITHIN = 0.01


@pytest.fixture(scope="module")
def fitted(known_raw: Path, tmp_path_factory: pytest.TempPathFactory) -> RawFit:
    """Fitted into the file of an older fit."""
    folder = tmp_path_factory.mktemp("profile")
    save_profile(known_profile().model_copy(update={"name": "my-machine", "version": 4}), folder)
    return fit_raw(known_raw, folder / "my-machine.yaml")


@pytest.mark.parametrize("family", ["elementwise", "kv_write", "sampling"])
def test_streams_have_their_launch_and_bandwidth(fitted: RawFit, family: str) -> None:
    dtype, _, known = KNOWN[family]
    law = fitted.profile.law(family, dtype)
    assert law is not None
    assert law.coefficients["t0"] == pytest.approx(known["t0"], rel=WITHIN)
    reached = law.coefficients["eb"] * fitted.profile.memory_bandwidth
    assert reached == pytest.approx(known["eb"] * BANDWIDTH, rel=WITHIN)


def test_decode_has_its_coefficients(fitted: RawFit) -> None:
    law, known = fitted.profile.law("decode_attention", "bf16"), KNOWN["decode_attention"][2]
    assert law is not None
    for name in ("t0", "unit", "p"):
        assert law.coefficients[name] == pytest.approx(known[name], rel=WITHIN), name


@pytest.mark.parametrize(
    ("family", "variant", "link"),
    [
        ("swap_out", "", PCIE),
        ("swap_in", "", PCIE),
        ("swap_out", "gathered", PCIE),
        ("swap_in", "gathered", PCIE),
        ("block_copy", "", BANDWIDTH),
    ],
)
def test_moves_have_their_begin_their_call_and_their_rate(
    fitted: RawFit, family: str, variant: str, link: float
) -> None:
    """One law for blocks moved one by one and in one run; where every shot has as many copies, calls take it all."""
    law, known = fitted.profile.law(family, "bf16", variant), GATHERED if variant else KNOWN[family][2]
    assert law is not None and law.source.kind == "measured" and law.residual is None
    for name in ("t0", "call"):
        assert law.coefficients[name] == pytest.approx(known[name], rel=WITHIN), name
    reached = law.coefficients["eb"] * (
        fitted.profile.memory_bandwidth if family == "block_copy" else fitted.profile.pcie_bandwidth
    )
    assert reached == pytest.approx(known["eb"] * link, rel=WITHIN)
    assert law.held_out is not None and law.held_out.mean_ape < WITHIN


@pytest.mark.parametrize("family", sorted(RINGS))
def test_collectives_have_their_latency_and_share_of_the_link(fitted: RawFit, family: str) -> None:
    """For 2, 4 and 8 ranks; measured by gloo, filed as NCCL's, with a held-out error and the range of messages."""
    law, known = fitted.profile.law(family, "bf16", "nccl"), RINGS[family]
    assert law is not None and law.source.kind == "measured" and law.points is not None
    scale = fitted.profile.link_bandwidth / LINK
    for name in ("t0_2", "t0_4", "t0_8"):
        assert law.coefficients[name] == pytest.approx(known[name], rel=WITHIN), name
    for name in ("eb_2", "eb_4", "eb_8"):
        assert law.coefficients[name] * scale == pytest.approx(known[name], rel=WITHIN), name
    assert law.held_out is not None and law.held_out.mean_ape < WITHIN
    assert law.range["message"] == (1024.0, 2.0**24) and law.range["num_gpus"] == (2.0, 8.0)


def test_sending_has_its_latency_and_rate(fitted: RawFit) -> None:
    law = fitted.profile.law("send_recv", "bf16")
    assert law is not None and law.source.kind == "measured"
    assert law.coefficients["t0"] == pytest.approx(SEND["t0"], rel=WITHIN)
    reached = law.coefficients["eb"] * fitted.profile.link_bandwidth
    assert reached == pytest.approx(SEND["eb"] * LINK, rel=WITHIN)


def test_a_deployment_on_several_devices_pays_what_was_measured(fitted: RawFit) -> None:
    """Two all-reduces of a layer, by no custom kernel that is only assumed; one message between two stages."""
    stated: dict[str, Any] = {
        "gpu": str(fitted.path),
        "model": "llama-3.1-8b",
        "num_gpu_blocks": 600,
        "max_model_len": 2048,
    }
    two = Deployment.of(tensor_parallel_size=2, **stated).resolve().steptime
    seconds = {operator.name: operator.seconds(two.laws, 64) for operator in two.operators}
    whole = 64 * 2 * 4096
    ring = ((2e-5) ** 1.3 + (whole / (0.5 * LINK)) ** 1.3) ** (1 / 1.3)
    assert seconds["all_reduce"] == pytest.approx(32 * ring, rel=WITHIN)
    pipe = Deployment.of(pipeline_parallel_size=2, **stated).resolve().steptime
    [send] = [operator for operator in pipe.operators if operator.kind == "transfer"]
    assert send.seconds(pipe.laws, 64) == pytest.approx(1.5e-5 + whole / (0.75 * LINK), rel=WITHIN)


def test_groups_that_were_not_measured_follow_the_nearest(known_raw: Path, tmp_path: Path) -> None:
    """Two ranks alone: more of them take longer in the proportions of the family, over the same share of the link."""
    raw = Path(shutil.copytree(known_raw, tmp_path / "raw"))
    table = pd.read_csv(raw / "collectives.csv")
    table[table["num_gpus"] == 2].to_csv(raw / "collectives.csv", index=False)
    for name in ("gemm", "attn_decode", "attn_prefill", "moves"):
        (raw / f"{name}.csv").unlink()
    law = fit_raw(raw, tmp_path / "two.yaml").profile.law("all_reduce", "bf16", "nccl")
    assert law is not None and law.range["num_gpus"] == (2.0, 2.0)
    found = law.coefficients
    assert found["t0_2"] == pytest.approx(RINGS["all_reduce"]["t0_2"], rel=WITHIN)
    assert found["t0_2"] < found["t0_4"] < found["t0_8"] and found["eb_2"] == found["eb_4"] == found["eb_8"]


def test_a_swapping_system_pays_what_was_measured(fitted: RawFit) -> None:
    """The same 8B on the fitted profile: a block has 64 pieces of 32 KiB; transformers gathers them, vLLM does not."""
    stated = {"gpu": str(fitted.path), "model": "llama-3.1-8b"}
    limits: dict[str, Any] = {"num_gpu_blocks": 600, "max_model_len": 2048}
    swap = {"preemption_mode": "swap"}
    vllm = Deployment.of(system="vllm-0.6", **stated, **limits, options=swap).resolve()
    hf = Deployment.of(system="hf-continuous", **stated, options={"num_cpu_blocks": 100}).resolve()
    out, back = vllm.equipment.moves.swap_out, vllm.equipment.moves.swap_in
    block = 64 * 32768
    assert out.seconds(0) == 0.0
    assert out.seconds(5) == pytest.approx(4e-5 + 5 * (64 * 3e-6 + block / (0.7 * PCIE)), rel=WITHIN)
    assert back.seconds(5) == pytest.approx(3e-5 + 5 * (64 * 2e-6 + block / (0.6 * PCIE)), rel=WITHIN)
    copied = vllm.equipment.moves.copy.seconds(3)
    assert copied == pytest.approx(3 * (64 * 4e-6 + 2 * block / (0.5 * BANDWIDTH)), rel=WITHIN)
    gathered = hf.equipment.moves.swap_out.seconds(2)
    assert gathered == pytest.approx(64 * 2e-5 + 2 * 16 * block / (0.5 * PCIE), rel=WITHIN)  # of 256 tokens
    assert any(line.startswith("swap: 40 us + ") and "measured" in line for line in vllm.provenance)
    n = 30
    trace = Trace.from_columns([0.0] * n, [500] * n, [300] * n, max_tokens=[300] * n)
    free = replace(vllm, equipment=replace(vllm.equipment, moves=FREE))
    slow, quick = (simulate(trace, resolved) for resolved in (vllm, free))
    assert slow.summary["preemptions"] == quick.summary["preemptions"] > 0
    assert slow.records.finish_time.max() > quick.records.finish_time.max()


def test_host_has_its_coefficients(fitted: RawFit) -> None:
    for name, value in HOST.items():
        assert getattr(fitted.profile.host, name) == pytest.approx(value, rel=WITHIN), name


def test_every_shot_is_predicted(fitted: RawFit, known_raw: Path) -> None:
    """Tile efficiencies trade against each other, so what counts is the time."""
    from calibrate.fit.families import predict_rows

    laws, truth = LawSet.from_profile(load_profile(fitted.path)), LawSet.from_profile(known_profile())
    for family, dtype, variant, frame in tables(known_raw):
        ours = predict_rows(laws.bound(family, dtype, variant), family, frame)
        theirs = predict_rows(truth.bound(family, dtype, variant), family, frame)
        assert np.median(np.abs(ours / theirs - 1)) < WITHIN, family
        assert np.quantile(np.abs(ours / theirs - 1), 0.95) < 2 * WITHIN, family


def tables(raw: Path) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """The samples of each known law."""
    frames = read_frames(raw)
    for law in known_laws():
        frame = frames[law.family]
        yield (*law.key, frame[frame["variant"] == law.variant])


def test_profile_says_what_it_rests_on(fitted: RawFit) -> None:
    profile = load_profile(fitted.path)
    assert (profile.name, profile.version) == ("my-machine", 5)
    assert profile.raw_data_digest and len(profile.raw_data_digest) == 64
    assert profile.measured_on == "CPU known, 2026-01-01"
    assert profile.software["python"] == "3"
    measured = [law for law in profile.laws if law.source.kind == "measured"]
    assert {law.key for law in measured} == {law.key for law in known_laws()}
    for law in measured:
        assert law.held_out is not None and law.range, law.key
    assert fitted.steps is not None and fitted.steps.mean_ape < WITHIN
    assert "whole steps held out" in (profile.validation or "")


def test_a_profile_carries_measurements_beside_its_laws(fitted: RawFit, known_raw: Path) -> None:
    """At most 40 a law, quickest and slowest among them, each one of the samples; the law of the file predicts them."""
    points = measured_points(load_profile(fitted.path))
    assert {point.law for point in points} == {"/".join(filter(None, law.key)) for law in known_laws()}
    for family, _, variant, frame in tables(known_raw):
        ours = [point for point in points if (point.family, point.variant) == (family, variant)]
        assert len(ours) == min(MAX_POINTS, len(frame))
        seconds = sorted(point.measured for point in ours)
        np.testing.assert_allclose(
            [seconds[0], seconds[-1]], [frame["seconds"].min(), frame["seconds"].max()], rtol=1e-3
        )
        name, _ = SIZE[family]
        nearest = np.abs(np.subtract.outer([point.x for point in ours], frame[name].to_numpy(float))).min(
            axis=1
        )
        assert (nearest <= 1e-5 * np.array([point.x for point in ours])).all()  # a file keeps six digits
        assert all(point.shape[name] == point.x for point in ours)
        assert np.median([abs(point.error) for point in ours]) < WITHIN
    assert fitted.path.stat().st_size < 3000 * len(known_laws())


def test_measurements_stay_with_the_device_they_are_of(fitted: RawFit, tmp_path: Path) -> None:
    """fp8 attention takes the law of bf16, and no measurements; public tables are fitted and not copied."""
    profile = load_profile(fitted.path)
    carried = profile.law("decode_attention", "fp8")
    assert carried is not None and carried.source.kind == "scaled" and carried.points is None
    assert measured_points(load_profile("h100")) == []
    (tmp_path / "more.yaml").write_text("moved: [1.0, ".join(fitted.path.read_text().rsplit("moved: [", 1)))
    with pytest.raises(InputError, match=r"points: \d+ values of .* for \d+ measurements"):
        load_profile(tmp_path / "more.yaml")


def test_the_report_shows_every_law_and_opens_alone(fitted: RawFit, known_raw: Path, tmp_path: Path) -> None:
    page = write_fit_report(known_raw, fitted.path, tmp_path / "report.html").read_text()
    for word in (
        *KNOWN,
        "Roofline",
        "Fitted against measured",
        "Residuals",
        "Whole steps",
        "What lies outside",
    ):
        assert word in page
    assert fitted.profile.raw_data_digest in page
    assert 'src="http' not in page and "<link" not in page


def test_needs_samples_and_a_yaml_name(tmp_path: Path, known_raw: Path) -> None:
    with pytest.raises(InputError, match=r"meta\.json: cannot be read"):
        fit_raw(tmp_path, tmp_path / "x.yaml")
    with pytest.raises(InputError, match=r"must end in \.yaml"):
        fit_raw(known_raw, tmp_path / "x.json")
