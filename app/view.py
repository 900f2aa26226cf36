"""Everything a reader has chosen: traffic, deployment, objectives. It is a link, a command line and a YAML file.

Zero, an empty text or `SYSTEM` leave a limit to the serving system, so that the link of the first screen is empty and
a link says only what differs from it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app import library
from simulator import Deployment
from simulator.errors import ConfigurationError

__all__ = ["DESCRIBED", "INTERVALS", "SYSTEM", "View"]

DESCRIBED = "described"
"""The source of traffic that is generated from its description."""
SYSTEM = "default"
INTERVALS = 32
"""Runs behind an interval, the number that `sim run --intervals` is shown with."""
MAX_REQUESTS = 100_000

Switch = Literal["default", "on", "off"]


class View(BaseModel):
    """What is simulated. Lengths in tokens, rates per second, objectives in ms, times in s."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = DESCRIBED
    """`DESCRIBED`, or the key of a trace in the `library`."""
    num_prompts: int = Field(2000, ge=1, le=MAX_REQUESTS)
    request_rate: float = Field(5.5, ge=0.01, le=10_000)
    burstiness: float = Field(1.0, ge=0.05, le=20)
    input_mean: int = Field(1155, ge=1, le=1_000_000)
    input_sigma: float = Field(0.99, ge=0, le=3)
    output_mean: int = Field(211, ge=1, le=1_000_000)
    output_sigma: float = Field(0.86, ge=0, le=3)
    turns: int = Field(1, ge=1, le=100)
    think_time: float = Field(10.0, ge=0, le=3600)
    num_prefixes: int = Field(0, ge=0, le=10_000)
    prefix_length: int = Field(1000, ge=1, le=1_000_000)
    seed: int = Field(0, ge=0, le=2**31)
    format: str = ""
    time_unit: Literal["", "s", "ms", "us", "ns"] = ""
    first: int = Field(0, ge=0)
    """Requests of a file to replay; 0: all."""
    rescaled_rate: float = Field(0.0, ge=0, le=10_000)
    """Mean requests per second to stretch a file to; 0: as recorded."""
    max_concurrency: int = Field(0, ge=0, le=1_000_000)

    model: str = "llama-3.1-8b"
    gpu: str = "h100-sxm-80gb"
    system: str = "vllm"
    num_replicas: int = Field(1, ge=1, le=64)
    tensor_parallel_size: int = Field(1, ge=1, le=64)
    pipeline_parallel_size: int = Field(1, ge=1, le=64)
    dtype: str = ""
    kv_cache_dtype: str = ""
    data_parallel_size: int = Field(1, ge=1, le=64)
    expert_parallel_size: int = Field(1, ge=1, le=64)
    enable_prefix_caching: Switch = "default"
    enable_chunked_prefill: Switch = "default"
    async_scheduling: Switch = "default"
    flash_attention: Switch = "default"
    kernel_fusion: Switch = "default"
    enforce_eager: Switch = "default"
    kv_cache: Switch = "default"
    enable_lora: Switch = "default"
    max_loras: int = Field(0, ge=0)
    max_lora_rank: int = Field(0, ge=0)
    attention: str = ""
    sampling: Literal["", "greedy", "random", "top-p"] = ""
    guided_decoding: float = Field(0.0, ge=0, le=1)
    kv_offloading_size: float = Field(0.0, ge=0, le=100_000)
    decode_context_parallel_size: int = Field(0, ge=0, le=64)
    prefill_context_parallel_size: int = Field(0, ge=0, le=64)
    speculation: Literal["", "draft", "eagle", "mtp", "medusa", "ngram"] = ""
    draft_model: str = "llama-3.2-1b"
    draft_tokens: int = Field(3, ge=1, le=64)
    acceptance: float = Field(0.7, ge=0, le=1)
    max_num_seqs: int = Field(0, ge=0)
    max_num_batched_tokens: int = Field(0, ge=0)
    max_model_len: int = Field(0, ge=0)
    gpu_memory_utilization: float = Field(0.0, ge=0, le=1)
    options: str = ""
    """NAME=VALUE of the system's own, separated by semicolons."""

    ttft: float = Field(2000.0, ge=0)
    tpot: float = Field(100.0, ge=0)
    e2el: float = Field(0.0, ge=0)
    intervals: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> View:
        """A view from a link or from the controls. Raises `ConfigurationError` naming the first wrong value."""
        try:
            return cls(**values)
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                raise ConfigurationError(f"link: nothing here is called {name!r}") from None
            raise ConfigurationError(f"{name}: {problem['input']!r}: {problem['msg']}") from None

    @property
    def described(self) -> bool:
        """Whether the traffic is generated, not read."""
        return self.source == DESCRIBED

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the first screen."""
        return {name: value for name, value in self if value != type(self).model_fields[name].default}

    @property
    def query(self) -> dict[str, str]:
        """The parameters of the link to this view."""
        return {
            name: str(value).lower() if value is True else str(value) for name, value in self.changes.items()
        }

    @property
    def goodput(self) -> dict[str, float]:
        """Objectives that are stated, ms by latency."""
        stated = {name: float(getattr(self, name)) for name in ("ttft", "tpot", "e2el")}
        return {name: ms for name, ms in stated.items() if ms > 0}

    @property
    def traffic_key(self) -> str:
        """What the trace depends on, as text."""
        return json.dumps(
            self.model_dump(include=set(DESCRIPTION if self.described else REPLAY)), sort_keys=True
        )

    def deployment(self) -> Deployment:
        """What is deployed. Raises `ConfigurationError`."""
        stated: dict[str, Any] = {name: getattr(self, name) for name in STATED}
        stated |= {name: getattr(self, name) for name in LIMITS if getattr(self, name)}
        stated["model"], stated["gpu"] = library.path_of(self.model), library.path_of(self.gpu)
        stated |= {name: value == "on" for name, value in self.switched.items()}
        if self.speculation:
            stated["speculation"] = self.drafting(library.path_of(self.draft_model))
        if self.own_options:
            stated["options"] = self.own_options
        return Deployment.of(**stated)

    @property
    def switched(self) -> dict[str, str]:
        """Switches that are stated, on or off."""
        stated = {name: str(getattr(self, name)) for name in SWITCHES}
        return {name: value for name, value in stated.items() if value != SYSTEM}

    def drafting(self, draft_model: str) -> dict[str, Any]:
        """What is stated of speculative decoding."""
        stated: dict[str, Any] = {"method": self.speculation, "tokens": self.draft_tokens}
        model = {"model": draft_model} if self.speculation == "draft" else {}
        return {**stated, **model, "acceptance": self.acceptance}

    @property
    def own_options(self) -> dict[str, Any]:
        """The system's own options, parsed."""
        found = {}
        for text in filter(None, (part.strip() for part in self.options.split(";"))):
            name, equals, value = text.partition("=")
            if not equals:
                raise ConfigurationError(f"own options: {text!r}: must be NAME=VALUE")
            found[name.strip().replace("-", "_")] = yaml.safe_load(value)
        return found

    def deployment_yaml(self) -> str:
        """A file for ``sim run --deployment``."""
        values = self.deployment().model_dump(exclude_unset=True)
        values |= {"model": library.title_of(self.model), "gpu": library.title_of(self.gpu)}
        if self.speculation:
            values["speculation"] = self.drafting(library.title_of(self.draft_model))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @property
    def generate_command(self) -> str:
        """The command that writes the described traffic."""
        words = ["sim", "trace", "generate", "traffic.jsonl", "--num-prompts", self.num_prompts]
        words += ["--request-rate", _exact(self.request_rate), "--arrival", "gamma"]
        words += ["--burstiness", _exact(self.burstiness)]
        words += ["--input-length", self.lengths("input"), "--output-length", self.lengths("output")]
        if self.turns > 1:
            words += ["--turns", f"uniform:low=1,high={self.turns}", "--think-time", _exact(self.think_time)]
        if self.num_prefixes:
            words += ["--num-prefixes", self.num_prefixes, "--prefix-length", self.prefix_length]
        return _line([*words, "--seed", self.seed] if self.seed else words)

    @property
    def run_command(self) -> str:
        """The command that simulates it."""
        words: list[Any] = [
            "sim",
            "run",
            "traffic.jsonl" if self.described else library.title_of(self.source),
        ]
        words += ["--model", library.title_of(self.model), "--gpu", library.title_of(self.gpu)]
        words += ["--system", self.system]
        words += _flags({name: getattr(self, name) for name in STATED[3:] if getattr(self, name) > 1})
        words += _flags({name: getattr(self, name) for name in LIMITS if getattr(self, name)})
        for name, value in self.switched.items():
            words.append(f"--{'no-' if value == 'off' else ''}{name.replace('_', '-')}")
        if self.speculation:
            stated = self.drafting(library.title_of(self.draft_model))
            words += ["--speculation", ",".join(f"{name}={value}" for name, value in stated.items())]
        for name, value in self.own_options.items():
            words += ["--option", f"{name}={json.dumps(value)}"]
        if not self.described:
            replay = {"format": self.format, "time_unit": self.time_unit, "num_prompts": self.first}
            replay["request_rate"] = self.rescaled_rate
            words += _flags({name: value for name, value in replay.items() if value})
        if self.max_concurrency:
            words += ["--max-concurrency", self.max_concurrency]
        for name, ms in self.goodput.items():
            words += ["--goodput", f"{name}:{_exact(ms)}"]
        return _line([*words, "--intervals", INTERVALS] if self.intervals else words)

    @property
    def commands(self) -> str:
        """What to type to see the same numbers."""
        return f"{self.generate_command}\n{self.run_command}" if self.described else self.run_command

    def lengths(self, kind: Literal["input", "output"]) -> str:
        """The distribution of a length, as `Lengths.parse` reads it."""
        mean, sigma = getattr(self, f"{kind}_mean"), getattr(self, f"{kind}_sigma")
        return f"lognormal:mean={mean},sigma={sigma:g}" if sigma else str(mean)


