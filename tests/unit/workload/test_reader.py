"""Reading traces: units, order, coarse clocks, and complaints that name the place."""

import gzip
import json

import numpy as np
import pytest

from simulator.errors import ConfigurationError, InputError, UnknownNameError
from simulator.workload import common_prefix, read_trace

LINE = {"timestamp": 1000, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]}


def lines(*changes: dict) -> str:
    return "".join(json.dumps({**LINE, **change}) + "\n" for change in changes)


def test_mooncake_is_in_ms_with_512_token_blocks(write) -> None:
    trace = read_trace(write(lines({}, {"timestamp": 3500, "hash_ids": [1, 9]})))
    assert trace.arrival_time.tolist() == [0, 2.5]
    assert trace.meta["format"] == "mooncake" and trace.meta["time_unit"] == "ms"
    assert common_prefix(trace.content, 0, 1) == 512
    assert trace.content_tokens.tolist() == [512, 188, 512, 188]


def test_a_stated_unit_overrides_the_formats(write) -> None:
    trace = read_trace(write(lines({}, {"timestamp": 3500})), time_unit="s")
    assert trace.arrival_time.tolist() == [0, 2500]


def test_fractional_timestamps_without_a_unit_are_refused(write) -> None:
    path = write('{"timestamp": 0.5, "input_length": 1, "output_length": 1}\n')
    with pytest.raises(InputError, match="--time-unit"):
        read_trace(path)
    assert read_trace(path, time_unit="s").meta["time_unit"] == "s"


def test_another_block_size_is_refused_with_the_option(write) -> None:
    path = write(lines({"hash_ids": list(range(44))}))  # 44 blocks of 16
    with pytest.raises(InputError, match=r":1: hash_ids: '44 blocks': .*700.*--block-size"):
        read_trace(path)
    assert read_trace(path, block_size=16).content_tokens.sum() == 700


def test_time_that_goes_backwards_is_sorted_and_counted(write) -> None:
    trace = read_trace(write(lines({"timestamp": 5}, {"timestamp": 3, "output_length": 8}, {"timestamp": 4})))
    assert trace.output_length.tolist() == [8, 5, 5]
    assert trace.meta["inversions"] == 1


def test_lines_that_are_blank_or_end_in_crlf_or_not_at_all(write) -> None:
    text = lines({}, {"timestamp": 2000}).replace("\n", "\r\n")
    assert len(read_trace(write("\ufeff" + text + "\r\n"))) == 2
    assert len(read_trace(write("\n" + text.strip()))) == 2


