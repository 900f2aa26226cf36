"""What is deployed: model × GPU × parallelism × system × limits, and the defaults that fill the rest.

A `Deployment` is what a user states, in a YAML file or on the command line. `Deployment.resolve` looks
everything up, lets the system choose what was left open as it would on that device, works out how many KV
blocks there are, and remembers every choice that was made for the user.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from hwprofiles import HardwareProfile, load_profile
from simulator.errors import ConfigurationError, InputError
from simulator.mapping_file import read_mapping
from simulator.memory import MemoryBudget, activation_bytes, kv_budget
from simulator.models import ModelSpec, Precision, dtype, load_model
from simulator.models.offload import Offload
from simulator.observed import find_observed, observed_budget, observed_elsewhere
from simulator.scheduling import Scheduler
from simulator.scheduling.system import Device, System, find_system
from simulator.speculation import Speculation, SpeculationPlan, Stated, plan_speculation
from simulator.steptime import Parallelism, StepTime, load_traits
from simulator.steptime.interconnect import InterconnectName, find_interconnect
from simulator.steptime.kernels import Kernels
from simulator.steptime.laws import LawSet
from simulator.steptime.offload import OffloadedStepTime
from simulator.steptime.pipelined import PipelinedStepTime
from simulator.steptime.speculative import SpeculativeStepTime
from simulator.steptime.uncached import UncachedStepTime
from simulator.techniques import (
    SCORES_CONTEXT,
    Equipment,
    Techniques,
    check,
    check_context_parallel,
    check_speculation,
    extra_memory,
    kernels_of,
    policy_of,
    traits_of,
    vary_attention,
    without_graphs,
    without_kv,
)
from simulator.validity import footing, laws_used

__all__ = ["Deployment", "Resolved"]

DEFAULT_MODEL = "llama-3.1-8b"
DEFAULT_MAX_TOKENS = "pow2"
GIB = 2**30
COMMON = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "block_size",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "long_prefill_token_threshold",
    "async_scheduling",
)


class Deployment(Techniques):
    """One replica's worth of serving system, and how many of them; with the switches of `Techniques`.

    Names are vLLM's. None leaves a limit to the system's own default for the device. ``options`` holds what
    only this system knows, under its own flag names.
    """

    model: str = DEFAULT_MODEL
    gpu: str = "h100"
    system: str = "vllm"
    tensor_parallel_size: int = Field(1, ge=1, le=1024)
    pipeline_parallel_size: int = Field(1, ge=1, le=64)
    data_parallel_size: int = Field(1, ge=1, le=1024)
    expert_parallel_size: int = Field(1, ge=1, le=1024)
    interconnect: InterconnectName | None = None
    """How the GPUs of a box reach each other; None: what the card comes with."""
    interconnect_bandwidth: float | None = Field(None, gt=0)
    """Bus bandwidth of a ring over PCIe, GB/s, as ``all_reduce_perf`` prints it."""
    num_replicas: int = Field(1, ge=1, le=10_000)
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    max_model_len: int | None = Field(None, ge=1)
    max_num_seqs: int | None = Field(None, ge=1)
    max_num_batched_tokens: int | None = Field(None, ge=1)
    block_size: int | None = Field(None, ge=1)
    num_gpu_blocks: int | None = Field(None, ge=1)
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    scheduling_policy: Literal["fcfs", "priority"] | None = None
    long_prefill_token_threshold: int | None = Field(None, ge=0)
    async_scheduling: bool | None = None
    default_max_tokens: int | str = DEFAULT_MAX_TOKENS
    request_overhead_ms: float | Literal["fitted"] | None = None
    """Front end of a request (HTTP, tokenisation) before the scheduler has it, counted in TTFT and end-to-end latency;
    None: not counted; ``fitted``: what serving data or an observation show of the system."""
    router: str = "round-robin"
    speculation: Stated = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("request_overhead_ms", mode="before")
    @classmethod
    def _overhead(cls, value: Any) -> Any:
        if value is None or value == "fitted":
            return value
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < math.inf:
            raise PydanticCustomError("request_overhead", "must be a number, at least 0, or fitted")
        return number

    @classmethod
    def of(cls, **values: Any) -> Deployment:
        """A deployment from keyword arguments. Raises `ConfigurationError` with one line for what is wrong."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigurationError(_first_problem(error)) from None

    @classmethod
    def load(cls, path: str | Path) -> Deployment:
        """Read a YAML file, or a run's ``config.yaml``. Raises `InputError`: file, field, value and what is allowed."""
        values = read_mapping(path, " of deployment options", "deployment")
        try:
            return cls(**values)
        except ValidationError as error:
            raise InputError(path, _first_problem(error)) from None
        except TypeError as error:
            raise InputError(path, f"option names must be text: {error}") from None

    @property
    def stated_limits(self) -> dict[str, Any]:
        """The policy's arguments that are stated: common ones, the order of its queue, the system's own options."""
        stated = {name: getattr(self, name) for name in COMMON if getattr(self, name) is not None}
        order = {} if self.scheduling_policy is None else {"policy": self.scheduling_policy}
        return stated | order | self.options

    def resolve(self) -> Resolved:
        """Look everything up and choose what was left open."""
        model, profile, system = load_model(self.model), load_profile(self.gpu), find_system(self.system)
        check(self, system)
        if self.speculation is not None:
            check_speculation(self)
        model, system = vary_attention(model, self.attention), policy_of(self, system)
        chosen: list[str] = []
        for name in ("model", "gpu", "system"):
            if name not in self.model_fields_set:
                chosen.append(f"{name}: {getattr(self, name)}")
        if "default_max_tokens" not in self.model_fields_set:
            chosen.append(f"default_max_tokens: {system.default_max_tokens or DEFAULT_MAX_TOKENS}")
        parallelism = Parallelism(
            self.tensor_parallel_size,
            self.pipeline_parallel_size,
            self.data_parallel_size,
            self.expert_parallel_size,
            self.decode_context_parallel_size or 1,
            self.prefill_context_parallel_size or 1,
        )
        _check_division(model, parallelism)
        check_context_parallel(model, parallelism)
        precision = self._precision(model, profile, chosen)
        limits = self._limits(system, profile, parallelism, model, chosen)
        if "kv_bytes_per_token" in system.options:
            limits.setdefault("kv_bytes_per_token", round(model.kv_bytes_per_token(precision.kv)))
        plan = self._speculation(model, profile, parallelism, precision, system, limits, chosen)
        offload = None if system.offload is None else system.offload(model, precision, limits)
        if offload is not None:
            limits |= offload.limits
            chosen += [
                f"{name}: {value:.4g} (follows from the model)" for name, value in offload.limits.items()
            ]
        kernels = kernels_of(self, model)
        budget = self._budget(model, profile, parallelism, precision, system, limits, offload, plan, kernels)
        observed = find_observed(profile, system.traits, model, parallelism)
        if self.gpu_memory_utilization is None and self.kv_cache is not False:
            budget = observed_budget(budget, observed, model, parallelism, precision)
        warnings = observed_elsewhere(observed, model, parallelism)
        warnings += self._cut_for_scores(model, limits)
        warnings += self._fit_context(model, limits, budget, chosen)
        traits = load_traits(
            system.traits,
            max_num_seqs=limits.get("max_num_seqs", 256),
            max_num_batched_tokens=limits.get("max_num_batched_tokens"),
            host=profile.host,
            observed=observed,
        )
        if self.async_scheduling is not None:  # deciding one step ahead is what hides the host's work
            traits = replace(traits, overlap=self.async_scheduling)
        elif plan is not None and plan.speculation.method not in system.speculation_ahead:
            traits = replace(traits, overlap=False)
        traits = traits_of(self, traits, kernels, profile, parallelism.tp)
        if self.request_overhead_ms == "fitted" and not traits.engine.request_s:
            raise ConfigurationError(
                f"request_overhead_ms fitted: nothing is known of the front end of {system.name}; state it in ms"
            )
        box = find_interconnect(profile, self.interconnect, self.interconnect_bandwidth)
        if parallelism.num_gpus > 1 and self.interconnect is None:
            chosen.append(f"interconnect: {box.name} (as {profile.name} comes)")
        parts = (model, LawSet.from_profile(profile, box), parallelism, traits, precision, kernels)
        return Resolved(
            deployment=self,
            model=model,
            profile=profile,
            system=system,
            parallelism=parallelism,
            precision=precision,
            limits=limits,
            budget=budget,
            steptime=self._steptime(offload, plan, _micro_batch(system, parallelism, limits), parts),
            speculation=plan,
            equipment=Equipment.of(
                self, model, profile, parallelism, kernels, budget, system, system.swap_space(limits)
            ),
            chosen=chosen,
            warnings=warnings,
        )

    def _precision(self, model: ModelSpec, profile: HardwareProfile, chosen: list[str]) -> Precision:
        native = model.native
        weights = dtype(self.dtype).name if self.dtype else native.weights
        kv = dtype(self.kv_cache_dtype).name if self.kv_cache_dtype else native.kv
        if self.dtype is None:
            chosen.append(f"dtype: {weights} (as published)")
        _check_multiplies(profile, weights)
        head = weights if dtype(weights).streamed else native.head  # a llama.cpp file quantises all of it
        return Precision(weights, kv, native.moe if self.dtype is None else None, head)

    def _limits(
        self,
        system: System,
        profile: HardwareProfile,
        parallelism: Parallelism,
        model: ModelSpec,
        chosen: list[str],
    ) -> dict[str, Any]:
        """The policy's arguments: the system's defaults for the device, overruled by what was stated."""
        options = system.options
        device = Device(profile.device_name, profile.memory_bytes / GIB, parallelism.num_gpus)
        limits = {**system.offload_options, **system.defaults(device)}
        stated = self.stated_limits
        for name in stated:
            if name not in options:
                raise ConfigurationError(
                    f"system {system.name} has no option {name!r}; it has {', '.join(options)}"
                )
        if system.block_sizes is not None and (size := stated.get(system.block_sizes.option)) is not None:
            system.block_sizes.check(f"{system.name} {system.version}", size)
        limits |= stated
        if "block_size" in options:
            limits.setdefault("block_size", system.block_size)
        if "max_model_len" in options:
            longest = model.max_position_embeddings
            limits.setdefault(
                "max_model_len",
                longest if self.flash_attention is not False else min(longest, SCORES_CONTEXT),
            )
        chosen += [f"{name}: {value} ({system.name})" for name, value in limits.items() if name not in stated]
        return limits

    def _speculation(
        self,
        model: ModelSpec,
        profile: HardwareProfile,
        parallelism: Parallelism,
        precision: Precision,
        system: System,
        limits: dict[str, Any],
        chosen: list[str],
    ) -> SpeculationPlan | None:
        """What is stated of speculation, looked up; it may rule out deciding one step ahead."""
        stated = self.speculation
        if stated is None:
            return None
        plan = plan_speculation(
            stated, model, precision, parallelism, system, lambda name: _check_multiplies(profile, name)
        )
        chosen += plan.chosen
        fixed = dict(system.speculative_fixed)
        if stated.method not in system.speculation_ahead and "async_scheduling" in limits:
            fixed["async_scheduling"] = False
        own = self.stated_limits
        for name, value in {**system.speculative_defaults, **fixed}.items():
            if name in fixed and own.get(name, value) != value:
                raise ConfigurationError(
                    f"speculation: {system.name} {system.version} needs {name} {value} with method {stated.method}, "
                    f"not {own[name]}"
                )
            if name not in own and limits.get(name) != value:
                limits[name] = value
                chosen.append(f"{name}: {value} (with speculation by {stated.method})")
        room = limits.get("max_num_batched_tokens", math.inf) // plan.drafting.width
        if self.max_num_seqs is None and 1 <= room < limits.get("max_num_seqs", 0):
            limits["max_num_seqs"] = int(room)
            chosen.append(
                f"max_num_seqs: {room} ({plan.drafting.width} tokens each in max_num_batched_tokens)"
            )
        return plan

    def _budget(
        self,
        model: ModelSpec,
        profile: HardwareProfile,
        parallelism: Parallelism,
        precision: Precision,
        system: System,
        limits: dict[str, Any],
        offload: Offload | None,
        plan: SpeculationPlan | None,
        kernels: Kernels,
    ) -> MemoryBudget:
        budget = kv_budget(
            model,
            without_graphs(profile) if self.enforce_eager else profile,
            parallelism,
            system.memory,
            self.gpu_memory_utilization,
            limits.get("block_size", system.block_size),
            precision,
            limits.get("max_num_batched_tokens", 8192),
            limits.get("max_num_seqs", 256),
            on_gpu=(1.0, 1.0) if offload is None else (offload.weights_share, offload.kv_share),
            draft=(0.0, 0.0) if plan is None else plan.memory,
            extra=extra_memory(kernels, model, parallelism, limits),
        )
        if self.kv_cache is not False:
            return budget
        return without_kv(
            budget, activation_bytes(model, profile.memory.activation_factor, parallelism.tp, 1, 0)
        )

    def _steptime(
        self,
        offload: Offload | None,
        plan: SpeculationPlan | None,
        budget: int | None,
        parts: tuple[Any, ...],
    ) -> StepTime:
        """*budget*: tokens of a micro-batch, for a system that keeps its pipeline full."""
        if self.kv_cache is False:
            return UncachedStepTime(*parts)
        if offload is not None and offload.weight_bytes:
            if plan is not None:
                raise ConfigurationError("speculation: with weights outside the GPU it is not modelled")
            return OffloadedStepTime(offload, *parts)
        if plan is not None:
            return SpeculativeStepTime(plan.drafter, *parts)
        return StepTime(*parts) if budget is None else PipelinedStepTime(budget, *parts)

    def _cut_for_scores(self, model: ModelSpec, limits: Mapping[str, Any]) -> list[str]:
        cut = limits.get("max_model_len", model.max_position_embeddings) < model.max_position_embeddings
        if self.flash_attention is not False or self.max_model_len is not None or not cut:
            return []
        return [
            f"the model's context of {model.max_position_embeddings} tokens is cut to {limits['max_model_len']}: "
            "without flash_attention scores grow with its square; max_model_len states another"
        ]

    def _fit_context(
        self, model: ModelSpec, limits: dict[str, Any], budget: MemoryBudget, chosen: list[str]
    ) -> list[str]:
        """A sequence of ``max_model_len`` tokens must fit the cache; a context that nobody asked for is cut to it."""
        blocks = self.num_gpu_blocks or budget.num_gpu_blocks
        room, wanted = blocks * budget.block_size, limits.get("max_model_len")
        if self.max_model_len is not None and self.max_model_len > model.max_position_embeddings:
            raise ConfigurationError(
                f"max_model_len {self.max_model_len}: {model.name} has a context of {model.max_position_embeddings}"
            )
        if wanted is None or wanted <= room:
            return []
        if self.max_model_len is not None:
            raise ConfigurationError(
                f"max_model_len {wanted}: one such sequence does not fit the KV cache of {blocks} blocks, {room} tokens"
            )
        limits["max_model_len"] = room
        chosen.append(f"max_model_len: {room} (all the KV cache; the model's context is {wanted})")
        return [f"the model's context of {wanted} tokens does not fit the KV cache: cut to {room}"]


