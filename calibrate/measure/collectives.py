"""Collectives between the devices of one machine, one process per rank: NCCL on GPUs, gloo between CPU processes.

What is asked of every operation and size: groups of 2, 4, 8 … ranks, messages from 1 KiB on (the whole result, as
`simulator.steptime.law_collective` counts). A group first agrees on the number of repeats, for ranks that each decide
alone wait for each other for ever; then every rank times the same calls, and the slowest rank's median counts. Sending
is timed there and back, and halved: what arrives counts, not what has left. On a GPU the calls are captured in a graph,
as an engine launches them; between CPU processes the clock is the wall's, since most of a collective is waiting.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from calibrate.measure.shot import Sample, Shot
from engine.kernels.timing import LEAST, MOST, Call, capture, run_all, summarize, time_events
from engine.kernels.timing import Sample as Timing
from simulator.errors import ConfigurationError

__all__ = ["OPERATIONS", "Ranks", "collective_shots", "group_sizes"]

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
SMALLEST = 2**10
LARGEST = {"cuda": 2**28, "cpu": 2**24}
"""Bytes of the largest message."""
BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
NAMES = {"nccl": "NCCL", "gloo": "gloo"}
"""Column ``impl`` of the public table of collectives."""
CALLS = 10
"""Calls in one graph."""
PATIENCE = 120.0
"""Seconds after which a rank that does not answer is given up."""


def group_sizes(ranks: int) -> list[int]:
    """2, 4, 8 … ranks, and all of them."""
    return sorted({ranks, *(2**i for i in range(1, ranks.bit_length()) if 2**i <= ranks)})


def collective_shots(ranks: int, kind: str, operations: tuple[str, ...] = OPERATIONS) -> list[Shot]:
    """Every message worth sending between up to *ranks* ranks on devices of *kind* (``cuda`` or ``cpu``)."""
    shots = []
    for name in operations:
        for size in group_sizes(ranks) if name != "send_recv" else [2]:
            for exponent in range(SMALLEST.bit_length() - 1, LARGEST[kind].bit_length()):
                for message, level in ((2**exponent, exponent % 2), (3 * 2 ** (exponent - 1), 2)):
                    whole = -(-message // (16 * size)) * 16 * size  # equal parts of whole elements
                    shape = (("op", name), ("num_gpus", size), ("bytes", whole))
                    shots.append(Shot("collectives", shape, level, bytes=float(whole)))
    return shots


class Ranks:
    """*size* processes that run one collective after another; *budget* s are spent repeating each.

    A context manager. A rank that fails or falls silent ends all of them, and the next shot starts new ones.
    """

    def __init__(self, size: int, kind: str, budget: float) -> None:
        if size < 2:
            raise ConfigurationError(f"--ranks {size}: a collective needs at least 2")
        if kind == "cuda" and size > torch.cuda.device_count():
            raise ConfigurationError(f"--ranks {size}: {torch.cuda.device_count()} GPUs are here")
        self.size, self.kind, self.budget = size, kind, budget
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._store: tempfile.TemporaryDirectory[str] | None = None

    @property
    def backend(self) -> str:
        """``NCCL`` or ``gloo``."""
        return NAMES[BACKENDS[self.kind]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def missing(self) -> dict[str, str]:
        """Operations that the backend does not have, each with its own words."""
        found = {}
        for name in OPERATIONS:
            try:
                self.time(name, 2, SMALLEST)
            except RuntimeError as error:
                found[name] = str(error)
        return found

    def measure(self, shot: Shot) -> Sample:
        """The row of *shot*, in µs: of its slowest rank."""
        timing = self.time(shot["op"], shot["num_gpus"], shot["bytes"])
        row = {"latency_us": f"{timing.seconds * 1e6:.3f}", "spread_us": f"{timing.spread * 1e6:.3f}"}
        return Sample(({**row, "repeats": timing.repeats, "mode": timing.mode},))

    def time(self, op: str, size: int, message: int) -> Timing:
        """Seconds of *op* on *message* bytes between the first *size* ranks. Raises RuntimeError if a rank does."""
        if not self._processes:
            self._start()
        for pipe in self._pipes[:size]:
            with suppress(OSError):  # a rank that has ended: its answer says so
                pipe.send((op, size, message))
        answers = [self._answer(rank) for rank in range(size)]
        for answer in answers:
            if isinstance(answer, str):
                self.stop()
                raise RuntimeError(answer)
        return max(answers, key=lambda timing: timing.seconds)  # type: ignore[union-attr, return-value]

    def stop(self) -> None:
        """End all ranks."""
        for pipe in self._pipes:
            with suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()
        self._pipes, self._processes = [], []
        if self._store is not None:
            self._store.cleanup()

    def _start(self) -> None:
        self._store = tempfile.TemporaryDirectory(prefix="ranks-")
        address = f"file://{Path(self._store.name) / 'store'}"
        context = multiprocessing.get_context("spawn")
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            place = Place(rank, self.size, self.kind, address, self.budget)
            process = context.Process(target=work, args=(place, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def _answer(self, rank: int) -> Timing | str:
        """What *rank* says, or what became of it."""
        pipe = self._pipes[rank]
        if not pipe.poll(PATIENCE):
            return f"rank {rank} has not answered within {PATIENCE:.0f} s"
        try:
            answer: Timing | str = pipe.recv()
        except (EOFError, OSError):
            return f"rank {rank} has ended, exit code {self._processes[rank].exitcode}"
        return answer


@dataclass(frozen=True)
class Place:
    """Which rank a process is."""

    rank: int
    size: int
    kind: str
    address: str
    budget: float

    @property
    def device(self) -> torch.device:
        """Its own GPU, or the CPU."""
        return torch.device(f"cuda:{self.rank}" if self.kind == "cuda" else "cpu")


def work(place: Place, pipe: Connection) -> None:
    """One rank: time what it is told until it is told nothing."""
    torch.set_num_threads(1)
    if place.kind == "cuda":
        torch.cuda.set_device(place.device)
    wait = timedelta(seconds=PATIENCE)
    dist.init_process_group(
        BACKENDS[place.kind],
        init_method=place.address,
        rank=place.rank,
        world_size=place.size,
        timeout=wait,
        device_id=place.device if place.kind == "cuda" else None,
    )
    groups = {size: dist.new_group(list(range(size)), timeout=wait) for size in group_sizes(place.size)}
    controls = {
        size: dist.new_group(list(range(size)), timeout=wait, backend="gloo")
        for size in group_sizes(place.size)
    }
    while (message := pipe.recv()) is not None:
        op, size, count = message
        try:
            call = make_call(op, place, size, count, groups[size])
            pipe.send(time_together(call, place, controls[size], 2 if op == "send_recv" else 1))
        except RuntimeError as error:  # torch's, out of memory included
            pipe.send(f"{op}: {str(error).splitlines()[0]}")
    dist.destroy_process_group()


def make_call(op: str, place: Place, size: int, message: int, group: Any) -> Call:
    """*op* on *message* bytes of random numbers, the whole result, as this rank takes part in it."""
    dtype = torch.bfloat16 if place.kind == "cuda" else torch.float32
    elements = message // dtype.itemsize
    whole = torch.randn(elements, device=place.device, dtype=torch.float32).to(dtype)
    part, other = whole[: elements // size].clone(), torch.empty_like(whole)
    match op:
        case "all_reduce":
            return lambda: dist.all_reduce(whole, group=group)
        case "all_gather":
            gather = _named("all_gather_single", "all_gather_into_tensor")
            return lambda: gather(other, part, group=group)
        case "reduce_scatter":
            scatter = _named("reduce_scatter_single", "reduce_scatter_tensor")
            return lambda: scatter(part, whole, group=group)
        case "all_to_all":
            return lambda: dist.all_to_all_single(other, whole, group=group)
    return partial(there_and_back, place.rank, whole, other, group)


def there_and_back(rank: int, ours: Tensor, theirs: Tensor, group: Any) -> None:
    """Rank 0 sends to rank 1, which answers when it has all of it."""
    if rank == 0:
        dist.send(ours, 1, group=group)
        dist.recv(theirs, 1, group=group)
    else:
        dist.recv(theirs, 0, group=group)
        dist.send(ours, 0, group=group)


def _named(new: str, old: str) -> Callable[..., object]:
    """torch renamed two of them (2.13)."""
    found: Callable[..., object] = getattr(dist, new, None) or getattr(dist, old)
    return found


def time_together(call: Call, place: Place, control: Any, moves: int) -> Timing:
    """Seconds of one of the *moves* of a *call*, which every rank of the group makes as often as all others."""

    def largest(value: float) -> float:
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=control)
        return float(tensor)

    for _ in range(3):
        call()  # connects, allocates, warms up
    if place.kind == "cpu":
        return _repeat(lambda repeats: time_wall(call, repeats), moves, place.budget, largest, "host")
    torch.cuda.synchronize()
    calls = [call] * CALLS
    try:
        replay, mode = capture(calls).replay, "graph"
    except RuntimeError:
        replay, mode = lambda: run_all(calls), "eager"
    if largest(mode == "eager"):  # one rank cannot: then none does
        torch.cuda.synchronize()
        replay, mode = lambda: run_all(calls), "eager"
    return _repeat(lambda repeats: time_events(replay, repeats), CALLS * moves, place.budget, largest, mode)


def _repeat(
    timed: Callable[[int], list[float]],
    moves: int,
    budget: float,
    largest: Callable[[float], float],
    mode: str,
) -> Timing:
    """Repeat until *budget* s are used by the slowest rank's first run; *timed* takes how often, a run is *moves*."""
    first = largest(timed(1)[0])
    repeats = min(MOST, max(LEAST, math.ceil(budget / max(first, 1e-9))))
    return summarize([seconds / moves for seconds in timed(repeats)], mode)


def time_wall(call: Call, repeats: int) -> list[float]:
    """Seconds of each call by the wall's clock."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
