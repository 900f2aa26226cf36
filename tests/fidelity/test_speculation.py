"""Steps with speculation against measurements of others.

SpecDecode-Bench (Liu et al., "Speculative Decoding: Performance or Illusion?", arXiv 2601.11580) measured vLLM 0.10.1
with EAGLE and three drafts on an H100 80GB and publishes, in its simulator (predictor.py, class Llama8BH100), what it
fitted to the steps of Llama-3.1-8B at batch sizes 1, 8, 16, 32 and 64:

    forward    5.886 ms + 21.01 µs · tokens of the batch + 39.26 ns · tokens of KV
    drafting   2.135 ms + 0.841 µs · checked tokens of a sequence + 2.378 ns · tokens of KV
    overhead   1.207 ms per step
"""

import pytest

from simulator.deployment import Deployment

BATCHES = (1, 8, 16, 32, 64)
CONTEXT = 500


def forward_s(tokens, kv):
    return 5.88590713e-03 + 2.10103129e-05 * tokens + 3.92645679e-08 * kv + 1.20683946e-03


def drafting_s(checked, kv):
    return 2.13526175e-03 + 8.41429603e-07 * checked + 2.37768493e-09 * kv


@pytest.fixture(scope="module")
def step():
    speculation = "method=eagle,tokens=3,acceptance=0.7"
    return (
        Deployment.of(model="llama-3.1-8b", gpu="h100", system="vllm-0.11", speculation=speculation)
        .resolve()
        .steptime
    )


def test_steps_without_drafts_are_the_measured_ones(step):
    for n in BATCHES:
        assert step.plain.seconds(n, n * CONTEXT) == pytest.approx(forward_s(n, n * CONTEXT), rel=0.05)


def test_checking_four_tokens_of_each_sequence_takes_what_was_measured(step):
    # up to 16 % too fast where 128 and 256 tokens are checked: the laws were fitted to plain forwards
    for n in BATCHES:
        verifying = step.seconds(n, n * CONTEXT) - step.drafting(n, n * CONTEXT)
        assert verifying == pytest.approx(forward_s(4 * n, n * CONTEXT), rel=0.17)


def test_three_drafts_take_what_was_measured(step):
    for n in BATCHES:
        assert step.drafting(n, n * CONTEXT) == pytest.approx(drafting_s(4, n * CONTEXT), rel=0.15)


def test_the_gain_at_three_drafts_is_the_measured_one_at_every_batch(step):
    # the ratio of the two steps, which acceptance only multiplies
    for n in BATCHES:
        measured = (forward_s(4 * n, n * CONTEXT) + drafting_s(4, n * CONTEXT)) / forward_s(n, n * CONTEXT)
        ours = step.seconds(n, n * CONTEXT) / step.plain.seconds(n, n * CONTEXT)
        assert ours == pytest.approx(measured, rel=0.16)


@pytest.mark.parametrize(
    ("target", "draft", "tp", "ratio"),
    [("qwen3-8b", "qwen3-0.6b", 1, 0.375), ("llama-3-70b", "llama-3.2-1b", 4, 0.125)],
)
def test_a_forward_of_a_draft_model_takes_its_share_of_a_forward_of_the_target(target, draft, tp, ratio):
    # section "End-to-End Performance"; the host time of a forward was inferred from these two, one number for both
    speculation = f"method=draft,model={draft},tokens=3,acceptance=0.7"
    deployment = Deployment.of(model=target, gpu="h100", tensor_parallel_size=tp, speculation=speculation)
    step = deployment.resolve().steptime
    assert step.drafting(1, CONTEXT) / 3 / step.plain.seconds(1, CONTEXT) == pytest.approx(ratio, rel=0.06)


EAGLE_3_TABLE_3 = {
    "EAGLE": (1.40, 1.38, 1.23, 1.02, 0.93, 0.94, 0.88, 0.99, 0.99),
    "EAGLE-3": (1.81, 1.82, 1.62, 1.48, 1.39, 1.32, 1.38, 1.34, 1.38),
}
"""Throughput with three drafts over that without, SGLang 0.4.4, Llama-3.1-8B on an H100, MT-bench, at batch sizes 2, 4,
8, 16, 24, 32, 48, 56 and 64 (Li et al., arXiv 2503.01840, table 3)."""
SIZES = (2, 4, 8, 16, 24, 32, 48, 56, 64)


@pytest.mark.parametrize("name", EAGLE_3_TABLE_3)
def test_the_gain_in_sglang_falls_with_the_batch_but_not_as_far_as_measured(name):
    # What was accepted is not published: it follows from the gain at batch 2. Beyond 8 the measured gain falls faster
    # than that of the device: SGLang 0.4.4 checked drafts without overlap, its host work per sequence is not known.
    stated = {"model": "llama-3.1-8b", "gpu": "h100", "system": "sglang"}
    plain = Deployment.of(**stated).resolve().steptime
    drafted = Deployment.of(**stated, speculation="method=eagle,tokens=3,acceptance=0.5").resolve().steptime
    measured = EAGLE_3_TABLE_3[name]
    steps = [drafted.seconds(n, n * CONTEXT) / plain.seconds(n, n * CONTEXT) for n in SIZES]
    ours = [measured[0] * steps[0] / ratio for ratio in steps]
    assert ours[1] == pytest.approx(measured[1], rel=0.02) and ours[2] == pytest.approx(measured[2], rel=0.13)
    assert all(found < 1.55 * seen for found, seen in zip(ours, measured, strict=True))
    assert ours[-1] < ours[0]


def test_one_request_without_speculation_in_sglang():
    # the same paper, table 4: 158.34 tokens/s
    step = Deployment.of(model="llama-3.1-8b", gpu="h100", system="sglang").resolve().steptime
    assert 1 / step.seconds(1, CONTEXT) == pytest.approx(158.34, rel=0.02)
