"""A machine whose laws are known, and a bench that reads its clock."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.measure.campaign import Campaign, Progress
from calibrate.measure.collectives import collective_shots
from calibrate.measure.device import Thermometer
from calibrate.measure.grid import Limits, operator_shots, step_shots
from calibrate.measure.records import RawFolder
from calibrate.measure.shot import Sample, Shot
from engine.config import DecoderConfig
from hwprofiles import HardwareProfile, Source
from hwprofiles.registry import complete
from hwprofiles.schema import Datasheet, Host, Law, Memory
from simulator.models import load_model
from simulator.steptime import HostTraits, StepTime
from simulator.steptime.laws import LawSet

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
PEAK, BANDWIDTH, PCIE, LINK = 2e11, 2e10, 5e9, 8e9
SOURCE = Source(kind="measured", text="known")
KNOWN: dict[str, tuple[str, str, dict[str, float]]] = {
    "gemm": (
        "bf16",
        "tiled",
        {
            "t0": 9e-6,
            "eb": 0.7,
            "p": 2.0,
            "wave": 0.0,
            "ec_256": 0.8,
            "ec_128": 0.7,
            "ec_64": 0.5,
            "ec_32": 0.35,
        },
    ),
    "prefill_attention": (
        "bf16",
        "tiles",
        {"t0": 4e-5, "ec": 0.5, "eb": 0.3, "p": 1.5, "tile": 2e-7, "pack": 0.0},
    ),
    "decode_attention": (
        "bf16",
        "units",
        {"t0": 6e-5, "ec": 0.4, "eb": 0.6, "p": 2.2, "unit": 4e-6, "skew": 0.0},
    ),
    "elementwise": ("bf16", "stream", {"t0": 5e-6, "eb": 0.5}),
    "kv_write": ("bf16", "stream", {"t0": 8e-6, "eb": 0.3}),
    "sampling": ("fp32", "stream", {"t0": 2e-5, "eb": 0.4, "passes": 1.0}),
    "swap_out": ("bf16", "copies", {"t0": 4e-5, "call": 3e-6, "eb": 0.7}),
    "swap_in": ("bf16", "copies", {"t0": 3e-5, "call": 2e-6, "eb": 0.6}),
    "block_copy": ("bf16", "copies", {"t0": 0.0, "call": 4e-6, "eb": 0.5}),
}
RINGS: dict[str, dict[str, float]] = {
    name: {**ring, "shots": 1.0, "hands_over": 0.0}
    for name, ring in {
        "all_reduce": {
            "t0_2": 2e-5,
            "t0_4": 3e-5,
            "t0_8": 5e-5,
            "eb_2": 0.5,
            "eb_4": 0.6,
            "eb_8": 0.7,
            "p": 1.3,
        },
        "all_gather": {
            "t0_2": 1e-5,
            "t0_4": 2e-5,
            "t0_8": 4e-5,
            "eb_2": 0.6,
            "eb_4": 0.6,
            "eb_8": 0.4,
            "p": 1.1,
        },
        "reduce_scatter": {
            "t0_2": 1e-5,
            "t0_4": 2e-5,
            "t0_8": 4e-5,
            "eb_2": 0.5,
            "eb_4": 0.5,
            "eb_8": 0.5,
            "p": 1.6,
        },
        "all_to_all": {
            "t0_2": 3e-5,
            "t0_4": 3e-5,
            "t0_8": 3e-5,
            "eb_2": 0.4,
            "eb_4": 0.3,
            "eb_8": 0.2,
            "p": 1.0,
        },
    }.items()
}
SEND = {"t0": 1.5e-5, "eb": 0.75}
GATHERED = {"t0": 0.0, "call": 2e-5, "eb": 0.5}
"""A swap whose blocks are collected first."""
LIMITS = Limits(
    max_num_seqs=32,
    max_num_batched_tokens=512,
    max_model_len=1024,
    num_tokens=65536,
    host_blocks=256,
    block_bytes=65536,
)
ENGINE_LIMITS = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 256}
"""Of the real engine on this machine."""
HOST = {"per_step_s": 8e-4, "per_seq_s": 3e-5, "per_new_token_s": 4e-6}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the configuration of a small model and no weights."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def known_laws() -> list[Law]:
    """Every law of the machine."""
    known = [(family, dtype, "", form, numbers) for family, (dtype, form, numbers) in KNOWN.items()]
    known += [(op, "bf16", "gathered", "copies", GATHERED) for op in ("swap_out", "swap_in")]
    known += [(op, "bf16", "nccl", "ring", ring) for op, ring in RINGS.items()]
    known.append(("send_recv", "bf16", "", "link", SEND))
    names = ("family", "dtype", "variant", "form", "coefficients")
    return [Law.model_validate({**dict(zip(names, law, strict=True)), "source": SOURCE}) for law in known]


def known_profile() -> HardwareProfile:
    """The machine as it really is."""
    host = Host(**HOST, launch_s=0.0, graph_launch_s=0.0, layer_overhead_s=0.0, source=SOURCE)
    sheet = Datasheet(
        peak_flops={"bf16": PEAK, "fp16": PEAK},
        memory_bytes=2.4e10,
        memory_bandwidth=BANDWIDTH,
        nvlink_bandwidth=LINK,
        pcie_bandwidth=PCIE,
        num_sms=1,
        source="known",
        confidence="known",
    )
    memory = Memory(
        visible_bytes=2.4e10,
        cuda_context_bytes=0.0,
        activation_factor=11.0,
        graph_pool_bytes=0.0,
        nccl_bytes=0.0,
        source=SOURCE,
    )
    return complete(
        HardwareProfile(
            name="known",
            vendor="known",
            architecture="cpu",
            datasheet=sheet,
            memory=memory,
            host=host,
            laws=known_laws(),
        )
    )


class KnownBench:
    """Measures shots on the known machine: its clock is its laws. *steps* a round."""

    def __init__(self, model: Path, steps: int = 60) -> None:
        self.laws, self.steps = LawSet.from_profile(known_profile()), steps
        self.step = StepTime(
            load_model(str(model)), self.laws, None, HostTraits(**HOST, layer_overhead_s=0.0)
        )
        self.taken: list[Shot] = []

    def measure(self, shot: Shot) -> Sample:
        self.taken.append(shot)
        if shot.table == "steps":
            return Sample(tuple(self._round(shot["round"])))
        seconds = float(getattr(self, f"_{shot.table}")(shot))
        return Sample(({"latency_us": repr(seconds * 1e6), "spread_us": "0", "repeats": 5, "mode": "host"},))

    def _gemm(self, shot: Shot) -> float:
        return float(self.laws.gemm(shot["m"], shot["n"], shot["k"], "bf16"))

    def _attn_decode(self, shot: Shot) -> float:
        lens = [int(part) for part in shot["kv_lens"].split(";")]
        heads = (shot["n_q"], shot["n_kv"], shot["head_dim"])
        return float(self.laws.decode_attention(len(lens), sum(lens), *heads, "bf16", max(lens)))

    def _attn_prefill(self, shot: Shot) -> float:
        heads = (shot["n_q"], shot["n_kv"], shot["head_dim"])
        chunk, context = shot["chunk"], shot["context"]
        return float(self.laws.prefill_attention(chunk, context, *heads, "bf16", shot["batch_size"]))

    def _streams(self, shot: Shot) -> float:
        own = {"kv_write": ("kv_write", "bf16"), "sampling": ("sampling", "fp32")}
        return float(self.laws.bound(*own.get(shot["op"], ("elementwise", "bf16")))(shot["bytes"]))

    def _collectives(self, shot: Shot) -> float:
        if shot["op"] == "send_recv":
            return float(self.laws.send_recv(shot["bytes"]))
        return float(self.laws.collective(shot["op"], shot["bytes"], shot["num_gpus"]))

    def _moves(self, shot: Shot) -> float:
        moved = shot["bytes"] * (2 if shot["op"] == "block_copy" else 1)
        variant = "gathered" if shot["pattern"] == "gathered" else ""
        return float(self.laws.move(shot["op"], moved, shot["copies"], variant))

    def _round(self, number: int) -> list[dict[str, Any]]:
        rng, rows = np.random.default_rng(number), []
        for _ in range(self.steps):
            decodes, num = int(rng.integers(1, 32)), int(rng.integers(0, 3))
            context = int(rng.integers(decodes, 512 * decodes))
            prefills = [[int(rng.integers(1, 200)), int(rng.integers(0, 300))] for _ in range(num)]
            seconds = self.step.seconds(decodes, context, [(c, k) for c, k in prefills])
            rows.append(
                {
                    "decodes": decodes,
                    "decode_context": context,
                    "prefills": prefills,
                    "seconds": seconds,
                    "graph": 0,
                }
            )
        return rows


def known_meta(model: Path) -> dict[str, Any]:
    """What `calibrate.measure` writes beside the samples."""
    return {
        "device": "CPU known",
        "kind": "cpu",
        "memory_bytes": 24_000_000_000,
        "versions": {"python": "3"},
        "units": 1,
        "date": "2026-01-01",
        "model": str(model),
        "dtype": "bfloat16",
        "seed": 0,
        "kernels": "none",
        "graph_sizes": [],
        "ceilings": {"copy_bytes_per_s": 0.5 * BANDWIDTH, "gemm_flops_per_s": 0.7 * PEAK},
    }


def make_campaign(bench: Any, folder: RawFolder, **options: Any) -> Campaign:
    """A campaign with the columns that all rows share."""
    common = {
        "gpu": "CPU known",
        "src": "known",
        "dtype": "bfloat16",
        "kv_dtype": "bfloat16",
        "kernel": "none",
        "impl": "gloo",
    }
    return Campaign(bench, folder, common, options.pop("thermometer", Thermometer(lambda: None)), **options)


@pytest.fixture(scope="session")
def known_raw(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Raw samples of the known machine."""
    folder = RawFolder(tmp_path_factory.mktemp("raw"))
    done = folder.open(known_meta(tiny_model))
    shots = [*operator_shots(DecoderConfig.from_mapping(TINY), LIMITS), *step_shots(4)]
    shots += [shot for shot in collective_shots(8, "cpu") if shot.level == 0]
    with open("/dev/null", "w") as quiet:  # noqa: PTH123
        make_campaign(KnownBench(tiny_model), folder).run(shots, done, float("inf"), Progress("known", quiet))
    return folder.path


BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pandas", "pydantic", "scipy", "yaml", "simpy", "typer", "rich", "plotly", "fastapi"}:
            raise ImportError(f"{name} is not on a bare machine")
sys.meta_path.insert(0, Missing())
from calibrate.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""`python -m calibrate` with nothing but numpy and torch."""


@pytest.fixture(scope="session")
def real_raw(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Raw samples of this very CPU, measured for a few seconds in a process that has nothing else installed."""
    out = tmp_path_factory.mktemp("real")
    options = {"device": "cpu", "model": tiny_model, "out": out, "budget": "30s", "num_gpu_blocks": 256}
    options |= {"repeat": 0.002, "rounds": 3, **ENGINE_LIMITS}
    stated = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-c", BARE, "measure", *stated]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    return out
