"""Fitting on tables made by a known law: what went in must come out, on shapes that were not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibrate.fit import (
    LawFit,
    SmoothLaw,
    Surface,
    fit_folder,
    predict_rows,
    resident_rows,
    shape_numbers,
    usable_rows,
)
from calibrate.fit.families import Axis
from hwprofiles import load_profile
from hwprofiles.registry import parse_profile
from simulator.steptime.law_decode import DecodeLaw
from simulator.steptime.law_gemm import GemmLaw
from simulator.steptime.laws import law_device

PROFILE = load_profile("h100")
TRUTH = {
    "t0": 4e-6,
    "eb": 0.8,
    "p": 3.0,
    "wave": 0.5,
    "ec_256": 0.8,
    "ec_128": 0.7,
    "ec_64": 0.5,
    "ec_32": 0.4,
}


def gemm_table(noise: float = 0.0, bump: float = 0.0) -> pd.DataFrame:
    """Rows of the law TRUTH; *bump* adds a smooth departure from it, *noise* lognormal scatter."""
    sizes = [1024, 2048, 4096, 6144, 8192, 12288]
    grid = [(2.0**i, float(n), float(k)) for i in range(14) for n in sizes for k in sizes]
    frame = pd.DataFrame(grid, columns=["m", "n", "k"])
    frame["dtype"], frame["gpu"], frame["source"], frame["variant"] = "bf16", "h100", "made", ""
    law = GemmLaw(TRUTH, "bf16", law_device(PROFILE, "gemm", "bf16"))
    departure = bump * np.sin(np.log2(frame["m"]) / 2) + noise * np.random.default_rng(0).standard_normal(
        len(frame)
    )
    frame["seconds"] = predict_rows(law, "gemm", frame) * np.exp(departure)
    return frame


def test_smooth_law_finds_the_coefficients() -> None:
    fit = SmoothLaw("gemm", PROFILE, "bf16", prior=1e-4).fit(gemm_table())
    found = fit.coefficients_
    for name in ("t0", "eb", "ec_256"):
        assert found[name] == pytest.approx(TRUTH[name], rel=0.05)
    assert fit.predict(gemm_table()) == pytest.approx(gemm_table()["seconds"].to_numpy(), rel=0.01)


def test_outliers_do_not_pull() -> None:
    table = gemm_table(noise=0.01)
    table.loc[table.index % 20 == 0, "seconds"] *= 3.0
    found = SmoothLaw("gemm", PROFILE, "bf16").fit(table).coefficients_
    assert found["eb"] == pytest.approx(TRUTH["eb"], rel=0.06)


def test_correction_follows_a_smooth_departure() -> None:
    plain = LawFit("gemm", PROFILE, "bf16").fit(gemm_table(noise=0.02))
    bumpy = LawFit("gemm", PROFILE, "bf16").fit(gemm_table(noise=0.02, bump=0.2))
    error = float(np.mean(np.abs(np.expm1(-bumpy.logs_))))
    assert error < 0.03
    assert error < 2 * float(np.mean(np.abs(np.expm1(-plain.logs_))))
    assert bumpy.surface_ is not None and len(bumpy.surface_.values_) <= 200


def test_covariance_shrinks_with_noise() -> None:
    errors = []
    for noise in (0.02, 0.2):
        table = gemm_table(noise=noise)
        fit = SmoothLaw("gemm", PROFILE, "bf16", prior=1e-3).fit(table, shape_numbers("gemm", table))
        errors.append(fit.covariance_[1][1])  # of ln(eb)
    assert 0 < errors[0] < errors[1]


def test_held_out_by_shape_never_by_row() -> None:
    """A shape with a time of its own cannot be learnt from its other rows, so the held-out error shows it."""
    table = gemm_table()
    odd = (table["n"] == 4096) & (table["k"] == 4096)
    table.loc[odd, "seconds"] *= 1.5
    fit = LawFit("gemm", PROFILE, "bf16").fit(table)
    assert np.abs(np.expm1(-fit.logs_[odd.to_numpy()])).mean() > 0.2


def test_fit_is_deterministic_and_follows_the_convention() -> None:
    table = gemm_table(noise=0.05)
    one, two = (LawFit("gemm", PROFILE, "bf16") for _ in range(2))
    assert not [name for name in vars(one) if name.endswith("_")]
    assert one.fit(table) is one
    assert two.fit(table).predict(table).tolist() == one.predict(table).tolist()
    assert one.smooth_.coefficients_ == two.smooth_.coefficients_


def test_surface_keeps_within_its_knots() -> None:
    x = np.linspace(0, 8, 200)
    surface = Surface((Axis("x", (0.0, 2.0, 4.0, 6.0, 8.0), 0.001),), ridge=1e-3).fit([x], 0.1 * x)
    assert surface.predict([x]) == pytest.approx(0.1 * x, abs=0.01)
    assert abs(surface.predict([np.array([100.0])])[0]) < 1e-6  # far outside nothing is left


def test_resident_rows_are_left_out_by_rule() -> None:
    """H100: six bf16 copies of 1024 x 1024 are 12.6 MB of 50 MiB L2; of 8192 x 8192, 805 MB."""
    table = pd.DataFrame(
        {
            "m": [1.0, 1.0, 8192.0],
            "n": [1024.0, 8192.0, 1024.0],
            "k": [1024.0, 8192.0, 1024.0],
            "dtype": "bf16",
        }
    )
    assert resident_rows("gemm", table, PROFILE).tolist() == [True, False, True]
    # at 8192 tokens the FLOPs of the small one do not yet take twice its bytes
    assert usable_rows("gemm", table, PROFILE).tolist() == [False, True, False]


def test_folder_to_profile_and_back(tmp_path: Path) -> None:
    """The command's path: a table in, a profile out that predicts the table; twice the same bytes."""
    data = tmp_path / "data"
    data.mkdir()
    table = gemm_table(noise=0.02)
    raw = table.assign(latency_us=table["seconds"] * 1e6)[["gpu", "dtype", "m", "n", "k", "latency_us"]]
    raw.to_csv(data / "gemm.csv", index=False)
    (path,) = fit_folder(data, tmp_path / "out", kind="measured", date="2026-01-01")
    first = path.read_bytes()
    profile = parse_profile(path)
    law = profile.law("gemm", "bf16")
    assert law is not None and law.source.kind == "measured" and law.source.date == "2026-01-01"
    assert law.held_out is not None and law.held_out.mean_ape < 0.03
    assert law.held_out.split.endswith("shapes (n, k)")
    assert profile.raw_data_digest is not None
    assert fit_folder(data, tmp_path / "out", kind="measured", date="2026-01-01") == [path]
    assert path.read_bytes() == first


def test_skew_is_searched_only_where_batches_are_skewed() -> None:
    """Batches of one long and many short sequences, slower by a tenth of their imbalance."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "num_seqs": rng.integers(2, 64, 200).astype(float),
            "max_context": rng.integers(4e3, 4e4, 200).astype(float),
        }
    )
    table["sum_context"] = table["max_context"] * (1 + 0.5 * (table["num_seqs"] - 1))
    table = table.assign(n_q=32.0, n_kv=8.0, head_dim=128.0, dtype="bf16")
    even = table.assign(max_context=table["sum_context"] / table["num_seqs"])
    truth = SmoothLaw("decode_attention", PROFILE, "bf16").fit(even.assign(seconds=1e-4)).coefficients_
    assert truth["skew"] == 0.04
    law = DecodeLaw(
        {**truth, "skew": 0.1, "eb": 0.8}, "bf16", law_device(PROFILE, "decode_attention", "bf16")
    )
    made = table.assign(seconds=predict_rows(law, "decode_attention", table))
    found = SmoothLaw("decode_attention", PROFILE, "bf16", prior=1e-4).fit(made).coefficients_
    assert found["skew"] == pytest.approx(0.1, rel=0.1)
