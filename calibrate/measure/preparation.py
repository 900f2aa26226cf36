"""What every command of ``python -m calibrate`` does first: time and device checked, the engine's settings read."""

from __future__ import annotations

import argparse
import re

import torch

from engine.settings import EngineSettings
from simulator.errors import ConfigurationError

__all__ = ["engine_settings", "prepare", "read_budget"]


def read_budget(text: str) -> float:
    """Seconds of ``90s``, ``8m``, ``1.5h`` or a plain number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not seconds:
        raise ConfigurationError(f"--budget {text!r}: must be a time above 0 such as 90s, 8m or 1h")
    return seconds


def prepare(device: str) -> None:
    """Check that *device* is there; on a CPU one torch thread."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("--device cuda: torch finds no GPU here; use --device cpu")
    if device == "cpu":
        torch.set_num_threads(1)  # with two, a step waits for whichever was descheduled


def engine_settings(options: argparse.Namespace) -> EngineSettings:
    """The engine with random weights that *options* describe."""
    return EngineSettings(
        options.model,
        device=options.device,
        kernels=options.kernels,
        load_format="dummy",
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        num_gpu_blocks=options.num_gpu_blocks,
        seed=options.seed,
    )
