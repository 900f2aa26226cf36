"""Moments of the length distributions against theory."""

import numpy as np
import pytest

from simulator.errors import ConfigurationError, SimError, UnknownNameError
from simulator.workload import Lengths, Trace
from simulator.workload.lengths import empirical_pairs

N = 100_000


def draw(text: str) -> np.ndarray:
    return Lengths.parse(text).draw(N, np.random.default_rng(3))


def test_fixed() -> None:
    assert set(draw("fixed:value=7")) == set(draw("7")) == {7}


def test_uniform_has_both_ends() -> None:
    values = draw("uniform:low=3,high=6")
    assert np.bincount(values).tolist()[:3] == [0, 0, 0]
    assert np.bincount(values)[3:] / N == pytest.approx(0.25, abs=0.01)


def test_normal() -> None:
    values = draw("normal:mean=500,std=50")
    assert values.mean() == pytest.approx(500, rel=0.005)
    assert values.std() == pytest.approx(50, rel=0.02)


@pytest.mark.parametrize(
    "spec", ["lognormal:mean=1155,sigma=0.99", f"lognormal:median={1155 * np.exp(-(0.99**2) / 2)},sigma=0.99"]
)
def test_lognormal(spec: str) -> None:
    values = draw(spec)
    assert values.mean() == pytest.approx(1155, rel=0.02)
    assert np.log(values).std() == pytest.approx(0.99, rel=0.02)


def test_geometric() -> None:
    values = draw("geometric:mean=1.63")
    assert values.min() == 1
    assert values.mean() == pytest.approx(1.63, rel=0.02)
    assert (values > 1).mean() == pytest.approx(1 - 1 / 1.63, rel=0.03)


def test_zipf() -> None:
    values = draw("zipf:theta=1.1,low=10,high=29")
    weights = np.arange(1, 21) ** -1.1
    assert values.min() == 10 and values.max() == 29
    assert np.bincount(values, minlength=30)[10:] / N == pytest.approx(weights / weights.sum(), abs=0.01)


def test_clipping() -> None:
    values = draw("normal:mean=10,std=20,max=30")
    assert values.min() == 1 and values.max() == 30


def test_pairs_keep_the_relation_of_prompt_and_output() -> None:
    prompt = np.arange(1, 101)
    trace = Trace.from_columns(np.zeros(100), prompt, 2 * prompt)
    drawn, output = empirical_pairs(trace, N, np.random.default_rng(3))
    assert np.array_equal(output, 2 * drawn)
    assert drawn.mean() == pytest.approx(50.5, rel=0.02)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lognorml:mean=1",
        "lognormal:mean=1",
        "lognormal:sigma=1",
        "uniform:low=5,high=2",
        "uniform:low=0,high=3",
        "fixed:value=x",
        "fixed:value=nan",
        "fixed:v=1",
        "normal:mean=-1,std=1",
        "zipf:theta=1,low=1",
        "geometric:mean=0.5",
    ],
)
def test_impossible_lengths(text: str) -> None:
    with pytest.raises(SimError):
        draw(text)


def test_a_misspelt_name_is_answered_with_the_right_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lognormal'"):
        draw("lognorml:mean=1")
    with pytest.raises(ConfigurationError, match="one of mean and median"):
        draw("lognormal:sigma=1")
