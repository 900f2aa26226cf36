"""The columns of a trace and what can be done with them."""

import numpy as np
import pytest

from simulator.errors import ConfigurationError, InputError
from simulator.workload import OUTPUT_ID_BASE, Runs, Trace, generate_trace
from simulator.workload.lengths import Lengths


@pytest.fixture
def trace() -> Trace:
    """Five requests; 1, 2, 4 are a session whose later turns name the outputs before them."""
    out = [OUTPUT_ID_BASE + i for i in range(5)]
    content = Runs(
        np.array([0, 0, 1, 4, 5, 10]),
        np.array([7, 7, out[1], 8, 9, 7, out[1], 8, out[2], 10]),
        np.array([20, 20, 4, 10, 50, 20, 4, 10, 5, 11]),
    )
    return Trace.from_columns(
        [0.0, 1.0, np.nan, 3.0, np.nan],
        [100, 20, 34, 50, 50],
        [3, 4, 5, 6, 7],
        session=[-1, 0, 0, -1, 0],
        turn=[0, 0, 1, 0, 2],
        delay=[0, 0, 2.0, 0, 3.0],
        tenant=["a", None, None, "b", None],
        content=content,
    )


def test_a_turn_without_arrival_follows_its_session(trace: Trace) -> None:
    assert trace.session.tolist() == [-1, 0, 0, 0, -1]
    assert trace.turn.tolist() == [0, 0, 1, 2, 0]
    assert trace.previous_turn().tolist() == [-1, -1, 1, 2, -1]
    assert trace.delay.tolist() == [0, 0, 2, 3, 0]


def test_sorting_renames_the_outputs_that_prompts_hold(trace: Trace) -> None:
    third = slice(trace.content_offsets[3], trace.content_offsets[4])
    assert trace.content_ids[third].tolist() == [7, OUTPUT_ID_BASE + 1, 8, OUTPUT_ID_BASE + 2, 10]


def test_selecting_keeps_ids_of_outputs_left_behind_apart(trace: Trace) -> None:
    chosen = trace.select([0, 2, 3])
    ids = chosen.content_ids.tolist()
    orphan = ids[1]
    assert ids[0] == ids[3] == 7
    assert orphan == ids[4] and orphan not in trace.content_ids
    assert ids[6] == OUTPUT_ID_BASE + 1  # the output of request 2, now request 1
    assert chosen.tenant[0] == "a" and chosen.tenant[1] is None


def test_columns_are_read_only(trace: Trace) -> None:
    with pytest.raises(ValueError, match="read-only"):
        trace.input_length[0] = 1


def test_equal_times_stay_in_file_order() -> None:
    trace = Trace.from_columns(
        [2.0, 1.0, 2.0, 1.0], [1, 2, 3, 4], [1, 1, 1, 1], request_id=["a", "b", "c", "d"]
    )
    assert list(trace.names()) == ["b", "d", "a", "c"]
    assert trace.meta["inversions"] == 2


def test_rate_scale_window_and_limit() -> None:
    trace = Trace.from_columns(np.arange(11.0), np.arange(1, 12), np.ones(11, int))
    assert trace.request_rate == 1
    assert trace.with_request_rate(4).request_rate == pytest.approx(4)
    assert trace.with_request_rate(float("inf")).duration == 0
    assert trace.scaled(0.5).duration == 5
    window = trace.window(2, 5)
    assert window.arrival_time.tolist() == [0, 1, 2]
    assert window.input_length.tolist() == [3, 4, 5]
    assert trace.limit(4).input_length.tolist() == [1, 2, 3, 4]


def test_a_window_takes_the_later_turns_along(trace: Trace) -> None:
    assert len(trace.window(0.5, 2.5)) == 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0.0], [0], [1]), r"input_length\[0\]: 0: must be at least 1"),
        (([0.0], [1], [-3]), r"output_length\[0\]: -3: must be at least 1"),
        (([-1.0], [1], [1]), r"arrival_time\[0\]: -1.0: must be at least 0"),
        (([np.nan], [1], [1]), r"arrival_time\[0\]: only a later turn"),
        (([0.0], [10**9], [1]), r"at most 100000000"),
        (([], [], []), "at least one request"),
    ],
)
def test_values_out_of_bounds(columns: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trace.from_columns(*columns)


def test_content_longer_than_the_prompt() -> None:
    with pytest.raises(InputError, match="at most input_length 5"):
        Trace.from_columns([0.0], [5], [1], content=Runs(np.array([0, 1]), np.array([0]), np.array([6])))


@pytest.mark.parametrize(
    "call", [lambda t: t.limit(0), lambda t: t.scaled(-1), lambda t: t.with_request_rate(0)]
)
def test_impossible_changes(trace: Trace, call) -> None:
    with pytest.raises(ConfigurationError):
        call(trace)


def test_a_million_requests_are_a_few_arrays() -> None:
    ten = Lengths("fixed", {"value": 10})
    trace = generate_trace(1_000_000, request_rate=5, input_length=ten, output_length=ten)
    arrays = [v for v in vars(trace).values() if isinstance(v, np.ndarray)]
    assert trace.request_id is None
    assert sum(array.nbytes for array in arrays) < 100e6
