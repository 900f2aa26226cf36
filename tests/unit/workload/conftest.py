from collections.abc import Callable
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "traces"


@pytest.fixture(scope="session")
def real() -> Callable[[str], Path]:
    """Path of a recorded trace, by name under the shared data."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"needs the recorded trace {name} in ../shared/data/traces")
        return SHARED / name

    return find


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write text or bytes to a file of the test's own."""

    def to_file(content: str | bytes, name: str = "trace.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file
