"""What is installed is whole: data and kernels are in the wheel, tests are not; every public name exists."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("simulator", "hwprofiles", "calibrate", "engine")
PUBLIC = ("simulator", "hwprofiles", "engine")
DATA = (
    "hwprofiles/data/*.yaml",
    "simulator/models/zoo/*.json",
    "simulator/steptime/data/*.yaml",
    "simulator/steptime/data/*.csv",
    "engine/kernels/cuda/*.cu",
    "*/py.typed",
)


def test_the_wheel_holds_all_data_and_no_tests(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(tmp_path),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for pattern in DATA:
        for path in ROOT.glob(pattern):
            assert str(path.relative_to(ROOT)) in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]


def by_kind(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, as the linter sorts them."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize(
    "package",
    [
        *PUBLIC,
        *(
            f"simulator.{p}"
            for p in ("models", "results", "scheduling", "steptime", "workload", "conformance")
        ),
    ],
)
def test_public_names_are_sorted_and_exist(package: str) -> None:
    module = importlib.import_module(package)
    assert list(module.__all__) == sorted(module.__all__, key=by_kind)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_scheduling_and_models_need_only_numpy() -> None:
    """On a GPU machine with bare torch the engine still runs."""
    code = (
        "import sys, simulator.scheduling, simulator.models\n"
        "from simulator.scheduling.system import list_systems\n"
        "assert all(system.policy_class for system in list_systems())\n"
        "heavy = {'simpy', 'pydantic', 'pandas', 'scipy', 'plotly', 'pyarrow', 'yaml', 'typer', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_arrows_between_packages_point_one_way() -> None:
    allowed = {
        "hwprofiles": {"hwprofiles", "simulator.errors"},
        "engine": {"engine", "simulator.scheduling", "simulator.models", "simulator.errors"},
    }
    for package, targets in allowed.items():
        for path in (ROOT / package).rglob("*.py"):
            for line in path.read_text(encoding="utf-8").splitlines():
                words = line.split()
                if len(words) > 1 and words[0] in ("from", "import"):
                    name = words[1]
                    ours = name.split(".")[0] in (*PACKAGES, "app")
                    fine = any(name == target or name.startswith(target + ".") for target in targets)
                    assert not ours or fine, f"{path.relative_to(ROOT)}: {line.strip()}"
