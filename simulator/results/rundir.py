"""The run directory: everything about a run that is worth keeping, in one place.

    config.yaml        what was deployed, stated and resolved: run it again and get the same
    summary.json       vLLM's benchmark keys and ours
    requests.parquet   one row per request
    series.parquet     batch, queue and KV cache over time
    timeline.json      opens in Perfetto
    report.html        one file to look at, works offline

It appears whole or not at all: it is built in a hidden sibling and renamed at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import ConfigurationError
from simulator.results.columns import write_requests, write_series
from simulator.results.records import RequestEvent
from simulator.results.report import Table, report_html
from simulator.results.summary import Summary
from simulator.results.timeline import timeline

RUN_FILES = (
    "config.yaml",
    "summary.json",
    "requests.parquet",
    "series.parquet",
    "timeline.json",
    "report.html",
)


@dataclass(frozen=True)
class Run:
    """A finished run with what a reader must know about it."""

    summary: Summary
    title: str
    """What was simulated, in a few words: ``llama-3.1-8b on h100-sxm-80gb, vllm``."""
    config: Mapping[str, Any]
    """The resolved configuration, nested mappings of plain values."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's descriptive keys for ``summary.json``: date, backend, model_id, num_prompts, request_rate, …"""
    provenance: Sequence[str] = ()
    """Which measurements, fits and datasheets the numbers rest on, one line each."""
    defaults: Sequence[str] = ()
    """Every default that was chosen for the user, one line each."""
    warnings: Sequence[str] = ()
    time_breakdown: Mapping[str, float] = field(default_factory=dict)
    """Seconds of iterations by operator family."""
    tables: Sequence[Table] = ()
    """Further sections of the report: classes, replicas and what they cost."""
    events: Sequence[RequestEvent] = ()
    """Preemptions and re-schedulings, for the timeline."""


def write_run(directory: str | Path, run: Run, *, detailed: bool = False) -> Path:
    """Write *run* as *directory* and return its path; an earlier run there is replaced.

    *detailed* adds vLLM's arrays per request to ``summary.json``. Raises `ConfigurationError` when
    *directory* is a file or holds anything that is not a run.
    """
    target = Path(directory)
    check_replaceable(target)
    with _built_aside(target) as partial:
        _write_files(partial, run, detailed)
    return target


def check_replaceable(target: Path, files: Collection[str] = RUN_FILES, kind: str = "run") -> None:
    """Raise `ConfigurationError` unless *target* is absent, empty or an earlier *kind*, and can be written.

    Worth calling before a long run as well.
    """
    there = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigurationError(f"output directory {str(target)!r}: {there} exists and is not a directory")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigurationError(f"output directory {str(target)!r}: {there} cannot be written to")
    foreign = sorted({entry.name for entry in target.iterdir()} - set(files)) if target.exists() else []
    if foreign:
        raise ConfigurationError(
            f"output directory {str(target)!r}: holds {foreign[0]!r}, which is not part of a {kind}; "
            "choose an empty or new directory"
        )


def plain(value: Any) -> Any:
    """*value* as what YAML and JSON know: dict, list, str, int, float, bool, None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _write_files(directory: Path, run: Run, detailed: bool) -> None:
    import yaml

    sample = run.summary.sample
    config = yaml.safe_dump(plain(run.config), sort_keys=False, allow_unicode=True)
    (directory / "config.yaml").write_text(config, encoding="utf-8")
    numbers = plain(run.summary.to_json(detailed=detailed, metadata=run.metadata))
    _write_json(directory / "summary.json", numbers, indent=1)
    write_requests(directory / "requests.parquet", sample.records)
    write_series(directory / "series.parquet", sample.series)
    _write_json(directory / "timeline.json", timeline(sample.records, sample.series, run.events))
    (directory / "report.html").write_text(
        report_html(
            run.summary,
            title=run.title,
            config=plain(run.config),
            provenance=run.provenance,
            defaults=run.defaults,
            warnings=run.warnings,
            time_breakdown=run.time_breakdown,
            tables=run.tables,
        ),
        encoding="utf-8",
    )


def _write_json(path: Path, value: Any, indent: int | None = None) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=indent, allow_nan=False, ensure_ascii=False)
        file.write("\n")


@contextmanager
def _built_aside(target: Path) -> Iterator[Path]:
    """A directory beside *target* that takes its place if the block succeeds and vanishes if it does not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        partial.chmod(0o777 & ~_umask())
        yield partial
        _take_place(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _take_place(partial: Path, target: Path) -> None:
    if not target.exists():
        partial.rename(target)
        return
    check_replaceable(target)
    earlier = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    target.rename(earlier)  # an empty directory may be renamed over
    try:
        partial.rename(target)
    except OSError:
        earlier.rename(target)
        raise
    shutil.rmtree(earlier)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
