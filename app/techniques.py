"""The controls of what makes inference fast: kernels, cache, adapters, speculation, each to be switched."""

from __future__ import annotations

import streamlit as st

from app import fields, library
from app.state import key
from simulator.models import list_models
from simulator.speculation import METHODS

__all__ = ["draw_speculation", "draw_switches"]

KERNELS = {
    "flash_attention": ("FlashAttention", "Off: attention scores go through memory."),
    "kernel_fusion": (
        "Fused kernels",
        "Off: norms, rotary embedding and activation run as single operations.",
    ),
    "enforce_eager": ("No CUDA graphs", "On: the CPU launches every kernel of a step."),
    "kv_cache": ("KV cache", "Off: every step computes the whole context again (hf-static)."),
    "enable_chunked_prefill": ("Chunked prefill", "Cut prompts to the token budget of a step."),
    "async_scheduling": ("Asynchronous scheduling", "Decide a step while the last one runs."),
    "enable_lora": ("LoRA adapters", "Named by the `lora` column of the trace."),
}


def draw_switches() -> None:
    """Kernels, cache and adapters."""
    for name, (label, help) in KERNELS.items():
        fields.switch(name, label, help)
    left, right = st.columns(2)
    with left:
        fields.number("max_loras", "Adapters", "In one batch; 0: one. Needs LoRA adapters on.")
    with right:
        fields.number("max_lora_rank", "Their rank", "0: 16.", step=8)
    fields.number("kv_offloading_size", "KV in host memory (GiB)", "0: none.", step=8.0)
    st.selectbox(
        "What if its attention were",
        ["", "mha", "mqa", "gqa-8", "gqa-4", "gqa-2"],
        format_func=lambda name: name or "as published",
        key=key("attention"),
        accept_new_options=True,
    )
    st.selectbox(
        "Sampling",
        ["", "greedy", "random", "top-p"],
        format_func=lambda name: name or "as the host costs were measured",
        key=key("sampling"),
    )
    fields.slider("guided_decoding", "Share under a grammar", 0.0, 1.0, 0.05, "Guided decoding, xgrammar.")
    left, right = st.columns(2)
    with left:
        fields.number("data_parallel_size", "DP of attention", "For mixtures of experts.")
        fields.number("decode_context_parallel_size", "Decode CP", "0: off.")
    with right:
        fields.number("expert_parallel_size", "EP", "Ranks that hold whole experts.")
        fields.number("prefill_context_parallel_size", "Prefill CP", "0: off.")


def draw_speculation() -> None:
    """Method, length and acceptance of drafts."""
    st.selectbox(
        "Drafts from",
        ["", *METHODS],
        format_func=lambda name: name or "nothing: off",
        key=key("speculation"),
        help="A draft model, EAGLE, MTP or Medusa heads, or n-grams of the prompt.",
    )
    if st.session_state[key("speculation")] == "draft":
        fields.select("draft_model", "Draft model", [*list_models(), *library.uploads("model")], "")
    fields.number("draft_tokens", "Tokens of a draft", "Depth of the chain.")
    fields.slider(
        "acceptance",
        "Acceptance rate",
        0.0,
        1.0,
        0.01,
        "Probability that a draft is right given that those before it were. It depends on target, draft and "
        "text: measure it; vLLM logs it.",
    )
