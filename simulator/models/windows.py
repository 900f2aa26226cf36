"""How far back each layer attends.

``layer_types`` says it layer by layer where a configuration has it; older ones follow the rule of their
architecture: every layer (Mistral), every other (Gemma 2, gpt-oss), five of six (Gemma 3), three of four in
chunks (Llama 4, whose chunk is taken as a window of the same size: an upper bound on the work).
"""

from __future__ import annotations

from simulator.models.families import Family
from simulator.models.fields import Fields

__all__ = ["layer_windows"]


def layer_windows(fields: Fields, family: Family, num_layers: int) -> list[int | None]:
    """The attention window of every layer in tokens; None where it sees everything."""
    name = "attention_chunk_size" if family.windows == "llama4" else "sliding_window"
    if family.windows == "none" or fields.data.get(name) is None:
        return [None] * num_layers
    if family.windows == "qwen" and not fields.boolean("use_sliding_window", False):
        return [None] * num_layers
    window = fields.integer(name)
    if window >= fields.integer("max_position_embeddings", default=window + 1):
        return [None] * num_layers
    return [window if local else None for local in _local(fields, family, num_layers)]


def _local(fields: Fields, family: Family, num_layers: int) -> list[bool]:
    kinds = fields.strings("layer_types")
    if kinds is not None:
        if len(kinds) != num_layers:
            raise fields.error("layer_types", f"must have {num_layers} entries", len(kinds))
        return [kind != "full_attention" for kind in kinds]
    if family.windows == "all":
        return [True] * num_layers
    if family.windows == "qwen":
        first = fields.integer("max_window_layers", default=0, least=0)
        return [i >= first for i in range(num_layers)]
    period = {"gemma2": 2, "gpt_oss": 2, "gemma3": 6, "llama4": 4}[family.windows]
    period = fields.integer("sliding_window_pattern", default=period)
    return [(i + 1) % period != 0 for i in range(num_layers)]
