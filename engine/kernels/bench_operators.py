"""What the kernel benchmark times beside attention: each operator's calls and the bytes that it must move."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.kernels.interface import Kernels
from engine.kernels.timing import Call, copies_past_cache
from engine.kernels.weights import FORMATS, quantize

__all__ = ["Work", "operator_work"]


@dataclass(frozen=True)
class Work:
    """One row to measure; *calls* builds the calls, each on inputs of its own."""

    operator: str
    shape: str
    bytes: int
    calls: Callable[[], Sequence[Call]]
    capturable: bool = True


def operator_work(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> Iterator[Work]:
    """Every operator at the width of an 8B model; tiny without a GPU."""
    gpu = device.type == "cuda"
    graph = kernels.graph_safe
    yield from elementwise(kernels, device, dtype, 8192 if gpu else 4, 4096 if gpu else 64, graph)
    yield from narrow_weights(kernels, device, dtype, 16, 4096 if gpu else 128, graph)
    yield from sampling(kernels, device, 64 if gpu else 2, 128_256 if gpu else 100, graph)
    yield from swapping(kernels, device, dtype, 1024 if gpu else 8)


def elementwise(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, rows: int, width: int, graph: bool
) -> Iterator[Work]:
    """Norms and activation; the residual is a tensor of its own."""
    weight = torch.rand(width, device=device, dtype=dtype)
    size = rows * width * weight.element_size()

    def inputs() -> list[Tensor]:
        count = copies_past_cache(2 * size, device) + 1
        return [torch.randn(rows, width, device=device, dtype=dtype) for _ in range(count)]

    def norms() -> list[Call]:
        return [partial(kernels.rms_norm, x, weight, 1e-5) for x in inputs()]

    def residual_norms() -> list[Call]:
        x = inputs()
        pairs = zip(x, x[1:] + x[:1], strict=True)
        return [partial(kernels.add_rms_norm, one, other, weight, 1e-5) for one, other in pairs]

    def activations() -> list[Call]:
        return [partial(kernels.silu_mul, x) for x in inputs()]

    shape = f"{rows} x {width}"
    yield Work("rms_norm", shape, 2 * size, norms, graph)
    yield Work("add_rms_norm", shape, 4 * size, residual_norms, graph)
    yield Work("silu_mul", shape, size + size // 2, activations, graph)


def narrow_weights(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, rows: int, side: int, graph: bool
) -> Iterator[Work]:
    """A decode step's product, dense and with fewer bits; bytes are the weight's."""
    x = torch.randn(rows, side, device=device, dtype=dtype)
    dense = torch.randn(side, side, device=device, dtype=dtype)

    def products(name: str) -> list[Call]:
        count = copies_past_cache(dense.nbytes // 4, device)
        weights = [torch.randn_like(dense) for _ in range(count)]
        if name == "dense":
            return [partial(kernels.matmul, x, weight) for weight in weights]
        return [partial(kernels.matmul, x, quantize(weight, name)) for weight in weights]

    for name in ("dense", *FORMATS):
        size = dense.nbytes if name == "dense" else quantize(dense, name).nbytes
        yield Work("matmul", f"{rows} x {side} x {side} {name}", size, partial(products, name), graph)


def sampling(
    kernels: Kernels, device: torch.device, rows: int, vocabulary: int, graph: bool
) -> Iterator[Work]:
    """Logits in fp32 to tokens; bytes are the logits' once."""
    logits = torch.randn(rows, vocabulary, device=device)
    seeds = torch.arange(rows, device=device)
    heat, top_p = torch.full((rows,), 0.8, device=device), torch.full((rows,), 0.9, device=device)
    top_k = torch.full((rows,), 50, dtype=torch.int32, device=device)
    draw = partial(kernels.sample, logits, temperature=heat, seeds=seeds, steps=seeds)
    shape = f"{rows} x {vocabulary}"
    yield Work("sample", shape, logits.nbytes, lambda: [draw], graph)
    filtered = partial(draw, top_k=top_k, top_p=top_p)
    yield Work("sample", f"{shape} top-k top-p", logits.nbytes, lambda: [filtered], graph)


def swapping(kernels: Kernels, device: torch.device, dtype: torch.dtype, blocks: int) -> Iterator[Work]:
    """Every other block of 16 tokens of an 8B model's layer to pinned memory and back."""
    cache = torch.randn(blocks, 16, 8, 128, device=device, dtype=dtype)
    host = torch.empty(cache.shape, dtype=dtype, pin_memory=device.type == "cuda")
    pairs = [(i, blocks - 1 - i) for i in range(0, blocks, 2)]
    moved = len(pairs) * cache[0].nbytes
    for name, move in (("swap_out", kernels.swap_out), ("swap_in", kernels.swap_in)):
        for coalesced in (True, False):
            call = partial(move, cache, host, pairs, coalesced)
            shape = f"{len(pairs)} blocks {'at once' if coalesced else 'one by one'}"
            yield Work(name, shape, moved, partial(list, [call]), False)
