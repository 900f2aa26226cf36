"""Which shapes are measured: those that a step of the model can have, densest where time bends.

Matrix products change their kernel and their number of tiles at powers of two, so token counts come in pairs
(16 and 17): a curve through one side only is wrong just behind each edge. Decode attention varies batch, context
and, at an equal sum of contexts, their skew; prefill attention chunk and earlier context.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from calibrate.measure.shot import Shot
from engine.config import DecoderConfig

__all__ = ["Limits", "gemm_shapes", "operator_shots", "step_shots", "stream_bytes"]

ELEMENT = 2.0
"""Bytes per element as the simulator counts a 16-bit model; the law's efficiency takes up the difference."""
STREAMS = ("embedding", "add_rms_norm", "rope", "silu_mul", "kv_write", "sampling")


@dataclass(frozen=True)
class Limits:
    """The engine's: no larger step can occur. *num_tokens* is the room of the KV cache."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    num_tokens: int
    host_blocks: int = 0
    """Blocks on the host to swap to."""
    block_bytes: int = 0
    graph_sizes: tuple[int, ...] = ()
    """Captured batch sizes; empty: nothing is launched as a graph."""


def operator_shots(config: DecoderConfig, limits: Limits) -> list[Shot]:
    """Every operator shot worth taking, in no order."""
    found: dict[tuple[str, ...], Shot] = {}
    for family in (_gemm, _decode, _prefill, _moe, _stream, _moves, _launches):
        for shot in family(config, limits):  # several grids may ask for a shape: the first to need it counts
            there = found.get(shot.key)
            if there is None or shot.level < there.level:
                found[shot.key] = shot
    return list(found.values())


def step_shots(rounds: int) -> list[Shot]:
    """Whole steps: *rounds* random workloads through the engine."""
    return [Shot("steps", (("round", i),), level=i) for i in range(rounds)]


def gemm_shapes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs (n, k) of every matrix of a step, by name; routed experts are not measured."""
    heads, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {"qkv": (heads + 2 * kv, config.hidden_size), "out": (config.hidden_size, heads)}
    if not config.is_moe:
        shapes["gate_up"] = (2 * config.intermediate_size, config.hidden_size)
        shapes["down"] = (config.hidden_size, config.intermediate_size)
    return {**shapes, "lm_head": (config.vocab_size, config.hidden_size)}


def stream_bytes(config: DecoderConfig, name: str, tokens: int) -> int:
    """Bytes that *name* moves for *tokens* tokens or rows, counted as `simulator.steptime.operators` counts."""
    rotated = (config.num_heads + config.num_kv_heads) * config.head_dim
    per_token = {
        "embedding": 2 * ELEMENT * config.hidden_size,
        "add_rms_norm": 4 * ELEMENT * config.hidden_size,
        "rope": 2 * ELEMENT * rotated,
        "silu_mul": 3 * ELEMENT * config.intermediate_size,
        "kv_write": 2 * ELEMENT * 2 * config.num_kv_heads * config.head_dim,
        "sampling": 4.0 * config.vocab_size,  # fp32 logits
    }
    return int(per_token[name] * tokens)


