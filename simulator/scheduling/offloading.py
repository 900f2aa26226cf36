"""Where a model's weights are, for the systems that do not keep all of them on the GPU.

AirLLM streams every layer from disk for every forward; llama.cpp and Ollama give the CPU the layers that the
GPU has no room for; PowerInfer keeps the neurons that fire often on the GPU and computes the others on the CPU.
Rates of disk and CPU are options; their defaults are those of a desktop computer, with sources below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simulator.errors import ConfigurationError
from simulator.models import ModelSpec, Precision
from simulator.models.offload import Offload

__all__ = ["CPU", "DISK", "cpu_layers", "cpu_neurons", "disk_layers", "loaded_model"]

GB, TERA = 1e9, 1e12
DISK = {"disk_gb_s": 3.5}
"""Sequential read of an NVMe drive on PCIe 3.0 x4 (Samsung 970 EVO Plus, data sheet: 3,500 MB/s)."""
CPU = {"cpu_gb_s": 67.2, "cpu_tflops": 1.0}
"""The larger machine of PowerInfer's evaluation: an i9-13900K with memory of 67.2 GB/s (arXiv 2312.12456; not checked
against the text); its FLOP/s are assumed."""

COMPRESSION = {None: 1.0, "8bit": 0.5, "4bit": 0.25}
"""AirLLM's block-wise quantisation of what is loaded, relative to 16 bits; scales (1 in 2048 values) left out."""

ALL_ON_GPU = Offload(weight_bytes=0.0, bandwidth=GB, overlapped=True, source="all layers on the GPU")


def disk_layers(model: ModelSpec, precision: Precision, options: Mapping[str, Any]) -> Offload:
    """AirLLM: every module comes from disk before it runs, the next one meanwhile, and leaves afterwards."""
    compression = options["compression"]
    if compression not in COMPRESSION:
        raise ConfigurationError(f"compression {compression!r}: must be none, 8bit or 4bit")
    return Offload(
        weight_bytes=model.weight_bytes(precision) * COMPRESSION[compression],
        bandwidth=_rate(options, "disk_gb_s") * GB,
        overlapped=bool(options["prefetching"]),
        # two layers at a time: the one that runs and the one that is loaded
        weights_share=min(2 / model.num_layers, 1.0),
        source="AirLLM 5765c217: all weights from disk for every forward",
    )


def cpu_layers(model: ModelSpec, precision: Precision, options: Mapping[str, Any]) -> Offload | None:
    """llama.cpp's layer split: ``n_gpu_layers`` of the layers and their KV on the GPU, below 0 all."""
    return _split(model, precision, options, int(options.get("n_gpu_layers", -1)))


def loaded_model(model: ModelSpec, precision: Precision, options: Mapping[str, Any]) -> Offload:
    """Ollama: the same split by ``num_gpu``; and the model is read from disk before its first request."""
    split = _split(model, precision, options, int(options.get("num_gpu", -1)))
    seconds = model.weight_bytes(precision) / (_rate(options, "disk_gb_s") * GB)
    limits = {} if "load_seconds" in options else {"load_seconds": seconds}
    return replace(split or ALL_ON_GPU, limits=limits)


def _split(
    model: ModelSpec, precision: Precision, options: Mapping[str, Any], gpu_layers: int
) -> Offload | None:
    layers = model.num_layers
    if gpu_layers < 0 or gpu_layers >= layers:
        return None
    share = 1.0 - gpu_layers / layers
    return Offload(
        weight_bytes=share * model.weight_bytes(precision),
        bandwidth=_rate(options, "cpu_gb_s") * GB,
        overlapped=False,
        weights_share=1.0 - share,
        kv_share=1.0 - share
        if gpu_layers
        else 1.0,  # without a layer here, the host holds as much as a GPU would
        device_share=1.0 - share,
        flops_per_token=share * model.flops_per_token(),
        peak_flops=_rate(options, "cpu_tflops") * TERA,
        kv_bytes_per_token=share * model.kv_bytes_per_token(precision.kv),
        source=f"{gpu_layers} of {layers} layers on the GPU, the others one after the other on the CPU",
    )


def cpu_neurons(model: ModelSpec, precision: Precision, options: Mapping[str, Any]) -> Offload:
    """PowerInfer: the hot neurons of every MLP on the GPU, what fires of the cold ones on the CPU, side by side."""
    hot, caught, active = (
        _share(options, name) for name in ("hot_neurons", "hot_activations", "active_neurons")
    )
    if hot == 1 and caught < 1:
        raise ConfigurationError(f"hot_activations {caught}: with all neurons hot it must be 1")
    parts = model.parameters_by_part()
    mlp = (parts["mlp"] + parts["experts"]) / sum(parts.values())
    cold = mlp * (1.0 - hot)
    fires = active * (1.0 - caught) / (1.0 - hot) if hot < 1 else 0.0
    if fires > 1:
        raise ConfigurationError(
            f"active_neurons {active}, hot_activations {caught}: "
            f"more cold neurons fire than the {1 - hot:.0%} there are"
        )
    mlp_flops = model.flops_per_token() * mlp
    return Offload(
        weight_bytes=cold * model.weight_bytes(precision),
        bandwidth=_rate(options, "cpu_gb_s") * GB,
        overlapped=True,
        weights_share=1.0 - cold,
        device_share=1.0 - cold,
        touched=fires,
        flops_per_token=mlp_flops * active * (1.0 - caught),
        peak_flops=_rate(options, "cpu_tflops") * TERA,
        source=f"PowerInfer: {hot:.0%} of the neurons on the GPU catch {caught:.0%} of the activations",
    )


def _rate(options: Mapping[str, Any], name: str) -> float:
    rate = float(options[name])
    if not rate > 0:
        raise ConfigurationError(f"{name} {rate}: must be above 0")
    return rate


def _share(options: Mapping[str, Any], name: str) -> float:
    share = float(options[name])
    if not 0 <= share <= 1:
        raise ConfigurationError(f"{name} {share}: must be from 0 to 1")
    return share
