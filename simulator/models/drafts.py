"""What guesses tokens for speculative decoding, as shapes.

- a draft model: a small model of its own (Leviathan et al. 2023, arXiv 2211.17192);
- EAGLE (Li et al. 2024, arXiv 2401.15077): one decoder layer of the target over the projected pair of embedding and
  hidden state (2h → h), with the target's embedding and LM head;
- MTP (DeepSeek-V3, arXiv 2412.19437, section 2.2): the extra layer that the model was trained with, the same form;
- Medusa (Cai et al. 2024, arXiv 2401.10774): for each token ahead a head of its own on the target's last hidden state,
  W₂·(SiLU(W₁·h) + h) with W₁ [h, h] and W₂ [vocabulary, h], all in one pass and without KV.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.models.dtypes import Precision
from simulator.models.layers import Gemm
from simulator.models.spec import ModelSpec

__all__ = ["DraftSpec", "draft_layer", "draft_model", "medusa_heads"]


@dataclass(frozen=True)
class DraftSpec:
    """A network that drafts.

    *projections* act on every token before its layers. *heads* of them each make one token of a draft in the same
    pass (0: tokens are made one after the other). *own_vocabulary*: whether embedding and LM head are its own.
    """

    model: ModelSpec
    precision: Precision
    projections: tuple[Gemm, ...] = ()
    heads: int = 0
    own_vocabulary: bool = True

    @property
    def parameters(self) -> int:
        """Weights beside the target's."""
        model, extra = self.model, sum(gemm.parameters for gemm in self.projections)
        if self.heads:
            return self.heads * (extra + model.lm_head.parameters)
        if self.own_vocabulary:
            return model.total_parameters
        parts = model.parameters_by_part()
        return extra + sum(n for part, n in parts.items() if part not in ("embedding", "lm_head", "vision"))


def draft_model(model: ModelSpec, precision: Precision) -> DraftSpec:
    """A model of its own, with its own vocabulary tables."""
    return DraftSpec(model, precision)


def draft_layer(target: ModelSpec, precision: Precision, name: str) -> DraftSpec:
    """One more layer of *target*, of the kind of its last, behind a projection of embedding and hidden state."""
    hidden = target.hidden_size
    layer = replace(target.layers[-1], count=1)
    model = replace(target, name=f"{target.name} {name}", layers=(layer,), vision_parameters=0)
    return DraftSpec(model, precision, (Gemm("draft_proj", hidden, 2 * hidden),), own_vocabulary=False)


def medusa_heads(target: ModelSpec, precision: Precision, heads: int) -> DraftSpec:
    """*heads* heads on the last hidden state of *target*."""
    model = replace(
        target, name=f"{target.name} medusa", layers=(), tied_embeddings=False, vision_parameters=0
    )
    hidden = target.hidden_size
    return DraftSpec(model, precision, (Gemm("medusa_block", hidden, hidden),), heads)
