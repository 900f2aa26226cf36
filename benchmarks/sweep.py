"""A 500-run study on a local Dask cluster that is hurt on the way, against the undisturbed serial run.

    .venv/bin/python benchmarks/sweep.py [--runs 500] [--repeats 5]

1. Serially, in this process.
2. On a Dask scheduler with two worker processes: a worker is killed at a quarter (and another started), the
   scheduler is killed and restarted with its workers at a half, the process that coordinates is killed at three
   quarters and started again. The results must be the same bytes.
3. Efficiency: local processes, two workers against one, the median of so many repetitions of half of the study.

Everything runs in a temporary directory; only processes that were started here are killed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from simulator.sizing import local_executor
from simulator.sizing.study import Study
from simulator.sizing.sweep import run_study, simulate_run
from simulator.workload import Lengths, generate_trace

STUDY = """
trace: chat.jsonl
base: {{model: llama-3.1-8b}}
samples:
  count: {runs}
  over:
    gpu: [h100, l40s, a100]
    request_rate: {{low: 1, high: 12, log: true}}
    max_num_seqs: {{low: 16, high: 256, log: true}}
"""
COORDINATE = "from simulator.cli import main; main()"


class Cluster:
    """A scheduler and two workers, each a process of its own."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.scheduler = self._start_scheduler()
        self.workers = [self.start_worker() for _ in range(2)]

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def _start_scheduler(self) -> subprocess.Popen[bytes]:
        return _dask("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")

    def start_worker(self) -> subprocess.Popen[bytes]:
        return _dask("worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard")

    def kill_worker(self) -> None:
        """One dies, another takes its place."""
        _kill(self.workers.pop(0))
        self.workers.append(self.start_worker())

    def restart(self) -> None:
        """The scheduler dies with all it knew; so do its workers, and all are started again."""
        for process in [self.scheduler, *self.workers]:
            _kill(process)
        self.scheduler = self._start_scheduler()
        self.workers = [self.start_worker() for _ in range(2)]

    def close(self) -> None:
        for process in [*self.workers, self.scheduler]:
            _kill(process)


def _dask(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dask", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _coordinator(study: Path, out: Path, address: str) -> subprocess.Popen[bytes]:
    arguments = ["sweep", str(study), "--out", str(out), "--cluster", address]
    return subprocess.Popen([sys.executable, "-c", COORDINATE, *arguments])


def hurt(study: Path, out: Path, runs: int) -> None:
    """The study on a cluster that loses a worker, its scheduler and the coordinator."""
    cluster = Cluster()
    try:
        coordinator = _coordinator(study, out, cluster.address)
        _wait_for(out, runs // 4, coordinator)
        cluster.kill_worker()
        print(f"worker killed after {_done(out)} runs", flush=True)
        _wait_for(out, runs // 2, coordinator)
        cluster.restart()
        print(f"scheduler restarted after {_done(out)} runs", flush=True)
        _wait_for(out, 3 * runs // 4, coordinator)
        _kill(coordinator)
        print(f"coordinator killed after {_done(out)} runs", flush=True)
        again = _coordinator(study, out, cluster.address)
        if again.wait():
            raise SystemExit("the coordinator that was started again failed")
    finally:
        cluster.close()


def _done(out: Path) -> int:
    return len(list((out / "runs").glob("*.parquet")))


def _wait_for(out: Path, runs: int, coordinator: subprocess.Popen[bytes]) -> None:
    while _done(out) < runs:
        if coordinator.poll() is not None:
            raise SystemExit(f"the coordinator left with {coordinator.returncode} after {_done(out)} runs")
        time.sleep(0.1)


@contextmanager
def _kept(pool: Executor) -> Iterator[Executor]:
    """*pool*, left open."""
    yield pool


def efficiency(study: Study, directory: Path, repeats: int) -> None:
    part = Study(study.path, study.runs[: max(len(study.runs) // 2, 2)], study.axes)
    ratios = []
    for repeat in range(repeats):
        seconds = []
        for workers in (1, 2):
            with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
                list(
                    pool.map(simulate_run, part.runs[: 2 * workers])
                )  # workers are warm before the clock starts
                start = time.perf_counter()
                run_study(part, directory / f"{repeat}-{workers}", lambda pool=pool: _kept(pool))  # type: ignore[misc]
                seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    print(f"two workers against one: {statistics.median(ratios):.2f} (median of {repeats}: {sorted(ratios)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        lengths = (
            Lengths.parse("lognormal:mean=500,sigma=0.8,max=4000"),
            Lengths.parse("lognormal:mean=80,sigma=0.6"),
        )
        trace = generate_trace(400, request_rate=3, input_length=lengths[0], output_length=lengths[1], seed=1)
        trace.to_jsonl(directory / "chat.jsonl")
        path = directory / "study.yaml"
        path.write_text(STUDY.format(runs=arguments.runs))
        study, start = Study.load(path), time.perf_counter()
        whole = run_study(study, directory / "whole", lambda: local_executor(1))
        print(f"{arguments.runs} runs serially: {time.perf_counter() - start:.0f} s", flush=True)
        start = time.perf_counter()
        hurt(path, directory / "hurt", arguments.runs)
        same = (directory / "hurt" / "results.parquet").read_bytes() == whole.read_bytes()
        print(f"hurt cluster: {time.perf_counter() - start:.0f} s, the same results: {same}", flush=True)
        efficiency(study, directory, arguments.repeats)
        if not same:
            raise SystemExit("the results differ")


if __name__ == "__main__":
    main()
