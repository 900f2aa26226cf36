"""The client's limit on the output, on which every reserving system decides.

Orca, TGI, TensorRT-LLM, SGLang and LightLLM admit a request by the room its `max_tokens` might take. Few
traces state it, and the true length in its place would let those systems foresee the future; so a rule must
be named.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigurationError
from simulator.workload.columns import MAX_LENGTH
from simulator.workload.trace import Trace

__all__ = ["resolve_max_tokens"]


def resolve_max_tokens(trace: Trace, rule: int | str) -> NDArray[np.int64]:
    """`max_tokens` of each request, int64[n]: the trace's own where it states one, else by *rule*.

    *rule* is a number of tokens (outputs that are longer will be cut there), 'pow2' (the next power of two
    of the true length) or 'exact' (an oracle: the true length).
    """
    return np.where(trace.max_tokens > 0, trace.max_tokens, _by_rule(trace.output_length, rule))


def _by_rule(output_length: NDArray[np.int64], rule: int | str) -> NDArray[np.int64]:
    if rule == "exact":
        return output_length
    if rule == "pow2":
        exponents = np.ceil(np.log2(output_length)).astype(np.int64)
        return np.left_shift(np.int64(1), exponents)
    if not str(rule).isdecimal() or not 1 <= int(rule) <= MAX_LENGTH:
        raise ConfigurationError(
            f"default_max_tokens {rule!r}: must be a whole number from 1 to {MAX_LENGTH}, 'pow2' or 'exact'"
        )
    return np.full(len(output_length), int(rule), np.int64)