def edges(most: int) -> Iterator[tuple[int, int]]:
    """(token count, level) up to *most*: powers of two, their right neighbours, then what lies between."""
    power, seen = 1, set()
    while power <= most:
        between = [(power + power // 2, 2), (power + power // 4, 3)] if power >= 4 else []
        for count, level in [(power, 0), (power + 1, 1) if power >= 16 else (power, 0), *between]:
            if count <= most and count not in seen:
                seen.add(count)
                yield count, level
        power *= 2
    if most > 0 and most not in seen:
        yield most, 0


def _gemm(config: DecoderConfig, limits: Limits) -> Iterator[Shot]:
    for (n, k), rows in _distinct_gemms(config, limits):
        for m, level in edges(rows):
            work = {"flops": 2.0 * m * n * k, "bytes": ELEMENT * (n * k + m * k + m * n)}
            yield Shot("gemm", (("m", m), ("n", n), ("k", k)), level, **work)


def _distinct_gemms(config: DecoderConfig, limits: Limits) -> list[tuple[tuple[int, int], int]]:
    """Shapes with the most rows they meet: the LM head sees sampled rows alone."""
    most: dict[tuple[int, int], int] = {}
    for name, shape in gemm_shapes(config).items():
        rows = limits.max_num_seqs if name == "lm_head" else limits.max_num_batched_tokens
        most[shape] = max(rows, most.get(shape, 0))
    return list(most.items())


def _decode(config: DecoderConfig, limits: Limits) -> Iterator[Shot]:
    contexts = [
        8,
        *(context for context, level in edges(limits.max_model_len) if level == 0 and context >= 16),
    ]
    for batch, level in edges(limits.max_num_seqs):
        if level not in (0, 2):
            continue
        for place, context in enumerate(contexts):
            yield from _one_decode(config, limits, [context] * batch, level + place % 2)
            if batch >= 4 and context >= 64:
                long = min(limits.max_model_len, context * batch // 2)
                rest = (context * batch - long) // (batch - 1)
                yield from _one_decode(config, limits, [long] + [rest] * (batch - 1), 1)


def _one_decode(config: DecoderConfig, limits: Limits, lens: list[int], level: int) -> Iterator[Shot]:
    if min(lens) < 1 or sum(-(-length // 16) * 16 for length in lens) > limits.num_tokens:
        return
    shape: tuple[tuple[str, str | int], ...] = (*_heads(config), ("kv_lens", ";".join(map(str, lens))))
    total = float(sum(lens)) * config.head_dim
    flops, moved = 4.0 * config.num_heads * total, 2.0 * ELEMENT * config.num_kv_heads * total
    yield Shot("attn_decode", shape, level, flops=flops, bytes=moved)


def _prefill(config: DecoderConfig, limits: Limits) -> Iterator[Shot]:
    chunks = [(chunk, level) for chunk, level in edges(limits.max_num_batched_tokens) if chunk >= 8]
    contexts = [0, *(count for count, level in edges(limits.max_model_len) if level == 0 and count >= 32)]
    for chunk, level in chunks:
        for place, context in enumerate(contexts):
            yield from _one_prefill(config, limits, chunk, context, 1, level + place % 2)
        for num in (2, 4):
            yield from _one_prefill(config, limits, chunk, 0, num, level + 1)


def _one_prefill(
    config: DecoderConfig, limits: Limits, chunk: int, context: int, num: int, level: int
) -> Iterator[Shot]:
    length = chunk + context
    fits = length <= limits.max_model_len and num * chunk <= limits.max_num_batched_tokens
    if not fits or num * (length + 16) > limits.num_tokens:
        return
    shape = (*_heads(config), ("batch_size", num), ("chunk", chunk), ("context", context))
    flops = 4.0 * config.num_heads * config.head_dim * num * chunk * (context + (chunk + 1) / 2)
    yield Shot("attn_prefill", shape, level, flops=flops)


def _stream(config: DecoderConfig, limits: Limits) -> Iterator[Shot]:
    for name in STREAMS:
        for tokens, level in edges(
            limits.max_num_seqs if name == "sampling" else limits.max_num_batched_tokens
        ):
            size = stream_bytes(config, name, tokens)
            yield Shot(
                "streams", (("op", name), ("tokens", tokens), ("bytes", size)), level % 2, bytes=5.0 * size
            )


def _moe(config: DecoderConfig, limits: Limits) -> Iterator[Shot]:
    """The routed experts of a layer, router included; random routers spread tokens evenly."""
    if not config.is_moe:
        return
    matrix = 3.0 * config.hidden_size * config.intermediate_size
    for tokens, level in edges(limits.max_num_batched_tokens):
        choices = tokens * config.experts_per_token
        shape: tuple[tuple[str, str | int], ...] = (
            ("num_tokens", tokens),
            ("hidden_size", config.hidden_size),
            ("inter_size", config.intermediate_size),
            ("topk", config.experts_per_token),
            ("num_experts", config.num_experts),
            ("tp", 1),
            ("ep", 1),
            ("distribution", "uniform"),
        )
        moved = ELEMENT * matrix * min(choices, config.num_experts)
        yield Shot("moe", shape, level, flops=2.0 * matrix * choices, bytes=moved)


def _moves(config: DecoderConfig, limits: Limits) -> Iterator[Shot]:
    """Blocks copied on the device, and swapped to the host and back: one by one, gathered, and as one run.

    A piece is a block of a layer's K or V: moved one by one each is a copy of its own, else a layer's are one.
    """
    device, pieces = limits.num_tokens // 16, 2 * config.num_layers
    for op in ("block_copy", "swap_out", "swap_in"):
        room = device // 2 if op == "block_copy" else min(limits.host_blocks, device)
        for blocks, level in edges(min(room, MOST_BLOCKS)):
            if level:
                continue
            for pattern in COPY_PATTERNS if op == "block_copy" else SWAP_PATTERNS:
                size = blocks * limits.block_bytes
                copies = pieces * blocks if pattern == "each" else pieces
                amount = (("blocks", blocks), ("copies", copies), ("bytes", size))
                shape = (("op", op), ("pattern", pattern), *amount)
                yield Shot("moves", shape, 1, bytes=(40.0 if op != "block_copy" else 2.0) * size)


def _launches(config: DecoderConfig, limits: Limits) -> Iterator[Shot]:
    """The same decode steps launched kernel by kernel and as a graph; a graph has every size, an eager step any."""
    context = min(256, limits.max_model_len // 2)
    for size in limits.graph_sizes:
        if size & (size - 1) or size * (context + 16) > limits.num_tokens:
            continue
        for launch in ("eager", "graph"):
            shape = (("launch", launch), ("num_seqs", size), ("context", context))
            yield Shot("launches", shape, 1, bytes=20e9)


MOST_BLOCKS = 256
COPY_PATTERNS = ("scattered", "run")
SWAP_PATTERNS = ("each", "gathered", "coalesced")


def _heads(config: DecoderConfig) -> tuple[tuple[str, int], ...]:
    return ("n_q", config.num_heads), ("n_kv", config.num_kv_heads), ("head_dim", config.head_dim)
