"""Runs shots on the engine's own kernels, weights and cache.

The operators are those of a real decoder with random weights: one call after the other takes the next layer's
weights and the next layer's cache, so that a GPU reads memory as it does in a step and not its L2 cache; on a CPU a
whole layer runs, untimed, between two calls. Blocks are drawn without repetition from the whole cache. Attention
includes the write of the new keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from calibrate.measure.grid import Limits, gemm_shapes
from calibrate.measure.inputs import Inputs
from calibrate.measure.shot import Sample, Shot
from calibrate.measure.steps import StepRounds
from engine.batch import Row, pack
from engine.kernels.timing import Call, Timer, copies_past_cache
from engine.llm import LLM
from engine.model import DENSE_TOKENS, Layout
from engine.weights import LayerWeights

__all__ = ["Workbench"]

LEAST_COPIES = 2
CALLS_TO_TIME = 8


class Workbench:
    """Measures shots on *llm*; every number is drawn from *seed*."""

    def __init__(self, llm: LLM, timer: Timer, seed: int = 0) -> None:
        self.llm, self.timer, self.seed = llm, timer, seed
        self.decoder, self.cache = llm.runner.decoder, llm.runner.cache
        self.config, self.kernels = self.decoder.config, self.decoder.kernels
        self.device, self.dtype = self.decoder.device, self.decoder.dtype
        self.inputs = Inputs(self.decoder, self.cache, seed)
        self.cache.data.normal_()
        if self.device.type == "cpu" and timer.between is None:
            timer.between = self._one_layer()
        self._rounds = StepRounds(llm, timer.clock, seed)
        self._builders: dict[str, Callable[[Shot, int], Iterator[Call]]] = {
            "gemm": self._gemm,
            "attn_decode": self._decode,
            "attn_prefill": self._prefill,
            "moe": self._moe,
            "streams": self._stream,
            "moves": self._moves,
            "launches": self._launch,
        }

    @property
    def limits(self) -> Limits:
        """Those of the engine."""
        settings = self.llm.settings
        return Limits(
            settings.max_num_seqs,
            settings.max_num_batched_tokens,
            settings.model_len(self.config),
            self.cache.num_blocks * self.cache.block_size,
            self.cache.num_host_blocks,
            self.cache.bytes_per_block,
            () if self.llm.runner.graphs is None else tuple(self.llm.runner.graphs.sizes),
        )

    @property
    def not_measured(self) -> dict[str, str]:
        """What this machine cannot show, and why."""
        found = {}
        if self.llm.runner.graphs is None:
            found["graph launches"] = "no CUDA graphs are captured here"
        if not self.cache.num_host_blocks:
            found["swap"] = "no host blocks"
        return found

    def measure(self, shot: Shot) -> Sample:
        """Time *shot*: its rows, in µs."""
        if shot.table == "steps":
            return Sample(tuple(self._rounds.run(shot["round"])))
        torch.manual_seed(self.seed)
        with torch.inference_mode():
            copies = min(self.config.num_layers, max(LEAST_COPIES, self._copies(shot)))
            calls = list(self._builders[shot.table](shot, copies))
            sample = self.timer.measure(calls, self._capturable(shot))
        row = {"latency_us": f"{sample.seconds * 1e6:.3f}", "spread_us": f"{sample.spread * 1e6:.3f}"}
        return Sample(({**row, "repeats": sample.repeats, "mode": sample.mode},))

    def pause(self) -> float:
        """Seconds between two calls: nothing on a GPU."""
        if self.timer.between is None:
            return 0.0
        start = self.timer.clock()
        for _ in range(CALLS_TO_TIME):
            self.timer.between()
        return (self.timer.clock() - start) / CALLS_TO_TIME

    def ceilings(self) -> dict[str, float]:
        """Bytes/s read and written by a large copy, FLOP/s of a large square product, of random numbers."""
        gpu = self.device.type == "cuda"
        elements, side = (1 << 29, 8192) if gpu else (1 << 24, 768)
        source = torch.randn(elements, device=self.device, dtype=self.dtype)
        target = torch.empty_like(source)
        alone = Timer(self.device, self.timer.budget, self.timer.clock)
        copy = alone.measure([lambda: target.copy_(source)])
        a, b = (self.inputs.random(side, side) for _ in range(2))
        out = torch.empty_like(a)
        product = alone.measure([lambda: torch.matmul(a, b, out=out)])
        return {
            "copy_bytes_per_s": 2 * source.nbytes / copy.seconds,
            "gemm_flops_per_s": 2 * side**3 / product.seconds,
        }

    def _one_layer(self) -> Call:
        """A layer of a small decode step, another one every time: what runs between two calls of an operator."""
        count, length = min(4, self.cache.num_blocks), self.cache.block_size
        table, ends = self.inputs.table([length] * count), self.inputs.ints([length] * count)
        layout = Layout(
            positions=torch.arange(count, device=self.device),
            slots=self.inputs.slots(table, [length - 1] * count, 1),
            num_decodes=count,
            decode_table=table,
            decode_lens=ends,
            max_context=length,
        )
        x, indices = self.inputs.random(count, self.config.hidden_size), cycle(range(self.config.num_layers))

        def call() -> None:
            self.decoder.layer(next(indices), x, torch.zeros_like(x), layout, self.cache)

        return call

    def _copies(self, shot: Shot) -> int:
        return copies_past_cache(max(1, int(shot.bytes)), self.device)

    def _capturable(self, shot: Shot) -> bool:
        """Whether a call asks the device nothing and is no graph itself."""
        if shot.table == "moe":
            stacked = self.decoder.weights.layers[0].stacked is not None
            return self.kernels.graph_safe and stacked and shot["num_tokens"] <= DENSE_TOKENS
        return self.kernels.graph_safe and shot.table not in ("moves", "launches")

    def _layers(self, copies: int) -> Iterator[tuple[int, LayerWeights]]:
        return iter(list(enumerate(self.decoder.weights.layers))[:copies])

    # the operators

    def _gemm(self, shot: Shot, copies: int) -> Iterator[Call]:
        m, n, k = shot["m"], shot["n"], shot["k"]
        name = next(name for name, shape in gemm_shapes(self.config).items() if shape == (n, k))
        x = self.inputs.random(m, k)
        for _, layer in self._layers(1 if name == "lm_head" else copies):
            weight: Any = self._matrix(layer, name)
            yield partial(self.kernels.matmul, x, weight)

    def _matrix(self, layer: LayerWeights, name: str) -> Any:
        match name:
            case "qkv":
                return layer.qkv.weight
            case "out":
                return layer.out.weight
            case "gate_up":
                return layer.experts[0][0].weight
            case "down":
                return layer.experts[0][1].weight
        return self.decoder.weights.lm_head

    def _decode(self, shot: Shot, copies: int) -> Iterator[Call]:
        lens = [int(length) for length in shot["kv_lens"].split(";")]
        table, ends = self.inputs.table(lens), self.inputs.ints(lens)
        slots = self.inputs.slots(table, [length - 1 for length in lens], 1)
        q, k, v = self.inputs.qkv(len(lens))
        out, longest = torch.empty_like(q), max(lens)
        for index, _ in self._layers(copies):
            keys, values = self.cache.layers[index]

            def call(keys: Tensor = keys, values: Tensor = values) -> None:
                self.kernels.kv_write(k, v, keys, values, slots)
                scale = self.decoder.scale
                self.kernels.decode_attention(out, q, keys, values, table, ends, scale, max_context=longest)

            yield call

    def _prefill(self, shot: Shot, copies: int) -> Iterator[Call]:
        num, chunk, context = shot["batch_size"], shot["chunk"], shot["context"]
        table, ends = self.inputs.table([chunk + context] * num), self.inputs.ints([chunk + context] * num)
        slots = self.inputs.slots(table, [context] * num, chunk)
        start = self.inputs.ints([i * chunk for i in range(num + 1)])
        q, k, v = self.inputs.qkv(num * chunk)
        out = torch.empty_like(q)
        for index, _ in self._layers(copies):
            keys, values = self.cache.layers[index]

            def call(keys: Tensor = keys, values: Tensor = values) -> None:
                self.kernels.kv_write(k, v, keys, values, slots)
                scale = self.decoder.scale
                self.kernels.prefill_attention(
                    out, q, keys, values, table, start, ends, scale, max_query=chunk
                )

            yield call

    def _stream(self, shot: Shot, copies: int) -> Iterator[Call]:
        tokens, h, weights = shot["tokens"], self.config.hidden_size, self.decoder.weights
        match shot["op"]:
            case "embedding":
                ids = torch.randint(0, self.config.vocab_size, (tokens,), device=self.device)
                yield lambda: weights.embedding[ids]
            case "add_rms_norm":
                x, residual, eps = (
                    self.inputs.random(tokens, h),
                    self.inputs.random(tokens, h),
                    self.config.rms_eps,
                )
                yield lambda: self.kernels.add_rms_norm(x, residual, weights.final_norm, eps)
            case "rope":
                q, k, _ = self.inputs.qkv(tokens)
                places = torch.arange(tokens, device=self.device) % len(self.decoder.rotation)
                yield lambda: self.kernels.rope(q, k, places, self.decoder.rotation)
            case "silu_mul":
                gate_up = self.inputs.random(tokens, 2 * self.config.intermediate_size)
                yield lambda: self.kernels.silu_mul(gate_up)
            case "kv_write":
                yield from self._kv_write(tokens, copies)
            case "sampling":
                logits = torch.randn(tokens, self.config.vocab_size, device=self.device)
                yield lambda: self.kernels.sample(logits, greedy=True)

    def _moe(self, shot: Shot, copies: int) -> Iterator[Call]:
        x = self.inputs.random(shot["num_tokens"], self.config.hidden_size)
        routed = [layer for layer in self.decoder.weights.layers if layer.router is not None]
        for layer in routed[:copies]:
            yield partial(self.decoder.experts, layer, x)

    def _moves(self, shot: Shot, copies: int) -> Iterator[Call]:
        """One call moves all blocks of a shot in all layers."""
        op, pattern, count = shot["op"], shot["pattern"], shot["blocks"]
        if op == "block_copy":
            blocks = self.inputs.order(self.cache.num_blocks, pattern)
            pairs = list(zip(blocks[:count], blocks[count : 2 * count]))
            yield partial(self.cache.copy, pairs)
            return
        device, host = (
            self.inputs.order(self.cache.num_blocks, pattern),
            self.inputs.order(self.cache.num_host_blocks, pattern),
        )
        if pattern == "coalesced":
            assert self.cache.host is not None
            sides = [self.cache.data.flatten(0, 1), self.cache.host.flatten(0, 1)]
            sources, targets = sides if op == "swap_out" else sides[::-1]
            yield partial(copy_runs, sources, targets, count)
            return
        pairs = list(zip(device[:count], host[:count]))
        if op == "swap_out":
            yield partial(self.cache.swap_out, pairs, coalesced=pattern == "gathered")
        else:
            back = [(there, here) for here, there in pairs]
            yield partial(self.cache.swap_in, back, coalesced=pattern == "gathered")

    def _launch(self, shot: Shot, copies: int) -> Iterator[Call]:
        """A decode step of equal contexts."""
        size, length, graphs = shot["num_seqs"], shot["context"], self.llm.runner.graphs
        table = self.inputs.table([length] * size).cpu().numpy()
        rows = [Row([1], length - 1, row[: -(-length // self.cache.block_size)], 1) for row in table]
        batch = pack(rows, self.cache.block_size)
        if shot["launch"] == "graph":
            assert graphs is not None
            graphs.load(batch, size)
            yield partial(graphs.replay, size)
            return
        tokens, layout = self.llm.runner.upload(batch)
        yield partial(self.decoder.forward, tokens, layout, self.cache)

    def _kv_write(self, tokens: int, copies: int) -> Iterator[Call]:
        _, k, v = self.inputs.qkv(tokens)
        slots = torch.randperm(self.cache.num_blocks * self.cache.block_size, device=self.device)[:tokens]
        for index, _ in self._layers(copies):
            keys, values = self.cache.layers[index]
            yield partial(self.kernels.kv_write, k, v, keys, values, slots)


def copy_runs(sources: Tensor, targets: Tensor, count: int) -> None:
    """The first *count* blocks of every layer's K and V, one copy each."""
    for source, target in zip(sources, targets):
        target[:count].copy_(source[:count], non_blocking=True)
