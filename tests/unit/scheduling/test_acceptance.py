"""Which drafts are accepted: against the closed form, and independent of when they are asked for."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.scheduling.acceptance import NOT_DRAFTED, Drafting, tokens_per_step


def steps_of(drafting, requests, length):
    """Accepted drafts of every step of so many requests, but of each the last, which the end may cut."""
    return [
        accepted
        for index in range(requests)
        for accepted in drafting.accepted(index, f"r{index}", 1, length)[:-1]
    ]


@pytest.mark.parametrize(("alpha", "k"), [(0.5, 1), (0.7, 4), (0.9, 8), (0.3, 3)])
def test_one_rate_yields_the_closed_form_of_independent_acceptance(alpha, k):
    # Leviathan, Kalman and Matias 2023, equation 1
    expected = (1 - alpha ** (k + 1)) / (1 - alpha)
    assert tokens_per_step((alpha,) * k) == pytest.approx(expected)
    tokens = [1 + accepted for accepted in steps_of(Drafting((alpha,) * k, k + 1), 200, 400)]
    mean = sum(tokens) / len(tokens)
    deviation = math.sqrt(sum((t - mean) ** 2 for t in tokens) / len(tokens))
    assert abs(mean - expected) < 4 * deviation / math.sqrt(len(tokens))


def test_rates_by_position_are_met_at_every_position():
    shares = (0.8, 0.6, 0.5, 0.1)
    rates = (0.8, 0.6 / 0.8, 0.5 / 0.6, 0.1 / 0.5)
    steps = steps_of(Drafting(rates, 5), 200, 400)
    assert tokens_per_step(rates) == pytest.approx(1 + sum(shares))
    for position, share in enumerate(shares):
        met = sum(accepted > position for accepted in steps) / len(steps)
        assert abs(met - share) < 4 * math.sqrt(share * (1 - share) / len(steps))


def test_a_step_without_a_match_yields_one_token_and_no_draft():
    drafting = Drafting((0.9, 0.9), 3, match=0.25)
    steps = steps_of(drafting, 200, 400)
    drafted = sum(accepted != NOT_DRAFTED for accepted in steps) / len(steps)
    assert abs(drafted - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(steps))
    mean = sum(1 + max(accepted, 0) for accepted in steps) / len(steps)
    assert mean == pytest.approx(drafting.tokens_per_step, rel=0.02)


@settings(max_examples=60, deadline=None)
@given(
    rates=st.lists(st.sampled_from([0.0, 0.3, 0.7, 1.0]), min_size=1, max_size=6).map(tuple),
    match=st.sampled_from([0.5, 1.0]),
    index=st.integers(0, 50),
    left=st.integers(1, 200),
    first=st.integers(1, 40),
    seed=st.integers(0, 3),
)
def test_a_position_is_easy_or_hard_whatever_happened_before(rates, match, index, left, first, seed):
    drafting = Drafting(rates, len(rates) + 1, match, seed=seed)
    steps = drafting.accepted(index, "r", first, left)
    gains = [1 + max(accepted, 0) for accepted in steps]
    assert sum(gains[:-1]) < left <= sum(gains)
    at = first
    for number, gain in enumerate(gains):  # whoever stops there and starts again goes the same way
        assert drafting.accepted(index, "r", at, left - (at - first)) == steps[number:]
        at += gain


def test_samples_of_a_request_and_seeds_differ():
    drafting = Drafting((0.5,) * 4, 5)
    one = drafting.accepted(3, "r3-0", 1, 300)
    assert one == drafting.accepted(3, "r3-0", 1, 300)
    assert one != drafting.accepted(3, "r3-1", 1, 300)
    assert one != drafting.accepted(4, "r3-0", 1, 300)
    assert one != Drafting((0.5,) * 4, 5, seed=1).accepted(3, "r3-0", 1, 300)