STATED = (
    "model",
    "gpu",
    "system",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "expert_parallel_size",
    "num_replicas",
)
SWITCHES = (
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "async_scheduling",
    "flash_attention",
    "kernel_fusion",
    "enforce_eager",
    "kv_cache",
    "enable_lora",
)
LIMITS = (
    "dtype",
    "kv_cache_dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "gpu_memory_utilization",
    "max_loras",
    "max_lora_rank",
    "attention",
    "sampling",
    "guided_decoding",
    "kv_offloading_size",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
)
DESCRIPTION = (
    "source",
    "num_prompts",
    "request_rate",
    "burstiness",
    "input_mean",
    "input_sigma",
    "output_mean",
    "output_sigma",
    "turns",
    "think_time",
    "num_prefixes",
    "prefix_length",
    "seed",
    "max_concurrency",
)
REPLAY = ("source", "format", "time_unit", "first", "rescaled_rate", "max_concurrency")


def _exact(value: float) -> str:
    """Every digit: the command must mean what the page shows."""
    return repr(value).removesuffix(".0")


def _flags(values: Mapping[str, Any]) -> list[Any]:
    words: list[Any] = []
    for name, value in values.items():
        words += [f"--{name.replace('_', '-')}", _exact(value) if isinstance(value, float) else value]
    return words


def _line(words: list[Any]) -> str:
    return shlex.join(str(word) for word in words)
