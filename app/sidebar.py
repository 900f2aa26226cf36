"""The controls: traffic, what is deployed, limits, objectives. Every page that simulates draws them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from app import fields, library, state, techniques
from app.state import key
from app.uploading import upload
from app.view import DESCRIBED, MAX_REQUESTS, View
from hwprofiles import list_profiles
from simulator.errors import SimError
from simulator.models import DTYPES, list_models
from simulator.scheduling.system import find_system, list_systems
from simulator.workload import FORMATS

__all__ = ["controls"]

PRESETS: dict[str, dict[str, Any]] = {
    "Chat": {},
    "Conversations, shared system prompts": {
        "num_prompts": 1000,
        "request_rate": 1.0,
        "input_mean": 120,
        "input_sigma": 0.9,
        "turns": 7,
        "think_time": 20.0,
        "num_prefixes": 4,
        "prefix_length": 800,
    },
    "Summarising long documents": {
        "request_rate": 0.8,
        "input_mean": 8000,
        "input_sigma": 0.6,
        "output_mean": 250,
    },
    "Bursty batch jobs": {"burstiness": 0.15, "request_rate": 8.0, "input_mean": 500, "output_mean": 400},
}
"""Changes to the described traffic of the first screen; its figures are Azure's conversations of 2023."""
FREE = "system's choice"


def controls() -> View | None:
    """Draw the controls and return what they say; None where something is wrong, which is said."""
    with st.sidebar:
        if st.session_state["link_error"]:
            st.error(f"The link could not be followed: {library.plain(st.session_state['link_error'])}")
        _traffic()
        _deployment()
        fields.folded("Limits and switches", _limits)
        fields.folded("Techniques", techniques.draw_switches)
        fields.folded("Speculative decoding", techniques.draw_speculation)
        _objectives()
        try:
            view = state.chosen()
        except SimError as error:
            st.error(library.error_text(error))
            return None
        if st.button("Back to the first screen", help="Forget every change.", width="stretch"):
            st.session_state.pop("ready")
            st.query_params.clear()
            st.rerun()
    state.publish(view)
    return view


def _traffic() -> None:
    st.subheader("Traffic")
    sources = [DESCRIBED, *library.bundled(), *library.uploads("trace")]
    if st.session_state[key("source")] not in sources:
        sources.append(st.session_state[key("source")])
    st.selectbox("Requests", sources, format_func=_source_title, key=key("source"))
    if st.session_state[key("source")] == DESCRIBED:
        _description()
    else:
        _replay()
    fields.folded("Upload a trace", _upload_trace)


def _upload_trace() -> None:
    help = "Azure, BurstGPT, Mooncake, ShareGPT, CSV …; plain or gzip."
    upload("trace", "Trace of any supported format", help, "sidebar")


def _source_title(source: str) -> str:
    return "described below" if source == DESCRIBED else Path(library.title_of(source)).name


def _description() -> None:
    st.selectbox(
        "Start from",
        list(PRESETS),
        index=None,
        placeholder="a typical workload",
        key="preset",
        on_change=_apply_preset,
        help="Sets the numbers below.",
    )
    fields.slider("request_rate", "Requests per second", 0.1, 60.0, 0.1, "Mean arrival rate.")
    fields.slider(
        "burstiness",
        "Burstiness",
        0.05,
        3.0,
        0.05,
        "Shape of gamma gaps, as in vLLM: 1 is Poisson, less is burstier.",
    )
    fields.number("input_mean", "Prompt length, mean (tokens)", "Lognormal.", step=50)
    fields.number("output_mean", "Output length, mean (tokens)", "Lognormal.", step=10)
    fields.folded("More about the traffic", _more_description)


def _more_description() -> None:
    fields.number("num_prompts", "Requests", f"At most {MAX_REQUESTS:,}.", step=500)
    spread, equal = "Spread of {} lengths (σ of the logarithm)", "0: all equal."
    fields.slider("input_sigma", spread.format("prompt"), 0.0, 2.0, 0.01, equal)
    fields.slider("output_sigma", spread.format("output"), 0.0, 2.0, 0.01, equal)
    fields.number("turns", "Turns of a conversation, at most", "1: requests on their own.")
    fields.number("think_time", "Time between turns, mean (s)", "Exponential.", step=1.0)
    fields.number("num_prefixes", "Shared prefixes", "0: none. Each prompt starts with one of them.")
    fields.number("prefix_length", "Length of a shared prefix (tokens)", "", step=100)
    fields.number("seed", "Seed", "Another sample of the same traffic.")
    _concurrency()


