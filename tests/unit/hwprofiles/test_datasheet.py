"""Reading the table of datasheets strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles import list_profiles, load_profile
from hwprofiles.catalogue import CATALOGUE
from hwprofiles.datasheet import profile_from_row, read_number, write_profiles
from simulator.errors import InputError

ROW = {
    "gpu": "H100-SXM",
    "bf16_tflops": "989",
    "fp16_tflops": "989",
    "fp8_tflops": "1979",
    "int8_tops": "1979",
    "fp4_tflops": "",
    "mem_gb": "80",
    "mem_bw_gbs": "3350",
    "nvlink_gbs_bidir": "900",
    "pcie": "5.0x16",
    "tdp_w": "700",
    "sm_or_cu": "132",
    "l2_mb": "50",
    "usd_per_gpu_hr": "3.9",
    "price_source": "a list (2026-08-19); also 2.29 elsewhere",
    "spec_source": "a table",
    "confidence_notes": "verified",
}


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("989", 989),
        ("149.7", 149.7),
        ("16/32", 16),
        ("60?", 60),
        ("700 GPU?", 700),
        ("900 (as measured by stas00)", 900),
        ("165.2 (330.3 fp16-acc)", 165.2),
        ("4 per XCD x8 + 256 Infinity Cache", 32),
    ],
)
def test_cells_with_text(cell: str, value: float) -> None:
    number, note = read_number(cell)
    assert number == value
    assert bool(note) == (not cell.replace(".", "").isdigit())


def test_empty_cell_is_nothing() -> None:
    assert read_number("") == (None, "")


@given(st.text(alphabet="abc~-+,x% ", min_size=1).filter(str.strip))
def test_other_text_is_refused(cell: str) -> None:
    with pytest.raises(ValueError, match="must be a number"):
        read_number(cell)


def test_units_and_provenance_of_a_row() -> None:
    profile = profile_from_row(ROW)
    assert profile.peak_flops == {"bf16": 989e12, "fp16": 989e12, "fp8": 1979e12, "int8": 1979e12}
    assert profile.memory_bandwidth == 3.35e12
    assert profile.link_bandwidth == 450e9  # one direction
    assert profile.datasheet.memory_bytes == 80 * 2**30
    assert profile.memory_bytes < profile.datasheet.memory_bytes
    assert profile.datasheet.price is not None
    assert (profile.price_per_hour, profile.datasheet.price.date) == (3.9, "2026-08-19")
    assert profile.datasheet.confidence == "verified"


def test_odd_cells_become_notes() -> None:
    profile = profile_from_row({**ROW, "l2_mb": "60?"})
    assert profile.l2_bytes == 60 * 2**20
    assert profile.datasheet.notes == ["l2_mb: '60?': low confidence"]


def test_bad_cell_names_file_line_column() -> None:
    with pytest.raises(InputError, match=r"t\.csv:7: mem_bw_gbs: 'fast': must be a number"):
        profile_from_row({**ROW, "mem_bw_gbs": "fast"}, "t.csv", 7)


def test_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match="'TPU': is not in the catalogue"):
        profile_from_row({**ROW, "gpu": "TPU"})


def test_rewriting_the_table_keeps_laws(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from hwprofiles.datasheet import save_profile
    from hwprofiles.registry import bundled_path, parse_profile

    before = parse_profile(bundled_path("h100-sxm-80gb"))
    save_profile(before, tmp_path)
    table = tmp_path / "gpus.csv"
    table.write_text(",".join(ROW) + "\n" + ",".join(f'"{cell}"' for cell in ROW.values()) + "\n")
    (path,) = write_profiles(table, tmp_path)
    assert parse_profile(path).laws == before.laws


def test_one_profile_per_device_of_the_catalogue() -> None:
    assert sorted(entry.name for entry in CATALOGUE.values()) == list_profiles()
    assert all(load_profile(entry.name).architecture == entry.architecture for entry in CATALOGUE.values())


@pytest.mark.parametrize(
    ("name", "bf16", "bandwidth", "memory_gib"),
    [("a100", 312e12, 2.039e12, 79.15), ("h200", 989e12, 4.8e12, 139.8), ("l40s", 362e12, 0.864e12, 44.4)],
)
def test_known_devices(name: str, bf16: float, bandwidth: float, memory_gib: float) -> None:
    """Vendor datasheets; memory as torch reports it."""
    profile = load_profile(name)
    assert profile.peak_flops["bf16"] == bf16
    assert profile.memory_bandwidth == pytest.approx(bandwidth)
    assert profile.memory_bytes == pytest.approx(memory_gib * 2**30, rel=1e-5)
