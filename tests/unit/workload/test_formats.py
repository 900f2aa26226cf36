"""One small file of each format, read without options where the format defines everything."""

import numpy as np
import pytest

from simulator.errors import ConfigurationError, InputError
from simulator.workload import FORMATS, OUTPUT_ID_BASE, common_prefix, read_trace


def test_azure_2023_has_seven_digits_and_crlf(write) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109"
    )
    trace = read_trace(write(text, "t.csv"))
    assert trace.arrival_time.tolist() == [0, 4.314579]
    assert trace.input_length.tolist() == [374, 396] and trace.output_length.tolist() == [44, 109]


@pytest.mark.parametrize(
    "stamps",
    [
        ("2024-05-12 00:00:00+00:00", "2024-05-12 00:00:01.5+00:00"),
        ("2024-05-12T00:00:00Z", "2024-05-12T00:00:01.5000000Z"),
        ("2024-05-12 00:00:00", "2024-05-12 02:00:01.5+02:00"),
    ],
)
def test_azure_2024_dates_with_and_without_zone_and_fraction(write, stamps: tuple[str, str]) -> None:
    rows = "".join(f"{stamp},1,2\n" for stamp in stamps)
    trace = read_trace(write("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows, "t.csv"))
    assert trace.arrival_time.tolist() == [0, 1.5]


def test_azure_2025_columns_go_by_name(write) -> None:
    text = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2025-01-01 00:00:00,3,40,5\n"
    assert read_trace(write(text, "t.csv")).input_length.tolist() == [40]


@pytest.mark.parametrize(
    "stamp", ["yesterday", "2023-13-16 18:15:46", "2023-11-16 18h", "", "9999-01-01 00:00:00"]
)
def test_azure_bad_dates(write, stamp: str) -> None:
    good = "2023-11-16 18:15:46.6805900,374,44\n"
    path = write(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{good}{stamp},1,2\n", "t.csv")
    with pytest.raises(InputError, match=r"t\.csv:3: TIMESTAMP: .*must be a date"):
        read_trace(path)


def test_azure_bad_length_names_the_line_of_the_csv(write) -> None:
    path = write("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,0,44\n", "t.csv")
    with pytest.raises(InputError, match=r"t\.csv:2: ContextTokens: 0: must be"):
        read_trace(path)


def test_burstgpt_six_columns(write) -> None:
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    rows = "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,8,0,8,API log\n50,ChatGPT,0,0,0,API log\n"
    trace = read_trace(write(header + rows, "t.csv"))
    assert trace.input_length.tolist() == [472] and trace.model[0] == "ChatGPT"
    assert trace.meta["rows_dropped"] == {"zero_input": 1, "zero_output": 1}


def test_burstgpt_eight_columns(write) -> None:
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    rows = (
        "19440110.0,1722ac82-0a46,43,GPT-4,906,446,1352,Conversation log\n"
        "19440111.5,,2,ChatGPT,36,29,65,API log\n"
        "19440112.0,1722ac82-0a46,2,GPT-4,36,29,65,Conversation log\n"
    )
    trace = read_trace(write(header + rows, "t.csv"))
    assert trace.arrival_time.tolist() == [0, 1.5, 2]
    assert trace.input_length.tolist() == [906, 36, 36]
    assert trace.session.tolist() == [0, -1, 0] and trace.turn.tolist() == [0, 0, 1]


def test_aiperf_turns_add_to_their_session(write) -> None:
    trace = read_trace(
        write(
            '{"session_id":"s", "timestamp": 9, "input_length": 300, "output_length": 40, "hash_ids": [4]}\n'
            '{"session_id":"x", "timestamp": 15, "input_length": 300, "output_length": 7, "hash_ids": [4]}\n'
            '{"session_id": "s", "delay": 2000, "input_length": 50, "output_length": 10}\n'
        )
    )
    assert trace.meta["format"] == "aiperf"
    assert trace.session.tolist() == [0, 0, 1]
    assert trace.input_length.tolist() == [300, 390, 300]
    assert np.isnan(trace.arrival_time[1]) and trace.delay.tolist() == [0, 2, 0]
    assert common_prefix(trace.content, 0, 1) == common_prefix(trace.content, 0, 2) == 300
    second = slice(trace.content_offsets[1], trace.content_offsets[2])
    assert trace.content_ids[second][1] == OUTPUT_ID_BASE and trace.content_tokens[second].tolist() == [
        300,
        40,
        50,
    ]


def test_sessions_that_start_later_in_the_file_add_up_too(write) -> None:
    text = (
        '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]}\n'
        '{"timestamp": 1, "input_length": 3, "output_length": 4, "session_id": "a"}\n'
        '{"delay": 9, "input_length": 2, "output_length": 4, "session_id": "a"}\n'
    )
    trace = read_trace(write(text))
    assert trace.input_length.tolist() == [5, 3, 9] and trace.session.tolist() == [-1, 0, 0]


def test_aiperf_turns_may_be_said_to_be_whole(write) -> None:
    text = '{"session_id": "a", "timestamp": 0, "input_length": 3, "output_length": 4}\n' * 2
    assert read_trace(write(text), session_context="full").input_length.tolist() == [3, 3]


def test_aiperf_sessions_without_times_start_at_the_stated_rate(write) -> None:
    text = "".join(
        f'{{"session_id": "{s}", "input_length": 3, "output_length": 4{delay}}}\n'
        for delay in ("", ', "delay": 2')
        for s in "ab"
    )
    with pytest.raises(InputError, match="--request-rate"):
        read_trace(write(text))
    trace = read_trace(write(text), request_rate=1.0)
    assert np.isnan(trace.arrival_time).tolist() == [False, True, False, True]


def test_aiperf_text_needs_a_rule(write) -> None:
    path = write('{"timestamp": 5, "text_input": "hello world!", "output_length": 4}\n')
    with pytest.raises(InputError, match="--characters-per-token"):
        read_trace(path)
    assert read_trace(path, characters_per_token=4).input_length.tolist() == [3]


def test_canonical_turns_are_whole_prompts(write) -> None:
    text = (
        '{"timestamp": 0.5, "input_length": 8, "output_length": 4, "session_id": "a", "turn": 0,'
        ' "tenant": "t", "priority": -2, "max_tokens": 9, "n": 2, "slo_class": "gold",'
        ' "lora": "l", "request_id": "q"}\n'
        '{"delay": 1500, "input_length": 20, "output_length": 4, "session_id": "a", "turn": 1}\n'
    )
    trace = read_trace(write(text))
    assert trace.meta["format"] == "canonical" and trace.meta["time_unit"] == "ms"
    assert trace.input_length.tolist() == [8, 20] and trace.delay.tolist() == [0, 1.5]
    assert (
        trace.priority.tolist() == [-2, 0]
        and trace.max_tokens.tolist() == [9, 0]
        and trace.n.tolist() == [2, 1]
    )
    assert (trace.tenant[0], trace.slo_class[0], trace.lora[0], trace.tenant[1]) == ("t", "gold", "l", None)
    assert list(trace.names()) == ["q", "r1"]


def test_bailian_sessions_descend_from_their_root(write) -> None:
    rows = [(9, -1, 0.0), (11, 9, 1.25), (12, -1, 2.0), (13, 11, 3.0), (20, 19, 4.0)]
    text = "".join(
        f'{{"chat_id": {c}, "parent_chat_id": {p}, "timestamp": {t}, "input_length": 33, "output_length": 2,'
        f' "type": "text", "turn": 1, "hash_ids": [1, 2, {c}]}}\n'
        for c, p, t in rows
    )
    trace = read_trace(write(text))
    assert trace.arrival_time.tolist() == [0, 1.25, 2, 3, 4]
    assert trace.session.tolist() == [0, 0, 2, 0, 4] and trace.turn.tolist() == [0, 1, 0, 2, 0]
    assert trace.meta["parents_not_in_file"] == 1
    assert common_prefix(trace.content, 0, 3) == 32 and trace.content_tokens.tolist() == [32, 1] * 5


def test_bailian_circle(write) -> None:
    text = "".join(
        f'{{"chat_id": {c}, "parent_chat_id": {p}, "timestamp": 0, "input_length": 3, "output_length": 2}}\n'
        for c, p in ((1, 2), (2, 1))
    )
    with pytest.raises(InputError, match="must not descend from itself"):
        read_trace(write(text))


RAG = (
    '{"timestamp": "90", "input_length": 40, "output_length": 9, "session_id": "s", "hash_ids":'
    ' {"sys_prompt": [1], "passages_ids": [3, 4], "history": [], "web_search": [], "user_input": [5]}}\n'
    '{"timestamp": "82", "input_length": 30, "output_length": 9, "session_id": "s", "hash_ids":'
    ' {"sys_prompt": [1], "passages_ids": [3], "history": [], "web_search": [], "user_input": [6]}}\n\n'
)


def test_ragpulse_takes_lengths_from_its_tables(write) -> None:
    write('{"sys_prompt_id": 1, "token_length": 8}\n', "1_sys_prompt.jsonl")
    write('{"passage_id": 3, "token_length": 10}\n{"passage_id": 4, "token_length": 6}\n', "2_passages.jsonl")
    write(
        '{"user_input_id": 5, "token_length": 7}\n{"user_input_id": 6, "token_length": 5}\n',
        "4_user_input.jsonl",
    )
    trace = read_trace(write(RAG, "0_trace.jsonl"))
    assert trace.arrival_time.tolist() == [0, 8] and trace.meta["inversions"] == 1
    assert trace.turn.tolist() == [0, 1]
    assert common_prefix(trace.content, 0, 1) == 18
    assert np.add.reduceat(trace.content_tokens, trace.content_offsets[:-1]).tolist() == [23, 31]


def test_ragpulse_without_its_tables(write) -> None:
    with pytest.raises(InputError, match=r"needs the part's lengths in a file \*sys_prompt"):
        read_trace(write(RAG, "0_trace.jsonl"))


def test_vidur_and_splitwise_are_in_seconds(write) -> None:
    vidur = read_trace(
        write("arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,48,10\n0.052,31,8\n", "v.csv")
    )
    assert vidur.arrival_time.tolist() == [0, 0.052] and vidur.output_length.tolist() == [10, 8]
    header = "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
    splitwise = read_trace(write(header + "0,2,0,1,1,4096,32\n1,1,0,2,1,9,9\n2,2,7,3,1,2048,8\n", "s.csv"))
    assert splitwise.arrival_time.tolist() == [0, 2] and splitwise.input_length.tolist() == [4096, 2048]
    assert splitwise.meta["rows_dropped"] == {"not_an_llm_request": 1}
    assert splitwise.tenant[1] == "7"


def test_sharegpt_text_by_a_stated_rule(write) -> None:
    text = (
        '[{"id": "x", "conversations": [{"from": "human", "value": "tell me a story"},'
        ' {"from": "gpt", "value": "once"}, {"from": "human", "value": "more"}]}, {"conversations": []}]'
    )
    path = write(text, "s.json")
    with pytest.raises(InputError, match="--characters-per-token"):
        read_trace(path, request_rate=1.0)
    trace = read_trace(path, request_rate=1.0, characters_per_token=4.0)
    assert (trace.input_length.tolist(), trace.output_length.tolist()) == ([4], [1])
    assert trace.meta["rows_dropped"] == {"fewer_than_two_turns": 1}


MOONCAKE_LIKE = '{"timestamp": 2, "input_length": 32, "output_length": 1, "hash_ids": [5, 6]}\n' * 2


def test_timed_trace_and_guidellm_are_read_as_such_when_asked(write) -> None:
    path = write(MOONCAKE_LIKE.replace("2,", "4,", 1))
    timed = read_trace(path, format="timed-trace")
    assert timed.arrival_time.tolist() == [0, 2] and timed.content_tokens.tolist() == [32, 32]
    guidellm = read_trace(path, format="guidellm", block_size=16)
    assert guidellm.arrival_time.tolist() == [0, 2]


def test_weka_ids_are_local_to_their_conversation(write) -> None:
    text = "".join(
        f'{{"id": "{name}", "t": {t}, "in": 130, "out": 3, "hash_ids": [1, 2]}}\n'
        for name, t in (("a", 0), ("a", 1.5), ("b", 2))
    )
    trace = read_trace(write(text))
    assert trace.meta["format"] == "guidellm" and trace.arrival_time.tolist() == [0, 1.5, 2]
    assert common_prefix(trace.content, 0, 1) == 128 and common_prefix(trace.content, 0, 2) == 0


def test_plain_csv_with_named_columns(write) -> None:
    path = write("when,prompt,answer,who\n0.5,10,3,x\n2,11,4,y\n", "t.csv")
    columns = {"timestamp": "when", "input_length": "prompt", "output_length": "answer", "tenant": "who"}
    with pytest.raises(InputError, match="--time-unit"):
        read_trace(path, columns=columns)
    trace = read_trace(path, columns=columns, time_unit="s")
    assert trace.arrival_time.tolist() == [0, 1.5] and list(trace.tenant) == ["x", "y"]
    with pytest.raises(ConfigurationError, match="column 'reply'"):
        read_trace(path, columns={**columns, "output_length": "reply"})


def test_plain_csv_with_dates_needs_no_unit(write) -> None:
    text = "timestamp,input_length,output_length\n2024-01-01 00:00:00,1,1\n2024-01-01 00:01:00,1,1\n"
    assert read_trace(write(text, "t.csv")).duration == 60


def test_recorded_files_are_recognised(real) -> None:
    expected = {
        "azure/AzureLLMInferenceTrace_code.csv": ("azure", 8_819),
        "azure/AzureLLMInferenceTrace_conv.csv": ("azure", 19_366),
        "inference-perf/trace.csv": ("azure", 20),
        "burstgpt/BurstGPT_1.first3.csv": ("burstgpt", 3),
        "burstgpt/BurstGPT_3.first4.csv": ("burstgpt", 4),
        "mooncake/conversation_trace.jsonl": ("mooncake", 12_031),
        "mooncake/synthetic_trace.jsonl": ("mooncake", 3_993),
        "mooncake/arxiv_mooncake_trace.excerpt9.jsonl": ("mooncake", 9),
        "qwen-bailian/README_example.jsonl": ("bailian", 2),
        "ragpulse/0_trace.jsonl": ("ragpulse", 7_106),
        "splitwise-sim/test_trace.csv": ("splitwise", 3),
        "vidur/splitwise_conv.head20.csv": ("vidur", 20),
    }
    for name, (format_, rows) in expected.items():
        trace = read_trace(real(name))
        assert (trace.meta["format"], len(trace)) == (format_, rows)


def test_vidurs_copy_of_azure_equals_azure(real) -> None:
    ours = read_trace(real("azure/AzureLLMInferenceTrace_conv.csv")).limit(20)
    theirs = read_trace(real("vidur/splitwise_conv.head20.csv"))
    assert np.array_equal(ours.input_length, theirs.input_length)
    assert ours.arrival_time == pytest.approx(theirs.arrival_time, abs=1e-9)


def test_every_format_has_a_name_and_a_title() -> None:
    assert {"azure", "burstgpt", "canonical", "mooncake", "timed-trace"} <= set(FORMATS)
    assert all(name == importer.name and importer.title for name, importer in FORMATS.items())


def test_a_first_turn_needs_a_time(write) -> None:
    text = (
        '{"timestamp": 1, "input_length": 1, "output_length": 1, "session_id": "a"}\n'
        '{"delay": 1, "input_length": 1, "output_length": 1, "session_id": "b"}\n'
    )
    with pytest.raises(InputError, match=":2: timestamp: missing: only a later turn"):
        read_trace(write(text))
