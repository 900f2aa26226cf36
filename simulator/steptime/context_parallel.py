"""Attention whose keys and values are spread over ranks by position.

Decode context parallelism (*dcp*; vLLM ``--decode-context-parallel-size``) uses the ranks of a tensor parallel group
that would hold copies of the same KV heads: each keeps 1/dcp of every sequence. A rank gathers the queries of the
others, attends to what it has, and the parts are merged by their log-sum-exp (v1/attention, ``cp_lse_ag_out_rs``):

    attention   dcp times the query heads over 1/dcp of the context
    exchange    all-gather of queries (2 q d B per row) and of LSEs (4 dcp q B), reduce-scatter of outputs (2 q d B),
                q = dcp times a rank's heads
    prompts     all-gather of the KV of earlier context

Prefill context parallelism (*pcp*; ``--prefill-context-parallel-size``) adds GPUs: each computes 1/pcp of a prompt's
tokens, cut so that all have the same number of (query, key) pairs, while keys and values go round in a ring (Ring
Attention, arXiv 2310.01889), hidden where attention takes longer. Decoding rows run on all of them, each over 1/pcp of
the context; their partial outputs are gathered.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.steptime.attention import StepAttention
from simulator.steptime.protocol import Number

__all__ = ["ContextParallelAttention"]


class ContextParallelAttention(StepAttention):
    """`StepAttention` of one rank of dcp · pcp that share the KV of every sequence."""

    def _decode_layer(self, num_seqs: Number, seen: Number, heads: tuple[Any, ...]) -> Number:
        q, n_kv, d = heads
        dcp, pcp = self.parallel.dcp, self.parallel.pcp
        time = super()._decode_layer(num_seqs, seen / (dcp * pcp), (q * dcp, n_kv, d))
        rows = num_seqs + 0.0 * seen
        if dcp > 1:
            whole = rows * q * dcp
            time = time + self.laws.collective("all_gather", 2.0 * whole * d, dcp)
            time = time + self.laws.collective("all_gather", 4.0 * whole * dcp, dcp)
            time = time + self.laws.collective("reduce_scatter", 2.0 * whole * d, dcp)
        if pcp > 1:
            time = time + self.laws.collective("all_gather", pcp * rows * q * (2.0 * d + 4.0), pcp)
        return time

    def _prefill_layer(self, chunk: Number, context: Number, heads: tuple[Any, ...]) -> Number:
        _, n_kv, d = heads
        dcp, pcp = self.parallel.dcp, self.parallel.pcp
        part = np.maximum(chunk / pcp, 1.0)
        time = super()._prefill_layer(part, context + (chunk - part) / 2.0, heads)
        kv = 2.0 * n_kv * d * self.precision.cache.bytes
        if pcp > 1:
            time = np.maximum(time, self.laws.collective("all_gather", kv * (chunk + context), pcp))
        if dcp > 1:
            gather = self.laws.collective("all_gather", kv * context, dcp)
            time = time + np.where(context > 0, gather, 0.0)
        return time
