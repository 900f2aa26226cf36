"""A watched scheduler decides as an unwatched one, and every token of the trace is seen."""

from __future__ import annotations

import pytest

from app.views.systems import small_deployment, small_trace
from app.walk import walk, words
from simulator import simulate
from simulator.scheduling.system import list_systems

TRACE = small_trace(5, 200)


@pytest.mark.parametrize("name", [system.name for system in list_systems()])
def test_every_system_can_be_watched(name):
    resolved = small_deployment(name, 8192).resolve()
    steps = walk(TRACE, resolved)
    assert len(steps) <= simulate(TRACE, resolved, stepped=True).num_iterations + 1
    seen = {request for step in steps for request in step.tokens}
    assert seen == {TRACE.name(i) for i in range(len(TRACE))}
    assert all(words(steps, i).endswith(".") for i in range(len(steps)))


def test_continuous_batching_computes_every_prompt_once_and_one_token_at_a_time():
    steps = walk(TRACE, small_deployment("vllm", 8192).resolve())
    for i in range(len(TRACE)):
        name = TRACE.name(i)
        prompt = sum(chunk for step in steps for request, chunk, _ in step.prefills if request == name)
        decoded = sum(name in step.decodes for step in steps)
        assert prompt == TRACE.input_length[i]
        assert decoded == TRACE.output_length[i] - 1  # the last chunk of the prompt gives the first token
