import pytest

from simulator.errors import ConfigurationError
from simulator.workload import Trace, resolve_max_tokens

TRACE = Trace.from_columns([0.0] * 5, [10] * 5, [1, 2, 3, 1024, 1025], max_tokens=[0, 0, 0, 0, 77])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("pow2", [1, 2, 4, 1024, 77]),
        ("exact", [1, 2, 3, 1024, 77]),
        (500, [500, 500, 500, 500, 77]),
        ("500", [500, 500, 500, 500, 77]),
    ],
)
def test_the_traces_own_limit_wins_over_the_rule(rule: int | str, expected: list[int]) -> None:
    assert resolve_max_tokens(TRACE, rule).tolist() == expected


@pytest.mark.parametrize("rule", [0, -1, "", "oracle", "1e3", 10**12])
def test_unknown_rules(rule: int | str) -> None:
    with pytest.raises(ConfigurationError, match="pow2"):
        resolve_max_tokens(TRACE, rule)
