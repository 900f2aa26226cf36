"""The systems that run request-level batches, as data over `static`."""

from __future__ import annotations

from typing import Any

from simulator.scheduling.static import StaticRules
from simulator.scheduling.system import System

__all__ = ["SYSTEMS"]

GENERATE = StaticRules(padded=True, rows_stay=True, preallocated=False)
PREALLOCATED = StaticRules(padded=False, rows_stay=False, preallocated=True)
GATHERED = StaticRules(padded=False, rows_stay=False, preallocated=False)
GENAI = StaticRules(padded=True, rows_stay=True, preallocated=True, halving=True, delivery="step")
ONE_PROMPT = StaticRules(padded=False, rows_stay=True, preallocated=True)


def _system(
    name: str, policy: str, rules: StaticRules, *, fixed: dict[str, Any] | None = None, **words: Any
) -> System:
    return System(
        name=name,
        policy=f"static:{policy}",
        fixed={"rules": rules, **(fixed or {})},
        block_size=1,
        memory="static",
        capacity="max_total_tokens",
        capacity_in_tokens=True,
        **words,
    )


SYSTEMS = (
    _system(
        "hf-static",
        "StaticBatch",
        GENERATE,
        version="transformers 5.23.0",
        summary="generate(): a padded batch runs to its longest member, everything is delivered then",
        uncached="uncached:UncachedBatch",
        source="transformers 5.23.0, generation/utils.py; the batch size is the caller's, 8 assumed",
        status="read",
        traits="hf",
        speculation=("draft", "ngram"),
        speculative="static_speculative:SpeculativeStaticBatch",
        speculative_fixed={"max_batch_size": 1},
    ),
    _system(
        "fastertransformer",
        "StaticBatch",
        PREALLOCATED,
        version="df4a7534 (2023-10-19)",
        summary="static batch, cache for the longest output allocated at once, ended rows leave, none join",
        source="FasterTransformer df4a7534, docs/gpt_guide.md; the C++ was not read, 8 requests assumed",
        status="inferred",
        traits="cpp",
    ),
    _system(
        "ctranslate2",
        "CTranslate2",
        GATHERED,
        version="0d8bcd36",
        summary="what is queued is sorted by length and cut into batches; ended rows are gathered out, none join",
        source="CTranslate2 0d8bcd36, src/batch_reader.cc, src/decoding.cc; prompts run whole (assumed)",
        status="inferred",
        traits="cpp",
    ),
    _system(
        "triton",
        "DynamicBatcher",
        PREALLOCATED,
        version="73aad7c3",
        summary="dynamic batcher before a static model: preferred sizes, a queue delay",
        source="triton-inference-server core 73aad7c3, src/dynamic_batch_scheduler.cc; the model behind it as "
        "FasterTransformer's backend",
        status="read",
        traits="cpp",
    ),
    _system(
        "gpt-fast",
        "StaticBatch",
        ONE_PROMPT,
        fixed={"max_batch_size": 1},
        version="32971d31",
        summary="one prompt at a time, a static cache of its length, compiled",
        source="gpt-fast 32971d31, generate.py",
        status="read",
        traits="gptfast",
        speculation=("draft",),
        speculative="static_speculative:SpeculativeStaticBatch",
    ),
    _system(
        "onnxruntime-genai-static",
        "StaticBatch",
        GENAI,
        fixed={"max_batch_size": 4},
        version="00e588f5",
        summary="four requests, halved where memory refuses; tokens as they come, seats return with the batch",
        source="onnxruntime-genai 00e588f5, src/engine/scheduler.cpp (StaticBatchScheduler)",
        status="read",
        traits="cpp",
    ),
)
