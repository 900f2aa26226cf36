"""Reading tables of operator timings.

The layout is recognised by its columns: a public collection's ``gemm``, ``attn_prefill``, ``attn_decode``,
``moe`` and ``collectives`` tables, the ``phase`` table of another, and what the bundled engine writes
(attention with ``chunk, context`` or ``kv_lens``; every other kernel as ``op, tokens, bytes``). Each row
becomes one measurement of one operator family, in the words of `simulator.steptime.laws`, times in seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from hwprofiles import canonical_dtype
from simulator.errors import InputError, UnknownNameError

__all__ = ["COLUMNS", "digest", "read_folder", "read_table", "read_tables"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "prefill_attention": ("chunk", "context", "n_q", "n_kv", "head_dim", "num_seqs"),
    "decode_attention": ("num_seqs", "sum_context", "n_q", "n_kv", "head_dim", "max_context"),
    "moe": ("num_tokens", "hidden", "inter", "topk", "num_experts", "tp", "ep"),
    "all_reduce": ("message", "num_gpus"),
    "all_gather": ("message", "num_gpus"),
    "reduce_scatter": ("message", "num_gpus"),
    "all_to_all": ("message", "num_gpus"),
    "send_recv": ("message",),
    "elementwise": ("moved",),
    "kv_write": ("moved",),
    "sampling": ("moved",),
    "swap_out": ("moved", "copies"),
    "swap_in": ("moved", "copies"),
    "block_copy": ("moved", "copies"),
}
"""Shape columns of every family, in the order in which its law takes them."""

IMPLEMENTATIONS = {"NCCL": "nccl", "vLLM_custom_graph": "custom", "vLLM_custom_eager": "custom_eager"}
OPERATIONS = {"alltoall": "all_to_all"}
HEADS = {"n_q", "n_kv", "head_dim", "batch_size"}
Frames = dict[str, pd.DataFrame]


def read_table(path: str | Path) -> Frames:
    """Measurements in the CSV file *path*, by operator family.

    Every frame has ``gpu, dtype, variant, source, seconds, line`` and the family's `COLUMNS`. Raises
    `InputError` for a layout that is not known and for a cell that is not a positive number.
    """
    raw = _read_csv(Path(path))
    present = set(raw.columns)
    for needed, reader in LAYOUTS:
        if needed <= present:
            return {family: frame for family, frame in reader(raw, Path(path)).items() if len(frame)}
    raise InputError(path, f"columns fit no known table of operator timings: {', '.join(raw.columns)}")


def read_folder(folder: str | Path) -> Frames:
    """Measurements of all CSV files in *folder*, by operator family."""
    paths = sorted(Path(folder).glob("*.csv"))
    if not paths:
        raise InputError(folder, "holds no CSV file")
    return read_tables(paths)


def read_tables(paths: Iterable[str | Path]) -> Frames:
    """Measurements of all *paths*, by operator family."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for path in paths:
        for family, frame in read_table(path).items():
            parts.setdefault(family, []).append(frame)
    return {family: pd.concat(frames, ignore_index=True) for family, frames in sorted(parts.items())}


def digest(folder: str | Path) -> str:
    """SHA-256 over names and bytes of the CSV files, and of the whole steps, in *folder*."""
    total = hashlib.sha256()
    for path in sorted([*Path(folder).glob("*.csv"), *Path(folder).glob("steps.jsonl")]):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(path, f"is not a CSV table: {' '.join(str(error).split())}") from error
    return raw


def _numbers(raw: pd.DataFrame, column: str, path: Path, zero: bool = False) -> pd.Series[float]:
    """*column* as finite numbers above zero (or not below, where *zero* is allowed)."""
    values = pd.to_numeric(raw[column], errors="coerce")
    bad = ~np.isfinite(values) | (values < 0 if zero else values <= 0)
    if bad.any():
        first = int(np.argmax(bad.to_numpy()))
        allowed = "must be a number, at least 0" if zero else "must be a number above 0"
        raise InputError(path, allowed, line=first + 2, field=column, value=raw[column].iloc[first])
    return values.astype(float)


def _frame(raw: pd.DataFrame, path: Path, dtype: str | None, **columns: object) -> pd.DataFrame:
    """The common columns of every family, and *columns*."""
    names = raw[dtype].map(_dtype_name) if dtype else "bf16"
    common = {
        "gpu": raw["gpu"],
        "dtype": names,
        "variant": "",
        "source": raw.get("src", path.stem),
        "seconds": _numbers(raw, "latency_us", path) * 1e-6,
        "line": np.arange(len(raw)) + 2,
    }
    return pd.DataFrame({**common, **columns}, index=raw.index)


def _dtype_name(name: str) -> str:
    """The canonical name; one that is not known stays, and no law will be found for it."""
    try:
        return canonical_dtype(name)
    except UnknownNameError:
        return name


def _gemm(raw: pd.DataFrame, path: Path) -> Frames:
    shape = {column: _numbers(raw, column, path) for column in ("m", "n", "k")}
    return {"gemm": _frame(raw, path, "dtype", **shape)}


def _heads(raw: pd.DataFrame, path: Path) -> dict[str, object]:
    return {column: _numbers(raw, column, path) for column in ("n_q", "n_kv", "head_dim")}


