"""guidellm, a load generator that nobody here wrote, against `python -m engine serve` and `sim serve`.

    .venv/bin/python benchmarks/guidellm.py [--guidellm PATH] [--requests 60] [--rate 2] [--server engine|simulated]

Installs nothing: `python -m venv gv && gv/bin/pip install guidellm` gives ``gv/bin/guidellm`` (0.8.1 was used; with
torch it takes 5 GB, so it is no dependency of ours). Offline: the tokenizer is a directory made here, one token a
character of ASCII, so that every token is text of its own: a client that reads text sees no other. The engine runs a
small random model on the CPU, the simulated server llama-3.1-8b on an L4. What guidellm measured is held against the
server's own records of the same requests (``/metrics``) and, for the simulated server, against a
simulation of the requests as guidellm sent them. ``--json FILE`` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from calibrate.observe.observation import Observation
from calibrate.observe.result_files import import_file
from calibrate.observe.server import Metrics, parse_metrics
from simulator import Deployment, simulate

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SIMULATED = {"model": "llama-3.1-8b", "gpu": "l4"}
PROMPT, OUTPUT = 128, 24
START_S, RUN_S = 120, 600


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--guidellm", default=shutil.which("guidellm"), help="the command; default: of the PATH"
    )
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rate", type=float, default=2.0, help="Poisson arrivals per second")
    parser.add_argument("--server", choices=("engine", "simulated"), help="default: both")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    if options.guidellm is None:
        raise SystemExit("guidellm is not on the PATH: give --guidellm PATH")
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        model = make_model(Path(name))
        for server in (options.server,) if options.server else ("engine", "simulated"):
            figures[server] = measure(server, model, options)
            show(server, figures[server])
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def make_model(folder: Path) -> Path:
    """A directory with the configuration of a small model and a tokenizer of one token a character of ASCII."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    (folder / "config.json").write_text(json.dumps(TINY))
    # GPT-2's byte-level alphabet: a printable byte stands for itself, the others follow from 256 on
    characters = [chr(byte) if 33 <= byte < 127 else chr(256 + min(byte, 33)) for byte in range(128)]
    words = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    words.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def measure(server: str, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run of guidellm: what it saw, what the server recorded and what was predicted, s."""
    with serving(server, model) as url:
        before = read_metrics(url)
        result = model / f"{server}.json"
        run_guidellm(options, url, model, result)
        after = read_metrics(url)
    [seen] = import_file(result)
    figures = {"guidellm": figures_seen(seen), "server": figures_recorded(before, after)}
    if server == "simulated":
        figures["simulation"] = figures_predicted(seen)
    return figures


@contextmanager
def serving(server: str, model: Path) -> Iterator[str]:
    """The address of a server of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = [
        sys.executable,
        "-m",
        "engine",
        "serve",
        str(model),
        "--load-format",
        "dummy",
        "--num-gpu-blocks",
        "2000",
    ]
    start = "from simulator.cli import main; main()"
    simulated = [sys.executable, "-c", start, "serve", "--tokenizer", str(model)]
    simulated += [part for name, value in SIMULATED.items() for part in (f"--{name}", value)]
    command = [*(engine if server == "engine" else simulated), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"the server did not start: {process.communicate()[1]}")
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SystemExit(f"the server did not start within {START_S} s")


def run_guidellm(options: argparse.Namespace, url: str, model: Path, result: Path) -> None:
    command = [options.guidellm, "run", "--disable-console"]
    command += ["--backend", f"kind=openai_http,target={url},request_format=/v1/completions"]
    command += ["--profile", f"kind=poisson,rate={options.rate}"]
    command += ["--constraint", f"kind=max_requests,count={options.requests}"]
    command += ["--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={OUTPUT}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={model}", "--output", f"kind=json,path={result}"]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env={**without, **offline}, capture_output=True, text=True, timeout=RUN_S)
    if done.returncode or not result.exists():
        raise SystemExit(f"guidellm failed: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def read_metrics(url: str) -> Metrics:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
        return parse_metrics(response.read().decode())


def figures_seen(seen: Observation) -> dict[str, float]:
    """What guidellm says: counts, and means over requests (TTFT, end to end) and over gaps (inter-token)."""
    records = seen.records()
    first, last = records.first_token_time, records.finish_time
    gaps = records.output_length - 1
    return {
        "requests": len(seen.finished),
        "prompt_tokens": int(records.input_length.sum()),
        "output_tokens": int(records.output_length.sum()),
        "ttft": float(np.mean(first - records.arrival_time)),
        "itl": float(np.sum(last - first) / gaps.sum()),
        "e2el": float(np.mean(last - records.arrival_time)),
    }


def figures_recorded(before: Metrics, after: Metrics) -> dict[str, float]:
    """The same of the server's histograms, for the requests between two looks."""

    def added(name: str) -> float:
        return sum(v for _, v in after.get(name, ())) - sum(v for _, v in before.get(name, ()))

    def mean(name: str) -> float:
        return added(f"{name}_sum") / added(f"{name}_count")

    return {
        "requests": added("request_success_total"),
        "prompt_tokens": added("prompt_tokens_total"),
        "output_tokens": added("generation_tokens_total"),
        "ttft": mean("time_to_first_token_seconds"),
        "itl": mean("inter_token_latency_seconds"),
        "e2el": mean("e2e_request_latency_seconds"),
    }


def figures_predicted(seen: Observation) -> dict[str, float]:
    """The same of a simulation of the requests as they were sent."""
    records = simulate(seen.trace(), Deployment(**SIMULATED)).records
    first, last = records.first_token_time, records.finish_time
    return {
        "requests": len(records),
        "prompt_tokens": int(records.input_length.sum()),
        "output_tokens": int(records.output_length.sum()),
        "ttft": float(np.mean(first - records.arrival_time)),
        "itl": float(np.sum(last - first) / (records.output_length - 1).sum()),
        "e2el": float(np.mean(last - records.arrival_time)),
    }


def show(server: str, figures: dict[str, dict[str, float]]) -> None:
    print(f"{server:16}" + "".join(f"{name:>14}" for name in figures))
    for metric in figures["guidellm"]:
        scale, unit = (1, "") if metric.endswith(("requests", "tokens")) else (1e3, " ms")
        row = "".join(f"{scale * values[metric]:14.2f}" for values in figures.values())
        print(f"{metric + unit:16}{row}")
    print()


if __name__ == "__main__":
    main()
