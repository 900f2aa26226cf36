"""Run a study on any executor: every result is on disk as soon as it is there, and none is recorded twice.

    runs/<key>.parquet   one row per finished run, written aside and renamed
    study.json           which runs there are, in order, and the digest of the study
    results.parquet      all rows in the order of the study, written when the last run is there

A sweep that was killed goes on with the runs whose file is missing. A run that a worker took down with it is given to a
new worker; one that does so again and again is an error. A run that cannot be (a model that does not fit) is a result:
its row says why. Rows hold nothing that depends on when or where they were computed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from simulator.deployment import Deployment
from simulator.errors import CapacityError, ConfigurationError, SimError
from simulator.results import parse_goodput
from simulator.simulation import simulate
from simulator.sizing.pool import ATTEMPTS, local_executor
from simulator.sizing.study import Run, Study
from simulator.sizing.traffic import resampled
from simulator.workload import Trace, read_trace

__all__ = ["dask_executor", "failures", "run_study", "simulate_run"]

ADDRESS = re.compile(r"(?:[a-z]+://)?[^/\s]+:\d+|inproc://\S+")
IN_FLIGHT = 64
"""Runs that are handed out at a time."""
PLAIN = {"use_dictionary": False, "write_statistics": False, "compression": "none"}
"""How the file of a single row is written: what helps to read many rows takes longest."""
ExecutorFactory = Callable[[], AbstractContextManager[Executor]]


def run_study(
    study: Study,
    directory: Path,
    executor: ExecutorFactory | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Run what is missing of *study* in *directory* and return the path of all results.

    *executor* makes the executor, and another one when it breaks; local processes by default. Raises
    `ConfigurationError` where *directory* holds another study.
    """
    runs = directory / "runs"
    _prepare(study, directory)
    done = {path.stem for path in runs.glob("*.parquet")}
    missing = [run for run in study.runs if run.key not in done]
    progress(len(study.runs) - len(missing), len(study.runs))
    fresh: dict[str, dict[str, Any]] = {}
    for run, row in _results(missing, executor or (lambda: local_executor(2))):
        _write(runs / f"{run.key}.parquet", [row], **PLAIN)
        fresh[run.key] = row
        progress(len(done) + len(fresh), len(study.runs))
    return _collect(study, directory, fresh)


def simulate_run(run: Run) -> dict[str, Any]:
    """The row of *run*: its point, every number of the summary, and an error where it could not be."""
    row: dict[str, Any] = {"index": run.index, "key": run.key, "seed": run.seed, "error": None}
    row |= {f"point.{name}": value for name, value in run.point.items()}
    try:
        result = simulate(
            _traffic(run), Deployment.of(**run.deployment), goodput=parse_goodput(run.goodput), seed=run.seed
        )
    except SimError as error:
        return row | {"error": " ".join(str(error).split())}
    overload = result.summary.overload
    values = {name: None if value is None else float(value) for name, value in result.summary.values.items()}
    return row | {"overloaded": overload is not None and overload.overloaded, **values}


def failures(results: Path) -> list[str]:
    """Why runs of *results* could not be, one line for each that could not."""
    import pyarrow.parquet as pq

    return [str(why) for why in pq.read_table(results, columns=["error"])["error"].to_pylist() if why]


