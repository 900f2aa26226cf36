"""What a model needs is known before it is built, and one that cannot fit is refused in one line."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from calibrate.measure.job import make_workbench  # noqa: E402
from engine import LLM  # noqa: E402
from engine import room as room_module  # noqa: E402
from engine.config import DecoderConfig  # noqa: E402
from engine.parallel import SINGLE, TensorParallel  # noqa: E402
from engine.room import GIB, check_room, free_bytes  # noqa: E402
from engine.settings import EngineSettings  # noqa: E402
from engine.weights import RandomWeights, load_weights  # noqa: E402
from simulator.errors import CapacityError, ConfigurationError  # noqa: E402

CPU = torch.device("cpu")
SMALL = {
    "family": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"tied_embeddings": True, "qkv_bias": True, "out_bias": True, "mlp_bias": True},
        {"qk_norm": True, "num_experts": 5, "experts_per_token": 2},
        {"num_experts": 5, "experts_per_token": 2, "dense_layers": (1,), "dense_intermediate": 160},
    ],
)
def test_weights_are_counted_as_they_are_drawn(more: dict[str, Any]) -> None:
    config = DecoderConfig(**{**SMALL, **more})
    drawn = load_weights(config, RandomWeights(), dtype=torch.float32).nbytes
    assert config.num_weights == drawn / 4


def test_llama_3_8b_has_its_published_size() -> None:
    """8,030,261,248 parameters (huggingface.co/meta-llama/Llama-3.1-8B, safetensors metadata)."""
    assert EngineSettings("llama-3.1-8b").decoder_config().num_weights == 8_030_261_248


def test_a_model_that_does_not_fit_is_refused_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """70.6 G weights in fp32 are 263 GiB; 256 MiB of cache are the engine's own choice on a CPU."""
    monkeypatch.setattr(room_module, "free_bytes", lambda device: 24 * GIB)
    monkeypatch.setattr(RandomWeights, "get", lambda *_: pytest.fail("its weights are drawn"))
    said = (
        r"model llama-3.1-70b: needs 263 GiB \(263 for weights in float32, 0.25 for the KV cache\), "
        "and this machine has 24 GiB free"
    )
    with pytest.raises(CapacityError, match=said):
        LLM("llama-3.1-70b", device="cpu", load_format="dummy")


def test_the_cache_counts_where_its_blocks_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DecoderConfig(**SMALL)
    blocks = 10_000
    needed = 4 * config.num_weights + 16 * blocks * config.kv_bytes_per_token(4)
    settings = EngineSettings(config, device="cpu", num_gpu_blocks=blocks)
    monkeypatch.setattr(room_module, "free_bytes", lambda device: needed)
    check_room(settings, config, CPU, SINGLE)
    monkeypatch.setattr(room_module, "free_bytes", lambda device: needed - 1)
    with pytest.raises(CapacityError, match="for the KV cache"):
        check_room(settings, config, CPU, SINGLE)
    check_room(settings, config, CPU, TensorParallel(1, 2))  # its first rank has asked for all


def test_a_control_group_bounds_what_the_machine_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room_module, "GROUP", tmp_path)
    whole = free_bytes(CPU)
    assert 0 < whole < float("inf")
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 800000\ninactive_file 50000\n")
    assert free_bytes(CPU) == 150_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(CPU) == pytest.approx(whole, rel=0.5)


def test_a_budget_that_drawing_the_weights_would_eat_is_refused() -> None:
    """Half a million weights in a microsecond: nobody draws that fast."""
    options = Namespace(
        model=DecoderConfig(**SMALL), device="cpu", kernels="auto", max_num_seqs=4, max_num_batched_tokens=32
    )
    options.max_model_len, options.num_gpu_blocks, options.seed, options.budget = 64, 16, 0, "1s"
    with pytest.raises(ConfigurationError, match=r"--budget 1s: drawing the weights of .* takes about"):
        make_workbench(options, 1e-6)
