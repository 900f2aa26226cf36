"""What every form of the kernels must satisfy, as functions that raise `AssertionError`.

One list for all forms and machines: unit tests run it on torch, on the interpreted Triton form and on the
emulated CUDA form, a GPU machine on the real ones. Slots that no token has written are NaN and unused
entries of the block table are far out of range, so that a kernel that reads what it must not read fails.
The error against fp64 may be at most three times that of the plain formula in the same dtype.

    python -m engine.kernels.conformance --backend triton --device cpu
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch

from engine.kernels import reference
from engine.kernels.conformance_cases import Case, assert_as_good, attention_cases, make_cache, strided
from engine.kernels.interface import Kernels
from engine.kernels.selection import get_kernels
from engine.kernels.weights import FORMATS, dequantize, quantize

__all__ = ["CHECKS", "checks", "run"]


def check_decode_attention(kernels: Kernels, dtype: torch.dtype, case: Case) -> None:
    cache = make_cache(case, dtype, kernels.device)
    scale = case.dim**-0.5
    heads = case.group * case.kv_heads
    q = strided((len(case.contexts), heads, case.dim), dtype, kernels.device, 1)
    out = torch.full(q.shape, torch.nan, dtype=dtype, device=kernels.device)
    kernels.decode_attention(
        out,
        q,
        cache.k_cache,
        cache.v_cache,
        cache.block_table,
        cache.context_lens,
        scale,
        max(case.contexts),
        case.window,
        case.splits,
    )
    for row, context in enumerate(case.contexts):
        if context == 0:
            assert (out[row] == 0).all(), "a sequence of length 0 must give zeros"
            continue
        arguments = (q[row : row + 1], cache.keys[row], cache.values[row], scale, case.window)
        exact, plain = reference.attention(*arguments), reference.plain_attention(*arguments)
        assert_as_good(out[row : row + 1], exact, plain, f"{case.name} row {row}")


def check_prefill_attention(kernels: Kernels, dtype: torch.dtype, case: Case) -> None:
    cache = make_cache(case, dtype, kernels.device)
    scale = case.dim**-0.5
    starts = [0]
    for query in case.queries:
        starts.append(starts[-1] + query)
    q = strided((starts[-1], case.group * case.kv_heads, case.dim), dtype, kernels.device, 2)
    out = torch.full(q.shape, torch.nan, dtype=dtype, device=kernels.device)
    kernels.prefill_attention(
        out,
        q,
        cache.k_cache,
        cache.v_cache,
        cache.block_table,
        torch.tensor(starts, dtype=torch.int32, device=kernels.device),
        cache.context_lens,
        scale,
        max(case.queries),
        case.window,
    )
    for row, (start, stop) in enumerate(pairwise(starts)):
        arguments = (q[start:stop], cache.keys[row], cache.values[row], scale, case.window)
        exact, plain = reference.attention(*arguments), reference.plain_attention(*arguments)
        assert_as_good(out[start:stop], exact, plain, f"{case.name} row {row}")


def check_kv_write(kernels: Kernels, dtype: torch.dtype) -> None:
    k, v = (strided((5, 2, 64), dtype, kernels.device, seed) for seed in (3, 4))
    caches = [torch.full((4, 16, 2, 64), torch.nan, dtype=dtype, device=kernels.device) for _ in range(2)]
    slots = [17, -1, 63, 0, -1]
    kernels.kv_write(
        k, v, caches[0], caches[1], torch.tensor([slots, slots], device=kernels.device).t().contiguous()[:, 0]
    )
    for cache, tokens in zip(caches, (k, v), strict=True):
        flat = cache.flatten(0, 1)
        for token, slot in enumerate(slots):
            assert slot < 0 or torch.equal(flat[slot], tokens[token]), f"slot {slot}"
        assert int(flat.isnan().all(dim=-1).all(dim=-1).sum()) == 61, "a slot that was not named has changed"


def check_copy_blocks(kernels: Kernels, dtype: torch.dtype) -> None:
    caches = [strided((6, 16, 2, 64), dtype, kernels.device, seed).contiguous() for seed in (5, 6)]
    before = [cache.clone() for cache in caches]
    source, target = torch.tensor([(4, 1), (0, 5)], device=kernels.device).unbind(1)
    kernels.copy_blocks(caches[0], caches[1], source, target)
    for cache, old in zip(caches, before, strict=True):
        assert torch.equal(cache, old[[0, 4, 2, 3, 4, 0]]), "blocks 1 and 5 become 4 and 0, others stay"


def check_swap(kernels: Kernels, dtype: torch.dtype) -> None:
    pinned = kernels.device.type == "cuda"
    for coalesced in (True, False):
        device = [strided((6, 16, 2, 64), dtype, kernels.device, seed).contiguous() for seed in (7, 8)]
        host = [torch.zeros(9, 16, 2, 64, dtype=dtype, pin_memory=pinned) for _ in range(2)]
        before = [cache.clone() for cache in device]
        kernels.swap_out(device, host, [(5, 0), (2, 8)], coalesced)
        synchronize(kernels.device)
        for cache, kept in zip(before, host, strict=True):
            assert torch.equal(kept[[0, 8]], cache[[5, 2]].cpu()), "swapped out"
            assert (kept[1:8] == 0).all(), "a host block that was not named has changed"
        kernels.swap_in(device, host, [(8, 1), (0, 3)], coalesced)
        synchronize(kernels.device)
        for cache, old in zip(device, before, strict=True):
            assert torch.equal(cache, old[[0, 2, 2, 5, 4, 5]]), "swapped in"


def check_rms_norm(kernels: Kernels, dtype: torch.dtype) -> None:
    for dim in (64, 100, 2048):
        rows, residual = (strided((5, dim), dtype, kernels.device, seed) for seed in (9, 10))
        weight = strided((1, dim), dtype, kernels.device, 11)[0].contiguous()
        for x in (rows, rows.contiguous()):  # single numbers, and whole words
            exact = reference.rms_norm(x, weight, 1e-5)
            plain = torch.nn.functional.rms_norm(x, (dim,), weight, 1e-5)
            assert_as_good(kernels.rms_norm(x, weight, 1e-5), exact, plain, f"rms_norm {dim}")
            normed, total = kernels.add_rms_norm(x, residual, weight, 1e-5)
            assert torch.equal(total, x + residual), "the sum is rounded once"
            exact = reference.rms_norm(total, weight, 1e-5)
            plain = torch.nn.functional.rms_norm(total, (dim,), weight, 1e-5)
            assert_as_good(normed, exact, plain, f"add_rms_norm {dim}")
    heads = strided((5, 4, 64), dtype, kernels.device, 12)
    weight = torch.ones(64, dtype=dtype, device=kernels.device)
    exact = reference.rms_norm(heads, weight, 1e-6)
    plain = torch.nn.functional.rms_norm(heads, (64,), weight, 1e-6)
    assert_as_good(kernels.rms_norm(heads, weight, 1e-6), exact, plain, "norm of each head")


def check_rope(kernels: Kernels, dtype: torch.dtype) -> None:
    positions = torch.tensor([0, 7, 3, 49, 7], device=kernels.device)
    for rotary in (64, 32, 12):
        angles = torch.randn(50, rotary // 2, generator=torch.Generator().manual_seed(13))
        cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1).to(kernels.device)
        q, k = (strided((5, heads, 64), dtype, kernels.device, heads) for heads in (4, 2))
        exact = [reference.rope(x, positions, cos_sin) for x in (q, k)]
        kernels.rope(q, k, positions, cos_sin)
        for got, want in zip((q, k), exact, strict=True):
            assert_as_good(got, want, want.to(dtype), f"rope {rotary}")


def check_silu_mul(kernels: Kernels, dtype: torch.dtype) -> None:
    for features in (64, 100, 1500):
        rows = strided((5, 2 * features), dtype, kernels.device, features)
        for x in (rows, rows.contiguous()):
            gate, up = x.double().chunk(2, dim=-1)
            exact = torch.nn.functional.silu(gate) * up
            plain = torch.nn.functional.silu(x[:, :features]) * x[:, features:]
            assert_as_good(kernels.silu_mul(x), exact, plain, f"silu_mul {features}")


FILTERS: list[tuple[float, int, float, float]] = [  # temperature, top_k, top_p, min_p
    (1.0, 0, 1.0, 0.0),
    (0.0, 5, 0.5, 0.1),
    (0.7, 10, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.05),
    (2.0, 40, 0.9, 0.001),
    (0.5, 1, 0.3, 0.0),
    (1.0, 100_000, 0.999, 0.0),
]


def check_process_logits(kernels: Kernels, dtype: torch.dtype) -> None:
    vocabulary, rows = 1003, len(FILTERS)
    draw = torch.Generator().manual_seed(14)
    logits = (3 * torch.randn(rows, vocabulary, generator=draw)).to(dtype)
    logits[:, 17] = logits[:, 400]  # equal logits are kept or cut together
    prompt = torch.rand(rows, vocabulary, generator=draw) < 0.05
    counts = torch.where(torch.rand(rows, vocabulary, generator=draw) < 0.05, 3, 0).int()
    heat, top_k, top_p, min_p = (torch.tensor(column) for column in zip(*FILTERS, strict=True))
    numbers = {"temperature": heat, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    numbers |= {
        "repetition_penalty": torch.full((rows,), 1.25),
        "prompt_mask": prompt,
        "output_counts": counts,
    }
    numbers |= {"presence_penalty": torch.full((rows,), 0.5), "frequency_penalty": torch.full((rows,), 0.125)}
    on_device = {name: tensor.to(kernels.device) for name, tensor in numbers.items()}
    got = kernels.process_logits(logits.to(kernels.device), **on_device).cpu()
    for row, (temperature, k, p, least) in enumerate(FILTERS):
        seen = set(prompt[row].nonzero()[:, 0].tolist())
        repeated = {int(i): int(counts[row, i]) for i in counts[row].nonzero()[:, 0]}
        wanted = torch.tensor(
            reference.penalised(logits[row].float().tolist(), seen, repeated, 1.25, 0.5, 0.125)
        )
        kept = set(got[row].isfinite().nonzero()[:, 0].tolist())
        if temperature == 0:
            assert kept == {int(wanted.argmax())}, f"row {row}: greedy"
            continue
        wanted = wanted / temperature
        must, may = reference.nucleus(wanted, k, p, least)
        assert must <= kept <= may, f"row {row}: keeps {len(kept)}, must {len(must)}, may {len(may)}"
        some = sorted(kept)
        torch.testing.assert_close(got[row, some], wanted[some], rtol=1e-5, atol=1e-5)


def check_draw(kernels: Kernels, dtype: torch.dtype) -> None:
    """Frequencies against the distribution (chi-square), and independence of the batch."""
    weights = torch.tensor([0.5, 0.2, 0.0, 0.15, 0.1, 0.05])
    draws = 1000
    logits = weights.log().to(kernels.device).expand(draws, -1).contiguous()
    seeds = torch.arange(draws, device=kernels.device) % 10
    steps = torch.arange(draws, device=kernels.device) // 10
    with_generator = torch.Generator(device=kernels.device).manual_seed(15)
    tokens = kernels.draw(logits, seeds, steps)
    for sampled in (tokens, kernels.draw(logits, generator=with_generator)):
        found = torch.bincount(sampled.cpu(), minlength=6).double()
        assert found[2] == 0, "a token without probability was drawn"
        some = weights > 0
        chi_square = ((found - draws * weights)[some] ** 2 / (draws * weights)[some]).sum()
        assert chi_square < 23.5, f"chi-square {chi_square:.1f} at 4 degrees of freedom (p = 1e-4)"
    assert torch.equal(tokens[100:200], kernels.draw(logits[100:200], seeds[100:200], steps[100:200]))
    unequal = torch.randn(3, 5000, generator=torch.Generator().manual_seed(16)).to(kernels.device)
    twice = [kernels.draw(unequal, seeds[:3], steps[:3]) for _ in range(2)]
    assert torch.equal(*twice), "the same seed gives the same token"


def check_matmul(kernels: Kernels, dtype: torch.dtype) -> None:
    for rows in (1, 5, 70):
        x = strided((rows, 256), dtype, kernels.device, 17)
        dense = strided((96, 256), dtype, kernels.device, 18).contiguous()
        bias = strided((1, 96), dtype, kernels.device, 19)[0]
        assert_as_good(
            kernels.matmul(x, dense, bias),
            x.double() @ dense.double().t() + bias.double(),
            x @ dense.t() + bias,
            "dense",
        )
        for name in FORMATS:
            narrow = quantize(dense, name)
            unpacked = dequantize(narrow, dtype)
            exact = x.double() @ unpacked.double().t()
            got = kernels.matmul(x, narrow)
            if name == "fp8" and kernels.device.type == "cuda":
                # x is rounded to E4M3 too: half a step of 2^-3, relative.
                error = (got.double() - exact).norm() / exact.norm()
                assert error < 0.04, f"fp8: relative error {error:.3g}"
            else:
                assert_as_good(got, exact, x @ unpacked.t(), name)


CHECKS: dict[str, Callable[[Kernels, torch.dtype], None]] = {
    "copy_blocks": check_copy_blocks,
    "draw": check_draw,
    "kv_write": check_kv_write,
    "matmul": check_matmul,
    "process_logits": check_process_logits,
    "rms_norm": check_rms_norm,
    "rope": check_rope,
    "silu_mul": check_silu_mul,
    "swap": check_swap,
}
ATTENTION = {"decode_attention": check_decode_attention, "prefill_attention": check_prefill_attention}


def checks() -> Iterator[tuple[str, Callable[[Kernels, torch.dtype], None]]]:
    """Every check, attention once per case, with its name."""
    yield from CHECKS.items()
    for name, check in ATTENTION.items():
        for case in attention_cases():
            yield f"{name}[{case.name}]", partial(check, case=case)


def run(kernels: Kernels, dtype: torch.dtype) -> dict[str, str]:
    """Cause of failure of each check, empty where it held."""
    outcomes = {}
    for name, check in checks():
        try:
            check(kernels, dtype)
            outcomes[name] = ""
        except Exception as error:  # reported, check by check, to whoever runs the list
            place = traceback.extract_tb(error.__traceback__)[-1]
            outcomes[name] = f"{type(error).__name__}: {error} ({place.name}:{place.lineno})"
    return outcomes


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Check one form of the kernels; one JSON object on the last line."
    )
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float16", choices=["bfloat16", "float16", "float32"])
    options = parser.parse_args(arguments)
    dtype = getattr(torch, options.dtype)
    kernels = get_kernels(options.device, dtype, options.backend)
    print(kernels.describe())
    outcomes = run(kernels, dtype)
    print(json.dumps(outcomes))
    return int(any(outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