def test_gzip(write) -> None:
    assert len(read_trace(write(gzip.compress(lines({}, {}).encode()), "t.jsonl.gz"))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_length": 0}, r"t\.jsonl:3: input_length: 0: must be a whole number from 1 to 100000000"),
        ({"input_length": -7}, r":3: input_length: -7: "),
        ({"input_length": True}, r":3: input_length: True: "),
        ({"input_length": 1.5}, r":3: input_length: 1\.5: "),
        ({"input_length": float("nan")}, r":3: input_length: nan: "),
        ({"input_length": float("inf")}, r":3: input_length: inf: "),
        ({"input_length": 10**9}, r":3: input_length: 1000000000: "),
        ({"input_length": 10**400}, r":3: input_length: (1000|inf)"),
        ({"input_length": "seven"}, r":3: input_length: 'seven': "),
        ({"input_length": [7]}, r":3: input_length: \[7\]: "),
        ({"input_length": None}, r":3: input_length: missing: "),
        ({"output_length": -1}, r":3: output_length: -1: "),
        ({"output_length": 0}, r":3: output_length: 0: .*--zero-output"),
        ({"timestamp": "noon"}, r":3: timestamp: 'noon': must be a finite number"),
        ({"timestamp": float("nan")}, r":3: timestamp: nan: "),
        ({"timestamp": None}, r":3: timestamp: missing: "),
        ({"hash_ids": [1, -2]}, r":3: hash_ids: \[1, -2\]: must be a list of whole numbers from 0"),
        ({"hash_ids": "1,2"}, r":3: hash_ids: '1,2': "),
        ({"hash_ids": [1, 2, 3, 4]}, r":3: hash_ids: '4 blocks': "),
    ],
)
def test_a_bad_value_is_named_with_its_line(write, change: dict, message: str) -> None:
    path = write(lines({}) + "\n" + lines(change, {}), "t.jsonl")
    with pytest.raises(InputError, match=message):
        read_trace(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "is empty"),
        (lines({}) + '{"timestamp": 1, \n', ":2: broken JSON"),
        (lines({}) + "[1]\n", r":2: \[1\]: must be a JSON object"),
        ("{broken", ":1: broken JSON"),
        ("[1, 2", "broken JSON"),
        ("[]", "at least one record"),
        (b"\x00\x01\x02", "not a text file"),
        (b"\x1f\x8bjunk", "broken gzip"),
        (b"\xff\xfe\xfd", ":1: must be UTF-8"),
        (lines({}).encode() + b'{"timestamp": "\xff"}\n', ":2: must be UTF-8"),
        ("a,b\n1,2\n", "no trace format has these fields"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,5\n", ":2: .*must have 3 fields"),
    ],
)
def test_a_file_that_cannot_be_a_trace(write, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_trace(write(content))


def test_a_file_that_is_not_there(tmp_path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path)


def test_zero_outputs_are_dropped_or_kept_on_demand(write) -> None:
    path = write(lines({"output_length": 0}, {"timestamp": 2000}))
    dropped, kept = (read_trace(path, zero_output=choice) for choice in ("drop", "keep"))
    assert len(dropped) == 1 and dropped.meta["rows_dropped"] == {"zero_output": 1}
    assert dropped.arrival_time[0] == 0
    assert kept.output_length.tolist() == [1, 5]


def test_all_rows_dropped_is_an_error(write) -> None:
    with pytest.raises(InputError, match="all 1 rows are dropped"):
        read_trace(write(lines({"output_length": 0})), zero_output="drop")


def test_spreading_a_coarse_clock(write) -> None:
    stamps = np.repeat(np.arange(100) * 3000, 10)
    path = write(lines(*({"timestamp": int(t), "output_length": 1 + k % 10} for k, t in enumerate(stamps))))
    raw, spread = read_trace(path), read_trace(path, spread="uniform", seed=1)
    assert spread.meta["quantum_s"] == 3.0
    assert np.array_equal(np.floor(spread.arrival_time / 3), raw.arrival_time / 3)
    assert np.array_equal(spread.output_length, raw.output_length)
    assert (np.diff(spread.arrival_time) > 0).all()
    within = spread.arrival_time % 3 / 3
    assert within.mean() == pytest.approx(0.5, abs=0.03) and within.var() == pytest.approx(1 / 12, rel=0.1)
    assert np.array_equal(spread.arrival_time, read_trace(path, spread="uniform", seed=1).arrival_time)


def test_spreading_makes_mooncakes_gaps_poisson(real) -> None:
    gaps = np.diff(read_trace(real("mooncake/conversation_trace.jsonl"), spread="uniform").arrival_time)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)


def test_lengths_without_times_need_a_stated_rate(write) -> None:
    path = write("num_prefill_tokens,num_decode_tokens\n" + "5,6\n" * 2000)
    with pytest.raises(InputError, match="--request-rate"):
        read_trace(path)
    assert read_trace(path, request_rate=float("inf")).duration == 0
    assert read_trace(path, request_rate=4.0).request_rate == pytest.approx(4.0, rel=0.1)


def test_window_limit_scale_and_rate_in_that_order(write) -> None:
    path = write(lines(*({"timestamp": 1000 * k} for k in range(10))))
    trace = read_trace(path, window=(2, 8), limit=4, time_scale=3.0)
    assert trace.arrival_time.tolist() == [0, 3, 6, 9]
    assert read_trace(path, window=(2, 8), request_rate=2.0).arrival_time.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]


def test_names_of_options() -> None:
    with pytest.raises(ConfigurationError, match="spread 'gaussian'"):
        read_trace("x", spread="gaussian")
    with pytest.raises(ConfigurationError, match="zero output 'zap'"):
        read_trace("x", zero_output="zap")


def test_unknown_formats_and_units(write) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mooncake'"):
        read_trace(write(lines({})), format="moncake")
    with pytest.raises(ConfigurationError, match="must be one of s, ms"):
        read_trace(write(lines({})), time_unit="h")
    with pytest.raises(ConfigurationError, match="block size 0"):
        read_trace(write(lines({})), block_size=0)


def test_mixed_types_take_the_careful_path_to_the_same_trace(write) -> None:
    plain = lines({}, {"timestamp": 2000})
    mixed = plain.replace("2000", '"2000"')
    a, b = read_trace(write(plain, "a.jsonl")), read_trace(write(mixed, "b.jsonl"))
    assert np.array_equal(a.arrival_time, b.arrival_time)
    assert np.array_equal(a.content_ids, b.content_ids)
