"""Whatever a file holds, reading it gives a valid trace or one of our errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from simulator.errors import SimError
from simulator.workload import FORMATS, read_trace

KEYS = [
    *(
        "timestamp",
        "input_length",
        "output_length",
        "hash_ids",
        "session_id",
        "turn",
        "delay",
        "request_id",
        "model",
    ),
    *(
        "max_tokens",
        "priority",
        "n",
        "content_ids",
        "content_tokens",
        "chat_id",
        "parent_chat_id",
        "conversations",
    ),
    *("t", "in", "out", "id", "text_input"),
]
numbers = st.one_of(
    st.integers(-2, 600),
    st.integers(),
    st.floats(),
    st.sampled_from([0, 1, 16, 512, 1e308, 2**62, 2**63, 10**30]),
)
values = st.one_of(
    numbers,
    st.none(),
    st.booleans(),
    st.text(max_size=6),
    st.sampled_from(["2023-11-16 18:15:46.68", "nan", "1e5", "-1"]),
    st.lists(numbers, max_size=3),
    st.dictionaries(
        st.sampled_from(["sys_prompt", "user_input", "from", "value"]), st.lists(numbers, max_size=2)
    ),
)
lengths = {
    "input_length": st.integers(1, 600),
    "output_length": st.integers(0, 9),
    "timestamp": st.integers(0, 99),
}
records = st.one_of(
    st.dictionaries(st.sampled_from(KEYS), values),
    st.fixed_dictionaries(lengths, optional={key: values for key in KEYS if key not in lengths}),
)
HEADERS = [
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type",
    "arrived_at,num_prefill_tokens,num_decode_tokens",
    "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size",
    "timestamp,input_length,output_length,session_id,priority",
]
cells = st.one_of(
    st.integers(0, 600).map(str),
    numbers.map(str),
    st.sampled_from(["", "2023-11-16 18:15:46.6805900", "2024-05-12T00:00:00Z", '"', "True", "  7"]),
    st.text(max_size=5),
)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"request_rate": 2.0, "time_unit": "s", "zero_output": "drop", "characters_per_token": 4.0},
    {
        "time_unit": "ms",
        "zero_output": "keep",
        "session_context": "delta",
        "spread": "uniform",
        "block_size": 16,
    },
]
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "trace"


def check(path: Path, content: bytes, format_: str | None, options: dict[str, Any]) -> None:
    path.write_bytes(content)
    try:
        trace = read_trace(path, format=format_, **options)
    except SimError as error:
        assert "\n" not in str(error)
        return
    known = trace.arrival_time[~np.isnan(trace.arrival_time)]
    assert len(trace) > 0
    assert (np.diff(known) >= 0).all() and np.isfinite(known).all() and (known >= 0).all()
    assert (trace.input_length >= 1).all() and (trace.output_length >= 1).all()
    totals = np.concatenate(([0], np.cumsum(trace.content_tokens)))[trace.content_offsets]
    assert (np.diff(totals) <= trace.input_length).all() and (trace.content_tokens > 0).all()


formats = st.sampled_from([None, *FORMATS])
options = st.sampled_from(OPTIONS)


@quick
@given(st.binary(max_size=60), formats, options)
@example(b"\xef\xbb\xbf", None, {})
@example(b"{", None, {})
@example(b'{"a":' * 2000, None, {})
@example(b'{"input_length":' + b"9" * 5000 + b"}", None, {})
def test_bytes(path: Path, content: bytes, format_: str | None, options: dict[str, Any]) -> None:
    check(path, content, format_, options)


@quick
@given(st.lists(records, max_size=4), formats, options)
def test_json_lines(
    path: Path, rows: list[dict[str, Any]], format_: str | None, options: dict[str, Any]
) -> None:
    check(path, "\n".join(map(json.dumps, rows)).encode(), format_, options)


@quick
@given(st.lists(st.one_of(records, values), max_size=3), formats, options)
def test_json_arrays(path: Path, rows: list[Any], format_: str | None, options: dict[str, Any]) -> None:
    check(path, json.dumps(rows).encode(), format_, options)


@quick
@given(
    st.sampled_from(HEADERS), st.lists(st.lists(cells, min_size=2, max_size=8), max_size=4), formats, options
)
def test_csv(
    path: Path, header: str, rows: list[list[str]], format_: str | None, options: dict[str, Any]
) -> None:
    width = header.count(",") + 1
    text = "\n".join([header, *(",".join((row * width)[:width]) for row in rows)])
    check(path, text.encode("utf-8", "surrogatepass"), format_, options)
