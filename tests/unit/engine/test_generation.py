"""Stopping, sampling and text: what a request asks for is what it gets."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from scipy import stats  # noqa: E402

from engine import LLM, SamplingParams  # noqa: E402
from engine.batch import Row, pack  # noqa: E402
from engine.config import DecoderConfig  # noqa: E402
from engine.content import extend_content  # noqa: E402
from engine.pages import Moves, OwnPages  # noqa: E402
from engine.params import MAX_LOGPROBS  # noqa: E402
from engine.sequence import Sequence, Times  # noqa: E402
from engine.tokenizer import ByteTokenizer, Detokenizer, load_tokenizer  # noqa: E402
from simulator.errors import CapacityError, ConfigurationError  # noqa: E402
from simulator.scheduling import Request  # noqa: E402

SMALL = DecoderConfig("llama", 300, 32, 48, 1, 2, 1, 16, max_position=512, eos_token_ids=(7,))


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(SMALL, num_gpu_blocks=200, block_size=8, max_num_seqs=128)


# ends


def test_the_end_of_text_ends_and_is_kept(llm: LLM) -> None:
    texts = llm.generate([[5, 6, k] for k in range(20, 60)], SamplingParams(max_tokens=200))
    ended = [o.outputs[0] for o in texts if o.outputs[0].finish_reason == "stop"]
    assert ended, "no sample met the end-of-text token: the test shows nothing"
    for sample in ended:
        assert sample.token_ids[-1] == 7 and 7 not in sample.token_ids[:-1]
        assert "\x07" not in sample.text
    ignoring = llm.generate([[5, 6, 20]], SamplingParams(max_tokens=30, seed=1, ignore_eos=True))[0].outputs[
        0
    ]
    assert len(ignoring.token_ids) == 30 and ignoring.finish_reason == "length"


def test_stop_tokens_and_strings(llm: LLM) -> None:
    params = {"temperature": 0.0, "max_tokens": 40, "ignore_eos": True}
    whole = llm.generate(["start"], SamplingParams(**params))[0].outputs[0]
    token = whole.token_ids[12]
    first = whole.token_ids.index(token)
    by_token = llm.generate(["start"], SamplingParams(**params, stop_token_ids=(token,)))[0].outputs[0]
    assert by_token.token_ids == whole.token_ids[: first + 1] and by_token.stop_reason == token
    stop = whole.text[14:17]
    by_text = llm.generate(["start"], SamplingParams(**params, stop=("never there", stop)))[0].outputs[0]
    assert by_text.text == whole.text[: whole.text.index(stop)] and by_text.stop_reason == stop
    kept = llm.generate(["start"], SamplingParams(**params, stop=(stop,), include_stop=True))[0].outputs[0]
    assert kept.text == by_text.text + stop


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_let_out_early_is_never_taken_back(text: str, stops: list[str]) -> None:
    """Token by token: what was shown is a prefix of what comes out, which ends before the first stop
    string.
    """
    prompt, tokens = [1], list(text.encode())
    sequence = Sequence(
        Request("r", 1, len(tokens) + 1),
        prompt,
        SamplingParams(stop=tuple(stops), max_tokens=len(tokens) + 1),
        0,
        Times(0.0),
        detokenizer=Detokenizer(ByteTokenizer(256)),
    )
    shown = [""]
    for token in tokens:
        sequence.append(token, None, 0.0)
        shown.append(sequence.text)
        if sequence.finished:
            break
    if not sequence.finished:
        sequence.finish("length")
        shown.append(sequence.text)
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
    assert not any(stop in shown[-1] for stop in stops)
    if not any(stop in text for stop in stops):
        assert shown[-1] == text


@given(st.text(max_size=60))
def test_detokenising_gives_whole_characters(text: str) -> None:
    detokenizer = Detokenizer(ByteTokenizer(256))
    parts = [detokenizer.add(token) for token in text.encode()] + [detokenizer.flush()]
    assert "".join(parts) == text == detokenizer.text


# sampling


def test_samples_follow_the_softmax(llm: LLM) -> None:
    """4,000 first tokens against the probabilities that greedy decoding reports, at the level 0.001."""
    top = llm.generate([[9, 9]], SamplingParams(max_tokens=1, logprobs=MAX_LOGPROBS, temperature=0))[
        0
    ].outputs[0]
    assert top.logprobs is not None and top.logprobs[0] is not None
    expected = {token: math.exp(p) for token, p in top.logprobs[0].top.items()}
    counts: Counter[int] = Counter()
    for _ in range(32):
        output = llm.generate([[9, 9]], SamplingParams(n=125, max_tokens=1))[0]
        counts.update(sample.token_ids[0] for sample in output.outputs)
    pairs = [(counts[token], 4000 * p) for token, p in expected.items()]
    rest = 4000 - sum(p for _, p in pairs)
    observed, wanted = zip(*pairs, (4000 - sum(c for c, _ in pairs), rest))
    assert stats.chisquare(observed, wanted).pvalue > 0.001


def test_filters_cut_what_they_say(llm: LLM) -> None:
    ranked = (
        llm.generate([[9, 9]], SamplingParams(max_tokens=1, logprobs=5, temperature=0))[0].outputs[0].logprobs
    )
    assert ranked is not None and ranked[0] is not None
    best = list(ranked[0].top)
    common = {"n": 100, "max_tokens": 1, "seed": 4}
    drawn = {s.token_ids[0] for s in llm.generate([[9, 9]], SamplingParams(top_k=3, **common))[0].outputs}
    assert drawn == set(best[:3])
    assert {
        s.token_ids[0] for s in llm.generate([[9, 9]], SamplingParams(top_p=1e-6, **common))[0].outputs
    } == {best[0]}
    assert {
        s.token_ids[0] for s in llm.generate([[9, 9]], SamplingParams(min_p=1.0, **common))[0].outputs
    } == {best[0]}


def test_penalties_forbid_repeating(llm: LLM) -> None:
    plain = llm.generate([[3, 4]], SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))[0].outputs[
        0
    ]
    assert len(set(plain.token_ids)) < 60, "greedy text that never repeats shows nothing"
    params = SamplingParams(
        temperature=0, max_tokens=60, frequency_penalty=2.0, presence_penalty=2.0, ignore_eos=True
    )
    varied = llm.generate([[3, 4]], params)[0].outputs[0]
    assert len(set(varied.token_ids)) == 60


def test_requests_of_one_batch_keep_their_own_parameters(llm: LLM) -> None:
    each = [
        SamplingParams(temperature=0, max_tokens=9, ignore_eos=True),
        SamplingParams(seed=1, max_tokens=12, top_k=20, ignore_eos=True),
        SamplingParams(seed=2, max_tokens=5, repetition_penalty=1.3, ignore_eos=True),
    ]
    prompts = ["one", "two", "three"]
    together = llm.generate(prompts, each)
    alone = [llm.generate([prompt], params)[0] for prompt, params in zip(prompts, each)]
    assert [o.outputs[0].token_ids for o in together] == [o.outputs[0].token_ids for o in alone]
    assert [len(o.outputs[0].token_ids) for o in together] == [9, 12, 5]


BAD = [
    ({"temperature": -1}, "temperature -1: must be between 0 and 100"),
    ({"n": 0}, "n 0"),
    ({"max_tokens": 0}, "max_tokens 0"),
    ({"top_p": 0}, "top_p 0"),
    ({"presence_penalty": 3}, "presence_penalty 3"),
    ({"logprobs": 1000}, "logprobs 1000"),
    ({"stop": ("",)}, "must not be empty"),
]


@pytest.mark.parametrize(("bad", "says"), BAD)
def test_parameters_out_of_range_are_named(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        SamplingParams(**bad)


def test_prompts_that_cannot_run_are_refused_and_leave_nothing(llm: LLM) -> None:
    for prompt, says in (
        ([], "empty prompt"),
        ([300], "token id 300"),
        ([-1], "token id -1"),
        ([1] * 600, "room"),
    ):
        with pytest.raises(CapacityError, match=says):
            llm.generate([[1, 2], prompt], SamplingParams(n=2, max_tokens=4))
        assert not llm.executor.live and llm.executor.scheduler.blocks_used == 0


# parts


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 40)), min_size=1, max_size=6), st.integers(1, 9))
def test_packing_keeps_every_row_with_its_positions_and_slots(
    shapes: list[tuple[int, int]], block_size: int
) -> None:
    rows, free = [], 0
    for k, (count, start) in enumerate(shapes):
        blocks = -(-(start + count) // block_size)
        table = torch.arange(free, free + blocks).int().numpy()
        free += blocks
        rows.append(Row([1000 * k + i for i in range(count)], start, table, k % 2))
    batch = pack(rows, block_size)
    at = 0
    for i in batch.order:
        row = rows[i]
        for j, token in enumerate(row.tokens):
            position = row.start + j
            slot = int(row.blocks[position // block_size]) * block_size + position % block_size
            assert (batch.tokens[at], batch.positions[at], batch.slots[at]) == (token, position, slot)
            at += 1
    assert batch.num_decodes == sum(len(row.tokens) == 1 for row in rows)
    lengths = [*batch.decode_lens.tolist(), *batch.prefill_lens.tolist()]
    assert lengths == [rows[i].start + len(rows[i].tokens) for i in batch.order]
    assert len(batch.logit_rows) == sum(row.num_logits for row in rows)


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30), st.integers(1, 5))
def test_content_ids_agree_exactly_on_the_common_full_blocks(a: list[int], b: list[int], size: int) -> None:
    first: list[tuple[int, int]] = []
    second: list[tuple[int, int]] = []
    extend_content(first, a, size)
    for end in range(len(b) + 1):  # as it grows token by token
        extend_content(second, b[:end], size)
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    agreeing = sum(x == y for x, y in zip(first, second))
    assert agreeing == min(common // size, len(a) // size, len(b) // size)
    assert len(first) == len(a) // size and len(second) == len(b) // size


def make_sequence(name: str) -> Sequence:
    return Sequence(Request(name, 1, 9), [1], SamplingParams(), 0, Times(0.0))


@given(st.lists(st.tuples(st.sampled_from("wwfsxa"), st.integers(0, 5)), max_size=60), st.integers(20, 60))
def test_own_pages_hold_the_right_tokens_through_forks_and_swaps(
    actions: list[tuple[str, int]], count: int
) -> None:
    """A model memory in which each slot has the token that was written last: no sequence sees another's."""
    memory = Memory(OwnPages(count, 2, 60))
    order: list[Sequence] = []
    for step, (action, k) in enumerate(actions):
        if len(order) < 3 and action == "w" and k == 0:
            order.append(make_sequence(f"{step}"))
        sequence = order[k % len(order)] if order else None
        if sequence is None:
            continue
        if action == "w" and len(memory.texts.get(sequence, ())) < 12:
            memory.write(sequence, 100 * step)
        elif action == "f" and len(order) < 3 and memory.texts.get(sequence):
            order.append(memory.fork(sequence, make_sequence(f"{step}")))
        elif action == "a" and len(order) < 3 and memory.texts.get(sequence):
            order.append(memory.same_text(sequence, make_sequence(f"{step}")))
        elif action == "s" and sequence in memory.pages._tables:
            memory.pages.swap_out(sequence)
            memory.move()
        elif action == "x":
            memory.pages.free(sequence)
            order.remove(sequence)
        memory.check(order)
    for sequence in order:
        memory.pages.free(sequence)
    assert (memory.pages.num_free, memory.pages.num_host_free) == (count, 60)


