"""The server answers as OpenAI's API does, says clearly what is wrong, and loses no block whatever clients
do.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from engine import LLM, SamplingParams  # noqa: E402
from engine.config import DecoderConfig  # noqa: E402
from engine.server import Limits, Update  # noqa: E402
from engine.server.loop import EngineLoop  # noqa: E402
from engine.server.metrics import METRICS  # noqa: E402
from engine.server.schema import CompletionRequest  # noqa: E402
from engine.server.serve import make_server  # noqa: E402
from engine.stats import Stats  # noqa: E402
from engine.tokenizer import ByteTokenizer  # noqa: E402

TINY = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
}


class Running:
    """A server on a free port of the loopback, in a thread."""

    def __init__(self, executor: Any, limits: Limits) -> None:
        self.executor = executor
        self.server = make_server(executor, limits, "127.0.0.1", 0)
        self.thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Running:
        self.thread.start()
        wait(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join()

    def complete(self, **body: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json={"prompt": "hello", "ignore_eos": True, **body})


def wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def make_loop(**settings: Any) -> EngineLoop:
    options = {"num_gpu_blocks": 200, "block_size": 8, "max_num_seqs": 64, **settings}
    llm = LLM(DecoderConfig.from_mapping(TINY), **options)
    assert llm.executor.tokenizer is not None
    return EngineLoop(
        llm.executor, "tiny", llm.settings.model_len(llm.runner.decoder.config), llm.executor.tokenizer
    )


def serve(limits: Limits | None = None, **settings: Any) -> Running:
    return Running(make_loop(**settings), limits or Limits(drain_seconds=0.2))


def nothing_is_held(server: Running) -> None:
    front = server.server.front
    wait(lambda: front.executor.stats().blocks_used == 0 and front.num_inside == 0)
    stats = front.executor.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve(Limits(max_body_bytes=20_000, max_tokens=3000, max_queue=300, drain_seconds=0.2)) as running:
        yield running
        nothing_is_held(running)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


# answers


def test_completion_is_the_engines_own_text(server: Running) -> None:
    body = server.complete(temperature=0, max_tokens=12, prompt=["one", "two"], n=1).json()
    llm = LLM(DecoderConfig.from_mapping(TINY), num_gpu_blocks=200, block_size=8)
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    expected = [output.outputs[0].text for output in llm.generate(["one", "two"], params)]
    assert [choice["text"] for choice in body["choices"]] == expected
    assert body["usage"]["prompt_tokens"] == 6 and body["usage"]["completion_tokens"] == 24
    assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_adds_up_to_the_whole_answer(server: Running, path: str) -> None:
    chat = "chat" in path
    prompt = {"messages": [{"role": "user", "content": "hé?"}]} if chat else {"prompt": "hé?"}
    body = {**prompt, "seed": 5, "max_tokens": 20, "n": 2, "ignore_eos": True}
    whole = server.http.post(path, json=body).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    with server.http.stream("POST", path, json={**body, **options}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        parts = events(response)
    assert parts[-1]["usage"] == {
        **whole["usage"],
        "prompt_tokens_details": parts[-1]["usage"]["prompt_tokens_details"],
    }
    texts = ["", ""]
    for part in parts[:-1]:
        [choice] = part["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "") if chat else choice["text"]
    assert texts == [c["message"]["content"] if chat else c["text"] for c in whole["choices"]]
    assert len(parts) > 20  # token by token


def test_every_chunk_can_say_how_many_tokens_have_come(server: Running) -> None:
    """Random bytes are seldom whole characters: without the counts a client would miss tokens."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "hi", "max_tokens": 60, "ignore_eos": True, "n": 2, "seed": 3, "stream": True}
    with server.http.stream("POST", "/v1/completions", json={**body, "stream_options": options}) as response:
        *parts, last = events(response)
    for index in (0, 1):
        counts = [p["usage"]["completion_tokens"] for p in parts if p["choices"][0]["index"] == index]
        assert counts == list(range(1, 61))
    assert {part["usage"]["prompt_tokens"] for part in parts} == {2}
    assert last["usage"]["completion_tokens"] == 120
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        assert not any("usage" in part for part in events(response))


def test_stop_strings_end_the_text_and_never_leak(server: Running) -> None:
    long = server.complete(temperature=0, max_tokens=40).json()["choices"][0]["text"]
    stop = long[9:12]
    body = server.complete(temperature=0, max_tokens=40, stop=[stop]).json()["choices"][0]
    assert body["finish_reason"] == "stop" and body["stop_reason"] == stop
    assert body["text"] == long[: long.index(stop)]
    with server.http.stream(
        "POST",
        "/v1/completions",
        json={
            "prompt": "hello",
            "temperature": 0,
            "max_tokens": 40,
            "stop": stop,
            "stream": True,
            "ignore_eos": True,
        },
    ) as response:
        assert "".join(part["choices"][0]["text"] for part in events(response)) == body["text"]


