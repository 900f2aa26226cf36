"""The closed-form view: the published hand calculation, our own counts, and the command line."""

import json

import pytest
import typer
from typer.testing import CliRunner

from simulator.cli.estimate import estimate
from simulator.cli.models import models
from simulator.deployment import Deployment
from simulator.errors import CapacityError, ConfigurationError, UnknownNameError
from simulator.estimate import Estimate
from simulator.models import list_models

app = typer.Typer()
app.command("estimate")(estimate)
app.command("models")(models)


def case(prompt=1024, output=256, batch=1, **deployment):
    return Estimate(
        Deployment.of(**{"model": "llama-3.1-8b", "gpu": "h100", **deployment}).resolve(),
        prompt,
        output,
        batch,
    )


def sim(*arguments):
    return CliRunner().invoke(app, arguments)


def test_the_hand_calculation_of_qwen_2_5_32b():
    hand = case(model="qwen2.5-32b", gpu="h20").hand
    assert hand.parameters / 1e9 == pytest.approx(31.98, abs=0.005)
    assert hand.prefill_flops / 1e12 == pytest.approx(65.28, abs=0.005)
    assert hand.flops_per_token / 1e12 == pytest.approx(0.06, abs=0.005)
    assert hand.peak == 148e12
    assert hand.ttft_s * 1e3 == pytest.approx(441, abs=0.5)


def test_what_the_hand_calculation_misses_is_bandwidth_first():
    hand = case(model="qwen2.5-32b", gpu="h20").hand
    assert hand.weight_read_s > 30 * hand.tpot_s
    assert "bound by bandwidth" in hand.misses[0]
    assert (
        "FLOPs take longer"
        in case(prompt=32, output=32, model="qwen2.5-32b", gpu="h20", batch=1000).hand.misses[0]
    )


@pytest.mark.parametrize("name", ["llama-3.1-8b", "gemma-2-9b", "deepseek-v2-lite", "qwen3-30b-a3b"])
def test_operators_do_the_flops_of_the_model(name):
    """Two independent sums: per operator of a step, and per layer of the model."""
    e = case(prompt=2000, model=name)
    assert e.prefill.flops == pytest.approx(e.resolved.model.prefill_flops(2000), rel=1e-6)
    context = 2000 + (256 + 1) // 2
    assert e.decode.flops == pytest.approx(e.resolved.model.flops_per_token(context), rel=1e-6)


def test_a_decode_step_moves_the_weights_and_the_cache():
    e = case(prompt=4000, batch=32)
    model = e.resolved.model
    weights = model.weight_bytes() - 2 * model.vocab_size * model.hidden_size
    cache = 32 * (4000 + 128) * model.kv_bytes_per_token()
    assert e.decode.bytes == pytest.approx(weights + cache, rel=0.02)
    assert (e.prefill.bound, e.decode.bound) == ("compute", "bandwidth")


def test_expected_is_never_better_than_ideal():
    for e in (case(), case(batch=64), case(model="mixtral-8x7b", tensor_parallel_size=4, batch=16)):
        assert e.ttft() > e.ttft(ideal=True) > 0
        assert e.tpot() > e.tpot(ideal=True) > 0
        assert e.throughput() < e.throughput(ideal=True)


def test_the_prefill_is_cut_to_the_token_budget():
    e = case(prompt=3000, batch=10)
    budget = e.resolved.limits["max_num_batched_tokens"]
    totals = [sum(chunk for chunk, _ in forward) for forward in e.chunks]
    assert sum(totals) == 30_000
    assert all(total == budget for total in totals[:-1])
    assert [context for forward in e.chunks for chunk, context in forward if chunk < 3000].count(0) >= 1


def test_one_output_token_has_no_tpot():
    e = case(output=1)
    assert e.tpot() == 0
    assert e.throughput() == pytest.approx(1 / e.ttft())


@pytest.mark.parametrize(("name", "value"), [("prompt", 0), ("output", -1), ("batch", 0)])
def test_lengths_must_be_positive(name, value):
    with pytest.raises(ConfigurationError, match=f"{name} {value}"):
        case(**{name: value})


def test_a_prompt_beyond_the_context_is_refused():
    with pytest.raises(CapacityError, match=r"140000 tokens exceed the context of llama-3\.1-8b, 131072"):
        case(prompt=139_744)


def test_the_command_prints_every_section_with_units():
    out = sim("estimate", "--model", "qwen2.5-32b", "--gpu", "h20", "--operators").output
    for text in (
        "Memory per GPU",
        "31.98",
        "65.28",
        "441.10",
        "TTFT of the batch, ms",
        "gate_up_proj",
        "misses",
    ):
        assert text in out


def test_the_command_prints_json_in_si_units():
    result = json.loads(sim("estimate", "--json", "--batch", "8").output)
    assert result["model"] == "llama-3.1-8b"
    assert result["expected_tpot_s"] < 0.1
    assert sum(result["memory_bytes"].values()) == pytest.approx(2 * result["memory_bytes"]["total"])
    assert {work["family"] for work in result["decode"]["operators"]} >= {
        "gemm",
        "decode_attention",
        "lm_head",
    }


def test_a_batch_that_does_not_fit_is_said():
    refused = sim("estimate", "--prompt", "100000", "--batch", "20").exception
    assert isinstance(refused, CapacityError) and "requests of 100,256 tokens fit at once" in str(refused)


def test_errors_reach_the_command_line():
    assert isinstance(sim("estimate", "--gpu", "h10").exception, UnknownNameError)
    assert isinstance(sim("estimate", "--model", "llama-3.1-70b").exception, CapacityError)


def test_models_lists_the_zoo_and_shows_one():
    listed = sim("models").output
    assert all(name in listed for name in list_models())
    shown = json.loads(sim("models", "deepseek-ai/DeepSeek-V3", "--json").output)
    assert shown["attention"] == "MLA"
    assert shown["total_parameters"] == 671_026_419_200
    assert len(json.loads(sim("models", "--json").output)) == len(list_models())
    assert "671,026,419,200" in sim("models", "deepseek-v3").output
