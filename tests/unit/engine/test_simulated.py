"""The simulated device behind the real server: it answers like the engine and takes the time that was predicted."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")
from engine.batch import Row, pack  # noqa: E402
from engine.params import SamplingParams  # noqa: E402
from engine.server import Limits, Update, create_app  # noqa: E402
from engine.server.loop import EngineLoop  # noqa: E402
from engine.simulated import PredictedDevice, letter_tokens  # noqa: E402
from engine.tokenizer import load_tokenizer  # noqa: E402
from simulator.cli.deployment_options import read_deployment  # noqa: E402
from simulator.cli.run import run  # noqa: E402
from simulator.cli.serve import make_loop, serve  # noqa: E402
from simulator.deployment import Deployment  # noqa: E402
from simulator.scheduling.system import find_system, list_systems  # noqa: E402

SYSTEMS = [s.name for s in list_systems() if s.same_as is None and s.offload is None]


@pytest.fixture
def loop() -> Iterator[EngineLoop]:
    made = make_loop(Deployment.of(model="llama-3.1-8b", gpu="h100", max_num_seqs=8).resolve())
    made.start()
    yield made
    made.stop("the test is over")


def finish(loop: EngineLoop, prompt: list[int], params: SamplingParams) -> list[Update]:
    """Every update of one request."""
    updates: queue.Queue[Update] = queue.Queue()
    loop.submit(f"r{time.perf_counter()}", prompt, params, updates.put)
    got = [updates.get(timeout=10)]
    while got[-1].finish_reason is None and got[-1].error is None:
        got.append(updates.get(timeout=10))
    return got


def test_a_request_lasts_as_long_as_predicted(loop: EngineLoop) -> None:
    resolved = Deployment.of(model="llama-3.1-8b", gpu="h100", max_num_seqs=8).resolve()
    start = time.perf_counter()
    updates = finish(loop, [5] * 512, SamplingParams(max_tokens=40))
    taken = time.perf_counter() - start
    steps = [resolved.steptime.seconds(0, 0, [(512, 0)])]
    steps += [resolved.steptime.seconds(1, 513 + i, ()) for i in range(39)]
    assert taken >= 0.99 * sum(steps)  # never faster than the device; how much slower is up to this machine
    assert sum(len(update.tokens) for update in updates) == 40
    assert updates[-1].finish_reason == "length"
    assert all("a" <= letter <= "z" for update in updates for letter in update.text)


def test_a_busy_device_makes_up_for_the_time_between_steps() -> None:
    device = PredictedDevice(lambda *_: 0.01, 300, 16)
    batch = pack([Row([1], 3, torch.arange(1, dtype=torch.int32).numpy())], 16)
    start = time.perf_counter()
    for _ in range(20):
        device.run(batch)
        time.sleep(0.004)  # work of the host that the law has counted
    assert time.perf_counter() - start >= 0.2
    assert device.lag < 0.2
    device.rest()
    began = time.perf_counter()
    device.run(batch)
    assert time.perf_counter() - began >= 0.01


def test_the_device_is_told_of_decodes_and_chunks() -> None:
    seen = []
    device = PredictedDevice(lambda *batch: seen.append(batch) or 0.0, 300, 16)  # type: ignore[func-returns-value]
    blocks = torch.arange(8, dtype=torch.int32).numpy()
    device.run(pack([Row([1], 30, blocks), Row([1] * 20, 16, blocks), Row([2], 3, blocks)], 16))
    assert seen == [(2, 31 + 4, [(20, 16)])]


def test_letters_are_tokens_that_can_be_read_alone(tmp_path: Path) -> None:
    """With GPT-2's byte order the ids 97 to 122 are halves of characters: a client would see their text late."""
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    words.save(str(tmp_path / "tokenizer.json"))
    found = load_tokenizer(tmp_path, 300)
    letters = letter_tokens(found).tolist()
    assert "".join(found.decode([token]) for token in letters) == "abcdefghijklmnopqrstuvwxyz"
    assert letter_tokens(load_tokenizer(None, 300)).tolist() == list(range(97, 123))


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_serves(system: str) -> None:
    loop = make_loop(Deployment.of(model="llama-3.1-8b", gpu="h100", system=system).resolve())
    loop.start()
    try:
        updates = finish(loop, [7] * 40, SamplingParams(max_tokens=4))
        assert sum(len(update.tokens) for update in updates) == 4, updates
    finally:
        loop.stop("the test is over")


SPECULATIVE = [s.name for s in list_systems() if "draft" in s.speculation or "ngram" in s.speculation]


@pytest.mark.parametrize("system", SPECULATIVE)
def test_a_step_hands_out_what_its_drafts_yield(system: str) -> None:
    """Every draft of 4 accepted: 5 tokens a step; none accepted: one."""
    method = "draft,model=llama-3.2-1b" if "draft" in find_system(system).speculation else "ngram"
    for acceptance, tokens in ((1.0, 5), (0.0, 1)):
        stated = f"method={method},tokens=4,acceptance={acceptance}"
        resolved = Deployment.of(
            model="llama-3.1-8b", gpu="h100", system=system, speculation=stated
        ).resolve()
        executor = make_loop(resolved).executor
        executor.device.seconds = lambda *_: 0.0
        [sequence] = executor.add([7] * 40, SamplingParams(max_tokens=41))
        gains, had = [], 0
        while executor.has_work:
            executor.step()
            gains, had = [*gains, sequence.num_output - had], sequence.num_output
        steps = [gain for gain in gains if gain]
        if executor.scheduler.delivery == "step":
            assert steps == [1, *[tokens] * (40 // tokens)]
        assert sequence.num_output == 41 and sequence.finish_reason == "length"


def test_every_way_to_deploy_serves(tmp_path: Path) -> None:
    """What `sim run` takes, `sim serve` takes: a file, overruled by options, with a pipeline or speculation."""
    (tmp_path / "d.yaml").write_text(
        "model: llama-3.1-70b\ngpu: h100\ntensor_parallel_size: 2\nspeculation: none\n"
    )
    given = {"deployment": tmp_path / "d.yaml", "pipeline_parallel_size": 2, "option": ["max_num_seqs=7"]}
    resolved = read_deployment(given).resolve()
    assert (resolved.num_gpus, resolved.limits["max_num_seqs"]) == (4, 7)
    loop = make_loop(resolved)
    loop.start()
    try:
        assert sum(len(u.tokens) for u in finish(loop, [7] * 40, SamplingParams(max_tokens=4))) == 4
    finally:
        loop.stop("the test is over")
    flags = [set(signature(command).parameters) for command in (run, serve)]
    assert set(Deployment.model_fields) - {"options", "long_prefill_token_threshold"} <= flags[0] | flags[1]
    assert flags[0] & set(Deployment.model_fields) - flags[1] == {
        "num_replicas",
        "router",
        "request_overhead_ms",
    }


def test_it_speaks_http_and_has_no_probabilities(loop: EngineLoop) -> None:
    import asyncio

    async def talk() -> None:
        transport = httpx.ASGITransport(app=create_app(loop, Limits()))
        async with httpx.AsyncClient(transport=transport, base_url="http://sim") as client:
            body = {"model": "llama-3.1-8b", "prompt": "hello", "max_tokens": 5, "ignore_eos": True}
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["usage"]["completion_tokens"] == 5
            refused = await client.post("/v1/completions", json={**body, "logprobs": 2})
            assert refused.status_code == 400
            assert "has no probabilities" in refused.json()["error"]["message"]
            assert "vllm:" in (await client.get("/metrics")).text

    asyncio.run(talk())
