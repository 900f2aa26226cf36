"""The torch form, which runs everywhere, against the fp64 definitions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from engine.kernels import get_kernels  # noqa: E402
from engine.kernels.conformance import (  # noqa: E402
    check_decode_attention,
    check_prefill_attention,
    checks,
)
from engine.kernels.conformance_cases import Case, make_cache  # noqa: E402

KERNELS = get_kernels("cpu", backend="torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("check", [pytest.param(check, id=name) for name, check in checks()])
def test_conforms(check, dtype):
    check(KERNELS, dtype)


@st.composite
def cases(draw) -> Case:
    contexts = tuple(draw(st.lists(st.integers(0, 80), min_size=1, max_size=4)))
    queries = tuple(draw(st.integers(min(1, context), context)) for context in contexts)
    return Case(
        dim=draw(st.sampled_from((8, 64, 80))),
        group=draw(st.integers(1, 16)),
        kv_heads=draw(st.integers(1, 3)),
        block_size=draw(st.sampled_from((1, 3, 16, 32))),
        contexts=contexts,
        queries=queries,
        window=draw(st.sampled_from((0, 1, 5, 64))),
    )


@given(case=cases())
@settings(max_examples=20, deadline=None)
def test_attention_on_any_shape(case):
    check_decode_attention(KERNELS, torch.float32, case)
    check_prefill_attention(KERNELS, torch.float32, case)


def test_decode_equals_a_prefill_of_one_token():
    """Two code paths, one operator: equal to rounding, in fp32."""
    case = Case(contexts=(40, 7, 1), queries=(1, 1, 1))
    cache = make_cache(case, torch.float32, torch.device("cpu"))
    q = torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(1))
    decoded, prefilled = torch.empty_like(q), torch.empty_like(q)
    shared = (cache.k_cache, cache.v_cache, cache.block_table)
    KERNELS.decode_attention(decoded, q, *shared, cache.context_lens, 0.125)
    start = torch.arange(4, dtype=torch.int32)
    KERNELS.prefill_attention(prefilled, q, *shared, start, cache.context_lens, 0.125)
    torch.testing.assert_close(decoded, prefilled, rtol=1e-5, atol=1e-6)
