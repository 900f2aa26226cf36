"""``sim calibrate run``: measure this device through the bundled engine, fit, write a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["run"]


def run(
    model: Annotated[str, typer.Option(help="Directory with a config.json, or a zoo name (random weights).")],
    out: Annotated[Path, typer.Option(help="Folder of raw samples and the profile; resumed if it has some.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    budget: Annotated[str, typer.Option(help="Time to measure: 90s, 8m, 1h.")] = "8m",
    max_num_seqs: Annotated[int, typer.Option(help="Running sequences at most.")] = 64,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Tokens per step.")] = 2048,
    max_model_len: Annotated[int | None, typer.Option(help="Longest sequence, tokens.")] = None,
    ranks: Annotated[
        int | None, typer.Option(help="Devices between which collectives are measured; default: all GPUs.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, inputs and order.")] = 0,
) -> None:
    """Measure every operator and whole steps on the bundled engine, then fit them: OUT/profile.yaml."""
    import argparse

    from calibrate.measure.command import add_options
    from calibrate.measure.job import measure
    from simulator.cli.calibrate_fit import fit_samples

    parser = argparse.ArgumentParser()
    add_options(parser)
    stated = [
        "--model",
        model,
        "--out",
        str(out),
        "--device",
        device,
        "--budget",
        budget,
        "--seed",
        str(seed),
    ]
    stated += ["--max-num-seqs", str(max_num_seqs), "--max-num-batched-tokens", str(max_num_batched_tokens)]
    stated += [] if max_model_len is None else ["--max-model-len", str(max_model_len)]
    stated += [] if ranks is None else ["--ranks", str(ranks)]
    measure(parser.parse_args(stated))
    fit_samples(out, out / "profile.yaml", None)