@contextmanager
def dask_executor(address: str, timeout: float = 10.0) -> Iterator[Executor]:
    """The executor of the Dask cluster at *address*, waiting *timeout* s for it.

    Raises `ConfigurationError` where there is none.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ConfigurationError("--cluster needs Dask: pip install servesim[cluster]") from None
    if not ADDRESS.fullmatch(address):
        raise ConfigurationError(f"cluster {address!r}: must be the address of a scheduler, tcp://HOST:PORT")
    try:
        client = Client(address, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ConfigurationError(
            f"cluster {address!r}: cannot be reached: {' '.join(str(error).split())}"
        ) from None
    with _quiet("distributed"):
        try:
            yield client.get_executor(pure=False, retries=ATTEMPTS)
        finally:
            with contextlib.suppress(OSError, TimeoutError):
                client.close()


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Without the stack traces that *library* logs about a lost scheduler: the sweep connects again by itself."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _traffic(run: Run) -> Trace:
    trace = _trace(run.trace, run.num_prompts)
    if run.seed:
        trace = resampled(trace, run.seed)
    return trace if run.request_rate is None else trace.with_request_rate(run.request_rate)


@cache
def _trace(path: str, num_prompts: int | None) -> Trace:
    """Read once per worker."""
    return read_trace(path, limit=num_prompts, spread="uniform", seed=0)


def _results(runs: list[Run], make: ExecutorFactory) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Each run with its row as it finishes; a broken executor is replaced and its runs are given out again."""
    left, losses = {run.key: run for run in runs}, 0
    while left:
        try:
            with make() as executor:
                for run, row in _as_completed(executor, list(left.values())):
                    del left[run.key]
                    losses = 0
                    yield run, row
        except (BrokenExecutor, CancelledError, ConnectionError) as error:
            losses += 1
            if losses > ATTEMPTS:
                raise CapacityError(
                    f"the workers died {losses} times without finishing a run ({type(error).__name__}); "
                    f"{len(left)} runs are left"
                ) from None


def _as_completed(executor: Executor, runs: Iterable[Run]) -> Iterator[tuple[Run, dict[str, Any]]]:
    waiting, flying = iter(runs), dict[Future[Any], Run]()
    while True:
        while len(flying) < IN_FLIGHT and (run := next(waiting, None)) is not None:
            flying[executor.submit(simulate_run, run)] = run
        if not flying:
            return
        for future in wait(flying, return_when=FIRST_COMPLETED).done:
            yield flying.pop(future), future.result()


def _prepare(study: Study, directory: Path) -> None:
    """Make the directory, or see that it is of this study."""
    path, described = (
        directory / "study.json",
        {"digest": study.digest, "axes": list(study.axes), "runs": len(study.runs)},
    )
    if directory.exists() and not directory.is_dir():
        raise ConfigurationError(f"output directory {str(directory)!r}: exists and is not a directory")
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["digest"] != study.digest:
            was, now = earlier["digest"], study.digest
            raise ConfigurationError(
                f"output directory {str(directory)!r}: holds another study, or this one with other traces, profiles "
                f"or models ({earlier['runs']} runs, digest {was}; this one {now}); choose a new directory"
            )
        return
    if directory.exists() and any(directory.iterdir()):
        raise ConfigurationError(f"output directory {str(directory)!r}: is not empty and holds no study")
    (directory / "runs").mkdir(parents=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(described) + "\n", encoding="utf-8")
    partial.replace(path)


def _write(path: Path, rows: list[dict[str, Any]], **how: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(pa.table({name: _column(values) for name, values in columns.items()}), partial, **how)
    partial.replace(path)


def _column(values: list[Any]) -> Any:
    """Numbers as numbers, the same kind in every file; what is mixed as text."""
    import pyarrow as pa

    known = [value for value in values if value is not None]
    if known and all(isinstance(value, bool) for value in known):
        return pa.array(values, pa.bool_())
    if known and all(isinstance(value, int) and not isinstance(value, bool) for value in known):
        return pa.array(values, pa.int64())
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _collect(study: Study, directory: Path, fresh: Mapping[str, dict[str, Any]]) -> Path:
    """All rows in the order of the study: *fresh* ones by their key, the others from their files."""
    import pyarrow.parquet as pq

    def row(key: str) -> dict[str, Any]:
        if key in fresh:
            return fresh[key]
        read: dict[str, Any] = pq.read_table(directory / "runs" / f"{key}.parquet").to_pylist()[0]
        return read

    _write(directory / "results.parquet", [row(run.key) for run in study.runs])
    return directory / "results.parquet"