def _concurrency() -> None:
    fields.number("max_concurrency", "Requests in flight, at most", "0: open loop, arrivals do not wait.")


def _replay() -> None:
    fields.number(
        "rescaled_rate", "Requests per second", "0: as recorded. Else arrivals are stretched to it.", step=0.5
    )
    fields.folded("How to read it", _reading)


def _reading() -> None:
    fields.number("first", "Only the first … requests", "0: all.", step=500)
    _concurrency()
    formats = ["", *sorted(FORMATS)]
    st.selectbox("Format", formats, format_func=lambda name: name or "recognised", key=key("format"))
    units = ["", "s", "ms", "us", "ns"]
    st.selectbox("Unit of time", units, format_func=lambda unit: unit or "the format's", key=key("time_unit"))


def _apply_preset() -> None:
    if (name := st.session_state["preset"]) is not None:
        base = View.of({})
        for field in {field for preset in PRESETS.values() for field in preset}:
            st.session_state[key(field)] = PRESETS[name].get(field, getattr(base, field))


def _deployment() -> None:
    st.subheader("Deployment")
    models = [*list_models(), *library.uploads("model")]
    fields.select("model", "Model", models, "A name of the zoo, or the config.json that you upload.")
    gpus = [*list_profiles(), *library.uploads("gpu")]
    fields.select("gpu", "GPU", gpus, "A hardware profile; see the Hardware page for what is known of each.")
    fields.select("system", "Serving system", [system.name for system in list_systems()], _about_system())
    left, right = st.columns(2)
    with left:
        fields.number("tensor_parallel_size", "GPUs per layer (TP)", "Tensor parallelism.")
        fields.number("num_replicas", "Replicas", "Behind a round-robin router.")
    with right:
        fields.number("pipeline_parallel_size", "Stages (PP)", "Pipeline parallelism.")
    formats = ["", *DTYPES]
    st.selectbox("Weights", formats, format_func=lambda name: name or "as published", key=key("dtype"))
    fields.folded("Upload a model or a GPU", _upload_parts)


def _upload_parts() -> None:
    upload("model", "config.json of Hugging Face", "Only its numbers are read.", "sidebar")
    upload("gpu", "Calibrated profile (YAML)", "As `sim calibrate fit` writes it.", "sidebar")


def _about_system() -> str:
    try:
        system = find_system(st.session_state[key("system")])
    except SimError:
        return "See the Systems page."
    return f"{system.name} {system.version}: {system.summary}. Status: {system.status}."


def _limits() -> None:
    try:
        options = find_system(st.session_state[key("system")]).options
    except SimError:
        options = ()
    own = "0: the system's own."
    fields.number("max_num_seqs", "max_num_seqs", f"Running sequences at most. {own}", step=16)
    fields.number("max_num_batched_tokens", "max_num_batched_tokens", f"Tokens per step. {own}", step=512)
    fields.number("max_model_len", "max_model_len", "Longest sequence, tokens. 0: the model's.", step=1024)
    fields.slider("gpu_memory_utilization", "gpu_memory_utilization", 0.0, 1.0, 0.01, own)
    caching = "Share the KV cache of equal beginnings of prompts."
    fields.switch("enable_prefix_caching", "Prefix caching", caching)
    formats = ["", *DTYPES]
    st.selectbox("KV cache", formats, format_func=lambda name: name or "16 bits", key=key("kv_cache_dtype"))
    known = f"NAME=VALUE; … of {', '.join(options)}"
    st.text_input("The system's own options", key=key("options"), help=known)


def _objectives() -> None:
    st.subheader("Objectives")
    left, right = st.columns(2)
    with left:
        fields.number("ttft", "TTFT (ms)", "Time to first token; 0: none.", step=100.0)
        fields.number("e2el", "End to end (ms)", "0: none.", step=1000.0)
    with right:
        fields.number("tpot", "TPOT (ms)", "Time per output token after the first; 0: none.", step=5.0)
    st.toggle(
        "Intervals", key=key("intervals"), help="32 more runs with step times drawn from their uncertainty."
    )
