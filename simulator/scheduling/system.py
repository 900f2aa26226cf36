"""Named serving systems: a policy with its memory rule, its defaults and the release it models."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from simulator.errors import ConfigurationError, UnknownNameError
from simulator.scheduling.base import Scheduler
from simulator.scheduling.block_sizes import BlockSizes

if TYPE_CHECKING:
    from simulator.models import ModelSpec, Precision
    from simulator.models.offload import Offload
    from simulator.scheduling.acceptance import Drafting

__all__ = ["Device", "System", "find_system", "list_systems"]

MODULES = (
    "vllm_v1",
    "lightllm",
    "sglang",
    "hf_continuous",
    "vllm_v0",
    "vllm_027",
    "splitfuse",
    "tgi",
    "orca",
    "trtllm",
    "llamacpp",
    "lmdeploy",
    "ollama",
    "turbomind",
    "static_systems",
    "sarathi",
    "mlc_llm",
    "rtp_llm",
    "onnxruntime_genai",
    "xinference",
    "airllm",
    "powerinfer",
)
"""Modules of this package that define ``SYSTEMS``."""


@dataclass(frozen=True)
class Device:
    """What a system looks at when it chooses its defaults. *memory_gib* is per GPU."""

    name: str
    memory_gib: float
    num_gpus: int = 1


def _none(device: Device) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class System:
    """One serving system.

    *policy* is ``module:Class`` in this package; *fixed* arguments make the policy this system and cannot be
    changed; *defaults* gives the system's own defaults for a device. *capacity* is the policy's argument that
    takes the size of the KV cache, in blocks or, with ``capacity_in_tokens``, in tokens. *memory* and
    *traits* name the rule for the KV budget and the host costs. *status*: ``recorded`` (identical to recorded
    decisions), ``read`` (from its source) or ``inferred``.
    """

    name: str
    version: str
    summary: str
    source: str
    status: str
    policy: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Callable[[Device], dict[str, Any]] = _none
    block_size: int = 16
    block_sizes: BlockSizes | None = None
    """What a block may be, where its kernels do not take any size."""
    memory: str = "vllm"
    traits: str = "vllm"
    capacity: str = "num_gpu_blocks"
    capacity_in_tokens: bool = False
    default_max_tokens: str | None = None
    """Rule for requests that state no ``max_tokens``, where the system is defined by one."""
    same_as: str | None = None
    """The system whose decisions and costs this one shares, where it is only another name for them."""
    offload: Callable[[ModelSpec, Precision, Mapping[str, Any]], Offload | None] | None = None
    """What is not on the GPU, for a model, its formats and the options; None: everything is."""
    swap: Literal["", "gathered"] = ""
    """How blocks cross the host link: each in a copy of its own, or gathered on the device first."""
    techniques: frozenset[str] = frozenset()
    """What it has besides: ``lora`` and ``kv_offloading`` (in *extended*), ``context_parallel``, ``pipeline`` (as many
    micro-batches in flight as there are stages)."""
    extended: str | None = None
    """The same policy with adapters and a host tier for KV (``equip``)."""
    uncached: str | None = None
    """The same policy without a KV cache, for a system that can do without."""
    offload_options: Mapping[str, Any] = field(default_factory=dict)
    """Options that only `offload` reads, with their defaults."""
    speculation: tuple[str, ...] = ()
    """Methods of speculative decoding that it has, by the names of `simulator.speculation.METHODS`."""
    speculative: str = ""
    """Its policy with speculation."""
    speculation_ahead: tuple[str, ...] = ()
    """Methods that go together with deciding one step ahead."""
    speculative_fixed: Mapping[str, Any] = field(default_factory=dict)
    """Options that speculation leaves no choice in."""
    speculative_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Options that the system sets with speculation where nothing is stated."""
    draft_trees: bool = False
    """Whether drafts may branch."""
    draft_host_us: Mapping[str, float] = field(default_factory=dict)
    """Host time of each forward of a draft that its kernels do not hide, µs, by method, where it is known."""
    draft_host_source: str = ""
    drafts_one_by_one: bool = False
    """Whether drafts are made for one sequence after the other."""
    draft_vocabulary_slack: int = 0
    """By how many tokens the vocabulary of a draft model may differ."""

    @property
    def policy_class(self) -> type[Scheduler]:
        cls: type[Scheduler] = _policy(self.policy)
        return cls

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the limits and switches that can be set."""
        inner = {"self", "explicit", "track_ids", *self.fixed}
        policy = (name for name in _parameters(self.policy_class) if name not in inner)
        return (*policy, *self.offload_options)

    def swap_space(self, options: Mapping[str, Any]) -> int:
        """Blocks of host memory to swap to with *options*; 0 for a policy that never swaps."""
        known = inspect.signature(self.policy_class).parameters
        own = known["num_cpu_blocks"].default if "num_cpu_blocks" in known else 0
        return int(options.get("num_cpu_blocks", own))

    def scheduler(self, *, drafting: Drafting | None = None, **options: Any) -> Scheduler:
        """A policy object. Raises `ConfigurationError` for an option the system does not have."""
        known = _parameters(self.policy_class)
        options = {name: value for name, value in options.items() if name not in self.offload_options}
        for name in options:
            if name not in known or name in self.fixed:
                raise ConfigurationError(
                    f"system {self.name} has no option {name!r}; it has {', '.join(self.options)}"
                )
        if drafting is not None:
            policy: Scheduler = _policy(self.speculative)(drafting=drafting, **self.fixed, **options)
            return policy
        return self.policy_class(**self.fixed, **options)


@cache
def _parameters(policy: type[Scheduler]) -> tuple[str, ...]:
    """Names of the arguments of *policy*."""
    return tuple(inspect.signature(policy).parameters)


def _policy(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(f"simulator.scheduling.{module}"), name)


@cache
def _registry() -> dict[str, System]:
    found: dict[str, System] = {}
    for module in MODULES:
        for system in importlib.import_module(f"simulator.scheduling.{module}").SYSTEMS:
            found[system.name] = system
    return found


def list_systems() -> list[System]:
    """Every system, by name."""
    return [system for _, system in sorted(_registry().items())]


def find_system(name: str) -> System:
    """The system called *name*. Raises `UnknownNameError`."""
    system = _registry().get(name.lower())
    if system is None:
        raise UnknownNameError("system", name, _registry())
    return system
