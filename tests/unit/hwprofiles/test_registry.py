"""Finding profiles, and what is filled where nobody measured."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

import hwprofiles
from hwprofiles import alias_names, list_profiles, load_profile
from hwprofiles.registry import bundled_path, parse_profile
from simulator.errors import InputError, UnknownNameError
from simulator.steptime.laws import LawSet

MEASURED = ("a100", "h100", "h200", "l40s", "b200", "h20")


@pytest.mark.parametrize("name", list_profiles())
def test_every_profile_loads_and_prices_a_step(name: str) -> None:
    profile = load_profile(name)
    laws = LawSet.from_profile(profile)
    for dtype in ("bf16", "fp16", "fp8", "int8", "int8_wo", "int4_wo", "fp4"):
        assert laws.gemm(64, 4096, 4096, dtype) > 0
        assert laws.moe(64, 2048, 768, 8, 128, 1, 1, dtype) > 0
    for dtype in ("bf16", "fp8"):
        assert laws.decode_attention(8, 8000, 32, 8, 128, dtype) > 0
        assert laws.prefill_attention(512, 512, 32, 8, 128, dtype) > 0
    assert laws.all_reduce(1e6, 2) > 0


@pytest.mark.parametrize("name", list_profiles())
def test_aliases_lead_to_their_profile(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.provenance.startswith("laws: ")
    assert all(load_profile(alias) is profile for alias in profile.aliases)


def test_no_alias_hides_a_name() -> None:
    assert not set(alias_names()) & set(list_profiles())


@pytest.mark.parametrize(("wrong", "near"), [("h10", "h100"), ("B20O", "b200"), ("rtx409", "rtx4090")])
def test_unknown_name_offers_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown gpu '{wrong}': did you mean '{near}'"):
        load_profile(wrong)


def test_path_loads_a_profile_of_ones_own(tmp_path: Path) -> None:
    text = bundled_path("l4-24gb").read_text().replace("name: l4-24gb", "name: mine")
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert load_profile(path).name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "memory_bandwidth: 3.0e+11",
            "memory_bandwidth: -1",
            "datasheet.memory_bandwidth: -1: .*greater than 0",
        ),
        ("tdp_watts:", "tdp_wats:", "datasheet.tdp_w"),
        ("name: l4-24gb", "name: [", "is not YAML"),
    ],
)
def test_broken_file_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = bundled_path("l4-24gb").read_text()
    assert old in text
    path = tmp_path / "broken.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.yaml: cannot be read"):
        load_profile(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("name", MEASURED)
def test_measured_devices_carry_fitted_laws(name: str) -> None:
    fitted = [law for law in load_profile(name).laws if law.source.kind == "fitted"]
    assert any(law.family == "gemm" for law in fitted)
    for law in fitted:
        assert law.range and law.source.date
        assert law.residual is None or len(law.residual.values) <= 200


def test_borrowed_laws_are_labelled() -> None:
    """Nothing on file for an A10G: its laws are the A100's, and say so."""
    own = parse_profile(bundled_path("a10g-24gb"))
    assert own.laws == []
    law = load_profile("a10g").law("gemm", "bf16")
    assert law is not None
    assert law.source.kind == "scaled" and law.source.text.startswith("a100-sxm-80gb")
    assert law.held_out is None


def test_unmeasured_families_are_defaults_everywhere() -> None:
    """No table holds element-wise, sampling or KV-write kernels."""
    for name in list_profiles():
        for family, dtype in (("elementwise", "bf16"), ("kv_write", "bf16"), ("sampling", "fp32")):
            law = load_profile(name).law(family, dtype)
            assert law is not None and law.source.kind == "default"


def test_a_device_without_fp8_multiplies_in_bf16() -> None:
    laws = LawSet.from_profile(load_profile("a100"))
    assert laws.peak_flops("fp8") == laws.peak_flops("bf16") == 312e12


def test_public_names_are_sorted_and_exist() -> None:
    assert hwprofiles.__all__ == sorted(hwprofiles.__all__)
    assert all(hasattr(hwprofiles, name) for name in hwprofiles.__all__)


def test_data_lies_in_the_package() -> None:
    assert (files("hwprofiles") / "data" / "h100-sxm-80gb.yaml").is_file()
