"""Parameter counts against Hugging Face transformers: the same configuration on the meta device.

Layers are cut to eight so that a model is built in a moment; every architecture of the zoo is there once.
"""

import json
from importlib.resources import files

import pytest

from simulator.models import ModelSpec

torch = pytest.importorskip("torch", reason="counts are compared with real modules: needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers (not a dependency)")

LAYERS = 8
NAMES = [
    "llama-3.1-8b",
    "llama-3.2-1b",
    "mistral-7b-v0.1",
    "mixtral-8x7b",
    "qwen2.5-0.5b",
    "qwen3-8b",
    "qwen3-30b-a3b",
    "gemma-2-9b",
    "gemma-3-4b",
    "phi-2",
    "phi-4-mini",
    "llama-4-scout-17b-16e",
    "llama-4-maverick-17b-128e",
    "deepseek-v2-lite",
    "deepseek-v3",
    "gpt-oss-20b",
    "opt-1.3b",
    "gpt-j-6b",
    "gpt-neox-20b",
    "bloom-176b",
    "falcon-7b",
    "falcon-40b",
    "gpt-1.3b",
]


def text_config(name):
    data = json.loads((files("simulator.models") / "zoo" / f"{name}.json").read_text())
    data = data.get("text_config", data)
    data.pop("quantization_config", None)
    key = "n_layer" if "n_layer" in data else "num_hidden_layers"
    return {**data, key: LAYERS}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_count_is_that_of_the_real_module(name):
    data = text_config(name)
    config = transformers.AutoConfig.for_model(
        data["model_type"], **{k: v for k, v in data.items() if k != "model_type"}
    )
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    count = sum(parameter.numel() for parameter in module.parameters())
    ours = ModelSpec.from_config(data, name)
    router_biases = sum(layer.count * layer.mlp.num_experts for layer in ours.layers if layer.mlp.router_bias)
    # DeepSeek-V3 keeps the balancing bias of its router as a buffer
    expected = count + (router_biases if data["model_type"] == "deepseek_v3" else 0)
    assert ours.total_parameters == expected
    assert ModelSpec.from_config(config.to_dict(), name).total_parameters == expected
