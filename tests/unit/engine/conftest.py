"""Tiny random models of every family, made and judged by Hugging Face transformers."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="the reference is Hugging Face transformers")
torch.set_num_threads(1)

VOCAB = 311
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "initializer_range": 0.3,  # large enough that greedy text varies
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 16},
    ),
}


@dataclass(frozen=True)
class TinyModel:
    """A saved model and the same in transformers."""

    family: str
    path: Path
    reference: Any
    known: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def greedy(self, prompt: list[int], max_tokens: int) -> list[int]:
        """What transformers generates, the end-of-text token included."""
        key = (max_tokens, *prompt)
        if key not in self.known:
            self.known[key] = self._generate(prompt, max_tokens)
        return self.known[key]

    def _generate(self, prompt: list[int], max_tokens: int) -> list[int]:
        with torch.inference_mode():
            out = self.reference.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=max_tokens,
                pad_token_id=0,
            )
        return out[0, len(prompt) :].tolist()

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """fp32 ``[len(tokens), vocabulary]``."""
        with torch.inference_mode():
            return self.reference(torch.tensor([tokens])).logits[0]


def make_model(family: str, directory: Path, **changes: Any) -> TinyModel:
    """A random model of *family* with norms and biases that matter, saved to *directory*."""
    name, own = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**COMMON, **own, **changes})
    torch.manual_seed(sum(family.encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("norm.weight", "bias")):
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(directory)
    return TinyModel(family, directory, model)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``tiny(family)``: made once per session."""
    made: dict[str, TinyModel] = {}

    def get(family: str) -> TinyModel:
        if family not in made:
            made[family] = make_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get
