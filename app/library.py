"""Files a reader may name: traces the dashboard was started with, and what was uploaded since.

An upload is stored under the digest of its content in a folder of this process, so a link to it works for as long
as the server runs. Together they may take `MAX_BYTES`; the oldest go first. Nothing else on the disk can be named.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import threading
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal

from simulator.errors import ConfigurationError, SimError

__all__ = ["bundled", "error_text", "offer", "path_of", "plain", "store", "title_of", "trace_path", "uploads"]

MAX_BYTES = 2**30
LIMITS_MB = {"trace": 100, "model": 1, "gpu": 1, "measured": 5, "prices": 1}
"""Largest upload of each kind, MB."""
SUFFIX = {"model": ".json", "gpu": ".yaml", "measured": ".csv", "prices": ".yaml"}
Kind = Literal["trace", "model", "gpu", "measured", "prices"]
_lock = threading.Lock()


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sim-dashboard-", ignore_cleanup_errors=True)


_offered: dict[str, Path] = {}


def offer(paths: Iterable[str]) -> None:
    """Offer traces, as the server is started."""
    _offered.update({f"file:{Path(path).name}": Path(path) for path in paths})


def bundled() -> dict[str, Path]:
    """Traces named when the server was started, by key."""
    return _offered


def store(kind: Kind, name: str, content: bytes) -> str:
    """Keep an upload and return its key, ``kind:digest:name``."""
    limit = LIMITS_MB[kind]
    if len(content) > limit * 10**6:
        raise ConfigurationError(f"{name}: {len(content) / 1e6:.0f} MB: must be at most {limit} MB")
    digest = hashlib.sha256(content).hexdigest()[:16]
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).name).lstrip(".") or "upload"
    if kind in SUFFIX:
        safe = str(Path(safe).with_suffix(SUFFIX[kind]))
    key = f"{kind}:{digest}:{safe}"
    path = _place(key)
    with _lock:
        if not path.exists():
            _make_room(len(content))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return key


def uploads(kind: Kind) -> list[str]:
    """Keys of what was uploaded, by name."""
    found = (Path(_folder().name) / kind).glob("*/*")
    return sorted(f"{kind}:{path.parent.name}:{path.name}" for path in found)


def path_of(key: str) -> str:
    """Where the file under *key* lies; a name that is no key is returned as it is.

    Raises `ConfigurationError` for an upload that is gone.
    """
    if key in bundled():
        return str(bundled()[key])
    if not _is_key(key):
        if "/" in key or "\\" in key or key.endswith((".json", ".yaml", ".yml")) or Path(key).exists():
            raise ConfigurationError(f"{key!r}: must be a name or an upload, not a path")
        return key
    if not _place(key).exists():
        raise ConfigurationError(f"{title_of(key)}: no longer on this server: upload it again")
    return str(_place(key))


def trace_path(key: str) -> str:
    """Where the trace under *key* lies. Raises `ConfigurationError` for anything that was not offered."""
    if key not in bundled() and not key.startswith("trace:"):
        raise ConfigurationError(f"source {key!r}: no such trace is offered here")
    return path_of(key)


def title_of(key: str) -> str:
    """What a reader calls the file under *key*."""
    if key in bundled():
        return str(bundled()[key])
    return key.split(":", 2)[2] if _is_key(key) else key


def error_text(error: SimError) -> str:
    """The error in one line, without the folder of uploads, ready to be drawn."""
    return plain(re.sub(re.escape(_folder().name) + r"/[a-z]+/[0-9a-f]{16}/", "", str(error)))


def plain(text: str) -> str:
    """*text* with what Markdown would take for its own marked as text: ``tpot:p99:100:`` ends in an emoji."""
    return re.sub(r"([\\`*_\[\]$:~<>])", r"\\\1", text)


def _is_key(key: str) -> bool:
    return (
        re.fullmatch(r"(trace|model|gpu|measured|prices):[0-9a-f]{16}:[A-Za-z0-9_-][A-Za-z0-9._-]*", key)
        is not None
    )


def _place(key: str) -> Path:
    return Path(_folder().name).joinpath(*key.split(":", 2))


def _make_room(size: int) -> None:
    files = sorted(Path(_folder().name).glob("*/*/*"), key=lambda path: path.stat().st_mtime)
    used = sum(path.stat().st_size for path in files)
    while files and used + size > MAX_BYTES:
        used -= files[0].stat().st_size
        files.pop(0).unlink()
