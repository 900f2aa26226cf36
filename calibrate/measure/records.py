"""Raw samples on disk: CSV tables that grow row by row, so that what was measured survives a kill.

``gemm.csv``, ``attn_decode.csv``, ``attn_prefill.csv``, ``moe.csv``, ``streams.csv`` and ``collectives.csv`` have the
columns of the public tables (times in µs); ``moves.csv`` holds blocks copied and swapped, ``launches.csv`` decode steps
launched eagerly and as a graph, ``steps.jsonl`` whole steps, ``throttled.jsonl`` what was measured while the clock was
down, ``failed.jsonl`` what could not be measured and why, ``meta.json`` device, versions, model, limits, seed and
ceilings.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibrate.measure.shot import Sample, Shot
from simulator.errors import ConfigurationError, InputError

__all__ = ["TABLES", "RawFolder"]

MEASURED = ("latency_us", "spread_us", "repeats", "mode", "clock_mhz", "temperature_c")
HEADS = ("n_q", "n_kv", "head_dim")
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gemm": (("gpu", "src", "dtype"), ("m", "n", "k")),
    "attn_decode": (("gpu", "src", "kernel", "kv_dtype"), (*HEADS, "kv_lens")),
    "attn_prefill": (("gpu", "src", "kernel", "kv_dtype"), (*HEADS, "batch_size", "chunk", "context")),
    "moe": (
        ("gpu", "src", "dtype"),
        ("num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "tp", "ep", "distribution"),
    ),
    "streams": (("gpu", "src"), ("op", "tokens", "bytes")),
    "moves": (("gpu", "src"), ("op", "pattern", "blocks", "copies", "bytes")),
    "launches": (("gpu", "src"), ("launch", "num_seqs", "context")),
    "collectives": (("gpu", "src", "impl"), ("op", "num_gpus", "bytes")),
}
"""What is the same in all rows of a table, and what makes a shape."""
IDENTITY = ("device", "model", "dtype", "seed")


class RawFolder:
    """The samples of one device and model in *path*."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, meta: Mapping[str, Any]) -> set[tuple[str, ...]]:
        """Begin, or go on where a run of the same *meta* stopped: the keys of what is there already."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "meta.json"
        if file.exists():
            self._check(meta, self.meta())
        self.write_meta(meta)
        return {key for name in [*TABLES, "steps"] for key in self._read(name)}

    def meta(self) -> dict[str, Any]:
        """What the samples depend on."""
        file = self.path / "meta.json"
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(file, f"cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise InputError(file, f"must be JSON: {error}") from error
        if not isinstance(content, dict):
            raise InputError(file, "must be a JSON object")
        return content

    def write_meta(self, meta: Mapping[str, Any]) -> None:
        """Replace ``meta.json`` in one go."""
        partial = self.path / "meta.json.partial"
        partial.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path / "meta.json")

    def add(self, shot: Shot, sample: Sample, common: Mapping[str, Any]) -> None:
        """Append what came of *shot*."""
        if sample.throttled:
            rows = [{"table": shot.table, **dict(shot.shape), **row} for row in sample.rows]
            self._append("throttled.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        elif shot.table == "steps":
            rows = [{**dict(shot.shape), **row} for row in sample.rows]
            self._append("steps.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        else:
            same, shape = TABLES[shot.table]
            columns = (*same, *shape, *MEASURED)
            known = [{**common, **dict(shot.shape), **row} for row in sample.rows]
            self._append_rows(shot.table, columns, [[row.get(name, "") for name in columns] for row in known])

    def note_failure(self, shot: Shot, reason: str) -> None:
        """Keep that *shot* could not be measured; it is tried again when the folder is resumed."""
        self._append(
            "failed.jsonl", json.dumps({"table": shot.table, **dict(shot.shape), "reason": reason}) + "\n"
        )

    @property
    def has_samples(self) -> bool:
        """Whether anything of it was measured."""
        return any((self.path / f"{name}.csv").exists() for name in TABLES)

    def steps(self) -> list[dict[str, Any]]:
        """The measured steps."""
        file = self.path / "steps.jsonl"
        if not file.exists():
            return []
        try:
            return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise InputError(file, f"must be one JSON object per line: {error}") from error

    def throttled(self) -> int:
        """How many rows were measured while the clock was down."""
        file = self.path / "throttled.jsonl"
        return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0

    def _check(self, meta: Mapping[str, Any], there: Mapping[str, Any]) -> None:
        for name in IDENTITY:
            if there.get(name) != meta.get(name):
                raise ConfigurationError(
                    f"{self.path} holds samples with {name} {there.get(name)!r}, not {meta.get(name)!r}: "
                    "give another folder"
                )

    def _append_rows(self, table: str, columns: tuple[str, ...], rows: list[list[Any]]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not (self.path / f"{table}.csv").exists():
            writer.writerow(columns)
        writer.writerows(rows)
        self._append(f"{table}.csv", text.getvalue())

    def _append(self, name: str, text: str) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(text)

    def _read(self, name: str) -> set[tuple[str, ...]]:
        """Keys of the shots that a table holds; half a line, which a kill leaves, is cut off."""
        file = self.path / (f"{name}.csv" if name in TABLES else f"{name}.jsonl")
        if not file.exists():
            return set()
        text = file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            file.write_text(whole, encoding="utf-8")
        if not whole:
            file.unlink()
            return set()
        if name == "steps":
            return {(name, str(json.loads(line)["round"])) for line in whole.splitlines()}
        return {(name, *(row[c] for c in TABLES[name][1])) for row in csv.DictReader(io.StringIO(whole))}
