"""The engine in one object, for offline use.

>>> from engine import LLM, SamplingParams
>>> llm = LLM("path/to/model", max_num_seqs=64)                               # doctest: +SKIP
>>> llm.generate(["The capital of France is"], SamplingParams(max_tokens=8))  # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import replace
from inspect import Parameter, signature
from typing import Any

from engine.beam import Beam, BeamSearchParams, beam_search
from engine.drafting import DraftModel, NgramProposer
from engine.executor import Executor
from engine.loading import build_runner
from engine.outputs import Completion, RequestOutput
from engine.pages import OwnPages, Pages, SchedulerPages
from engine.params import SamplingParams
from engine.runner import ModelRunner
from engine.sequence import Sequence
from engine.settings import EngineSettings
from engine.speculative import SpeculativeExecutor
from engine.tokenizer import load_tokenizer
from engine.workers import ParallelRunner, start_workers
from simulator.errors import CapacityError, ConfigurationError
from simulator.scheduling.base import Scheduler
from simulator.scheduling.system import System, find_system

__all__ = ["LLM", "make_scheduler", "policy_arguments"]

Prompt = str | list[int]
SchedulerFactory = Callable[..., Scheduler]


class LLM:
    """A model behind a scheduler; keyword arguments are those of `EngineSettings`.

    *system* is the policy: the name of a system of `simulator.scheduling`, or a `Scheduler` class. It gets
    the engine's limits, and *scheduler_options*.
    """

    def __init__(
        self,
        model: Any,
        *,
        system: str | SchedulerFactory = "vllm",
        scheduler_options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self._build(EngineSettings(model, **settings), system, scheduler_options)

    @classmethod
    def of(cls, settings: EngineSettings, *, system: str | SchedulerFactory = "vllm") -> LLM:
        """The engine of *settings*."""
        llm = cls.__new__(cls)
        llm._build(settings, system, None)
        return llm

    def _build(
        self, settings: EngineSettings, system: str | SchedulerFactory, options: dict[str, Any] | None
    ) -> None:
        self.settings = settings
        self.runner: ModelRunner = (
            build_runner(settings) if settings.tensor_parallel_size == 1 else start_workers(settings)
        )
        self.executor = make_executor(settings, self.runner, system, options)

    def generate(
        self,
        prompts: Rows[Prompt] | str,
        params: SamplingParams | Rows[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue every prompt (text, or token ids); outputs in the order of the prompts."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        default = params if isinstance(params, SamplingParams) else SamplingParams()
        each = (
            [default] * len(texts) if params is None or isinstance(params, SamplingParams) else list(params)
        )
        groups: list[list[Sequence]] = []
        try:
            for prompt, wanted in zip(texts, each, strict=True):
                groups.append(self.executor.add(self._encode(prompt), wanted))
            self.run()
        finally:
            for group in groups:
                self.executor.cancel(group)
        return [self._output(prompt, group) for prompt, group in zip(texts, groups)]

    def beam_search(self, prompts: Rows[Prompt], params: BeamSearchParams) -> list[list[Beam]]:
        """The best continuations of every prompt, best first."""
        return beam_search(self.executor, self.run, [self._encode(prompt) for prompt in prompts], params)

    def close(self) -> None:
        """End the other ranks, where there are any."""
        if isinstance(self.runner, ParallelRunner):
            self.runner.close()

    def run(self) -> None:
        """Step until nothing is left to do."""
        executor = self.executor
        while executor.has_work:
            executor.step()
            if not executor.idle or not executor.has_work:
                continue
            if executor.wait_until is None:
                stats = executor.stats()
                raise CapacityError(
                    f"the scheduler runs nothing: {stats.num_waiting} wait, {stats.num_running} run, "
                    f"{stats.blocks_used} of {stats.num_blocks} blocks are held"
                )
            time.sleep(max(0.0, executor.wait_until - executor.clock()))
        executor.step()  # nothing is left to do: policies may count on being asked then

    def _encode(self, prompt: Prompt) -> list[int]:
        assert self.executor.tokenizer is not None
        return self.executor.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _output(self, prompt: Prompt, group: list[Sequence]) -> RequestOutput:
        request = group[0].request
        return RequestOutput(
            request_id=request.id.split("/")[0],
            prompt=prompt if isinstance(prompt, str) else None,
            prompt_token_ids=group[0].prompt,
            outputs=[Completion.of(i, sequence) for i, sequence in enumerate(group)],
            num_cached_tokens=request.cached_tokens,
            num_preemptions=sum(s.request.num_preemptions for s in group),
        )


def make_executor(
    settings: EngineSettings,
    runner: ModelRunner,
    system: str | SchedulerFactory = "vllm",
    options: dict[str, Any] | None = None,
) -> Executor:
    """The executor of *settings* over *runner*."""
    config, cache = runner.decoder.config, runner.cache
    scheduler, numbered = make_scheduler(settings, runner, system, options)
    if numbered:
        pages: Pages = SchedulerPages(scheduler.blocks.tables, cache.block_size)  # type: ignore[attr-defined]
    else:
        pages = OwnPages(cache.num_blocks, cache.block_size, cache.num_host_blocks)
    common: dict[str, Any] = {
        "tokenizer": load_tokenizer(settings.directory, config.vocab_size),
        "eos": frozenset(config.eos_token_ids),
        "seed": settings.seed,
    }
    if not settings.num_speculative_tokens:
        return Executor(runner, scheduler, pages, **common)
    return SpeculativeExecutor(
        runner,
        scheduler,
        pages,
        proposer=make_proposer(settings, runner),
        num_tokens=settings.num_speculative_tokens,
        first_scratch=cache.num_blocks,
        num_scratch=cache.num_scratch,
        **common,
    )


def make_proposer(settings: EngineSettings, runner: ModelRunner) -> NgramProposer | DraftModel:
    """Where drafts come from: a draft model over as many blocks as the model has, or n-grams."""
    if settings.draft_model is None:
        return NgramProposer(settings.num_speculative_tokens)
    draft = replace(
        settings, model=settings.draft_model, num_gpu_blocks=runner.cache.num_blocks, enforce_eager=True
    )
    small = build_runner(draft)
    ours, theirs = runner.decoder.config.vocab_size, small.decoder.config.vocab_size
    if ours != theirs:
        raise ConfigurationError(f"draft model: a vocabulary of {theirs} tokens, and the model has {ours}")
    return DraftModel(small)


def make_scheduler(
    settings: EngineSettings,
    runner: ModelRunner,
    system: str | SchedulerFactory = "vllm",
    options: dict[str, Any] | None = None,
) -> tuple[Scheduler, bool]:
    """A policy over the runner's blocks, and whether it numbers them.

    *system* is a named system of `simulator.scheduling`, or a class. It gets the engine's limits as far as
    it has options of these names; *options* go first. Policies that fork count blocks and do not number them,
    unless *options* ask with ``track_ids``.
    """
    policy: SchedulerFactory = find_system(system).policy_class if isinstance(system, str) else system
    arguments = policy_arguments(settings, runner, system, options)
    return policy(**arguments), bool(arguments.get("track_ids"))


def policy_arguments(
    settings: EngineSettings,
    runner: ModelRunner,
    system: str | SchedulerFactory = "vllm",
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `make_scheduler` gives the policy: the engine's limits under the names that the policy knows."""
    policy: SchedulerFactory = find_system(system).policy_class if isinstance(system, str) else system
    known = signature(policy).parameters
    limits: dict[str, Any] = {
        "num_gpu_blocks": runner.cache.num_blocks,
        "num_cpu_blocks": runner.cache.num_host_blocks,
        "block_size": settings.block_size,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "max_model_len": settings.model_len(runner.decoder.config),
        "explicit": True,
    }
    limits |= _lowered(limits, known)
    if isinstance(system, str):
        named = find_system(system)
        limits[named.capacity] = _capacity(settings, runner, named)
        limits |= named.fixed
    limits["track_ids"] = not getattr(policy, "forks", False)
    taken = {name: value for name, value in limits.items() if name in known}
    return {**taken, **(options or {})}


