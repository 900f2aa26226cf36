"""Every system of the simulator runs for real, and none changes a token."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from engine import LLM, BeamSearchParams, SamplingParams  # noqa: E402
from engine.pages import OwnPages  # noqa: E402
from simulator.errors import CapacityError  # noqa: E402
from simulator.scheduling.system import list_systems  # noqa: E402

SYSTEMS = [system.name for system in list_systems() if system.same_as is None]
BLOCK = 4
PREEMPTING = ("vllm", "vllm-0.2", "vllm-0.6", "vllm-0.11")


def prompts_of(count: int) -> list[list[int]]:
    rng = random.Random(4)
    shared = [rng.randrange(3, 300) for _ in range(10)]
    return [shared + [rng.randrange(3, 300) for _ in range(rng.randint(3, 40))] for _ in range(count)]


def make_llm(model: Any, name: str, blocks: int, **settings: Any) -> LLM:
    """The policy believes in *blocks* blocks; there are pages enough for what it shares and the engine
    does not.
    """
    [system] = [system for system in list_systems() if system.name == name]
    capacity = blocks * BLOCK if system.capacity_in_tokens else blocks
    return LLM(
        model.path,
        system=name,
        scheduler_options={system.capacity: capacity},
        num_gpu_blocks=max(400, blocks),
        swap_space_blocks=400,
        block_size=BLOCK,
        max_num_seqs=6,
        max_num_batched_tokens=512,
        max_model_len=128,
        **settings,
    )


def nothing_is_held(llm: LLM) -> None:
    pages, scheduler = llm.executor.pages, llm.executor.scheduler
    assert scheduler.blocks_used == scheduler.num_running == scheduler.num_waiting == 0
    if isinstance(pages, OwnPages):
        assert pages.num_free == llm.runner.cache.num_blocks
        assert pages.num_host_free == llm.runner.cache.num_host_blocks


@pytest.mark.parametrize("name", SYSTEMS)
def test_greedy_text_under_pressure_and_again(tiny: Any, name: str) -> None:
    """The second time the prompts are in the prefix cache of the systems that have one."""
    model = tiny("llama")
    llm = make_llm(model, name, 40)
    prompts = prompts_of(8)
    for _ in range(2):
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24))
        for prompt, output in zip(prompts, outputs):
            assert output.outputs[0].token_ids == model.greedy(prompt, 24)
        nothing_is_held(llm)
    assert llm.executor.recomputed_tokens < 16 * BLOCK, "at most the rest of a page for each prompt"
    assert llm.executor.scheduler.num_preemptions > 0 or name not in PREEMPTING


@pytest.mark.parametrize("name", SYSTEMS)
def test_samples_depend_on_seed_and_prompt_alone(tiny: Any, name: str, samples_of_vllm: Any) -> None:
    llm = make_llm(tiny("qwen2"), name, 60)
    try:
        outputs = llm.generate(prompts_of(4), SAMPLES)
    except CapacityError as error:
        pytest.skip(str(error))  # a system of fewer slots than samples
    assert [[sample.token_ids for sample in output.outputs] for output in outputs] == samples_of_vllm
    nothing_is_held(llm)


SAMPLES = SamplingParams(n=2, temperature=0.8, top_p=0.9, seed=3, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def samples_of_vllm(tiny: Any) -> list[list[list[int]]]:
    """With room for all of them at once."""
    found = make_llm(tiny("qwen2"), "vllm", 400).generate(prompts_of(4), SAMPLES)
    return [[sample.token_ids for sample in output.outputs] for output in found]


@pytest.mark.parametrize("name", SYSTEMS)
def test_speculation_under_every_policy(tiny: Any, name: str) -> None:
    model = tiny("llama")
    llm = make_llm(model, name, 40, num_speculative_tokens=3)
    prompts = prompts_of(5)
    for prompt, output in zip(prompts, llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24))):
        assert output.outputs[0].token_ids == model.greedy(prompt, 24)
    nothing_is_held(llm)


@pytest.mark.parametrize("name", SYSTEMS)
def test_beams_are_the_same_everywhere(tiny: Any, name: str, beams_of_vllm: Any) -> None:
    llm = make_llm(tiny("qwen3"), name, 60)
    assert [beam.tokens for beam in llm.beam_search(prompts_of(1), BEAMS)[0]] == beams_of_vllm
    nothing_is_held(llm)


BEAMS = BeamSearchParams(3, 5)


@pytest.fixture(scope="module")
def beams_of_vllm(tiny: Any) -> list[tuple[int, ...]]:
    """As transformers finds them, see test_beam_search.py."""
    found = make_llm(tiny("qwen3"), "vllm", 400).beam_search(prompts_of(1), BEAMS)
    return [beam.tokens for beam in found[0]]


@pytest.mark.parametrize("name", SYSTEMS)
def test_cancelling_frees_everything_at_once(tiny: Any, name: str) -> None:
    llm = make_llm(tiny("llama"), name, 100)
    executor = llm.executor
    groups = [
        executor.add(prompt, SamplingParams(max_tokens=30, ignore_eos=True)) for prompt in prompts_of(8)
    ]
    for _ in range(6):
        executor.step()
    for group in groups:
        executor.cancel(group)
    assert all(sequence.finish_reason == "abort" for group in groups for sequence in group)
    llm.run()  # what was in flight
    assert executor.scheduler.num_running == executor.scheduler.num_waiting == 0
    outputs = llm.generate(prompts_of(2), SamplingParams(max_tokens=3, ignore_eos=True))
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3, 3]
    nothing_is_held(llm)
