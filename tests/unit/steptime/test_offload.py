"""Weights that stream from disk, layers and neurons on the CPU: what a step costs then, and what memory is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator import Deployment
from simulator.errors import ConfigurationError
from simulator.models import load_model


def resolve(system: str, model: str = "llama-3.1-8b", **options: Any) -> Any:
    return Deployment.of(model=model, gpu="rtx4090", system=system, options=options).resolve()


def test_airllm_reads_all_weights_for_every_step_whatever_the_batch() -> None:
    steps = resolve("airllm", "llama-3.1-70b", disk_gb_s=2.0).steptime
    seconds = 2 * 70.55e9 / 2.0e9  # 70.55 billion parameters in 16 bits at 2 GB/s
    assert steps.seconds(1, 100) == pytest.approx(seconds, rel=2e-3)
    assert steps.seconds(16, 1600) == steps.seconds(1, 100) == steps.seconds(0, 0, [(500, 0)])
    packed = resolve("airllm", "llama-3.1-70b", disk_gb_s=2.0, compression="4bit").steptime
    assert packed.seconds(1, 100) == pytest.approx(seconds / 4, rel=2e-3)


def test_airllm_without_reading_ahead_pays_for_both_parts() -> None:
    ahead, after = (resolve("airllm", prefetching=on).steptime for on in (True, False))
    gap = after.seconds(1, 100) - ahead.seconds(1, 100)
    assert gap == pytest.approx(after.device.seconds(1, 100), rel=1e-9)


def test_a_model_that_streams_fits_a_gpu_that_it_is_too_large_for() -> None:
    assert resolve("airllm", "llama-3.1-70b").num_gpu_blocks > 10_000
    with pytest.raises(Exception, match="does not fit"):
        resolve("hf-static", "llama-3.1-70b")


def test_layers_on_the_cpu_take_their_bytes_over_its_bandwidth() -> None:
    whole, half = resolve("llama.cpp"), resolve("llama.cpp", n_gpu_layers=16, cpu_gb_s=50.0)
    other = half.steptime.seconds(1, 1000) - 0.5 * whole.steptime.seconds(1, 1000)
    kv = 16 * 2 * 8 * 128 * 2 * 1000  # layers, K and V, heads, width, bytes, tokens
    assert other == pytest.approx(
        (8.03e9 + kv) / 50e9, rel=2e-3
    )  # half of 8.03 billion parameters of two bytes
    assert half.num_gpu_blocks > 2 * whole.num_gpu_blocks


def test_prompts_on_the_cpu_are_bound_by_its_flops() -> None:
    slow, fast = (resolve("llama.cpp", n_gpu_layers=0, cpu_tflops=t).steptime for t in (1.0, 2.0))
    assert slow.seconds(0, 0, [(1000, 0)]) == pytest.approx(2 * fast.seconds(0, 0, [(1000, 0)]), rel=0.01)
    assert slow.seconds(1, 10) == fast.seconds(1, 10)
    assert slow.seconds(0, 0, [(1000, 0)]) == pytest.approx(1000 * 2 * 7.5e9 / 1e12, rel=0.1)


def test_all_layers_on_the_gpu_is_the_plain_step() -> None:
    assert resolve("llama.cpp", n_gpu_layers=99).steptime.seconds(4, 4000) == resolve(
        "llama.cpp"
    ).steptime.seconds(4, 4000)


def test_powerinfer_runs_both_sides_at_once_and_loses_sparsity_with_the_batch() -> None:
    model = load_model("llama-3.1-8b")
    steps = resolve("powerinfer", cpu_gb_s=1.0).steptime  # so slow that the CPU decides
    mlp = model.parameters_by_part()["mlp"]
    assert steps.seconds(1, 100) == pytest.approx(mlp * 2 * 0.2 * (1 - 0.8) / 1e9, rel=1e-3)
    assert steps.seconds(1, 100) < steps.seconds(8, 800) < 8 * steps.seconds(1, 100)
    assert steps.seconds(4000, 400_000) <= mlp * 2 * (1 - 0.43) / 1e9 * 1.001  # all cold neurons, once
    fast = resolve("powerinfer", cpu_gb_s=1e6, cpu_tflops=1e6).steptime
    assert fast.seconds(1, 100) == pytest.approx(
        (1 - 0.57 * mlp / model.total_parameters) * fast.device.seconds(1, 100), rel=1e-3
    )


def test_segments_and_parts_add_up() -> None:
    for resolved in (resolve("airllm"), resolve("powerinfer"), resolve("llama.cpp", n_gpu_layers=20)):
        steps = resolved.steptime
        one_by_one = [steps.seconds(3, 300 + 3 * i) for i in range(40)]
        np.testing.assert_allclose(steps.segment(3, 300, 40), one_by_one, rtol=1e-9)
        assert sum(steps.breakdown(3, 300).values()) == pytest.approx(steps.seconds(3, 300))
        assert steps.with_laws(steps.laws).seconds(3, 300) == steps.seconds(3, 300)
        assert steps.seconds(3, 300) > 0


def test_ollama_loads_the_model_from_disk_before_the_first_request() -> None:
    assert resolve("ollama", disk_gb_s=2.0).limits["load_seconds"] == pytest.approx(16.06 / 2.0, rel=1e-3)
    assert resolve("ollama", load_seconds=3.0).limits["load_seconds"] == 3.0


def test_impossible_options_are_named() -> None:
    for system, options, message in (
        ("airllm", {"compression": "2bit"}, "compression '2bit': must be none, 8bit or 4bit"),
        ("airllm", {"disk_gb_s": 0}, "disk_gb_s 0.0: must be above 0"),
        ("powerinfer", {"hot_neurons": 1.5}, "hot_neurons 1.5: must be from 0 to 1"),
        ("powerinfer", {"hot_neurons": 1.0}, "hot_activations 0.8: with all neurons hot it must be 1"),
        (
            "powerinfer",
            {"hot_neurons": 0.99, "active_neurons": 1.0},
            "more cold neurons fire than the 1% there are",
        ),
    ):
        with pytest.raises(ConfigurationError, match=message):
            resolve(system, **options)
    with pytest.raises(ConfigurationError, match="modelled for one GPU, not for 2"):
        Deployment.of(gpu="h100", system="airllm", tensor_parallel_size=2).resolve()


def test_where_the_weights_are_is_part_of_what_the_numbers_rest_on() -> None:
    assert (
        "weights: 16 of 32 layers on the GPU, the others one after the other on the CPU"
        in resolve("llama.cpp", n_gpu_layers=16).provenance
    )
    assert not [line for line in resolve("llama.cpp").provenance if line.startswith("weights")]


@pytest.mark.parametrize(
    ("system", "options"),
    [("airllm", {}), ("airllm", {"prefetching": False}), ("powerinfer", {}), ("llama.cpp", {"n_gpu_layers": 10})],
)  # fmt: skip
def test_no_step_is_faster_than_the_ideal_one_with_the_same_weights_elsewhere(
    system: str, options: Any
) -> None:
    step = resolve(system, **options).steptime
    for batch in ((1, 600, ()), (8, 4800, ()), (0, 0, [(512, 0)])):
        assert 0.3 * step.seconds(*batch) < step.floor(*batch) <= step.seconds(*batch)
