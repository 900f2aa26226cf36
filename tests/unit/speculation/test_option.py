"""Speculation as it is stated: one meaning in YAML and on the command line, contradictions refused."""

import pytest

from simulator.deployment import Deployment
from simulator.errors import SimError

LARGE = {"model": "llama-3.1-70b", "gpu": "h100", "tensor_parallel_size": 4}


def resolve(speculation, **stated):
    return Deployment.of(**{**LARGE, **stated, "speculation": speculation}).resolve()


def test_a_text_and_a_mapping_mean_the_same(tmp_path):
    text = "method=draft,model=llama-3.2-1b,tokens=3,acceptance=0.8/0.6/0.5"
    mapping = {"method": "draft", "model": "llama-3.2-1b", "tokens": 3, "acceptance": [0.8, 0.6, 0.5]}
    path = tmp_path / "d.yaml"
    path.write_text(
        "model: llama-3.1-70b\ngpu: h100\ntensor_parallel_size: 4\n"
        "speculation: {method: draft, model: llama-3.2-1b, tokens: 3, acceptance: [0.8, 0.6, 0.5]}\n"
    )
    stated = Deployment.of(**LARGE, speculation=text)
    assert stated == Deployment.of(**LARGE, speculation=mapping) == Deployment.load(path)
    assert stated.speculation.text == text
    assert Deployment.of(**LARGE, speculation=text.replace(",", ";")) == stated
    assert Deployment.of(**LARGE, speculation="none").speculation is None
    assert Deployment.of(**stated.resolve().config).speculation == stated.speculation


def test_rates_by_position_become_chances_of_the_next_draft():
    rates = Deployment.of(speculation="method=eagle,acceptance=0.8/0.6/0/0").speculation.rates
    assert rates == pytest.approx((0.8, 0.75, 0, 0))


@pytest.mark.parametrize(
    ("speculation", "stated", "problem"),
    [
        ("method=mtp", {}, "without a layer for multi-token prediction"),
        ("method=draft,tokens=4,acceptance=0.6", {}, "needs a model"),
        ("method=draft,model=qwen2-0.5b,tokens=4,acceptance=0.6", {}, "vocabulary of 151936"),
        ("method=draft,model=llama-3.1-405b,tokens=4,acceptance=0.6", {}, "not smaller"),
        ("method=draft,model=llama-3.1-70b,tokens=4,acceptance=0.6", {}, "not smaller"),
        ("method=draft,model=nope,tokens=4,acceptance=0.6", {}, "unknown model"),
        ("method=lookahead,tokens=4,acceptance=0.6", {}, "'draft', 'eagle', 'mtp', 'medusa' or 'ngram'"),
        ("tokens=4", {}, "needs a method"),
        ("method=eagle,tokens=4", {}, "needs an acceptance rate"),
        ("method=eagle,acceptance=0.5", {}, "needs tokens"),
        ("method=eagle,acceptance=0.5/0.6", {}, "cannot rise"),
        ("method=eagle,tokens=3,acceptance=0.5/0.4", {}, "2 acceptance rates for 3 tokens"),
        ("method=eagle,tokens=3,acceptance=1.2", {}, "from 0 to 1"),
        ("method=eagle,tokens=0,acceptance=0.5", {}, "greater than or equal to 1"),
        ("method=eagle,tokens=3,acceptance=0.5,match=0.4", {}, "match is of method ngram"),
        ("method=ngram,tokens=3,acceptance=0.5,model=llama-3.2-1b", {}, "model is of method draft"),
        ("method=eagle,tokens=4,acceptance=0.5,tree=3", {}, "cannot hold a path"),
        ("method=eagle,tokens=4,acceptance=0.5,tree=20", {}, "chains of drafts only"),
        ("method=eagle,token=4", {}, "unknown option 'speculation.token'"),
        ("eagle", {}, "must be NAME=VALUE"),
        ("method=eagle,tokens=3,acceptance=0.5", {"system": "orca-max"}, "no speculative decoding"),
        ("method=draft,model=llama-3.2-1b,tokens=3,acceptance=0.5", {"system": "vllm-0.11"}, "does not draft by"),
        ("method=eagle,tokens=3,acceptance=0.5", {"pipeline_parallel_size": 2}, "pipeline stages"),
        ("method=ngram,tokens=3,acceptance=0.5", {"async_scheduling": True}, "needs async_scheduling False"),
        ("method=eagle,tokens=9,acceptance=0.5", {"max_num_seqs": 1000}, "max_num_seqs can be 819"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_in_one_line(speculation, stated, problem):
    with pytest.raises(SimError, match=problem) as caught:
        resolve(speculation, **stated).scheduler()
    assert "\n" not in str(caught.value)


def test_an_mtp_layer_has_a_published_acceptance_and_says_so():
    resolved = Deployment.of(
        model="deepseek-v3", gpu="h200", tensor_parallel_size=8, speculation="method=mtp"
    ).resolve()
    assert resolved.tokens_per_step == pytest.approx(1.85)
    assert any("DeepSeek-V3 Technical Report" in line for line in resolved.chosen)
    assert any("DeepSeek-V3 Technical Report" in line for line in resolved.provenance)
    # deepseek-ai/DeepSeek-V3, README_WEIGHTS.md: 11.5 B unique parameters, without embedding and output head
    assert resolved.speculation.drafter.spec.parameters == pytest.approx(11.5e9, rel=0.01)


def test_a_method_that_cannot_decide_ahead_switches_that_off():
    ahead = resolve("method=eagle,tokens=3,acceptance=0.5")
    after = resolve("method=ngram,tokens=3,acceptance=0.5")
    assert ahead.limits["async_scheduling"] and ahead.steptime.traits.overlap
    assert not after.limits["async_scheduling"] and not after.steptime.traits.overlap
    assert any(line.startswith("async_scheduling: False") for line in after.chosen)


def test_a_default_number_of_sequences_is_cut_to_what_a_step_holds():
    resolved = resolve("method=eagle,tokens=15,acceptance=0.5")
    assert resolved.limits["max_num_seqs"] == 8192 // 16
    assert any(line.startswith("max_num_seqs: 512 (16 tokens each") for line in resolved.chosen)
    resolved.scheduler()
