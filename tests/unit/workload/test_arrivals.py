"""Moments of the arrival processes against theory."""

import numpy as np
import pytest
from scipy.special import gamma as gamma_function

from simulator.errors import ConfigurationError
from simulator.workload import (
    constant_arrivals,
    gamma_arrivals,
    mmpp_arrivals,
    piecewise_arrivals,
    poisson_arrivals,
    ramp_arrivals,
    weibull_arrivals,
)

N = 100_000


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(5)


def cv(times: np.ndarray) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


def idc(times: np.ndarray, width: float) -> float:
    bins = int(times[-1] / width)
    counts = np.bincount((times / width).astype(int))[:bins]
    return float(counts.var() / counts.mean())


@pytest.mark.parametrize("burstiness", [0.25, 0.5, 1.0, 4.0])
def test_gamma_has_vllms_burstiness(burstiness: float, generator: np.random.Generator) -> None:
    times = gamma_arrivals(N, 4.0, burstiness, generator)
    assert times[0] == 0
    assert (N - 1) / times[-1] == pytest.approx(4.0, rel=0.03)
    assert cv(times) == pytest.approx(burstiness**-0.5, rel=0.03)


def test_poisson_gaps_are_not_truncated(generator: np.random.Generator) -> None:
    gaps = np.diff(poisson_arrivals(N, 2.0, generator))
    assert gaps.mean() == pytest.approx(0.5, rel=0.02)  # cut at 3 / rate, it would be 5 % less
    assert (gaps > 1.5).mean() == pytest.approx(np.exp(-3), rel=0.05)


@pytest.mark.parametrize("shape", [0.42, 1.0, 2.0])
def test_weibull(shape: float, generator: np.random.Generator) -> None:
    times = weibull_arrivals(N, 3.0, shape, generator)
    expected = np.sqrt(gamma_function(1 + 2 / shape) / gamma_function(1 + 1 / shape) ** 2 - 1)
    assert (N - 1) / times[-1] == pytest.approx(3.0, rel=0.05)
    assert cv(times) == pytest.approx(expected, rel=0.06)


def test_mmpp_rate_and_dispersion(generator: np.random.Generator) -> None:
    a, b, r, s = 20.0, 2.0, 1 / 3.0, 1 / 6.0  # rates; state a lasts 1/r, state b 1/s
    times = mmpp_arrivals(1_000_000, (a, b), (1 / r, 1 / s), generator)
    mean = (a * s + b * r) / (r + s)
    long_run = 1 + 2 * r * s * (a - b) ** 2 / ((r + s) ** 2 * (a * s + b * r))
    assert len(times) / times[-1] == pytest.approx(mean, rel=0.03)
    assert idc(times, 200.0) == pytest.approx(long_run, rel=0.15)


def test_mmpp_of_one_state_is_poisson(generator: np.random.Generator) -> None:
    times = mmpp_arrivals(N, (5.0,), (10.0,), generator)
    assert N / times[-1] == pytest.approx(5.0, rel=0.02)
    assert cv(times) == pytest.approx(1.0, rel=0.02)


def test_piecewise_rates_repeat_like_days(generator: np.random.Generator) -> None:
    times = piecewise_arrivals(N, (1.0, 0.0, 9.0), (100.0, 50.0, 50.0), generator)
    phase = times % 200.0
    days = times[-1] / 200.0
    assert ((phase >= 100) & (phase < 150)).sum() == 0
    assert (phase < 100).sum() / (100 * days) == pytest.approx(1.0, rel=0.03)
    assert (phase >= 150).sum() / (50 * days) == pytest.approx(9.0, rel=0.03)


@pytest.mark.parametrize("shape", ["linear", "exponential"])
def test_a_ramp_goes_from_rate_to_rate(shape: str, generator: np.random.Generator) -> None:
    times = ramp_arrivals(N, 1.0, 10.0, generator, shape=shape)
    start, end = (1 / np.diff(part).mean() for part in (times[: N // 100], times[-N // 100 :]))
    middle = 1 / np.diff(times[N * 49 // 100 : N * 51 // 100]).mean()
    assert start == pytest.approx(1.045 if shape == "linear" else 1.012, rel=0.1)  # mean of the first 1 %
    assert end == pytest.approx(10.0, rel=0.1)
    assert middle == pytest.approx(5.5 if shape == "linear" else 10**0.5, rel=0.1)


def test_constant_and_all_at_once(generator: np.random.Generator) -> None:
    assert constant_arrivals(4, 2.0).tolist() == [0, 0.5, 1.0, 1.5]
    assert not poisson_arrivals(10, float("inf"), generator).any()


@pytest.mark.parametrize("n", [1, 2])
def test_short_traces(n: int, generator: np.random.Generator) -> None:
    for times in (
        poisson_arrivals(n, 1.0, generator),
        weibull_arrivals(n, 1.0, 1.0, generator),
        mmpp_arrivals(n, (1.0, 2.0), (1.0, 1.0), generator),
        piecewise_arrivals(n, (0.0, 2.0), (1.0, 1.0), generator),
        ramp_arrivals(n, 1.0, 2.0, generator),
    ):
        assert len(times) == n
        assert times[0] >= 0 and np.isfinite(times).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda g: poisson_arrivals(3, 0.0, g),
        lambda g: poisson_arrivals(3, float("nan"), g),
        lambda g: gamma_arrivals(3, 1.0, -1.0, g),
        lambda g: weibull_arrivals(3, 1.0, 0.0, g),
        lambda g: mmpp_arrivals(3, (0.0, 0.0), (1.0, 1.0), g),
        lambda g: piecewise_arrivals(3, (1.0,), (1.0, 2.0), g),
        lambda g: piecewise_arrivals(3, (), (), g),
        lambda g: ramp_arrivals(3, 1.0, 2.0, g, shape="steep"),
        lambda g: ramp_arrivals(3, 0.0, 2.0, g),
    ],
)
def test_impossible_parameters(call, generator: np.random.Generator) -> None:
    with pytest.raises(ConfigurationError):
        call(generator)
