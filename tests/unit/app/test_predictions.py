"""The validation page predicts what it shows, and says what the command line says."""

from __future__ import annotations

import numpy as np
import pytest

from app import predictions, work
from simulator.errors import ConfigurationError


def test_the_bundled_figures_are_predicted_and_summed_up():
    rows = work.predictions_of(predictions.bundled_figures())
    assert len(rows) == 12
    np.testing.assert_allclose(rows["ape"], np.abs(rows["predicted"] / rows["measured"] - 1), rtol=1e-9)
    table = predictions.summary(rows)
    assert table["figures"].sum() == len(rows)
    assert table["worst (%)"].max() == round(100 * rows["ape"].max(), 1)
    drawn = predictions.figure(rows)
    shown = np.concatenate([trace.y for trace in drawn.data if trace.mode == "markers"])
    assert sorted(shown) == sorted(rows["predicted"])


def test_a_file_of_another_kind_is_refused_in_the_commands_words(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match=r"mine\.csv"):
        work.predictions_of(str(path))
