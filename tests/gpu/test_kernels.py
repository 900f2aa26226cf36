"""The kernels on a real GPU: the list that every form must satisfy, graphs, streams, and a memory checker."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

try:
    import torch
except ImportError:
    raise unittest.SkipTest("no torch") from None

ROOT = Path(__file__).resolve().parents[2]


def kernels_or_skip(backend: str, dtype: torch.dtype):
    """The form *backend* on the first GPU; skips where that cannot run, with the cause."""
    if not torch.cuda.is_available():
        raise unittest.SkipTest("no CUDA device")
    from engine.kernels import get_kernels
    from simulator.errors import ConfigurationError

    try:
        return get_kernels("cuda", dtype, backend)
    except ConfigurationError as error:
        raise unittest.SkipTest(str(error)) from None


def assert_conforms(backend: str, dtype: torch.dtype) -> None:
    from engine.kernels.conformance import run

    kernels = kernels_or_skip(backend, dtype)
    print(kernels.describe())
    failures = {name: cause for name, cause in run(kernels, dtype).items() if cause}
    assert not failures, "\n".join(f"{name}: {cause}" for name, cause in failures.items())


def test_cuda_bfloat16():
    assert_conforms("cuda", torch.bfloat16)


def test_cuda_float16():
    assert_conforms("cuda", torch.float16)


def test_triton_bfloat16():
    assert_conforms("triton", torch.bfloat16)


def test_triton_float16():
    assert_conforms("triton", torch.float16)


def test_triton_float32():
    assert_conforms("triton", torch.float32)


def test_torch_bfloat16():
    assert_conforms("torch", torch.bfloat16)


def decode_inputs(
    contexts: list[int], block_size: int = 16, dim: int = 128, kv_heads: int = 2, group: int = 4
):
    """q, caches, table and lengths for sequences with blocks of their own."""
    draw = torch.Generator(device="cuda").manual_seed(5)
    wide = -(-max(contexts) // block_size)
    blocks = len(contexts) * wide
    shape = (blocks, block_size, kv_heads, dim)
    k, v = (torch.randn(shape, generator=draw, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn(len(contexts), kv_heads * group, dim, generator=draw, device="cuda", dtype=torch.bfloat16)
    table = torch.randperm(blocks, generator=draw, device="cuda").int().view(len(contexts), wide)
    return q, k, v, table, torch.tensor(contexts, dtype=torch.int32, device="cuda")


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(got.float(), wanted.float(), rtol=2e-2, atol=4e-3)


def test_a_captured_decode_follows_new_lengths():
    """One graph, replayed with other lengths, tables and queries, among them padding (0)."""
    for backend in ("cuda", "triton"):
        kernels = kernels_or_skip(backend, torch.bfloat16)
        q, k, v, table, lens = decode_inputs([700, 1024, 3, 65])
        out = torch.empty_like(q)
        arguments = (out, q, k, v, table, lens, 0.09, 1024)
        kernels.decode_attention(*arguments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kernels.decode_attention(*arguments)
        for contexts in ([1, 0, 1024, 512], [1024] * 4, [0, 0, 0, 7]):
            lens.copy_(torch.tensor(contexts, dtype=torch.int32))
            q.normal_()
            table.copy_(table[torch.randperm(4, device="cuda")])
            out.fill_(torch.nan)
            graph.replay()
            expected = torch.empty_like(q)
            kernels_or_skip("torch", torch.bfloat16).decode_attention(expected, *arguments[1:])
            assert_close(out, expected)


class DecodeStep:
    """The operators of a decode step, on inputs that stay where they are."""

    def __init__(self, kernels) -> None:
        self.kernels = kernels
        self.q, self.k, self.v, self.table, self.lens = decode_inputs([100, 30])
        self.new = torch.randn(2, 2, 128, device="cuda", dtype=torch.bfloat16)
        self.slots = torch.tensor([-1, 5], device="cuda")
        self.x = torch.randn(2, 1024, device="cuda", dtype=torch.bfloat16)
        self.weight = torch.rand(1024, device="cuda", dtype=torch.bfloat16)
        angles = torch.randn(128, 64, device="cuda")
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
        self.positions = self.lens.long()
        self.heat = torch.tensor([0.0, 0.8], device="cuda")
        self.seeds = torch.tensor([3, 4], device="cuda")

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        kernels, query, key = self.kernels, self.q.clone(), self.new.clone()
        kernels.rope(query, key, self.positions, self.cos_sin)
        kernels.kv_write(key, self.new, self.k, self.v, self.slots)
        out = torch.empty_like(query)
        kernels.decode_attention(out, query, self.k, self.v, self.table, self.lens, 0.09, 112)
        normed, total = kernels.add_rms_norm(self.x, out.view(2, 1024), self.weight, 1e-5)
        logits = kernels.silu_mul(normed + total)
        return kernels.sample(logits, temperature=self.heat, seeds=self.seeds, steps=self.seeds), logits


def test_a_decode_step_can_be_captured():
    """All operators of a decode step in one graph give what they give outside it."""
    for backend in ("cuda", "triton"):
        kernels = kernels_or_skip(backend, torch.bfloat16)
        assert kernels.graph_safe
        step = DecodeStep(kernels)
        eager = step.run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step.run()
        graph.replay()
        assert torch.equal(captured[0], eager[0]) and torch.equal(captured[1], eager[1])


def test_launches_go_to_the_current_stream():
    """Work queued behind a long kernel of a side stream sees that kernel's result."""
    kernels = kernels_or_skip("cuda", torch.bfloat16)
    weight = torch.ones(4096, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        x = torch.zeros(512, 4096, device="cuda", dtype=torch.bfloat16)
        torch.cuda._sleep(50_000_000)
        x += 3
        normed = kernels.rms_norm(x, weight, 0.0)
    stream.synchronize()
    assert torch.equal(normed, torch.ones_like(normed))


def test_many_long_sequences():
    """Shapes of a benchmark: more blocks than fit at a time, splits of several tiles, skewed lengths."""
    torch_form = kernels_or_skip("torch", torch.bfloat16)
    for group in (1, 4, 8):
        inputs = decode_inputs([8192, 1, 5000, 4097] * 4, kv_heads=8, group=group)
        expected = torch.empty_like(inputs[0])
        torch_form.decode_attention(expected, *inputs, 0.09, 8192)
        for backend in ("cuda", "triton"):
            out = torch.empty_like(expected)
            kernels_or_skip(backend, torch.bfloat16).decode_attention(out, *inputs, 0.09, 8192)
            assert_close(out, expected)


def test_a_long_prefill_with_context():
    for backend in ("cuda", "triton"):
        kernels = kernels_or_skip(backend, torch.bfloat16)
        _, k, v, table, _ = decode_inputs([4096, 4096], kv_heads=4)
        start = torch.tensor([0, 2048, 2148], dtype=torch.int32, device="cuda")
        lens = torch.tensor([2048, 4001], dtype=torch.int32, device="cuda")
        q = torch.randn(2148, 16, 128, device="cuda", dtype=torch.bfloat16)
        out, expected = torch.empty_like(q), torch.empty_like(q)
        kernels.prefill_attention(out, q, k, v, table, start, lens, 0.09, 2048)
        torch_form = kernels_or_skip("torch", torch.bfloat16)
        torch_form.prefill_attention(expected, q, k, v, table, start, lens, 0.09)
        assert_close(out, expected)


def test_memory_under_compute_sanitizer():
    kernels_or_skip("cuda", torch.bfloat16)
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        raise unittest.SkipTest("no compute-sanitizer")
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable]
    command += ["-m", "engine.kernels.conformance", "--backend", "cuda", "--dtype", "bfloat16"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
    except subprocess.TimeoutExpired:
        raise unittest.SkipTest("compute-sanitizer took more than 200 s") from None
    text = done.stdout + done.stderr
    if "not supported" in text:
        raise unittest.SkipTest("compute-sanitizer does not support this device here")
    assert done.returncode == 0, text[-3000:]