OWN_NAMES = {
    "max_num_seqs": (
        "max_batch_size",
        "max_num_sequence",
        "max_ragged_sequence_count",
        "max_requests_per_batch",
        "max_running_requests",
        "running_max_req_size",
    ),
    "max_num_batched_tokens": (
        "max_batch_tokens",
        "max_num_tokens",
        "max_prefill_token_num",
        "max_ragged_batch_size",
        "max_scheduled_tokens",
    ),
}
"""What policies call the engine's limits where they have a name of their own."""


def _lowered(limits: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """A policy's own limits where the engine's are tighter: it has no room for larger steps."""
    lowered = {}
    for ours, names in OWN_NAMES.items():
        for name in names:
            if name in known:
                usual = known[name].default
                lowered[name] = min(limits[ours], usual) if isinstance(usual, int) else limits[ours]
    return lowered


def _capacity(settings: EngineSettings, runner: ModelRunner, system: System) -> int:
    """The size of the KV cache as *system* counts it, in tokens or in blocks of its own size.

    A system that counts tokens is granted less than there is: each sequence leaves its last page partly empty.
    """
    blocks, size = runner.cache.num_blocks, settings.block_size
    if system.capacity_in_tokens:
        return max(blocks - settings.max_num_seqs, -(-blocks // 2)) * size
    if "block_size" in signature(system.policy_class).parameters:
        return blocks
    capacity = blocks * size // system.block_size
    if not capacity:
        raise ConfigurationError(
            f"num_gpu_blocks {blocks} of {size} tokens: a block of {system.name} has {system.block_size}"
        )
    return capacity
