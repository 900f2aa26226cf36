"""Tensor parallelism over processes: rank 0 drives, the others do what it says.

Rank 0 has the scheduler. Before each forward pass it sends the batch to the other ranks over gloo (a few
kilobytes of numbers), then all ranks compute their parts, which meet in the collectives of the layers
(NCCL on GPUs, gloo on CPUs).
"""

from __future__ import annotations

import multiprocessing
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.batch import BatchInput
from engine.loading import build_runner
from engine.pages import Moves
from engine.parallel import TensorParallel
from engine.runner import ModelRunner
from engine.settings import EngineSettings
from simulator.errors import ConfigurationError

__all__ = ["ParallelRunner", "start_workers"]

TIMEOUT = timedelta(minutes=10)


class ParallelRunner(ModelRunner):
    """Rank 0's runner: every step is told to the other ranks first."""

    def __init__(
        self, runner: ModelRunner, control: Any, workers: list[Any], store: tempfile.TemporaryDirectory[str]
    ) -> None:
        super().__init__(runner.decoder, runner.cache, runner.graphs)
        self.control, self.workers, self.store = control, workers, store

    def run(self, batch: BatchInput) -> Tensor:
        self._tell("run", batch)
        return super().run(batch)

    def move(self, moves: Moves) -> None:
        self._tell("move", moves)
        super().move(moves)

    def close(self) -> None:
        """End the other ranks."""
        if dist.is_initialized():
            self._tell("stop", None)
            for worker in self.workers:
                worker.join(timeout=30)
            dist.destroy_process_group()
        self.store.cleanup()

    def _tell(self, what: str, value: object) -> None:
        dist.broadcast_object_list([what, value], src=0, group=self.control)


def start_workers(settings: EngineSettings) -> ParallelRunner:
    """Start ranks 1 and up as processes and become rank 0."""
    size = settings.tensor_parallel_size
    if settings.torch_device().type == "cuda" and torch.cuda.device_count() < size:
        raise ConfigurationError(f"tensor_parallel_size {size}: {torch.cuda.device_count()} GPUs are here")
    store = tempfile.TemporaryDirectory(prefix="engine-")
    address = f"file://{Path(store.name) / 'store'}"
    context = multiprocessing.get_context("spawn")
    arguments = [(settings, rank, address, torch.get_num_threads()) for rank in range(1, size)]
    workers = [context.Process(target=_work, args=args, daemon=True) for args in arguments]
    for worker in workers:
        worker.start()
    runner, control = _join(settings, 0, address)
    return ParallelRunner(runner, control, workers, store)


def _join(settings: EngineSettings, rank: int, address: str) -> tuple[ModelRunner, Any]:
    size = settings.tensor_parallel_size
    cuda = settings.torch_device(rank).type == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=address, rank=rank, world_size=size, timeout=TIMEOUT
    )
    control = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return build_runner(settings, TensorParallel(rank, size)), control


def _work(settings: EngineSettings, rank: int, address: str, threads: int) -> None:
    """A rank above 0: compute what rank 0 computes until it says stop."""
    torch.set_num_threads(threads)
    runner, control = _join(settings, rank, address)
    message: list[Any] = [None, None]
    while True:
        dist.broadcast_object_list(message, src=0, group=control)
        what, value = message
        if what == "stop":
            break
        if what == "move":
            runner.move(value)
        else:
            runner.run(value)
            runner.abandon()
    dist.destroy_process_group()
