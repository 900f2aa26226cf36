"""The weights of a decoder, one rank's part: from a checkpoint, or random.

Q, K and V are one matrix and so are gate and up: fewer, larger products. Linear weights may be stored in 8
or 4 bits (`engine.kernels.weights`); embedding, norms, router and LM head stay in the model's dtype.
Random weights are normal with the configurations' usual deviation of 0.02, each tensor seeded by its own
name, so that every rank and every cut draws the same model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from engine.config import DecoderConfig
from engine.kernels import QuantizedWeight, quantize
from engine.parallel import SINGLE, TensorParallel
from engine.safetensors import Checkpoint
from simulator.errors import InputError

__all__ = ["DecoderWeights", "LayerWeights", "Linear", "RandomWeights", "load_weights"]

Weight = Tensor | QuantizedWeight
STD = 0.02  # initializer_range of the families' configurations


@dataclass
class Linear:
    """``y = x Wᵀ + b`` with a weight ``[N, K]``."""

    weight: Weight
    bias: Tensor | None = None


@dataclass
class LayerWeights:
    """One layer: attention, then either one MLP or a router and experts."""

    input_norm: Tensor
    qkv: Linear
    out: Linear
    post_norm: Tensor
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    router: Tensor | None = None
    experts: list[tuple[Linear, Linear]] = field(default_factory=list)
    """(gate and up, down) of each expert; a dense MLP is the only one."""
    stacked: tuple[Tensor, Tensor] | None = None
    """The experts' weights in one piece, ``[experts, N, K]`` each, where they are not quantised; `experts`
    are views.
    """


@dataclass
class DecoderWeights:
    """Everything that is stored."""

    embedding: Tensor
    layers: list[LayerWeights]
    final_norm: Tensor
    lm_head: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of device memory; a tied LM head counts once."""
        seen: dict[int, int] = {}
        for tensor in self._tensors():
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return sum(seen.values())

    def _tensors(self) -> list[Tensor]:
        found = [self.embedding, self.final_norm, self.lm_head]
        for layer in self.layers:
            linears = [layer.qkv, layer.out, *(part for pair in layer.experts for part in pair)]
            found += [layer.input_norm, layer.post_norm]
            found += [t for t in (layer.q_norm, layer.k_norm, layer.router) if t is not None]
            for linear in linears:
                weight = linear.weight
                found += [weight] if isinstance(weight, Tensor) else [weight.data, weight.scales]
                found += [] if linear.bias is None else [linear.bias]
        return found


class Source(Protocol):
    """Where tensors come from."""

    def __contains__(self, name: str) -> bool: ...

    def get(self, name: str, shape: Sequence[int]) -> Tensor: ...


class RandomWeights:
    """Normal numbers of deviation 0.02; norms around 1; biases like weights."""

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.seed, self.device = seed, torch.device(device)

    def __contains__(self, name: str) -> bool:
        return True

    def get(self, name: str, shape: Sequence[int]) -> Tensor:
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=7).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest, "little"))
        numbers = torch.randn(*shape, generator=generator, device=self.device) * STD
        return numbers + 1 if name.endswith("norm.weight") else numbers