def test_logprobs_name_the_greedy_token_first(server: Running) -> None:
    body = server.complete(temperature=0, max_tokens=4, logprobs=3).json()["choices"][0]["logprobs"]
    for token, chosen, top in zip(body["tokens"], body["token_logprobs"], body["top_logprobs"]):
        assert max(top, key=top.__getitem__) == token and top[token] == pytest.approx(chosen)
        assert len(top) <= 3 and sum(map(torch.exp, map(torch.tensor, top.values()))) <= 1


def test_models_health_and_metrics(server: Running) -> None:
    assert server.http.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert server.http.get("/health").status_code == 200
    server.complete(max_tokens=3)
    text = server.http.get("/metrics").text
    assert {
        line.split()[2].removeprefix("vllm:") for line in text.splitlines() if line.startswith("# TYPE")
    } == set(METRICS)
    values = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if line[0] != "#"}
    assert values['vllm:request_success_total{finished_reason="length",model_name="tiny"}'] >= 1
    name = 'vllm:time_to_first_token_seconds_bucket{le="+Inf",model_name="tiny"}'
    assert values[name] == values['vllm:time_to_first_token_seconds_count{model_name="tiny"}'] > 0
    assert values['vllm:generation_tokens_total{model_name="tiny"}'] >= 3
    assert values['vllm:cache_config_info{block_size="8",num_gpu_blocks="200",model_name="tiny"}'] == 1
    assert server.http.get("/version").json()["version"].startswith("servesim-")


# errors

BAD = [
    ("{", 400, "JSON"),
    ("[]", 400, "object"),
    ('{"max_tokens": 3}', 400, "prompt"),
    ('{"prompt": ""}', 400, "no tokens"),
    ('{"prompt": []}', 400, "prompt"),
    ('{"prompt": [999]}', 400, "token id 999"),
    ('{"prompt": "a", "temperature": 9}', 400, "temperature"),
    ('{"prompt": "a", "top_p": 0}', 400, "top_p"),
    ('{"prompt": "a", "n": 0}', 400, "n:"),
    ('{"prompt": "a", "max_tokens": 0}', 400, "max_tokens"),
    ('{"prompt": "a", "max_tokens": 3001}', 400, "at most 3000"),
    ('{"prompt": "a", "max_tokens": 99999}', 400, "at most 4096"),
    ('{"prompt": "a", "stop": [""]}', 400, "stop"),
    ('{"prompt": "a", "logprobs": 21}', 400, "logprobs"),
    ('{"prompt": "a", "temprature": 1}', 400, "temprature"),
    ('{"prompt": "a", "best_of": 3}', 400, "best_of"),
    ('{"prompt": "a", "model": "gpt-4"}', 404, "gpt-4"),
    ('{"prompt": "' + "a" * 20_000 + '"}', 413, "20000"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("body", "status", "says"), BAD, ids=[body[:40] for body, _, _ in BAD])
def test_a_bad_request_is_told_what_is_wrong(
    server: Running, body: str, status: int, says: str, stream: bool
) -> None:
    if stream and body.startswith('{"'):
        body = '{"stream": true, ' + body[1:]
    response = server.http.post("/v1/completions", content=body)
    error = response.json()["error"]
    assert response.status_code == status and says in error["message"] and "\n" not in error["message"]
    assert error["code"] == status and "Traceback" not in response.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*CompletionRequest.model_fields, "messages", "logit_bias", ""])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=60)
    | st.dictionaries(FIELDS, JSON, max_size=4).map(
        lambda fields: json.dumps({"prompt": "a", "max_tokens": 2, **fields}).encode("utf-8", "surrogatepass")
    ),
    path=st.sampled_from(["/v1/completions", "/v1/chat/completions"]),
)
def test_no_body_is_the_servers_fault(server: Running, body: bytes, path: str) -> None:
    response = server.http.post(path, content=body)
    assert response.status_code in (200, 400, 404), response.text


def test_unknown_paths_and_methods(server: Running) -> None:
    assert server.http.get("/v1/nothing").status_code == 404
    assert server.http.get("/v1/completions").json()["error"]["code"] == 405


def test_a_body_without_a_length_is_cut_off(server: Running) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"a" * 1000

    assert server.http.post("/v1/completions", content=endless()).status_code == 413
    assert server.complete(max_tokens=1).status_code == 200


