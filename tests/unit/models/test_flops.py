"""FLOPs against independent counting: explicit sums over pairs, and the 2·N rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.models import ModelSpec, load_model
from simulator.models.spec import attended_pairs


@given(st.integers(1, 300), st.integers(0, 300), st.none() | st.integers(1, 200))
def test_attended_pairs_is_the_sum_over_queries(tokens, context, window):
    seen = [context + i + 1 for i in range(tokens)]
    assert attended_pairs(tokens, context, window) == sum(
        s if window is None else min(s, window) for s in seen
    )


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "gpt-j-6b", "mixtral-8x7b"])
def test_a_token_without_context_costs_two_flops_per_active_weight(name):
    model = load_model(name)
    assert model.flops_per_token() == pytest.approx(2 * model.active_parameters, rel=0.01)


@given(st.integers(2, 5000), st.data())
def test_prefill_in_two_chunks_does_the_same_work(tokens, data):
    model = load_model("gemma-2-9b")
    first = data.draw(st.integers(1, tokens - 1))
    whole = model.prefill_flops(tokens)
    cut = model.prefill_flops(first) + model.prefill_flops(tokens - first, first)
    assert cut - whole == pytest.approx(model.lm_head.flops_per_token, rel=1e-6)


def test_prefill_is_the_sum_of_its_tokens():
    model = load_model("mistral-7b-v0.1")  # window 4096
    stepped = sum(model.flops_per_token(context) for context in range(1, 6001))
    heads = 5999 * model.lm_head.flops_per_token
    assert model.prefill_flops(6000) == pytest.approx(stepped - heads, rel=1e-12)


def test_full_attention_does_twice_the_pairs_of_causal():
    model = load_model("llama-3.1-8b")
    attention = 4 * 32 * 128 * 32
    assert model.prefill_flops(1000, causal=False) - model.prefill_flops(1000) == attention * 1000 * 999 / 2


def test_decoding_latent_attention_reads_the_latent_vector_only():
    model = load_model("deepseek-v3")
    q, kv, d = model.attention.decode_heads
    assert 2 * kv * d == 512 + 64
    assert 4 * q * d == 2 * 128 * (512 + 64 + 512)  # QKᵀ over 576, PV over 512


def test_shards_add_up():
    model = load_model("llama-3.1-70b")
    layer, h = model.layers[0], model.hidden_size
    part = layer.attention.shard(8).gemms(h) + layer.mlp.shard(8).dense_gemms(h)
    whole = layer.attention.gemms(h) + layer.mlp.dense_gemms(h)
    assert 8 * sum(g.flops_per_token for g in part) == sum(g.flops_per_token for g in whole)


def test_layers_may_differ():
    model = load_model("deepseek-v3")
    assert [(layer.count, layer.mlp.is_moe) for layer in model.layers] == [(3, False), (58, True)]
    gemma = load_model("gemma-3-27b")
    assert {layer.window: layer.count for layer in gemma.layers} == {1024: 52, None: 10}
    assert isinstance(gemma, ModelSpec)
