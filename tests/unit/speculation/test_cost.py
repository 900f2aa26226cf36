"""What drafting and checking cost in time and memory, against counts by hand."""

from dataclasses import replace

import numpy as np
import pytest

from simulator.deployment import Deployment
from simulator.estimate import Estimate
from simulator.models import load_model
from simulator.models.drafts import medusa_heads
from simulator.steptime import StepTime, step_work

LARGE = {"model": "llama-3.1-70b", "gpu": "h100", "tensor_parallel_size": 4}
DRAFT = "method=draft,model=llama-3.2-1b,tokens=4,acceptance=0.8"
EAGLE = "method=eagle,tokens=3,acceptance=0.7"


def resolve(speculation, **stated):
    return Deployment.of(**{**LARGE, **stated, "speculation": speculation}).resolve()


def test_checking_multiplies_the_flops_and_reads_weights_and_kv_once():
    step = resolve(DRAFT).steptime
    wide = StepTime(step.model, step.laws, step.parallelism, step.traits, step.precision, width=5)
    one = {work.name: work for work in step_work(step.plain, 8, 8000)}
    five = {work.name: work for work in step_work(wide, 8, 8000)}
    for name in ("qkv_proj", "gate_up_proj", "lm_head", "decode_attention"):
        assert five[name].flops == pytest.approx(5 * one[name].flops)
    assert five["decode_attention"].bytes == one["decode_attention"].bytes
    weights = 2 * 8192 * 2 * 28672 / 4 * 80  # B of gate and up, a quarter of 80 layers
    assert five["gate_up_proj"].bytes - one["gate_up_proj"].bytes < 0.01 * weights


def test_drafts_are_forwards_of_the_small_model_one_after_the_other():
    step = resolve(DRAFT + ",host_us=0").steptime
    small = Deployment.of(model="llama-3.2-1b", gpu="h100", tensor_parallel_size=4).resolve()
    traits = replace(
        step.traits, per_step_s=0, per_seq_s=0, per_new_token_s=0, engine=step.passes[0][0].traits.engine
    )
    draft = StepTime(small.model, step.laws, small.parallelism, traits, small.precision)
    assert step.drafting(1, 1000) == pytest.approx(4 * draft.seconds(1, 1000), rel=0.05)
    # a prompt goes through the draft once, and only the tokens after its last one are drafted
    added = step.drafting(0, 0, [(4000, 0)]) - draft.seconds(0, 0, [(4000, 0)])
    assert added == pytest.approx(3 * draft.seconds(1, 4000), rel=0.05)


def test_a_step_is_its_parts_and_asking_twice_changes_nothing():
    for speculation in (
        DRAFT,
        EAGLE,
        "method=medusa,tokens=4,acceptance=0.6",
        "method=ngram,tokens=4,acceptance=0.6",
    ):
        step = resolve(speculation).steptime
        for batch in ((3, 90_000_000, ()), (7, 7000, ()), (7, 7000, [(512, 0)]), (0, 0, [(100, 50)])):
            seconds = step.seconds(*batch)
            assert step.seconds(*batch) == seconds
            parts = step.breakdown(*batch)
            assert sum(parts.values()) == pytest.approx(seconds)
            assert parts["drafting"] == pytest.approx(step.drafting(*batch))
            assert step.floor(*batch) <= seconds
        assert step.with_laws(step.laws).seconds(5, 5000) == step.seconds(5, 5000)
        durations = step.segment(4, 4000, 3)
        assert durations == pytest.approx([step.seconds(4, 4000 + 4 * i) for i in range(3)])


def test_the_gain_vanishes_with_the_batch():
    step, tokens = resolve(DRAFT).steptime, resolve(DRAFT).tokens_per_step
    gains = [
        tokens * step.plain.seconds(n, 1000 * n) / step.seconds(n, 1000 * n) for n in (1, 8, 64, 256, 512)
    ]
    assert gains[0] > 1.3 and gains[-1] < 1.0
    assert all(np.diff(gains) < 0)


def test_host_work_of_a_draft_is_paid_for_every_forward():
    for speculation, forwards in ((DRAFT, 4), (EAGLE, 3), ("method=medusa,tokens=4,acceptance=0.6", 1)):
        none, some = (resolve(f"{speculation},host_us={us}").steptime for us in (0, 500))
        for batch in ((8, 8000, ()), (8, 8000, [(100, 0)])):
            assert some.seconds(*batch) - none.seconds(*batch) == pytest.approx(forwards * 500e-6)
    assert "inferred: vLLM 0.10.1" in resolve(DRAFT).provenance[-1]
    assert "not counted" in resolve(EAGLE).provenance[-1]