@dataclass(frozen=True)
class Resolved:
    """A deployment with everything looked up: what a simulation is built from."""

    deployment: Deployment
    model: ModelSpec
    profile: HardwareProfile
    system: System
    parallelism: Parallelism
    precision: Precision
    limits: dict[str, Any]
    budget: MemoryBudget
    steptime: StepTime
    equipment: Equipment
    chosen: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    speculation: SpeculationPlan | None = None

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a decode step yields per sequence: 1 without speculation."""
        return 1.0 if self.speculation is None else self.speculation.tokens_per_step

    @property
    def default_max_tokens(self) -> int | str:
        """The limit of requests that state none: what was asked for, or what defines the system."""
        stated = "default_max_tokens" in self.deployment.model_fields_set
        return (
            self.deployment.default_max_tokens
            if stated
            else self.system.default_max_tokens or DEFAULT_MAX_TOKENS
        )

    @property
    def front_end_s(self) -> float:
        """Seconds from a client's sending a request to its arrival at the scheduler; 0 where they are not counted."""
        stated = self.deployment.request_overhead_ms
        if stated == "fitted":
            return self.steptime.traits.engine.request_s
        return 0.0 if stated is None else stated / 1e3

    @property
    def num_gpu_blocks(self) -> int:
        """KV blocks of one replica."""
        return self.deployment.num_gpu_blocks or self.budget.num_gpu_blocks

    def scheduler(self, **more: Any) -> Scheduler:
        """A fresh policy object for one replica."""
        size = self.num_gpu_blocks * (self.budget.block_size if self.system.capacity_in_tokens else 1)
        drafting = None if self.speculation is None else self.speculation.drafting
        limits: dict[str, Any] = {self.system.capacity: size, **self.limits, **more}
        if isinstance(self.steptime, PipelinedStepTime) and limits.get("max_num_batched_tokens"):
            limits["max_num_batched_tokens"] *= self.parallelism.pp  # of all micro-batches in flight
        return self.equipment.equip(self.system.scheduler(drafting=drafting, **limits))

    @property
    def scheduler_factory(self) -> Callable[[], Scheduler]:
        """`scheduler`, as a function for each new replica."""
        return self.scheduler

    def with_seed(self, seed: int) -> Resolved:
        """The same; *seed* decides which drafts are accepted."""
        plan = self.speculation
        if plan is None:
            return self
        return replace(self, speculation=replace(plan, drafting=replace(plan.drafting, seed=seed)))

    @property
    def title(self) -> str:
        """What is deployed, in a few words."""
        d, n = self.deployment, self.parallelism.num_gpus
        replicas = f"{d.num_replicas} × " if d.num_replicas > 1 else ""
        return f"{self.model.name} on {replicas}{n} × {self.profile.name}, {self.system.name} {self.system.version}"

    @property
    def num_gpus(self) -> int:
        """GPUs of all replicas."""
        return self.parallelism.num_gpus * self.deployment.num_replicas

    @property
    def config(self) -> dict[str, Any]:
        """Everything resolved, as plain values: enough to run it again."""
        stated = self.deployment.model_dump(exclude={"options"}, exclude_none=True)
        common = {name: value for name, value in self.limits.items() if name in COMMON}
        options = {
            name: value for name, value in self.limits.items() if name not in COMMON and name != "policy"
        }
        return {
            **stated,
            **common,
            "default_max_tokens": self.default_max_tokens,
            "dtype": self.precision.weights,
            "kv_cache_dtype": self.precision.kv,
            "num_gpu_blocks": self.num_gpu_blocks,
            "options": {**options, **self.deployment.options},
        }

    @property
    def provenance(self) -> list[str]:
        """What the numbers rest on, one line each."""
        traits = self.steptime.traits
        rule = self.budget.observed or f"rule {self.budget.rule.source}"
        blocks = "stated" if self.deployment.num_gpu_blocks else rule
        cache = f"KV cache: {self.num_gpu_blocks} blocks of {self.budget.block_size} tokens ({blocks})"
        if self.deployment.kv_cache is False:
            cache = f"no KV cache: a forward holds {self.budget.tokens} tokens ({blocks})"
        steps = self.steptime
        offload = [f"weights: {steps.offload.source}"] if isinstance(steps, OffloadedStepTime) else []
        return [
            footing(self.profile, laws_used(steps)),
            *(f"validated: {run.text()}" for run in self.profile.end_to_end),
            f"system {self.system.name} {self.system.version}: {self.system.status}; {self.system.source}",
            f"host costs: {traits.status}; {traits.source}",
            _front_end_text(self),
            cache,
            *filter(None, [self.equipment.swap]),
            *offload,
            *([] if self.speculation is None else self.speculation.provenance),
            *self.deployment.switched(),
        ]