def test_the_api_key_is_asked_for() -> None:
    with serve(Limits(api_key="secret", drain_seconds=0.1)) as server:
        assert server.complete().status_code == 401
        assert server.http.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
        good = {"authorization": "Bearer secret"}
        assert server.http.post("/v1/completions", json={"prompt": "a"}, headers=good).status_code == 200
        assert server.http.get("/health").status_code == 200


# blocks


def test_a_client_that_leaves_a_stream_frees_its_blocks(server: Running) -> None:
    body = {"prompt": "hello", "max_tokens": 1500, "stream": True, "ignore_eos": True}
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
        assert server.executor.stats().blocks_used > 0
    nothing_is_held(server)


def test_a_client_that_leaves_while_waiting_frees_its_blocks(server: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        server.http.post(
            "/v1/completions", json={"prompt": "hello", "max_tokens": 1500, "ignore_eos": True}, timeout=0.15
        )
    nothing_is_held(server)


def test_two_hundred_clients_at_once(server: Running) -> None:
    async def one(http: httpx.AsyncClient, i: int) -> int:
        body = {"prompt": f"client {i}", "max_tokens": 8, "seed": i, "stream": i % 2 == 0, "ignore_eos": True}
        if i % 10 == 0:  # some leave in mid-stream
            async with http.stream("POST", "/v1/completions", json={**body, "max_tokens": 1000}) as response:
                async for _ in response.aiter_lines():
                    return response.status_code
        return (await http.post("/v1/completions", json=body)).status_code

    async def all_of_them() -> list[int]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
            return await asyncio.gather(*(one(http, i) for i in range(200)))

    assert set(asyncio.run(all_of_them())) == {200}
    nothing_is_held(server)
    assert server.http.get("/health").status_code == 200


def test_a_full_queue_says_so() -> None:
    with serve(Limits(max_queue=2, drain_seconds=0.1)) as server:
        assert server.complete(prompt=["a", "b", "c"]).status_code == 429
        assert server.complete(prompt=["a", "b"], max_tokens=2).status_code == 200
        nothing_is_held(server)


def test_few_blocks_preempt_and_too_few_refuse() -> None:
    with serve(num_gpu_blocks=12, max_model_len=1024) as server:
        response = server.complete(prompt="a" * 200, max_tokens=2)
        assert response.status_code == 400 and "no room" in response.json()["error"]["message"]
        body = server.complete(prompt=["a" * 20, "b" * 20, "c" * 20, "d" * 20], max_tokens=30).json()
        assert [c["finish_reason"] for c in body["choices"]] == ["length"] * 4
        assert server.executor.stats().num_preemptions > 0
        nothing_is_held(server)


def test_a_failing_iteration_takes_only_its_own_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve() as server:
        runner = server.executor.executor.runner
        good = runner.run

        def fails(batch: Any) -> Any:
            monkeypatch.setattr(runner, "run", good)
            raise RuntimeError("device is gone")

        monkeypatch.setattr(runner, "run", fails)
        response = server.complete()
        assert response.status_code == 500 and "device is gone" in response.json()["error"]["message"]
        assert server.complete(max_tokens=2).status_code == 200
        nothing_is_held(server)


# the end


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_sigterm_with_requests_running(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "engine",
        "serve",
        str(tmp_path),
        "--port",
        str(port),
        "--drain-seconds",
        "0.3",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            wait(lambda: answers(http))
            body = {"prompt": "a", "max_tokens": 4000, "stream": True, "ignore_eos": True}
            with http.stream("POST", "/v1/completions", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["error"]["code"] == 503
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)
        assert process.stdout is not None and "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx.TransportError:
        return False


# another executor behind the same front


class Parrot:
    """Says the prompt again, without any model: what a simulated executor looks like to the front."""

    model_name, max_model_len = "parrot", 100

    def __init__(self) -> None:
        self.tokenizer = ByteTokenizer(256)
        self.cancelled: list[str] = []

    def start(self) -> None: ...

    def submit(self, request_id: str, prompt: list[int], params: SamplingParams, deliver: Any) -> None:
        for i, token in enumerate(prompt):
            last = i + 1 == len(prompt)
            deliver(Update(0, i * 0.01, chr(token), [token], finish_reason="stop" if last else None))

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)

    def stats(self) -> Stats:
        return Stats(0, 0, 0, 1, 16, 0, 0, 0)

    def clock(self) -> float:
        return 0.0

    def stop(self, reason: str) -> None: ...


def test_another_executor_behind_the_same_front() -> None:
    with Running(Parrot(), Limits(drain_seconds=0.1)) as server:
        assert (
            server.http.post("/v1/completions", json={"prompt": "abc"}).json()["choices"][0]["text"] == "abc"
        )
        text = server.http.get("/metrics").text
        assert 'vllm:request_decode_time_seconds_sum{model_name="parrot"} 0.02' in text