def _prefill(raw: pd.DataFrame, path: Path) -> Frames:
    chunk = "chunk" if "chunk" in raw else "isl" if "isl" in raw else "kv_len"
    context = _numbers(raw, "context", path, zero=True) if "context" in raw else 0.0
    shape = {
        "chunk": _numbers(raw, chunk, path),
        "context": context,
        "num_seqs": _numbers(raw, "batch_size", path),
    }
    return {"prefill_attention": _frame(raw, path, "kv_dtype", **_heads(raw, path), **shape)}


def _decode(raw: pd.DataFrame, path: Path) -> Frames:
    batch, length = _numbers(raw, "batch_size", path), _numbers(raw, "kv_len", path)
    shape = {"num_seqs": batch, "sum_context": batch * length, "max_context": length}
    return {"decode_attention": _frame(raw, path, "kv_dtype", **_heads(raw, path), **shape)}


def _skewed_decode(raw: pd.DataFrame, path: Path) -> Frames:
    """``kv_lens``: the contexts of one batch, separated by spaces or semicolons."""
    try:
        contexts = [np.array(cell.replace(";", " ").split(), dtype=float) for cell in raw["kv_lens"]]
    except ValueError as error:
        raise InputError(path, f"kv_lens must be numbers: {error}") from error
    shape = {
        "num_seqs": [float(len(lens)) for lens in contexts],
        "sum_context": [float(lens.sum()) for lens in contexts],
        "max_context": [float(lens.max(initial=0.0)) for lens in contexts],
    }
    return {"decode_attention": _frame(raw, path, "kv_dtype", **_heads(raw, path), **shape)}


def _phases(raw: pd.DataFrame, path: Path) -> Frames:
    decode, prefill = raw[raw["phase"] == "decode"], raw[raw["phase"] == "prefill"]
    return {**_decode(decode, path), **_prefill(prefill, path)}


def _moe(raw: pd.DataFrame, path: Path) -> Frames:
    renamed = raw.rename(columns={"hidden_size": "hidden", "inter_size": "inter"})
    shape: dict[str, object] = {column: _numbers(renamed, column, path) for column in COLUMNS["moe"]}
    return {"moe": _frame(renamed, path, "dtype", **shape, distribution=renamed["distribution"])}


def _collectives(raw: pd.DataFrame, path: Path) -> Frames:
    shape = {"message": _numbers(raw, "bytes", path), "num_gpus": _numbers(raw, "num_gpus", path)}
    frame = _frame(raw, path, None, **shape)
    known = ("all_reduce", "all_gather", "reduce_scatter", "send_recv", *OPERATIONS, *OPERATIONS.values())
    if not (fits := raw["op"].isin(known)).all():
        line = int(np.argmin(fits.to_numpy()))
        allowed = f"must be one of {', '.join(sorted(known))}"
        raise InputError(path, allowed, line=line + 2, field="op", value=raw["op"].iloc[line])
    frame["variant"] = raw["impl"].map(lambda name: IMPLEMENTATIONS.get(name, name))
    return _by_operation(frame, raw["op"].map(lambda name: OPERATIONS.get(name, name)))


def _streams(raw: pd.DataFrame, path: Path) -> Frames:
    frame = _frame(raw, path, None, moved=_numbers(raw, "bytes", path))
    frame.loc[raw["op"] == "sampling", "dtype"] = "fp32"
    own = ("kv_write", "sampling")
    return _by_operation(frame, raw["op"].map(lambda name: name if name in own else "elementwise"))


def _moves(raw: pd.DataFrame, path: Path) -> Frames:
    """Blocks swapped and copied; a copy on the device reads and writes."""
    times = np.where(raw["op"] == "block_copy", 2.0, 1.0)
    moved: pd.Series[float] = _numbers(raw, "bytes", path) * times
    frame = _frame(raw, path, None, moved=moved, copies=_numbers(raw, "copies", path))
    frame["variant"] = np.where(raw["pattern"] == "gathered", "gathered", "")
    return _by_operation(frame, raw["op"])


def _launches(raw: pd.DataFrame, path: Path) -> Frames:
    """Steps launched eagerly and as a graph: for the report; no law takes them."""
    return {}


def _by_operation(frame: pd.DataFrame, operation: pd.Series[str]) -> Frames:
    return {str(name): part.reset_index(drop=True) for name, part in frame.groupby(operation, sort=True)}


Reader = Callable[[pd.DataFrame, Path], Frames]
LAYOUTS: tuple[tuple[set[str], Reader], ...] = (
    ({"gpu", "phase", "kv_dtype", "kv_len", "latency_us"} | HEADS, _phases),
    ({"gpu", "kv_dtype", "chunk", "context", "latency_us"} | HEADS, _prefill),
    ({"gpu", "kv_dtype", "kv_lens", "latency_us"} | (HEADS - {"batch_size"}), _skewed_decode),
    ({"gpu", "kv_dtype", "isl", "latency_us"} | HEADS, _prefill),
    ({"gpu", "kv_dtype", "kv_len", "latency_us"} | HEADS, _decode),
    ({"gpu", "dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts", "latency_us"}, _moe),
    ({"gpu", "impl", "op", "num_gpus", "bytes", "latency_us"}, _collectives),
    ({"gpu", "op", "tokens", "bytes", "latency_us"}, _streams),
    ({"gpu", "op", "pattern", "copies", "bytes", "latency_us"}, _moves),
    ({"gpu", "launch", "num_seqs", "context", "latency_us"}, _launches),
    ({"gpu", "dtype", "m", "n", "k", "latency_us"}, _gemm),
)
"""Columns that a layout needs, and its reader; the first that fits is taken."""
