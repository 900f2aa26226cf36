"""vLLM's V1 scheduler with drafts: slots, token budget, prefix cache, one step ahead."""

import math

import pytest

from simulator.errors import ConfigurationError
from simulator.scheduling import Request
from simulator.scheduling.acceptance import Drafting
from simulator.scheduling.vllm_v1_speculative import SpeculativeVllmV1

NEVER, ALWAYS = 0.0, 1.0


def policy(rate=NEVER, k=3, *, lookahead=0, drops=False, **options):
    drafting = Drafting((rate,) * k, k + 1, lookahead=lookahead, drops_last_hit=drops)
    defaults = {"num_gpu_blocks": 100, "block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 64}
    return SpeculativeVllmV1(drafting=drafting, **{**defaults, "max_model_len": 200, **options})


def start(scheduler, length, output, *, content=(), index=0, max_tokens=100):
    """A request whose prompt is computed and that will have *output* tokens; and in how many steps it gets them."""
    request = Request(f"r{index}", length, max_tokens, index=index, content=content)
    scheduler.add(request, 0.0)
    batch = scheduler.schedule(0.0)
    steps = scheduler.decoding.steps(request, output - 1)
    if scheduler.depth == 1:
        scheduler.commit(batch, (), 0.0)
    return request, steps


@pytest.mark.parametrize(("rate", "steps"), [(NEVER, 12), (ALWAYS, 3)])
def test_a_sequence_ends_after_the_steps_that_its_drafts_leave(rate, steps):
    scheduler = policy(rate)
    request, planned = start(scheduler, 5, 13)
    assert planned == steps
    for _ in range(steps):
        assert scheduler.decoding.generated(request) < 13
        scheduler.schedule(0.0)
    assert scheduler.decoding.generated(request) == 13


@pytest.mark.parametrize("lookahead", [0, 3])
def test_a_step_takes_slots_for_every_draft_and_keeps_them(lookahead):
    scheduler = policy(NEVER, 3, lookahead=lookahead)
    request, _ = start(scheduler, 5, 50)
    computed = 5
    most = scheduler.blocks_used
    for _ in range(30):
        scheduler.schedule(0.0)
        most = max(most, math.ceil((computed + 4 + lookahead) / 4))
        assert scheduler.blocks_used == most
        computed += 1
        assert scheduler.decoding.tokens(request) == computed
    scheduler.commit(scheduler.schedule(0.0), (request,), 0.0)
    assert scheduler.blocks_used == 0


def test_decoding_requests_take_their_width_of_the_token_budget():
    scheduler = policy(max_num_batched_tokens=16)
    start(scheduler, 3, 50, index=0)
    start(scheduler, 3, 50, index=1)
    late = Request("late", 30, 10, index=2)
    scheduler.add(late, 0.0)
    batch = scheduler.schedule(0.0)
    assert (batch.num_decodes, batch.width, batch.num_tokens) == (2, 4, 16)
    assert batch.prefills == [(late, 8, 0)]


def test_more_drafts_than_a_step_holds_are_refused():
    with pytest.raises(ConfigurationError, match="max_num_seqs can be 8"):
        policy(k=7, max_num_seqs=9)


def test_a_draft_that_reads_hidden_states_computes_the_last_cached_block_again():
    found = {}
    for drops in (False, True):
        scheduler = policy(drops=drops)
        first, _ = start(scheduler, 16, 2, content=((7, 16),))
        scheduler.commit(scheduler.schedule(0.0), (first,), 0.0)
        second = Request("second", 20, 10, index=1, content=((7, 16),))
        scheduler.add(second, 0.0)
        scheduler.schedule(0.0)
        found[drops] = second.cached_tokens
    assert found == {False: 16, True: 12}


def test_deciding_ahead_counts_the_drafts_in_flight_as_accepted():
    scheduler = policy(NEVER, 3, async_scheduling=True)
    request, _ = start(scheduler, 5, 50)
    scheduler.schedule(0.0)
    scheduler.schedule(0.0)  # 5 computed + 4 in flight + 4
    assert scheduler.blocks_used == math.ceil(13 / 4)
    assert scheduler.decoding.tokens(request) == 7


def test_deciding_ahead_stops_when_the_last_token_is_certain_and_not_before():
    for rate, scheduled in ((NEVER, 8), (ALWAYS, 3)):
        scheduler = policy(rate, 3, async_scheduling=True)
        request, steps = start(scheduler, 5, 9, max_tokens=9)
        batches = []
        while (batch := scheduler.schedule(0.0)) is not None and batch.num_decodes:
            batches.append(batch)
        # without a draft accepted every step is certain of one token; with all, the step after the last is wasted
        assert (steps, len(batches)) == ((8, 8) if rate == NEVER else (2, scheduled))
        assert scheduler.running
        scheduler.commit(batches[-1], (request,), 0.0)
        assert scheduler.blocks_used == 0


def test_a_preempted_sequence_goes_on_where_it_was():
    scheduler = policy(ALWAYS, 3, num_gpu_blocks=12, max_model_len=48)
    one, _ = start(scheduler, 15, 30, index=0)
    two, _ = start(scheduler, 15, 30, index=1)
    while not (batch := scheduler.schedule(0.0)).preempted:
        scheduler.commit(batch, (), 0.0)
    assert batch.preempted == [two]
    assert two.target == 15 + two.generated and two.generated > 1
    assert scheduler.blocks_used == scheduler.decoding.held(one)
