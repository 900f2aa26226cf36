"""What Perfetto needs: nothing overlaps on a lane, every begin has its end."""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.results import RUNNING, StepSeries
from simulator.results.timeline import batch_events, timeline


def assert_lanes_do_not_overlap(events: list[dict[str, Any]]) -> None:
    lanes = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in lanes.values():
        for (_, end), (start, _) in itertools.pairwise(sorted(spans)):
            assert start >= end - 1e-6  # µs; nanoseconds are whole


def assert_async_tracks_nest(events: list[dict[str, Any]]) -> None:
    stacks, clocks = defaultdict(list), defaultdict(float)
    for event in events:
        if event["ph"] in "ben":
            key = event["id"]
            assert event["ts"] >= clocks[key]
            clocks[key] = event["ts"]
            if event["ph"] == "b":
                stacks[key].append(event["name"])
            elif event["ph"] == "e":
                assert stacks[key].pop() == event["name"]
    assert not any(stacks.values())


def test_three_requests(three: Any) -> None:
    builder, _, series = three
    builder.num_preemptions[1] = 1
    result = timeline(builder.build(), [series], events=[(1.8, 1, "PREEMPTED"), (2.0, 1, "SCHEDULED")])
    events = json.loads(json.dumps(result, allow_nan=False))["traceEvents"]
    assert_async_tracks_nest(events)
    assert_lanes_do_not_overlap(events)
    phases = [(e["name"], e["ts"]) for e in events if e["ph"] in "bn" and e["id"] == 1]
    assert phases == [
        ("r1", 1e6),
        ("QUEUED", 1e6),
        ("SCHEDULED", 1.25e6),
        ("FIRST_TOKEN", 1.5e6),
        ("PREEMPTED", 1.8e6),
        ("SCHEDULED", 2.0e6),
    ]
    counters = {e["name"] for e in events if e["ph"] == "C"}
    assert counters == {"KV blocks", "requests"}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(1, 5)), min_size=1, max_size=80))
def test_batches_in_flight_together_get_lanes_of_their_own(rows: list[tuple[float, float, int]]) -> None:
    series, now = StepSeries(num_gpu_blocks=10, block_size=16), 0.0
    for step, duration, iterations in rows:
        now += step
        series.append(now, duration, iterations, 1, 0, 1, 0, 1, 1, 0)
    events = list(batch_events(series, until=1e9))
    starts = np.cumsum([step for step, _, _ in rows])
    assert [event["ts"] for event in events] == pytest.approx(starts * 1e6, abs=2e-3)  # 2 ns
    assert_lanes_do_not_overlap(events)


def test_successive_batches_share_one_lane() -> None:
    series, now = StepSeries(num_gpu_blocks=10, block_size=16), 0.1
    for i in range(1000):
        duration = 0.01 + i * 1.7e-7
        series.append(now, duration, 1, 1, 0, 1, 0, 1, 1, 0)
        now += duration
    assert {event["tid"] for event in batch_events(series, until=1e9)} == {1}


def test_a_long_run_is_cut_and_says_so(filled: Any) -> None:
    requests = [(float(i), float(i), 10, [i + 0.5, i + 0.75]) for i in range(50)]
    builder, _, series = filled(requests)
    result = timeline(builder.build(), [series], max_requests=10)
    shown = {e["id"] for e in result["traceEvents"] if e["ph"] == "b"}
    assert shown == set(range(10))
    assert result["metadata"]["requests_shown"] == 10 and result["metadata"]["requests_in_run"] == 50
    assert max(e["ts"] for e in result["traceEvents"] if e["ph"] == "X") <= 9.75e6


def test_a_request_that_is_still_running_lasts_to_the_cut_off(filled: Any) -> None:
    builder, _, series = filled([(0.0, 0.5, 10, [1.0, 3.0])])
    builder.finish_time[0], builder.status[0] = math.nan, RUNNING
    result = timeline(builder.build(), [series])
    assert_async_tracks_nest(result["traceEvents"])
    ends = [e["ts"] for e in result["traceEvents"] if e["ph"] == "e"]
    assert ends == [0.5e6, 3e6, 3e6]
