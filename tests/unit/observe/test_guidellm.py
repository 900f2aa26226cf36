"""A load generator that nobody here wrote sees what our servers record and what the simulator predicts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
SCRIPT = Path(__file__).parents[3] / "benchmarks" / "guidellm.py"


@pytest.mark.skipif(
    shutil.which("guidellm") is None, reason="guidellm is not on the PATH (see benchmarks/guidellm.py)"
)
@pytest.mark.parametrize("server", ["engine", "simulated"])
def test_guidellm_agrees_with_our_own_records(server: str, tmp_path: Path) -> None:
    """Counts exactly. Times within what a client adds: it is scheduled beside the server it measures."""
    file = tmp_path / "figures.json"
    command = [
        sys.executable,
        str(SCRIPT),
        "--server",
        server,
        "--requests",
        "12",
        "--rate",
        "1",
        "--json",
        str(file),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())[server]
    client, record = figures["guidellm"], figures["server"]
    for name in ("requests", "prompt_tokens", "output_tokens"):
        assert client[name] == record[name] > 0
    assert client["itl"] == pytest.approx(record["itl"], rel=0.1)
    assert client["e2el"] == pytest.approx(record["e2el"], rel=0.1, abs=0.1)
    assert record["ttft"] - 0.01 < client["ttft"] < record["ttft"] + 0.2 + record["itl"]
    if server == "simulated":
        assert figures["simulation"]["itl"] == pytest.approx(client["itl"], rel=0.2)
        assert figures["simulation"]["e2el"] == pytest.approx(client["e2el"], rel=0.2)
