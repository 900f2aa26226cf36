from __future__ import annotations

from pathlib import Path

import pytest

from hwprofiles import list_profiles, load_profile
from simulator.errors import ConfigurationError, SimError
from simulator.sizing import Prices


def test_the_shipped_prices_are_those_of_the_profiles_with_their_sources() -> None:
    prices = Prices.load()
    for name in list_profiles():
        price = load_profile(name).datasheet.price
        assert (name in prices) == (price is not None)
        if price is not None:
            quote = prices.of(name)
            assert (quote.usd_per_hour, quote.source, quote.date) == (
                price.usd_per_hour,
                price.source,
                price.date,
            )


def test_a_file_overrides_by_any_name_of_the_gpu(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("h100: 2.5\nh200: {usd_per_hour: 3, date: 2026-11-01, source: our contract}\n")
    prices = Prices.load(path)
    assert prices.of("h100-sxm-80gb").usd_per_hour == 2.5
    assert prices.of("h200-sxm-141gb").text == "$3.00/h (our contract, 2026-11-01)"
    assert prices.of("l4-24gb") == Prices.load().of("l4-24gb")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("h100: .nan", "h100: nan: must be a number above 0 and finite"),
        ("h100: -1", "h100: -1: must be a number above 0"),
        ("h100: .inf", "must be a number above 0 and finite"),
        ("h100: cheap", "h100: 'cheap': must be a number"),
        ("h100: {price: 3}", "h100.price: must be one of usd_per_hour"),
        ("h100: {date: 2026-01-01}", "must be a number above 0"),
        ("h1000: 3", "did you mean"),
        ("- 3", "must hold a mapping"),
        ("a: [", "is not YAML"),
    ],
)
def test_what_is_no_price_is_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SimError) as error:
        Prices.load(path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_gpu_without_a_price_says_how_to_give_one(tmp_path: Path) -> None:
    unpriced = next(name for name in list_profiles() if load_profile(name).datasheet.price is None)
    with pytest.raises(ConfigurationError, match=f"no price for {unpriced}.*--prices"):
        Prices.load().of(unpriced)
    with pytest.raises(SimError, match="cannot be read"):
        Prices.load(tmp_path / "absent.yaml")
