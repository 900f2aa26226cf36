"""The forward pass of a Llama-like decoder over a paged KV cache.

A batch is packed: rows of one token each (decodes) first, then prompt chunks, without padding between
sequences. Every layer writes the new keys and values of all rows before it attends, so a row may read what
another row of the same batch computes: that is what makes a prefix found in the cache during its own
computation valid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.cache import KVCache
from engine.config import DecoderConfig
from engine.kernels import Kernels
from engine.parallel import SINGLE, TensorParallel
from engine.rope import cos_sin_cache
from engine.weights import DecoderWeights, LayerWeights, Linear

__all__ = ["DENSE_TOKENS", "Decoder", "Layout"]


@dataclass
class Layout:
    """Where the rows of a batch lie: *num_decodes* rows of one token, then the chunks of the prefills.

    ``T`` tokens, ``D`` decodes, ``P`` prefills: *positions* int64 ``[T]``, *slots* int64 ``[T]``,
    *decode_table* int32 ``[D, blocks]``, *decode_lens* int32 ``[D]``, *prefill_table* int32
    ``[P, blocks]``, *query_start* int32 ``[P + 1]``, *prefill_lens* int32 ``[P]``.
    """

    positions: Tensor
    slots: Tensor
    num_decodes: int
    decode_table: Tensor
    decode_lens: Tensor
    max_context: int
    prefill_table: Tensor | None = None
    query_start: Tensor | None = None
    prefill_lens: Tensor | None = None
    max_query: int = 0


class Decoder:
    """One rank's part of the model; `forward` gives hidden states, `logits` what is sampled from."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: DecoderWeights,
        kernels: Kernels,
        *,
        max_position: int | None = None,
        parallel: TensorParallel = SINGLE,
    ) -> None:
        self.config, self.weights, self.kernels, self.parallel = config, weights, kernels, parallel
        self.num_heads = config.num_heads // parallel.size
        self.num_kv_heads = max(1, config.num_kv_heads // parallel.size)
        self.scale = config.head_dim**-0.5
        self.device, self.dtype = weights.embedding.device, weights.embedding.dtype
        length = max_position or config.max_position
        self.rotation = cos_sin_cache(config.rope, config.head_dim, length, self.device)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, layout: Layout, cache: KVCache) -> Tensor:
        """Hidden states ``[T, hidden]`` of *tokens* int64 ``[T]``, after the final norm."""
        x = self.weights.embedding[tokens]
        residual: Tensor | None = None
        for index in range(len(self.weights.layers)):
            x, residual = self.layer(index, x, residual, layout, cache)
        assert residual is not None
        return self.kernels.add_rms_norm(x, residual, self.weights.final_norm, self.config.rms_eps)[0]

    def layer(
        self, index: int, x: Tensor, residual: Tensor | None, layout: Layout, cache: KVCache
    ) -> tuple[Tensor, Tensor]:
        """(output, residual) of one layer, both ``[T, hidden]``; the first layer has no residual before it."""
        kernels, eps, layer = self.kernels, self.config.rms_eps, self.weights.layers[index]
        if residual is None:
            residual, x = x, kernels.rms_norm(x, layer.input_norm, eps)
        else:
            x, residual = kernels.add_rms_norm(x, residual, layer.input_norm, eps)
        x = self._attention(layer, index, x, layout, cache)
        x, residual = kernels.add_rms_norm(x, residual, layer.post_norm, eps)
        x = self.experts(layer, x) if layer.router is not None else self._mlp(layer.experts[0], x)
        return self.parallel.reduce(x), residual

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """fp32 ``[rows, vocabulary]``."""
        part = self.kernels.matmul(hidden, self.weights.lm_head)
        return self.parallel.gather(part)[..., : self.config.vocab_size].float()

    def _attention(
        self, layer: LayerWeights, index: int, x: Tensor, layout: Layout, cache: KVCache
    ) -> Tensor:
        kernels, dim = self.kernels, self.config.head_dim
        q_size, kv_size = self.num_heads * dim, self.num_kv_heads * dim
        q, k, v = self._linear(layer.qkv, x).tensor_split((q_size, q_size + kv_size), dim=-1)
        q, k = q.view(-1, self.num_heads, dim), k.view(-1, self.num_kv_heads, dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            q = kernels.rms_norm(q, layer.q_norm, self.config.rms_eps)
            k = kernels.rms_norm(k, layer.k_norm, self.config.rms_eps)
        kernels.rope(q, k, layout.positions, self.rotation)
        keys, values = cache.layers[index]
        kernels.kv_write(k, v.view(-1, self.num_kv_heads, dim), keys, values, layout.slots)
        out = torch.empty((x.shape[0], self.num_heads, dim), dtype=x.dtype, device=x.device)
        self._attend(out, q, keys, values, layout, self.config.window(index))
        return self.parallel.reduce(self._linear(layer.out, out.view(-1, q_size)))

    def _attend(
        self, out: Tensor, q: Tensor, keys: Tensor, values: Tensor, layout: Layout, window: int
    ) -> None:
        n = layout.num_decodes
        if n:
            self.kernels.decode_attention(
                out[:n],
                q[:n],
                keys,
                values,
                layout.decode_table,
                layout.decode_lens,
                self.scale,
                max_context=layout.max_context,
                sliding_window=window,
            )
        if layout.prefill_table is None or layout.query_start is None or layout.prefill_lens is None:
            return
        self.kernels.prefill_attention(
            out[n:],
            q[n:],
            keys,
            values,
            layout.prefill_table,
            layout.query_start,
            layout.prefill_lens,
            self.scale,
            max_query=layout.max_query,
            sliding_window=window,
        )

    def _linear(self, linear: Linear, x: Tensor) -> Tensor:
        return self.kernels.matmul(x, linear.weight, linear.bias)

    def _mlp(self, pair: tuple[Linear, Linear], x: Tensor) -> Tensor:
        up, down = pair
        return self._linear(down, self.kernels.silu_mul(self._linear(up, x)))

    def experts(self, layer: LayerWeights, x: Tensor) -> Tensor:
        """Each token visits the experts of its largest router weights (Jiang et al. 2024, sec. 2.1)."""
        assert layer.router is not None
        weights = self.kernels.matmul(x, layer.router).float().softmax(dim=-1)
        weights, chosen = weights.topk(self.config.experts_per_token, dim=-1)
        if self.config.normalise_routing:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        if layer.stacked is not None and x.is_cuda and len(x) <= DENSE_TOKENS:
            return self._all_experts(layer.stacked, x, weights, chosen)
        result = torch.zeros_like(x)
        for index in sorted(set(chosen.flatten().tolist())):
            token, rank = (chosen == index).nonzero(as_tuple=True)
            part = self._mlp(layer.experts[index], x[token])
            result.index_add_(0, token, part * weights[token, rank, None].to(x.dtype))
        return result

    def _all_experts(
        self, stacked: tuple[Tensor, Tensor], x: Tensor, weights: Tensor, chosen: Tensor
    ) -> Tensor:
        """Every expert on every token, what was not chosen times zero.

        A few dozen tokens visit nearly all experts, and reading these is what takes the time; and unlike
        the loop it asks the device nothing, so it can be captured in a CUDA graph.
        """
        up, down = stacked
        tokens = x.expand(len(up), -1, -1)
        each = torch.bmm(self.kernels.silu_mul(torch.bmm(tokens, up.mT)), down.mT)  # [experts, T, hidden]
        share = torch.zeros((len(x), len(up)), device=x.device).scatter_(1, chosen, weights)
        return torch.einsum("eth,te->th", each.float(), share).to(x.dtype)


DENSE_TOKENS = 64
"""Up to so many tokens all experts are computed: twice the FLOPs or more, but the weights are read once
either way.
"""
