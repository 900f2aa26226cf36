"""Rings over NVLink, bridges and PCIe: what a box does to collectives."""

from __future__ import annotations

import pytest

from hwprofiles import Source, load_profile
from simulator.deployment import Deployment
from simulator.errors import ConfigurationError
from simulator.steptime.interconnect import find_interconnect
from simulator.steptime.laws import LawSet

GB = 1e9


def bus_bandwidth(gpu: str, num_gpus: int, message: float = 1e9, **stated: object) -> float:
    """As all_reduce_perf prints it, GB/s."""
    profile = load_profile(gpu)
    laws = LawSet.from_profile(profile, find_interconnect(profile, **stated))  # type: ignore[arg-type]
    return 2 * (num_gpus - 1) / num_gpus * message / laws.all_reduce(message, num_gpus) / GB


@pytest.mark.parametrize("gpu", ["l40s", "a100-pcie", "rtx-pro-6000"])
@pytest.mark.parametrize("num_gpus", [2, 4, 8])
def test_a_stated_bandwidth_is_the_bus_bandwidth_of_large_messages(gpu: str, num_gpus: int) -> None:
    found = bus_bandwidth(gpu, num_gpus, stated="pcie", ring_gbs=12.0)
    assert found == pytest.approx(12.0, rel=0.02)


def test_bridges_join_two_cards_and_no_more() -> None:
    # NVIDIA/nccl-tests issue 178, A100 in bridged pairs: 208 GB/s with two GPUs, 20 with three
    assert bus_bandwidth("a100-pcie", 2, stated="nvlink-bridge") == pytest.approx(208, rel=0.2)
    assert bus_bandwidth("a100-pcie", 3, stated="nvlink-bridge") == pytest.approx(20, rel=0.25)


def test_without_nvlink_the_number_of_gpus_does_not_matter_to_large_messages() -> None:
    found = [bus_bandwidth("l40s", n) for n in (2, 4, 8)]
    assert max(found) == pytest.approx(min(found), rel=0.02)
    assert 0.4 * 31.5 < min(found) < 31.5


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("h100", "nvlink"),
        ("h100-nvl", "nvlink-bridge"),
        ("h100-pcie", "pcie"),
        ("a100-pcie", "pcie"),
        ("l4", "pcie"),
    ],
)
def test_cards_come_with_what_they_are_sold_with(gpu: str, name: str) -> None:
    assert find_interconnect(load_profile(gpu)).name == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": "l40s", "interconnect": "nvlink"}, "interconnect nvlink: l40s-48gb has no NVLink"),
        (
            {"gpu": "h100", "interconnect_bandwidth": 9.0},
            "interconnect_bandwidth 9: is that of a ring over PCIe",
        ),
        ({"gpu": "l40s", "interconnect_bandwidth": 0.0}, "interconnect_bandwidth"),
        ({"gpu": "l40s", "interconnect": "infiniband"}, "interconnect: 'infiniband'"),
    ],
)
def test_what_a_box_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Deployment.of(model="llama-3.1-8b", **options).resolve()


def test_a_slower_box_makes_slower_steps_and_one_gpu_has_no_box() -> None:
    def step(**options: object) -> float:
        return (
            Deployment.of(model="llama-3.1-8b", gpu="l40s", **options).resolve().steptime.seconds(64, 64_000)
        )

    times = [step(tensor_parallel_size=4, interconnect_bandwidth=gbs) for gbs in (32.0, 16.0, 4.0)]
    assert times == sorted(times) and times[0] < times[-1]
    assert step(interconnect_bandwidth=4.0) == step()


def test_a_box_whose_collectives_were_measured_is_its_own() -> None:
    profile = load_profile("l40s")
    source = Source(kind="measured", text="this very box")
    laws = [
        law.model_copy(update={"source": source}) if law.key[2] == "nccl" else law for law in profile.laws
    ]
    own = profile.model_copy(update={"laws": laws})
    assert LawSet.from_profile(own).ring(8) == "nccl"
    assert LawSet.from_profile(own).all_reduce(1e8, 8) > 4 * LawSet.from_profile(profile).all_reduce(1e8, 8)
    assert LawSet.from_profile(own, find_interconnect(own, "pcie")).ring(8) == "pcie"


def test_stages_send_over_what_the_box_has() -> None:
    card = load_profile("a100-pcie")
    over = {
        name: LawSet.from_profile(card, find_interconnect(card, name)) for name in ("pcie", "nvlink-bridge")
    }
    assert over["pcie"].send_recv(1e9) == pytest.approx(1e9 / 31.5e9)
    assert over["nvlink-bridge"].send_recv(1e9) == pytest.approx(1e9 / 300e9)


def test_drawn_laws_stay_in_their_box() -> None:
    import numpy as np

    profile = load_profile("l40s")
    laws = LawSet.from_profile(profile, find_interconnect(profile, ring_gbs=4.0))
    drawn = laws.draw(np.random.default_rng(0))
    assert drawn.all_reduce(1e9, 4) > 2 * LawSet.from_profile(profile).all_reduce(1e9, 4)


@pytest.mark.parametrize(
    ("gpu", "size", "tflops"),
    [
        # torch.matmul in bf16, zzc0721/torch-performance-test-data issues 162 and 78; neither card has laws of its own
        ("rtx-pro-6000", 4096, 399.9),
        ("rtx-pro-6000", 8192, 417.3),
        ("rtx4090", 4096, 151.5),
        ("rtx4090", 8192, 160.2),
    ],
)
def test_products_of_cards_with_spare_power_are_the_measured_ones(gpu: str, size: int, tflops: float) -> None:
    seconds = LawSet.from_profile(load_profile(gpu)).gemm(size, size, size, "bf16")
    assert 2e-12 * size**3 / seconds == pytest.approx(tflops, rel=0.12)
