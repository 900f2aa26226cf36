"""From the table of datasheets to one YAML file per device.

Usage: ``python -m hwprofiles.datasheet gpus.csv [FOLDER]``. Cells that are not plain numbers ("16/32", "60?",
"165.2 (330.3 fp16-acc)") are read by the named rules in `CELL_RULES` and kept as notes; any other text is an
error. Laws that a file already holds are kept, so the table can be read again after a fit.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hwprofiles.catalogue import CATALOGUE, Entry
from hwprofiles.schema import HardwareProfile
from simulator.errors import InputError

__all__ = ["profile_from_row", "read_number", "write_profiles"]

PEAKS = {
    "bf16_tflops": "bf16",
    "fp16_tflops": "fp16",
    "fp8_tflops": "fp8",
    "int8_tops": "int8",
    "fp4_tflops": "fp4",
}
PCIE_BYTES_PER_S = {"3.0x16": 15.75e9, "4.0x16": 31.5e9, "5.0x16": 63.0e9, "6.0x16": 121e9}
"""One direction, after line coding (PCI-SIG)."""

Rule = tuple[str, Callable[[re.Match[str]], float], str]
NUMBER = r"(\d+(?:\.\d+)?)"
CELL_RULES: tuple[Rule, ...] = (
    (rf"{NUMBER}", lambda m: float(m[1]), ""),
    (rf"{NUMBER}/{NUMBER}", lambda m: min(float(m[1]), float(m[2])), "the smaller of two versions"),
    (rf"{NUMBER}\?", lambda m: float(m[1]), "low confidence"),
    (rf"{NUMBER} GPU\?", lambda m: float(m[1]), "not verified"),
    (rf"{NUMBER} \(.+\)", lambda m: float(m[1]), "the figure before the brackets is taken"),
    (rf"{NUMBER} per XCD x{NUMBER} \+ {NUMBER} Infinity Cache", lambda m: float(m[1]) * float(m[2]),
     "all XCDs together; the Infinity Cache behind them is not counted"),
)  # fmt: skip


def read_number(text: str) -> tuple[float | None, str]:
    """The number in a cell (none if empty) and a note of the rule that was needed ("" for a plain number).

    Raises `ValueError` for text that no rule reads.
    """
    if not text.strip():
        return None, ""
    for pattern, value, note in CELL_RULES:
        if match := re.fullmatch(pattern, text.strip()):
            return value(match), note
    raise ValueError("must be a number, or one of the forms a/b, a?, a (remark)")


def profile_from_row(row: dict[str, str], path: object = "row", line: int = 0) -> HardwareProfile:
    """The profile of one row of the table, without laws."""
    entry = CATALOGUE.get(row["gpu"])
    if entry is None:
        raise InputError(path, "is not in the catalogue of devices", line=line, field="gpu", value=row["gpu"])
    notes: list[str] = []

    def number(column: str) -> float | None:
        try:
            value, note = read_number(row[column])
        except ValueError as error:
            raise InputError(path, str(error), line=line, field=column, value=row[column]) from error
        if note:
            notes.append(f"{column}: {row[column]!r}: {note}")
        return value

    datasheet = _datasheet(row, entry, number) | {"notes": notes}
    return HardwareProfile.model_validate(_content(entry, datasheet, number("mem_gb") or 0.0))


def _datasheet(row: dict[str, str], entry: Entry, number: Callable[[str], float | None]) -> dict[str, Any]:
    peaks = {dtype: number(column) for column, dtype in PEAKS.items()}
    nvlink, price = number("nvlink_gbs_bidir"), number("usd_per_gpu_hr")
    sms = number("sm_or_cu") or entry.supplement.get("num_sms")
    l2 = number("l2_mb") or entry.supplement.get("l2_mb")
    return {
        "peak_flops": {dtype: value * 1e12 for dtype, value in peaks.items() if value is not None},
        "memory_bytes": (number("mem_gb") or 0.0)
        * 2**30,  # a "GB" of GPU memory is 2^30 bytes, except B300's
        "memory_bandwidth": (number("mem_bw_gbs") or 0.0) * 1e9,
        "nvlink_bandwidth": None if nvlink is None else nvlink * 1e9 / 2,  # both directions to one
        "nvlink_bridge": entry.bridge,
        "pcie_bandwidth": PCIE_BYTES_PER_S[row["pcie"]],
        "tdp_watts": number("tdp_w"),
        "num_sms": int(sms or 0),
        "l2_bytes": (l2 or 0.0) * 2**20,
        "price": None if price is None else _price(price, row["price_source"]),
        "source": "; ".join(filter(None, [row["spec_source"], entry.supplement_source])),
        "confidence": row["confidence_notes"] or "no remark in the table",
    }


def _price(usd: float, source: str) -> dict[str, Any]:
    first = source.split(";")[0]
    date = re.search(r"\d{4}-\d{2}(?:-\d{2})?", first)
    month = re.search(r"\((\w+) (\d{4})\)", first)
    found = date[0] if date else (f"{month[2]}-06" if month and month[1] == "June" else None)
    return {"usd_per_hour": usd, "source": source, "date": found}


def _content(entry: Entry, datasheet: dict[str, Any], mem_gb: float) -> dict[str, Any]:
    visible = (entry.visible or mem_gb * DEFAULT_VISIBLE) * 2**30
    return {
        "name": entry.name,
        "aliases": list(entry.aliases),
        "vendor": entry.vendor,
        "architecture": entry.architecture,
        "relative": entry.relative,
        "datasheet": datasheet,
        "memory": {"visible_bytes": visible, **MEMORY_DEFAULTS},
        "host": HOST_DEFAULTS,
    }


DEFAULT_VISIBLE = 0.985
MEMORY_DEFAULTS: dict[str, Any] = {
    "cuda_context_bytes": 650e6,
    "activation_factor": 11.0,
    "graph_pool_bytes": 1.0e9,
    "nccl_bytes": 370e6,
    "source": {
        "kind": "default",
        "text": "visible: torch.cuda total_memory in public logs; context 650 MB (gpu_poor); activations "
        "11 x tokens x hidden x 2 B at tp 1 and NCCL 342-392 MB (aiconfigurator); graph pool assumed",
    },
}
HOST_DEFAULTS: dict[str, Any] = {
    "per_step_s": 5e-4,
    "per_seq_s": 4e-6,
    "launch_s": 4.5e-6,
    "graph_launch_s": 1e-5,
    "layer_overhead_s": 1.5e-5,
    "source": {
        "kind": "default",
        "text": "assumed until the engine measures it; the step model says what it uses",
    },
}


def write_profiles(table: Path, folder: Path) -> list[Path]:
    """Write one YAML file per row of *table* into *folder*; laws already there are kept."""
    with table.open(newline="", encoding="utf-8") as file:
        profiles = [
            profile_from_row(row, table, line) for line, row in enumerate(csv.DictReader(file), start=2)
        ]
    folder.mkdir(parents=True, exist_ok=True)
    return [save_profile(_keep_laws(profile, folder), folder) for profile in profiles]


def save_profile(profile: HardwareProfile, folder: Path) -> Path:
    """Write *profile* as ``<name>.yaml``, blocks in the order of the schema."""
    return write_profile(profile, folder / f"{profile.name}.yaml")


def write_profile(profile: HardwareProfile, path: Path) -> Path:
    """Write *profile* to *path*, whatever its name."""
    content = profile.model_dump(mode="json", exclude_defaults=True)
    path.write_text(yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True))
    return path


def _keep_laws(profile: HardwareProfile, folder: Path) -> HardwareProfile:
    path = folder / f"{profile.name}.yaml"
    if not path.exists():
        return profile
    old = HardwareProfile.model_validate(yaml.safe_load(path.read_text()))
    kept = ("version", "laws", "measured_on", "software", "raw_data_digest", "validation", "end_to_end")
    return profile.model_copy(update={name: getattr(old, name) for name in kept})


class _Dumper(yaml.SafeDumper):
    """Lists of numbers in flow style, floats in six digits: a grid of 200 knots stays a few lines."""


def _list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    flow = all(isinstance(item, (int, float)) or (isinstance(item, str) and len(item) < 30) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


def _float(dumper: yaml.SafeDumper, data: float) -> yaml.Node:
    text = f"{data:.6g}"
    if re.fullmatch(r"-?\d+", text):
        text += ".0"
    elif "e" in text and "." not in text:
        text = text.replace("e", ".0e")  # YAML 1.1 reads 1e9 as text
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(float, _float)


if __name__ == "__main__":
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "data"
    for written in write_profiles(Path(sys.argv[1]), target):
        print(written)
