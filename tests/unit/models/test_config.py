"""Reading a Hugging Face configuration: what is read, and what is said when it cannot be."""

import json

import pytest

from simulator.errors import InputError, UnknownNameError
from simulator.models import ModelSpec, list_models, load_model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


def test_from_a_mapping_a_file_and_a_directory(tmp_path):
    path = tmp_path / "tiny" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(LLAMA))
    from_file = load_model(path)
    assert from_file.name == "tiny"
    assert load_model(path.parent) == from_file
    assert ModelSpec.from_config(LLAMA, "tiny") == from_file
    # embedding 6400, LM head 6400, per layer qkv 64·128 + o 64·64 + MLP 3·64·128 + norms 128, final norm 64
    assert from_file.total_parameters == 12_800 + 2 * (8192 + 4096 + 24_576 + 128) + 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type: 'mamba': must be one of"),
        ({"model_type": None}, "model_type: must be a string"),
        ({"hidden_size": None}, "hidden_size: is required"),
        ({"hidden_size": -64}, "hidden_size: -64: must be an integer of at least 1"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers: 'two': must be an integer"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3: must divide num_attention_heads (4)"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: 'yes': must be true or false"),
        ({"quantization_config": {"quant_method": "xyz"}}, "quant_method: 'xyz': must be fp8"),
        ({"model_type": "mixtral"}, "num_local_experts: is required"),
        ({"model_type": "gemma2", "sliding_window": 8, "layer_types": ["full_attention"]}, "layer_types: 1"),
    ],
)
def test_errors_name_the_field(change, message):
    with pytest.raises(InputError) as error:
        ModelSpec.from_config({**LLAMA, **change})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_file_that_is_no_configuration(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match="must be"):
        load_model(path)


def test_a_file_that_vanished(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_model(tmp_path / "gone.json")


@pytest.mark.parametrize(
    ("change", "weights", "moe"),
    [
        ({"torch_dtype": "float16"}, "fp16", None),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8", None),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            "fp8_block",
            None,
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "int8_wo", None),
        ({"quantization_config": {"quant_method": "awq"}}, "int4", None),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "bf16", "mxfp4"),
    ],
)
def test_native_precision(change, weights, moe):
    native = ModelSpec.from_config({**LLAMA, **change}).native
    assert (native.weights, native.moe) == (weights, moe)


@pytest.mark.parametrize(
    ("spelling", "name", "weights"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b", "bf16"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b", "bf16"),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", "llama-3.1-70b", "fp8"),
        ("Qwen/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b", "fp8"),
        ("Qwen2.5-7B-Instruct-GPTQ-Int4", "qwen2.5-7b", "int4"),
        ("Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b", "bf16"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b", "fp16"),
        ("Llama2-70B", "llama-2-70b", "fp16"),
        ("LLaMA-13B", "llama-13b", "fp16"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b", "bf16"),
        ("mistralai/Mistral-7B-v0.1", "mistral-7b-v0.1", "bf16"),
        ("google/gemma-3-27b-it", "gemma-3-27b", "bf16"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1", "fp8_block"),
        ("llama-4-scout", "llama-4-scout-17b-16e", "bf16"),
        ("bigscience/bloom", "bloom-176b", "bf16"),
    ],
)
def test_names_are_normalised(spelling, name, weights):
    model = load_model(spelling)
    assert (model.name, model.native.weights) == (name, weights)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"llama-3\.1-8x.*did you mean 'llama-3\.1-8b'"):
        load_model("llama-3.1-8x")


def test_every_model_of_the_zoo_is_found_by_its_own_name():
    assert len(list_models()) >= 70
    assert [load_model(name).name for name in list_models()] == list_models()
