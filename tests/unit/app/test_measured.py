"""A calibrated profile's measurements stand beside its laws."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest
import yaml

from app import library, measured
from hwprofiles import load_profile
from simulator.steptime.measured_points import measured_points

from .test_pages import texts, visit

SHAPES = {"m": [16.0, 512.0, 4096.0], "n": [4096.0], "k": [4096.0]}
SECONDS = [2e-5, 4e-5, 3e-4]


@pytest.fixture
def calibrated() -> str:
    """The key of an uploaded profile whose first law carries three measurements."""
    (path,) = (p for p in (files("hwprofiles") / "data").iterdir() if p.name == "h100-sxm-80gb.yaml")
    content = yaml.safe_load(path.read_text())
    law = next(block for block in content["laws"] if (block["family"], block["dtype"]) == ("gemm", "bf16"))
    law["points"] = {"arguments": SHAPES, "seconds": SECONDS}
    return library.store("gpu", "mine.yaml", yaml.safe_dump(content).encode())


def test_every_measurement_is_drawn_where_the_law_and_the_clock_put_it(calibrated):
    points = measured_points(load_profile(library.path_of(calibrated)))
    drawn = next(trace for trace in measured.figure(points).data if trace.mode == "markers")
    np.testing.assert_allclose(drawn.x, np.array(SECONDS) * 1e6)
    np.testing.assert_allclose(np.divide(drawn.y, drawn.x) - 1, [point.error for point in points])
    (row,) = measured.table(points).to_dict("records")
    worst = max((100 * point.error for point in points), key=abs)
    assert (row["law"], row["measurements"], row["worst (%)"]) == ("gemm/bf16", 3, round(worst, 1))


@pytest.mark.filterwarnings("ignore")
def test_the_page_says_whether_there_are_any(calibrated):
    assert "fitted against measured" in texts(visit("hardware", gpu=calibrated))
    assert "carries no measurements" in texts(visit("hardware"))
