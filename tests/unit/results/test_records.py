from __future__ import annotations

from typing import Any

import numpy as np

import simulator.results
from simulator.results import LOST, REJECTED, STATUS, RecordsBuilder


def test_columns_have_their_types(three: Any) -> None:
    records = three[0].build()
    assert records.arrival_time.dtype == np.float64
    assert records.input_length.dtype == records.num_preemptions.dtype == np.int64
    assert records.status.dtype == np.int8
    assert records.reason.dtype == records.replica.dtype == np.int32
    assert list(records.ids()) == ["r0", "r1", "r2"]


def test_what_did_not_happen_is_nan() -> None:
    records = RecordsBuilder(2).build()
    for name in ("arrival_time", "first_scheduled_time", "first_token_time", "finish_time"):
        assert np.isnan(getattr(records, name)).all()
    assert records.counts() == dict.fromkeys(STATUS, 0)


def test_building_copies(three: Any) -> None:
    builder = three[0]
    records = builder.build()
    builder.finish_time[0] = 99.0
    assert records.finish_time[0] == 0.5


def test_frame_has_names_for_codes(three: Any) -> None:
    frame = three[0].build().to_frame()
    assert frame["status"].tolist() == ["finished"] * 3
    assert frame["reason"].isna().all()
    assert len(frame) == 3


def test_reasons_are_counted_most_frequent_first() -> None:
    builder = RecordsBuilder(4)
    for i, reason in enumerate(["too long", "no room", "no room", "too long"]):
        builder.leave(i, REJECTED if i < 3 else LOST, reason, 1.0)
    records = builder.build()
    assert list(records.reason_counts(REJECTED).items()) == [("no room", 2), ("too long", 1)]
    assert records.reason_counts(LOST) == {"too long": 1}


def test_public_names_are_sorted_and_exist() -> None:
    names = simulator.results.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert all(hasattr(simulator.results, name) for name in names)
