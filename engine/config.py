"""What a decoder is: the shapes and constants that its forward pass needs.

Read from a Hugging Face ``config.json`` (the format of transformers 4 and 5), or derived from a
`ModelSpec`, which has the shapes but not the constants of rotation and norm: enough for random weights.
Families: Llama and Mistral, Qwen2 (biases on Q, K and V), Qwen3 (norms on Q and K), Mixtral and Qwen3-MoE
(routed experts).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator.errors import ConfigurationError, InputError, UnknownNameError
from simulator.models.fields import Fields
from simulator.models.spec import ModelSpec

__all__ = ["FAMILIES", "DecoderConfig"]

FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
MOE_FAMILIES = ("mixtral", "qwen3_moe")


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer of the Llama lineage; sizes in elements, contexts in tokens."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int = 8192
    rms_eps: float = 1e-5
    rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10_000.0})
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    normalise_routing: bool = True
    dense_layers: tuple[int, ...] = ()
    """Layers of a mixture-of-experts model whose MLP is dense, of `dense_intermediate` width."""
    dense_intermediate: int = 0
    windows: tuple[int, ...] = ()
    """How far back each layer sees; 0 is everything. Empty: everything in every layer."""
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    dtype: str = "bfloat16"

    @property
    def is_moe(self) -> bool:
        """Whether tokens are routed to experts."""
        return self.num_experts > 0

    def window(self, layer: int) -> int:
        """Tokens that *layer* attends to, 0 for all."""
        return self.windows[layer] if self.windows else 0

    def routed(self, layer: int) -> bool:
        """Whether *layer* has experts."""
        return self.is_moe and layer not in self.dense_layers

    @property
    def num_weights(self) -> int:
        """Numbers that the weights are, norms and biases included; a tied LM head counts once."""
        vocabulary = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return vocabulary + self.hidden_size + sum(self._layer_weights(i) for i in range(self.num_layers))

    def _layer_weights(self, layer: int) -> int:
        hidden, q, kv = self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = 2 * hidden * (q + kv) + self.qkv_bias * (q + 2 * kv) + self.out_bias * hidden
        norms = 2 * hidden + 2 * self.qk_norm * self.head_dim
        routed = self.routed(layer)
        width = self.intermediate_size if routed else self.dense_intermediate or self.intermediate_size
        mlp = 3 * hidden * width + self.mlp_bias * (2 * width + hidden)
        return attention + norms + (self.num_experts * (mlp + hidden) if routed else mlp)

    def kv_bytes_per_token(self, itemsize: int, tp: int = 1) -> int:
        """Bytes of K and V that a token leaves on each of *tp* ranks."""
        return 2 * self.num_layers * max(1, self.num_kv_heads // tp) * self.head_dim * itemsize

    @classmethod
    def from_directory(cls, path: str | Path) -> DecoderConfig:
        """Read ``config.json`` of a Hugging Face directory."""
        file = Path(path) / "config.json"
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(file, f"cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise InputError(file, f"must be JSON: {error}") from error
        if not isinstance(data, dict):
            raise InputError(file, "must be a JSON object")
        return cls.from_mapping(data, file)

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], path: object = "config") -> DecoderConfig:
        """Read a configuration given as a mapping; *path* is for messages."""
        fields = Fields(data, path)
        family = fields.text("model_type")
        if family not in FAMILIES:
            raise UnknownNameError("model_type", family, FAMILIES)
        if (act := fields.text("hidden_act", "silu")) != "silu":
            raise fields.error("hidden_act", "must be silu", act)
        heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
        layers = fields.integer("num_hidden_layers")
        bias = fields.boolean("attention_bias", False)
        moe = family in MOE_FAMILIES
        dense = _dense_layers(fields, layers) if family == "qwen3_moe" else ()
        return cls(
            family=family,
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden,
            intermediate_size=fields.integer(*_intermediate(family)),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=fields.integer("num_key_value_heads", default=heads),
            head_dim=fields.integer("head_dim", default=hidden // heads),
            max_position=fields.integer("max_position_embeddings", default=8192),
            rms_eps=float(data.get("rms_norm_eps", 1e-6)),
            rope=_rope(data),
            qkv_bias=bias or family == "qwen2",
            out_bias=bias,
            mlp_bias=fields.boolean("mlp_bias", False),
            qk_norm=family in ("qwen3", "qwen3_moe"),
            tied_embeddings=fields.boolean("tie_word_embeddings", False),
            num_experts=fields.integer("num_local_experts", "num_experts") if moe else 0,
            experts_per_token=fields.integer("num_experts_per_tok", default=2) if moe else 0,
            normalise_routing=family == "mixtral" or fields.boolean("norm_topk_prob", False),
            dense_layers=dense,
            dense_intermediate=fields.integer("intermediate_size") if dense else 0,
            windows=_windows(fields, family, layers),
            eos_token_ids=_token_ids(fields, "eos_token_id"),
            bos_token_id=next(iter(_token_ids(fields, "bos_token_id")), None),
            dtype=str(data.get("dtype") or data.get("torch_dtype") or "bfloat16").removeprefix("torch."),
        )

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> DecoderConfig:
        """The shapes of *spec*, for random weights: rotation and norm get usual constants."""
        if spec.architecture not in FAMILIES:
            raise ConfigurationError(
                f"model {spec.name!r} has architecture {spec.architecture!r}: "
                f"the engine runs {', '.join(FAMILIES)}"
            )
        attention, mlp = spec.attention, spec.layers[0].mlp
        if len({layer.mlp for layer in spec.layers}) > 1:
            raise ConfigurationError(
                f"model {spec.name!r} has different MLPs in its layers: give its config.json"
            )
        return cls(
            family=spec.architecture,
            vocab_size=spec.vocab_size,
            hidden_size=spec.hidden_size,
            intermediate_size=mlp.intermediate,
            num_layers=spec.num_layers,
            num_heads=attention.num_heads,
            num_kv_heads=attention.num_kv_heads,
            head_dim=attention.head_dim,
            max_position=spec.max_position_embeddings,
            qkv_bias=attention.qkv_bias,
            out_bias=attention.out_bias,
            qk_norm=spec.architecture in ("qwen3", "qwen3_moe"),
            tied_embeddings=spec.tied_embeddings,
            num_experts=mlp.num_experts,
            experts_per_token=mlp.topk,
        )


def _intermediate(family: str) -> tuple[str, ...]:
    return ("moe_intermediate_size",) if family == "qwen3_moe" else ("intermediate_size",)


def _dense_layers(fields: Fields, layers: int) -> tuple[int, ...]:
    """Qwen3-MoE routes in every ``decoder_sparse_step``-th layer that ``mlp_only_layers`` does not name."""
    only = fields.integers("mlp_only_layers") or []
    step = fields.integer("decoder_sparse_step", default=1)
    return tuple(i for i in range(layers) if i in only or (i + 1) % step)


def _rope(data: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 keeps everything in ``rope_parameters``; 4 has ``rope_theta`` and ``rope_scaling``."""
    given = data.get("rope_parameters") or data.get("rope_scaling") or {}
    rope = {"rope_type": given.get("rope_type", given.get("type", "default")), **given}
    rope.setdefault("rope_theta", data.get("rope_theta", 10_000.0))
    return rope


def _windows(fields: Fields, family: str, layers: int) -> tuple[int, ...]:
    if fields.data.get("sliding_window") is None or family == "llama":
        return ()
    if family.startswith("qwen") and not fields.boolean("use_sliding_window", False):
        return ()
    window = fields.integer("sliding_window")
    kinds = fields.strings("layer_types")
    if kinds is not None:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    first = fields.integer("max_window_layers", default=0, least=0) if family.startswith("qwen") else 0
    return tuple(window if i >= first else 0 for i in range(layers))


def _token_ids(fields: Fields, name: str) -> tuple[int, ...]:
    value = fields.data.get(name)
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
