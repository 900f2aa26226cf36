"""How fast the kernels are, as fractions of what the device was just measured to do.

    python3 -m engine.bench_kernels --json results.json

Ceilings first: copy bandwidth (bytes read and written) and the rate of a large matrix product, on random
numbers. Then decode attention as a fraction of that bandwidth and prefill attention as a fraction of that
rate, each beside what torch and others offer for the same shapes in the same run. Every result is compared
with the reference before it is timed. Needs torch and the standard library; without a GPU, tiny shapes show
that it works.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.kernels import Kernels, get_kernels
from engine.kernels.bench_operators import operator_work
from engine.kernels.bench_results import OURS, Result, format_table, verdicts, write_results
from engine.kernels.bench_shapes import CPU_SHAPES, GPU_SHAPES, Shape
from engine.kernels.rivals import DECODE_RIVALS, PREFILL_RIVALS, Problem, UnavailableError
from engine.kernels.timing import Call, Sample, Timer, copies_past_cache
from simulator.errors import ConfigurationError

__all__ = ["Bench", "main"]

SPLITS = (1, 2, 4, 8, 16, 32)


@dataclass
class Bench:
    """Measures on one device. *timer* may be any object with `Timer.measure`."""

    device: torch.device
    timer: Timer
    dtype: torch.dtype = torch.bfloat16
    results: list[Result] = field(default_factory=list)
    copy_bandwidth: float = 0.0  # bytes/s, read and written
    gemm_rate: float = 0.0  # FLOP/s
    sweep: bool = False  # variants of ours too
    keep: Callable[[Sequence[Result]], object] = len  # called as results come, such as to write them
    limit: float = 420.0  # seconds after which rivals are left out

    def __post_init__(self) -> None:
        self.started = self.timer.clock()

    def run(self, shapes: Sequence[Shape], forms: Sequence[Kernels]) -> list[Result]:
        self.measure_ceilings()
        for shape in shapes:
            self.measure_attention(shape, forms)
            self.keep(self.results)
        for kernels in forms:
            self.measure_operators(kernels)
            self.keep(self.results)
        return self.results

    def measure_ceilings(self) -> None:
        """What fractions are fractions of."""
        gpu = self.device.type == "cuda"
        self.copy_bandwidth = self._measure_copy(1 << 30 if gpu else 1 << 16)
        self.gemm_rate = self._measure_gemm(8192 if gpu else 64)

    def _measure_copy(self, elements: int) -> float:
        """Bytes/s, read and written, of a copy far larger than the cache."""
        source = torch.randn(elements, device=self.device, dtype=self.dtype)
        target = torch.empty_like(source)
        sample = self.timer.measure([lambda: target.copy_(source)])
        rate = 2 * source.nbytes / sample.seconds
        self._add("copy", f"{source.nbytes} bytes", "torch", sample, rate, 1.0)
        return rate

    def _measure_gemm(self, side: int) -> float:
        """FLOP/s of a square product of random numbers (zeros would run faster)."""
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        out = torch.empty_like(a)
        sample = self.timer.measure([lambda: torch.matmul(a, b, out=out)])
        rate = 2 * side**3 / sample.seconds
        self._add("gemm", f"{side} cubed", "torch", sample, rate, 1.0)
        return rate

    def measure_attention(self, shape: Shape, forms: Sequence[Kernels]) -> None:
        """Ours and the rivals', on the same numbers."""
        element = torch.empty(0, dtype=self.dtype).element_size()
        copies = copies_past_cache(shape.bytes(element), self.device)
        problems = [self.make_problem(shape, seed) for seed in range(copies)]
        expected = self.expected(problems[0], shape)
        for kernels in forms:
            build = partial(our_call, kernels, chunk=shape.chunk)
            self._attempt(shape, kernels.name, problems, expected, build, kernels.graph_safe)
        if self.sweep:
            self._sweep(shape, forms, problems, expected)
        rivals = DECODE_RIVALS if shape.chunk == 1 else PREFILL_RIVALS
        for name, rival in rivals.items():
            if self.timer.clock() - self.started > self.limit:
                self._refuse(shape, name, f"left out after {self.limit:.0f} s")
            else:
                self._attempt(shape, name, problems, expected, rival, True)

    def _sweep(
        self, shape: Shape, forms: Sequence[Kernels], problems: list[Problem], expected: torch.Tensor
    ) -> None:
        """Variants of ours that judge the defaults: splits of a decode, tiles of Triton's prefill."""
        by_name = {kernels.name: kernels for kernels in forms}
        if shape.chunk == 1 and (cuda := by_name.get("cuda")):
            for splits in SPLITS:
                build = partial(our_call, cuda, chunk=1, splits=splits)
                self._attempt(shape, f"cuda, {splits} splits", problems, expected, build, True)
        if shape.chunk > 1 and "triton" in by_name:
            for tiles in tile_variants():
                kernels: Any = get_kernels(self.device, self.dtype, "triton")
                kernels.prefill_tiles = tiles
                name = f"triton, {tiles.rows}x{tiles.columns} w{tiles.warps} s{tiles.stages}"
                build = partial(our_call, kernels, chunk=shape.chunk)
                self._attempt(shape, name, problems, expected, build, True)

    def _attempt(
        self,
        shape: Shape,
        form: str,
        problems: list[Problem],
        expected: torch.Tensor,
        build: Callable[[Problem], Call],
        capturable: bool,
    ) -> None:
        """Build, verify, time; what cannot run is a row with its cause."""
        try:
            calls = [build(problem) for problem in problems]
            verify(calls[0](), problems[0], expected)
            sample = self.timer.measure(calls, capturable)
        except (UnavailableError, ConfigurationError) as reason:
            self._refuse(shape, form, str(reason))
        except Exception as error:  # of a rival, or a wrong result: shown in the table, the others go on
            self._refuse(shape, form, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
        else:
            self._rate_attention(shape, form, sample, expected.element_size())

    def _rate_attention(self, shape: Shape, form: str, sample: Sample, element: int) -> None:
        decode = shape.chunk == 1
        rate = (shape.bytes(element) if decode else shape.flops()) / sample.seconds
        ceiling = self.copy_bandwidth if decode else self.gemm_rate
        self._add(shape.operator, shape.name, form, sample, rate, rate / ceiling)
        self.results[-1].kv_bytes, self.results[-1].group = shape.kv_bytes(element), shape.group

    def _refuse(self, shape: Shape, form: str, cause: str) -> None:
        self.results.append(Result(shape.operator, shape.name, form, cause=cause))

    def _add(
        self, operator: str, shape: str, form: str, sample: Sample, rate: float, fraction: float
    ) -> None:
        row = Result(operator, shape, form, sample.seconds, sample.spread, sample.repeats, sample.mode)
        row.rate, row.fraction = rate, fraction
        self.results.append(row)

    def make_problem(self, shape: Shape, seed: int) -> Problem:
        """Random numbers; every sequence has blocks of its own, in random order."""
        draw = torch.Generator(device=self.device).manual_seed(seed)
        counts = [-(-context // shape.block_size) for context in shape.contexts]
        order = torch.randperm(sum(counts), generator=draw, device=self.device).int()
        table = torch.zeros(len(counts), max(counts), dtype=torch.int32, device=self.device)
        for row, part in enumerate(torch.split(order, counts)):
            table[row, : len(part)] = part
        cache = (sum(counts), shape.block_size, shape.kv_heads, shape.dim)
        rows = (len(counts) * shape.chunk, shape.kv_heads * shape.group, shape.dim)
        q, k, v = (
            torch.randn(size, generator=draw, device=self.device, dtype=self.dtype)
            for size in (rows, cache, cache)
        )
        lens = torch.tensor(shape.contexts, dtype=torch.int32, device=self.device)
        scale = shape.dim**-0.5
        return Problem(q, k, v, table, lens, list(shape.contexts), shape.chunk, scale, torch.empty_like(q))

    def expected(self, problem: Problem, shape: Shape) -> torch.Tensor:
        """The reference form's result."""
        reference = get_kernels(self.device, self.dtype, "torch")
        our_call(reference, problem, shape.chunk)()
        return problem.out.clone()

    def measure_operators(self, kernels: Kernels) -> None:
        """The small operators, products with narrow weights and swapping, as shares of the copy bandwidth."""
        for work in operator_work(kernels, self.device, self.dtype):
            try:
                sample = self.timer.measure(work.calls(), work.capturable)
            except Exception as error:  # shown in the table; the others go on
                cause = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
                self.results.append(Result(work.operator, work.shape, kernels.name, cause=cause))
                continue
            rate = work.bytes / sample.seconds
            share = rate / self.copy_bandwidth
            self._add(work.operator, work.shape, kernels.name, sample, rate, share)


def tile_variants() -> list[Any]:
    """Prefill programs worth timing on Hopper."""
    from engine.kernels.triton_attention import Tiles

    return [
        Tiles(128, columns, warps, stages) for columns in (64, 128) for warps in (4, 8) for stages in (2, 3)
    ]


def our_call(kernels: Kernels, problem: Problem, chunk: int, splits: int = 0) -> Call:
    """One of our forms on *problem*, bounds known as the engine knows them."""
    p = problem
    longest = max(p.contexts)
    shared = (p.out, p.q, p.k_cache, p.v_cache, p.block_table)
    if chunk == 1:
        return lambda: kernels.decode_attention(*shared, p.context_lens, p.scale, longest, 0, splits)
    start = torch.arange(len(p.contexts) + 1, dtype=torch.int32, device=p.q.device) * chunk
    return lambda: kernels.prefill_attention(*shared, start, p.context_lens, p.scale, chunk)


def verify(returned: object, problem: Problem, expected: torch.Tensor) -> None:
    """Raise where a result is not the reference's; rivals return theirs as ``[B, heads, chunk, dim]``."""
    got = problem.out
    if isinstance(returned, torch.Tensor):
        alike = returned.dim() == 4 and returned.shape[1] == expected.shape[1]
        got = returned.transpose(1, 2).reshape(expected.shape) if alike else returned.reshape(expected.shape)
    error = (got.float() - expected.float()).abs().max().item()
    allowed = 0.02 * expected.float().abs().max().item() + 1e-3
    if not error <= allowed:
        raise ValueError(f"differs from the reference by {error:.3g}, allowed {allowed:.3g}")


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on."""
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
        query = "driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv"]
        try:
            facts["nvidia_smi"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            facts["nvidia_smi"] = f"not read: {error}"
    return facts


def available_forms(device: torch.device, dtype: torch.dtype) -> list[Kernels]:
    """Every form that runs here; what does not is printed with its cause."""
    forms = []
    for name in OURS if device.type == "cuda" else ("torch",):
        try:
            forms.append(get_kernels(device, dtype, name))
        except ConfigurationError as error:
            print(error)
    return forms


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="where raw results go")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds of repetition per figure")
    parser.add_argument("--sweep", action="store_true", help="time variants of the kernels too")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    before = environment(device)

    def keep(results: Sequence[Result]) -> None:
        if options.json:
            write_results(options.json, results, {"before": before, "after": environment(device)})

    bench = Bench(device, Timer(device, options.budget), sweep=options.sweep, keep=keep)
    shapes = GPU_SHAPES if device.type == "cuda" else CPU_SHAPES
    results = bench.run(shapes, available_forms(device, bench.dtype))
    print(format_table(results))
    print("\n".join(verdicts(results) if device.type == "cuda" else ["targets: open, no GPU here"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
