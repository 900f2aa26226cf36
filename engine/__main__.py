"""``python -m engine``: ``serve`` speaks OpenAI's API, ``bench`` measures throughput."""

from __future__ import annotations

import argparse
import os
import sys

from engine.settings import EngineSettings
from simulator.errors import ConfigurationError, SimError

__all__ = ["main"]

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line and status 2."""
    parser = argparse.ArgumentParser(prog="python -m engine", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve a model over HTTP (OpenAI's API)")
    _engine_options(serve)
    _server_options(serve)
    bench = commands.add_parser("bench", help="measure throughput and kernel bandwidth")
    _engine_options(bench)
    _bench_options(bench)
    options = parser.parse_args(arguments)
    try:
        return _serve(options) if options.command == "serve" else _bench(options)
    except SimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a Hugging Face directory, or a model of the zoo (random weights)")
    parser.add_argument("--system", default="vllm", help="scheduling policy, a system of the simulator")
    defaults = EngineSettings("")
    for name in SETTINGS:
        default = getattr(defaults, name)
        kind = type(default) if default is not None else int
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=kind, default=default)
    parser.add_argument("--quantization", choices=("int8", "int4", "fp8"))


SETTINGS = (
    "dtype",
    "device",
    "kernels",
    "load_format",
    "block_size",
    "num_gpu_blocks",
    "gpu_memory_utilization",
    "swap_space_blocks",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enforce_eager",
    "tensor_parallel_size",
    "seed",
)


def _server_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: loopback)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--served-model-name", help="the name that clients use (default: the model's)")
    parser.add_argument("--api-key", default=os.environ.get("ENGINE_API_KEY"), help="also ENGINE_API_KEY")
    parser.add_argument("--max-body-bytes", type=int, default=4 * 1024 * 1024)
    parser.add_argument("--max-tokens", type=int, help="most tokens an answer may have")
    parser.add_argument("--max-queue", type=int, default=1024, help="most prompts inside at a time")
    parser.add_argument("--drain-seconds", type=float, default=30.0, help="time to finish after SIGTERM")


def _bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-prompts", type=int, default=200)
    parser.add_argument("--input-len", type=int, help="fixed length; default: ShareGPT-like lengths")
    parser.add_argument("--output-len", type=int)
    parser.add_argument(
        "--kernel-bandwidth", action="store_true", help="also measure the kernels' bandwidth and rate"
    )
    parser.add_argument("--compare", action="store_true", help="also measure transformers' static batching")


def _settings(options: argparse.Namespace) -> EngineSettings:
    chosen = {name: getattr(options, name) for name in SETTINGS}
    return EngineSettings(options.model, quantization=options.quantization, **chosen)


def _serve(options: argparse.Namespace) -> int:
    try:
        from engine.server import Limits, serve
        from engine.server.loop import EngineLoop
    except ImportError as error:
        raise ConfigurationError(f"serving needs fastapi and uvicorn: {error}") from error
    from engine.llm import LLM

    if options.host not in LOOPBACK and not options.api_key:
        print(f"warning: {options.host} is open to the network and no --api-key is set", file=sys.stderr)
    settings = _settings(options)
    llm = LLM.of(settings, system=options.system)
    print(llm.runner.decoder.kernels.describe(), flush=True)
    tokenizer = llm.executor.tokenizer
    assert tokenizer is not None
    limits = Limits(
        options.max_body_bytes, options.max_tokens, options.max_queue, options.drain_seconds, options.api_key
    )
    name = options.served_model_name or settings.name
    length = settings.model_len(llm.runner.decoder.config)
    serve(EngineLoop(llm.executor, name, length, tokenizer), limits, options.host, options.port)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from engine.bench_throughput import run

    settings = _settings(options)
    status = run(settings, options)
    if options.kernel_bandwidth:
        from engine.bench_kernels import main as bench_kernels

        status = bench_kernels(["--device", settings.torch_device().type]) or status
    return status


if __name__ == "__main__":
    sys.exit(main())
