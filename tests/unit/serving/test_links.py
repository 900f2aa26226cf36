"""The share of PCIe that a ring reaches, found again from throughput."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calibrate.fit.links import fit_links, pcie_cases
from calibrate.serving.case import Case, fixed_lengths
from calibrate.serving.score import predict_case
from simulator.deployment import Deployment
from simulator.errors import InputError

PCIE_4 = 31.5


def case(gpus: int, isl: int, gpu: str = "l40s-48gb", **options: object) -> Case:
    deployment = Deployment.of(
        model="llama-3.1-8b", gpu=gpu, dtype="fp8", tensor_parallel_size=gpus, **options
    )
    return Case(
        trace=fixed_lengths(8, isl, 4),
        deployment=deployment,
        measured={"throughput": 1.0},
        gpu=gpu,
        system="vllm",
        dtype="fp8",
        load_type="offline_max_load",
        label="made",
        group=(gpu, "vllm", f"llama {isl}"),
        traits="vllm",
    )


def test_the_share_that_made_the_runs_is_found_again() -> None:
    cases = []
    for gpus, isl in ((4, 512), (8, 512)):
        made = case(gpus, isl, interconnect_bandwidth=0.4 * PCIE_4)
        cases.append(replace(case(gpus, isl), measured=predict_case(made)))
    found = fit_links(cases)
    assert found.share == pytest.approx(0.4, abs=0.02)
    assert set(found.by_gpus) == {4, 8}
    assert found.errors["held_out"].abs().max() < 0.02


def test_only_rings_over_pcie_count() -> None:
    runs = [
        case(4, 512),
        case(1, 512),
        case(4, 512, gpu="h100-sxm-80gb"),
        case(4, 512, interconnect_bandwidth=9.0),
        case(2, 512, gpu="a100-pcie-80gb", interconnect="nvlink-bridge"),
        replace(case(4, 512), traits="hf"),
    ]
    assert pcie_cases(runs) == runs[:1]
    with pytest.raises(InputError, match="several GPUs over PCIe"):
        fit_links([])