def _front_end_text(resolved: Resolved) -> str:
    """Whose time to first token is reported: the scheduler's or the client's."""
    stated, fitted = resolved.deployment.request_overhead_ms, resolved.steptime.traits.engine.request_s
    if stated is None:
        known = f"; {1e3 * fitted:.3g} ms with request_overhead_ms: fitted" if fitted else ""
        return f"TTFT: from arrival at the scheduler, without the front end (HTTP, tokenisation{known})"
    source = "fitted" if stated == "fitted" else "stated"
    return f"TTFT: from the client's sending, {1e3 * resolved.front_end_s:.3g} ms before the scheduler ({source})"


def _micro_batch(system: System, parallelism: Parallelism, limits: dict[str, Any]) -> int | None:
    """Tokens of a micro-batch where the system keeps its pipeline full; None: stages run one after the other."""
    if parallelism.pp == 1 or "pipeline" not in system.techniques:
        return None
    return int(limits.get("max_num_batched_tokens") or 2**31)


def _check_multiplies(profile: HardwareProfile, weights: str) -> None:
    law = dtype(weights).law.removesuffix("_wo")
    if not dtype(weights).law.endswith("_wo") and law not in profile.peak_flops:
        have = ", ".join(sorted(profile.peak_flops))
        stored = f"; {law}_wo only stores it" if law in ("fp8", "int8") else "; nvfp4_wo only stores it"
        raise ConfigurationError(
            f"dtype {weights}: {profile.name} does not multiply in it; it has {have}{stored}"
        )


def _check_division(model: ModelSpec, parallelism: Parallelism) -> None:
    if model.num_attention_heads % parallelism.tp:
        raise ConfigurationError(
            f"tensor_parallel_size {parallelism.tp}: must divide the {model.num_attention_heads} attention heads "
            f"of {model.name}"
        )
    if parallelism.pp > model.num_layers:
        raise ConfigurationError(
            f"pipeline_parallel_size {parallelism.pp}: {model.name} has {model.num_layers} layers"
        )


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    of_speculation = problem["loc"][:1] == ("speculation",)
    if problem["type"] == "extra_forbidden":
        known = Speculation.model_fields if of_speculation else Deployment.model_fields
        return f"unknown option {place!r}; known: {', '.join(sorted(known))}"
    if of_speculation and problem["type"] == "value_error":  # its own checks say what is wrong in full
        return f"{place}: {problem['msg'].removeprefix('Value error, ')}"
    return f"{place}: {problem['input']!r}: {problem['msg']}"