class CheckpointWeights:
    """Tensors of a checkpoint, their shapes checked against the configuration."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint

    def get(self, name: str, shape: Sequence[int]) -> Tensor:
        tensor = self.checkpoint[name]
        if tuple(tensor.shape) != tuple(shape):
            raise InputError(
                self.checkpoint.directory,
                f"must have shape {list(shape)}",
                field=name,
                value=list(tensor.shape),
            )
        return tensor


def load_weights(
    config: DecoderConfig,
    source: Source,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    quantization: str | None = None,
    parallel: TensorParallel = SINGLE,
) -> DecoderWeights:
    """This rank's part of all weights on *device*; *quantization* is one of `engine.kernels.FORMATS` or
    None.
    """
    parallel.check(config.num_heads, config.num_kv_heads, config.intermediate_size)
    loader = _Loader(config, source, dtype, torch.device(device), quantization, parallel)
    return loader.load()


class _Loader:
    def __init__(
        self,
        config: DecoderConfig,
        source: Source,
        dtype: torch.dtype,
        device: torch.device,
        quantization: str | None,
        parallel: TensorParallel,
    ) -> None:
        self.config, self.source, self.dtype, self.device = config, source, dtype, device
        self.quantization, self.parallel = quantization, parallel

    def load(self) -> DecoderWeights:
        config = self.config
        vocab = (config.vocab_size, config.hidden_size)
        embedding = self._place(self.source.get("model.embed_tokens.weight", vocab))
        head = embedding if config.tied_embeddings else self._place(self.source.get("lm_head.weight", vocab))
        return DecoderWeights(
            embedding=embedding,
            layers=[self._layer(i) for i in range(config.num_layers)],
            final_norm=self._norm("model.norm", config.hidden_size),
            lm_head=self.parallel.split_vocabulary(head),
        )

    def _layer(self, index: int) -> LayerWeights:
        config, prefix = self.config, f"model.layers.{index}"
        attention = f"{prefix}.self_attn"
        layer = LayerWeights(
            input_norm=self._norm(f"{prefix}.input_layernorm", config.hidden_size),
            qkv=self._qkv(attention),
            out=self._by_column(f"{attention}.o_proj", config.num_heads * config.head_dim, config.out_bias),
            post_norm=self._norm(f"{prefix}.post_attention_layernorm", config.hidden_size),
        )
        if config.qk_norm:
            layer.q_norm = self._norm(f"{attention}.q_norm", config.head_dim)
            layer.k_norm = self._norm(f"{attention}.k_norm", config.head_dim)
        if config.routed(index):
            self._experts(layer, prefix)
        else:
            width = config.dense_intermediate or config.intermediate_size
            layer.experts = [self._mlp(f"{prefix}.mlp", ("gate_proj", "up_proj", "down_proj"), width)]
        return layer

    def _experts(self, layer: LayerWeights, prefix: str) -> None:
        config = self.config
        mixtral = config.family == "mixtral"
        block = f"{prefix}.block_sparse_moe" if mixtral else f"{prefix}.mlp"
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        layer.router = self._place(
            self.source.get(f"{block}.gate.weight", (config.num_experts, config.hidden_size))
        )
        layer.experts = [
            self._mlp(f"{block}.experts.{i}", names, config.intermediate_size)
            for i in range(config.num_experts)
        ]
        if self.quantization is None and not config.mlp_bias:
            layer.stacked = up, down = _stack(layer.experts, 0), _stack(layer.experts, 1)
            layer.experts = [(Linear(u), Linear(d)) for u, d in zip(up, down)]

    def _mlp(self, prefix: str, names: tuple[str, str, str], width: int) -> tuple[Linear, Linear]:
        gate, up, down = (f"{prefix}.{name}" for name in names)
        bias = self.config.mlp_bias
        return self._by_row([gate, up], [width, width], bias), self._by_column(down, width, bias)

    def _qkv(self, prefix: str) -> Linear:
        config, cut = self.config, self.parallel
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = [(f"{prefix}.q_proj", q), (f"{prefix}.k_proj", kv), (f"{prefix}.v_proj", kv)]

        def cat(kind: str, tail: tuple[int, ...]) -> Tensor:
            tensors = [self.source.get(f"{name}.{kind}", (rows, *tail)) for name, rows in parts]
            kept = [cut.split(tensors[0], 0), *(cut.split_kv(t, config.num_kv_heads) for t in tensors[1:])]
            return torch.cat([self._place(t) for t in kept])

        bias = cat("bias", ()) if config.qkv_bias else None
        return Linear(self._stored(cat("weight", (config.hidden_size,))), bias)

    def _by_row(self, names: list[str], rows: list[int], bias: bool) -> Linear:
        hidden = self.config.hidden_size

        def cat(kind: str, tail: tuple[int, ...]) -> Tensor:
            tensors = [self.source.get(f"{name}.{kind}", (n, *tail)) for name, n in zip(names, rows)]
            return torch.cat([self._place(self.parallel.split(t, 0)) for t in tensors])

        return Linear(self._stored(cat("weight", (hidden,))), cat("bias", ()) if bias else None)

    def _by_column(self, name: str, columns: int, bias: bool) -> Linear:
        hidden = self.config.hidden_size
        weight = self.parallel.split(self.source.get(f"{name}.weight", (hidden, columns)), 1)
        # The sum over ranks must hold the bias once.
        own = bias and self.parallel.rank == 0
        return Linear(
            self._stored(self._place(weight)),
            self._place(self.source.get(f"{name}.bias", (hidden,))) if own else None,
        )

    def _norm(self, name: str, width: int) -> Tensor:
        return self._place(self.source.get(f"{name}.weight", (width,)))

    def _place(self, tensor: Tensor) -> Tensor:
        placed = tensor.to(device=self.device, dtype=self.dtype)
        # A tensor of a mapped file must not keep the file's pages as its memory.
        return placed.clone() if placed.data_ptr() == tensor.data_ptr() else placed.contiguous()

    def _stored(self, weight: Tensor) -> Weight:
        if self.quantization is None:
            return weight
        group = next((g for g in (128, 64, 32) if weight.shape[1] % g == 0), 128)
        return quantize(weight, self.quantization, group)


def _stack(experts: list[tuple[Linear, Linear]], side: int) -> Tensor:
    """The plain weights of one side of all experts."""
    return torch.stack([weight for pair in experts if isinstance(weight := pair[side].weight, Tensor)])
