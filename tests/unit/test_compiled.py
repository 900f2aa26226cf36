"""Machine code and sources decide the same, to the last bit; and nobody runs machine code of other sources."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulator import compiled

CODE = """
import hashlib, json
import numpy as np
from simulator import Deployment, SimError, Trace, compiled, simulate
from simulator.scheduling.system import list_systems
rng = np.random.default_rng(5)
n = 200
arrival = np.cumsum(rng.exponential(0.05, n))
shared = (rng.integers(0, 3, n), rng.integers(100, 300, n))
trace = Trace.from_columns(arrival, rng.integers(300, 800, n), rng.integers(1, 200, n))
found = {}
CASES = {
    "plain": {},
    "scarce": {"num_gpu_blocks": 200},
    "priority": {"num_gpu_blocks": 200, "scheduling_policy": "priority"},
    "step by step": {"num_gpu_blocks": 200, "async_scheduling": False},
    "small budget": {"max_num_batched_tokens": 256, "num_gpu_blocks": 150},
    "few": {"max_num_seqs": 4},
    "0.11": {"system": "vllm-0.11", "num_gpu_blocks": 200},
    "speculation": {"speculation": {"method": "ngram", "tokens": 3, "acceptance": 0.6}, "num_gpu_blocks": 200},
    "replicas": {"num_replicas": 2, "router": "least-outstanding"},
}
CASES |= {system.name: {"system": system.name} for system in list_systems()}
for name, options in CASES.items():
    try:
        result = simulate(trace, Deployment(**options))
    except SimError as error:
        found[name] = str(error)
        continue
    digest = hashlib.sha256()
    for column in result.records.to_columns().values():
        digest.update(np.ascontiguousarray(column).tobytes() if isinstance(column, np.ndarray) else b"")
    digest.update(json.dumps(result.summary.values).encode())
    found[name] = digest.hexdigest()
options = {system.name: system.options for system in list_systems()}
print(json.dumps([compiled.is_compiled(), found, options]))
"""


def run(**environment: str) -> tuple[bool, dict[str, str], dict[str, list[str]]]:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    is_compiled, records, options = json.loads(done.stdout)
    return is_compiled, records, options


@pytest.mark.skipif(
    not compiled.folder().is_dir(), reason="these sources have not been compiled on this machine"
)
def test_records_are_the_same_to_the_last_bit() -> None:
    fast, slow = run(), run(SERVESIM_PURE="1")
    assert fast[0]
    assert not slow[0]
    assert fast[1:] == slow[1:]


def test_the_digest_follows_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = compiled.digest()
    for path in compiled.sources():
        copy = tmp_path / path.relative_to(compiled.ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    monkeypatch.setattr(compiled, "ROOT", tmp_path)
    assert compiled.digest() == before
    (tmp_path / "replica.py").write_text("# another\n", encoding="utf-8")
    assert compiled.digest() != before


def test_what_other_sources_left_is_not_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "cpython-311-linux-0123456789abcdef"
    old.mkdir()
    monkeypatch.setattr(compiled, "HERE", tmp_path)
    monkeypatch.delenv("SERVESIM_PURE", raising=False)
    before = list(sys.meta_path)
    compiled.install()
    assert sys.meta_path == before


def test_the_finder_offers_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "simulator").mkdir()
    suffix = compiled.EXTENSION_SUFFIXES[0]
    (tmp_path / "simulator" / f"replica{suffix}").touch()
    (tmp_path / f"abc__mypyc{suffix}").touch()
    finder = compiled.Finder(tmp_path)
    spec = finder.find_spec("simulator.replica")
    assert spec is not None
    assert spec.origin == str(tmp_path / "simulator" / f"replica{suffix}")
    assert finder.find_spec("abc__mypyc") is not None
    assert finder.find_spec("simulator.trace") is None
