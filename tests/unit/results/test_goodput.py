from __future__ import annotations

import pytest

from simulator.errors import ConfigurationError, SimError, UnknownNameError
from simulator.results import parse_goodput


def test_objectives_are_milliseconds() -> None:
    assert parse_goodput(["ttft:2000", "tpot:100.5"]) == {"ttft": 2000.0, "tpot": 100.5}


@pytest.mark.parametrize("text", ["ttft", "ttft:", "ttft:fast", "ttft:-5", "ttft:0", "ttft:inf", "ttft:nan"])
def test_bad_values_are_quoted(text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"goodput '{text}'"):
        parse_goodput([text])


def test_unknown_objective_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ttft'"):
        parse_goodput(["tft:100"])
    with pytest.raises(SimError):
        parse_goodput(["itl:100"])