class Memory:
    """Pages of two tokens, and what each sequence should find in them."""

    def __init__(self, pages: OwnPages) -> None:
        self.pages = pages
        self.device: dict[int, list[int]] = {}
        self.host: dict[int, list[int]] = {}
        self.texts: dict[Sequence, list[int]] = {}

    def write(self, sequence: Sequence, token: int) -> None:
        text = self.texts.setdefault(sequence, [])
        text.append(token)
        extend_content(sequence.content, text, 2)
        table = self.pages.table(sequence, len(text) - 1, len(text))
        self.move()
        self.device.setdefault(int(table[-1]), [0, 0])[(len(text) - 1) % 2] = token

    def fork(self, parent: Sequence, child: Sequence) -> Sequence:
        self.pages.table(parent, len(self.texts[parent]), len(self.texts[parent]))  # back from the host
        self.move()
        self.pages.fork(parent, child)
        self.texts[child] = list(self.texts[parent])
        child.content.extend(parent.content)
        return child

    def same_text(self, other: Sequence, sequence: Sequence) -> Sequence:
        text = self.texts[other]
        extend_content(sequence.content, text, 2)
        kept = self.pages.kept(sequence, len(text))
        assert kept % 2 == 0 and (kept >= len(text) - 1 or other not in self.pages._tables)
        self.texts[sequence] = text[:kept]
        for token in text[kept:]:
            self.write(sequence, token)
        return sequence

    def move(self) -> None:
        carry_out(self.pages.take_moves(), self.device, self.host)

    def check(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            table = self.pages._tables.get(sequence)
            text = self.texts.get(sequence, [])
            if table is not None:
                assert [self.device[int(table[i // 2])][i % 2] for i in range(len(text))] == text


def carry_out(moves: Moves, device: dict[int, list[int]], host: dict[int, list[int]]) -> None:
    for source, target in moves.swap_out:
        host[target] = list(device[source])
    for source, target in moves.swap_in:
        device[target] = list(host[source])
    for source, target in moves.copies:
        device[target] = list(device[source])


def test_a_tokenizer_file_and_its_chat_template_are_used(tmp_path: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"hello": 0, "world": 1, "[UNK]": 2}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}<assistant>"
    config = {"eos_token": {"content": "</s>"}, "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path, 3)
    assert tokenizer.encode("hello world what") == [0, 1, 2]
    assert tokenizer.decode([0, 1]) == "hello world"
    assert tokenizer.chat([{"role": "user", "content": "hi"}]) == "<user>hi</s><assistant>"
    assert isinstance(load_tokenizer(None, 300), ByteTokenizer)