def test_a_system_that_drafts_for_one_sequence_after_the_other_takes_so_many_times_as_long():
    stated = {"model": "llama-3.1-8b", "system": "llama.cpp", "tensor_parallel_size": 1}
    step = resolve("method=draft,model=llama-3.2-1b,tokens=4,acceptance=0.8", **stated).steptime
    assert step.drafting(6, 6000) == pytest.approx(6 * step.drafting(1, 1000))
    assert step.segment(6, 6000, 2) == pytest.approx([step.seconds(6, 6000), step.seconds(6, 6006)])
    apart = step.drafting(6, 6000) + step.drafting(0, 0, [(500, 0)])
    assert step.drafting(6, 6000, [(500, 0)]) == pytest.approx(apart, rel=0.01)


def test_a_look_up_costs_host_time_only_and_less_than_all_its_tokens_where_few_match():
    every = resolve("method=ngram,tokens=4,acceptance=0.5,lookup_us=0").steptime
    slow = resolve("method=ngram,tokens=4,acceptance=0.5,lookup_us=100").steptime
    rare = resolve("method=ngram,tokens=4,acceptance=0.5,lookup_us=0,match=0.25").steptime
    assert slow.seconds(8, 8000) - every.seconds(8, 8000) == pytest.approx(8 * 100e-6)
    assert rare.width == 2 and rare.seconds(64, 64_000) < every.seconds(64, 64_000)


def test_medusa_heads_have_the_parameters_of_the_paper():
    # Medusa, section 2.2: per head W1 [d, d] and W2 [V, d]; Vicuna-7B: d 4096, V 32000
    heads = medusa_heads(load_model("llama-7b"), load_model("llama-7b").native, 4)
    assert heads.parameters == 4 * (4096 * 4096 + 32_000 * 4096)


@pytest.mark.parametrize(
    ("speculation", "weights", "kv"),
    [
        (DRAFT, 2 * load_model("llama-3.2-1b").total_parameters, 2 * 2 * 8 * 64 * 16),
        (
            EAGLE,
            2 * (855_638_016 + 2 * 8192 + 4 * 2 * 8192 * 8192),
            2 * 2 * 8 * 128,
        ),  # the projection is not cut
        ("method=medusa,tokens=2,acceptance=0.6", 2 * 2 * (4 * 8192**2 + 128_256 * 8192), 0),
        ("method=ngram,tokens=2,acceptance=0.6", 0, 0),
    ],
)
def test_weights_and_kv_of_the_draft_come_out_of_the_cache(speculation, weights, kv):
    plain, resolved = Deployment.of(**LARGE).resolve(), resolve(speculation)
    assert 4 * resolved.budget.items.get("draft_weights", 0) == pytest.approx(weights, rel=1e-3)
    assert 4 * (resolved.budget.block_bytes - plain.budget.block_bytes) / 16 == pytest.approx(kv)
    lost = plain.budget.kv_cache - resolved.budget.kv_cache
    assert 4 * lost == pytest.approx(weights, rel=1e-3)
    assert resolved.num_gpu_blocks == resolved.budget.kv_cache // resolved.budget.block_bytes


def test_the_estimate_divides_by_the_tokens_of_a_step():
    plain, found = (
        Estimate(Deployment.of(**LARGE).resolve(), 1000, 200, 4),
        Estimate(resolve(DRAFT), 1000, 200, 4),
    )
    parts = found.speculation
    assert parts.tokens_per_step == pytest.approx((1 - 0.8**5) / 0.2)
    assert plain.tpot() / found.tpot() == pytest.approx(parts.speedup, rel=0.02)
    assert found.as_dict()["speculation"]["speedup"] == parts.speedup
    assert plain.speculation is None and plain.as_dict()["speculation"] is None


@pytest.mark.parametrize(
    ("target", "speculation", "published"),
    [
        # arXiv 2601.11580: Qwen3-0.6B beside Qwen3-8B takes 1.77 times the memory per token, EAGLE less than 10 % more
        ("qwen3-8b", "method=draft,model=qwen3-0.6b,tokens=3,acceptance=0.7", 1.77),
        ("qwen3-8b", "method=eagle,tokens=3,acceptance=0.7", 1.03),
    ],
)
def test_kv_per_token_grows_as_published(target, speculation, published):
    plain = Deployment.of(model=target, gpu="h100").resolve().budget
    found = Deployment.of(model=target, gpu="h100", speculation=speculation).resolve().budget
    assert found.block_bytes / plain.block_bytes == pytest.approx(published, abs=0.02)
