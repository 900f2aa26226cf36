"""The model's parts against transformers: rotations, windows, biases, checkpoints, quantised weights,
graphs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

from engine import LLM, SamplingParams  # noqa: E402
from engine.batch import Row, pack  # noqa: E402
from engine.config import DecoderConfig  # noqa: E402
from engine.graphs import DecodeGraphs, capture_sizes  # noqa: E402
from engine.kernels import dequantize, quantize  # noqa: E402
from engine.rope import cos_sin_cache  # noqa: E402
from engine.safetensors import Checkpoint  # noqa: E402
from engine.settings import EngineSettings  # noqa: E402
from simulator.errors import CapacityError, ConfigurationError, InputError, UnknownNameError  # noqa: E402
from simulator.models import load_model  # noqa: E402

ROTATIONS = [
    {"rope_type": "default", "rope_theta": 1e6},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 16.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 0.9,
    },
]


@pytest.mark.parametrize("rope", ROTATIONS, ids=lambda rope: f"{rope['rope_type']}-{rope.get('factor')}")
def test_rotations_are_those_of_transformers(rope: dict[str, Any]) -> None:
    config = transformers.LlamaConfig(
        head_dim=128, rope_parameters=dict(rope), max_position_embeddings=131072
    )
    if rope["rope_type"] == "default":
        inverse, scale = 1.0 / rope["rope_theta"] ** (torch.arange(0, 128, 2).float() / 128), 1.0
    else:
        inverse, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")
    table = cos_sin_cache(rope, 128, 100)
    angle = torch.arange(100).float()[:, None] * inverse
    torch.testing.assert_close(table, torch.cat((angle.cos(), angle.sin()), -1) * scale)


def test_an_unknown_rotation_is_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown rope_type 'longrope'"):
        cos_sin_cache({"rope_type": "longrope"}, 64, 10)


def build(tmp_path: Path, kind: str, **changes: Any) -> tuple[Path, Any]:
    common = {
        "vocab_size": 200,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    config = getattr(transformers, f"{kind}Config")(**{**common, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    return tmp_path, model


VARIANTS = {
    "sliding window": ("Mistral", {"sliding_window": 9}),
    "sliding window of later layers": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "multi-query": ("Llama", {"num_key_value_heads": 1}),
    "dense layers among experts": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1]},
    ),
    "normalised routing": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_those_of_transformers(tmp_path: Path, variant: str) -> None:
    kind, changes = VARIANTS[variant]
    path, model = build(tmp_path, kind, **changes)
    llm = LLM(path, num_gpu_blocks=30, block_size=4, max_num_batched_tokens=11)
    prompt = torch.randint(3, 200, (40,)).tolist()
    [output] = llm.generate(
        [prompt], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=5)
    )
    tokens = output.outputs[0].token_ids
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)
    for i, (token, entry) in enumerate(zip(tokens, output.outputs[0].logprobs or [])):
        row = logits[len(prompt) + i - 1]
        assert token == int(row.argmax()) and entry is not None
        values, ids = row.topk(5)
        assert list(entry.top) == ids.tolist()
        assert list(entry.top.values()) == pytest.approx(values.tolist(), abs=1e-4)
        assert entry.chosen == pytest.approx(float(row[token]), abs=1e-4)


@pytest.mark.parametrize("form", ["int8", "int4", "fp8"])
def test_quantised_weights_compute_what_transformers_does_with_the_rounded_ones(
    tmp_path: Path, form: str
) -> None:
    path, model = build(tmp_path, "Llama", hidden_size=64, head_dim=16, intermediate_size=96)
    llm = LLM(path, num_gpu_blocks=10, block_size=8, quantization=form)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            group = 64 if module.in_features == 64 else 32
            module.weight.data = dequantize(quantize(module.weight.data, form, group), torch.float32)
    prompt = list(range(3, 60))
    ours = llm.runner.run(pack([Row(prompt, 0, torch.arange(8).int().numpy(), 57)], 8))
    with torch.inference_mode():
        torch.testing.assert_close(ours, model(torch.tensor([prompt])).logits[0], rtol=1e-4, atol=1e-4)
    stored = llm.runner.decoder.weights.layers[0].qkv.weight
    assert stored.nbytes < stored.shape[0] * stored.shape[1] * 4 / 2


def test_half_precision_checkpoints_and_several_files(tmp_path: Path) -> None:
    path, model = build(tmp_path, "Qwen3")
    model.to(torch.bfloat16).save_pretrained(path, max_shard_size="60KB")
    assert len(list(path.glob("*.safetensors"))) > 1
    (path / "model.safetensors").unlink(missing_ok=True)
    checkpoint = Checkpoint(path)
    stored = model.state_dict()
    assert all(torch.equal(checkpoint[name], stored[name]) for name in checkpoint)
    llm = LLM(path, num_gpu_blocks=10, block_size=8)
    assert llm.runner.decoder.dtype == torch.float32  # a CPU computes in fp32


def test_a_checkpoint_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path, _ = build(tmp_path, "Llama")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 80}))
    with pytest.raises(InputError, match=r"gate_proj.weight: \[64, 48\]: must have shape \[80, 48\]"):
        LLM(path, num_gpu_blocks=4)
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(InputError, match=r"model.layers.3.*is missing"):
        LLM(path, num_gpu_blocks=4)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        LLM(path, num_gpu_blocks=4)


BAD_CONFIGS = [
    ({"model_type": "gpt2"}, UnknownNameError, "model_type 'gpt2'"),
    ({"hidden_act": "gelu"}, InputError, "hidden_act"),
    ({"num_hidden_layers": "two"}, InputError, "num_hidden_layers"),
    ({"vocab_size": None}, InputError, "vocab_size: is required"),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD_CONFIGS)
def test_bad_configurations_are_named(change: dict[str, Any], error: type[Exception], says: str) -> None:
    base = {
        "model_type": "llama",
        "vocab_size": 10,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 8,
    }
    with pytest.raises(error, match=says):
        DecoderConfig.from_mapping({**base, **change})


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen2.5-7b", "qwen3-8b", "mixtral-8x7b", "mistral-7b"])
def test_models_of_the_zoo_have_the_parameters_they_should(name: str) -> None:
    """Shapes without weights: on the meta device a 47B model takes no memory."""
    spec = load_model(name)
    config = DecoderConfig.from_spec(spec)

    class Shapes:
        def __contains__(self, name: str) -> bool:
            return True

        def get(self, name: str, shape: Any) -> torch.Tensor:
            return torch.empty(*shape, device="meta")

    from engine.parallel import SINGLE
    from engine.weights import _Loader

    weights = _Loader(config, Shapes(), torch.bfloat16, torch.device("meta"), None, SINGLE).load()
    tensors = weights._tensors()
    count = sum(t.numel() for t in (tensors[:2] if config.tied_embeddings else tensors[:3])) + sum(
        t.numel() for t in tensors[3:]
    )
    assert count == spec.total_parameters


def test_unknown_models_and_settings_are_named() -> None:
    with pytest.raises(ConfigurationError, match="architecture 'opt'"):
        EngineSettings("opt-13b").decoder_config()
    with pytest.raises(UnknownNameError, match="unknown dtype 'float8'"):
        EngineSettings("llama-3-8b", dtype="float8")
    with pytest.raises(UnknownNameError, match="unknown device 'tpu'"):
        EngineSettings("llama-3-8b", device="tpu")
    with pytest.raises(ConfigurationError, match="max_model_len 9000000"):
        EngineSettings("llama-3-8b", max_model_len=9_000_000).model_len(
            DecoderConfig.from_spec(load_model("llama-3-8b"))
        )
    with pytest.raises(CapacityError, match="a block takes"):
        LLM(DecoderConfig("llama", 10, 8, 8, 1, 2, 1, 4), cpu_cache_bytes=10)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_all_experts_at_once_are_the_loop_over_the_chosen(tiny: Any, family: str) -> None:
    decoder = LLM(tiny(family).path, num_gpu_blocks=4).runner.decoder
    layer = decoder.weights.layers[1]
    assert layer.router is not None and layer.stacked is not None
    x = torch.randn(9, decoder.config.hidden_size)
    weights, chosen = (x @ layer.router.T).softmax(-1).topk(decoder.config.experts_per_token)
    if decoder.config.normalise_routing:
        weights = weights / weights.sum(-1, keepdim=True)
    dense = decoder._all_experts(layer.stacked, x, weights, chosen)
    torch.testing.assert_close(dense, decoder.experts(layer, x), rtol=1e-4, atol=1e-5)


class Replayed(DecodeGraphs):
    """Graphs without a GPU: what a replay would compute, from the same buffers."""

    def replay(self, size: int) -> torch.Tensor:
        return self.decoder.forward(self.tokens[:size], self._layout(size), self.cache)


def test_padded_decode_batches_give_the_same_logits(tiny: Any) -> None:
    llm = LLM(tiny("qwen2").path, num_gpu_blocks=64, block_size=8)
    runner = llm.runner
    graphs = Replayed(runner.decoder, runner.cache, [1, 2, 4, 8], 64)
    for count in (5, 3, 8, 1, 2):
        rows = []
        for i in range(count):
            table = torch.arange(8 * i, 8 * i + 8).int().numpy()
            runner.run(pack([Row(list(range(5, 9 + 3 * i)), 0, table, 0)], 8))
            rows.append(Row([7 + i], 4 + 3 * i, table, 1))
        batch = pack(rows, 8)
        assert graphs.size_for(batch) == next(n for n in (1, 2, 4, 8) if n >= count)
        eager = runner.run(batch)
        runner.graphs = graphs
        torch.testing.assert_close(runner.run(batch), eager, rtol=1e-5, atol=1e-5)
        runner.graphs = None
    long = pack([Row([1], 64, torch.arange(9).int().numpy(), 1)], 8)
    mixed = pack(
        [Row([1], 5, torch.arange(8).int().numpy(), 1), Row([1, 2], 0, torch.arange(8).int().numpy(), 1)], 8
    )
    assert graphs.size_for(long) == graphs.size_for(mixed) == 0
    runner.abandon()


def test_the_ladder_of_captured_sizes() -> None:
    assert capture_sizes(1) == [1]
    assert capture_sizes(20) == [1, 2, 4, 8, 16, 20]
    sizes = capture_sizes(256)
    assert sizes[:5] == [1, 2, 4, 8, 16] and sizes[-1] == 256 and len(sizes) == 35
