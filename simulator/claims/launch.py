"""vLLM's launch post: throughput against Hugging Face generate() and TGI, one and three outputs a request.

"vLLM: Easy, Fast, and Cheap LLM Serving with PagedAttention", 20 June 2023 (vllm-project.github.io, c3a01c4a). The
bars print requests per minute; the ratios here are those of the bars. Every request is there from the start (the post
does not say so; its benchmark does). Nobody wrote down which batch the Hugging Face side ran, which limits TGI had, or
which of two published means ShareGPT's lengths had; all are swept: one to 8 requests, TGI's clients asking for exactly
what they will get, the next power of two or 1024 tokens.
"""

from __future__ import annotations

from functools import partial

from simulator.claims.claim import Claim, Outcome, Published, Range
from simulator.claims.lengths import SHAREGPT, SHAREGPT_SELECTED, Ints, Workloads
from simulator.claims.runs import Case, at_once, requests_per_minute, served
from simulator.workload import Trace

__all__ = ["CLAIMS"]

SEVEN = Case("LLaMA-7B, A10G", "llama-7b", "a10g-24gb")
THIRTEEN = Case("LLaMA-13B, A100-40GB", "llama-13b", "a100-sxm-40gb")
NUM_REQUESTS = 1000
HF_BATCHES = (1, 2, 4, 8)
"""Requests in a batch of generate(), each with all its samples."""
TGI_LIMITS = ("exact", "pow2", 1024)
"""What a client asks for as max_new_tokens, which TGI reserves."""
BARS = {
    (SEVEN.label, 1): {"hf": 8.3, "tgi": 50.4, "vllm": 112.2},
    (THIRTEEN.label, 1): {"hf": 6.4, "tgi": 61.8, "vllm": 154.2},
    (SEVEN.label, 3): {"hf": 6.2, "tgi": 15.0, "vllm": 52.8},
    (THIRTEEN.label, 3): {"hf": 4.5, "tgi": 19.2, "vllm": 67.2},
}
"""Bar labels of the post, requests per minute."""


def run(workloads: Workloads, *, baseline: str, samples: int) -> Outcome:
    """Throughput of vLLM over that of *baseline*, on both set-ups."""
    ratios: dict[str, list[float]] = {case.label: [] for case in (SEVEN, THIRTEEN)}
    rows: list[tuple[str, ...]] = [("requests/min", "vLLM", *_columns(baseline))]
    remarks, sources = [], []
    for case in (SEVEN, THIRTEEN):
        bars = BARS[case.label, samples]
        rows.append((f"{case.label}, published", f"{bars['vllm']}", f"{bars[baseline]}"))
        for prompt, output, lengths in _lengths(workloads):
            trace, mean = at_once(prompt, output, samples), f"{output.mean():.0f}"
            vllm = requests_per_minute(served(trace, **case.deployment, system="vllm-0.2"))
            others = _baseline(baseline, case, trace, samples)
            ratios[case.label] += [vllm / other for other in others]
            rows.append((f"ours, outputs of {mean}", f"{vllm:.1f}", *(f"{other:.1f}" for other in others)))
            sources.append(lengths)
            if baseline == "hf":
                remarks.append(_published_batch(case, bars["hf"], others[0], float(output.mean())))
    ours = {label: Range.of(*found) for label, found in ratios.items()}
    return Outcome(ours, tuple(rows), tuple(remarks), "; or ".join(dict.fromkeys(sources)))


def _lengths(workloads: Workloads) -> list[tuple[Ints, Ints, str]]:
    """ShareGPT's lengths: as the paper gives them and as the benchmark selects them, or those at hand."""
    found = [workloads.sharegpt(NUM_REQUESTS)]
    if found[0][2] == SHAREGPT.source:
        found.append((*SHAREGPT_SELECTED.draw(NUM_REQUESTS), SHAREGPT_SELECTED.source))
    return found


def _columns(baseline: str) -> tuple[str, ...]:
    if baseline == "hf":
        return tuple(f"batch of {batch}" for batch in HF_BATCHES)
    return tuple(f"max_new_tokens {limit}" for limit in TGI_LIMITS)


def _baseline(baseline: str, case: Case, trace: Trace, samples: int) -> list[float]:
    if baseline == "hf":
        return [
            requests_per_minute(
                served(
                    trace,
                    **case.deployment,
                    system="hf-static",
                    default_max_tokens="exact",
                    options={"max_batch_size": batch * samples},
                )
            )
            for batch in HF_BATCHES
        ]
    return [
        requests_per_minute(served(trace, **case.deployment, system="tgi-2", default_max_tokens=limit))
        for limit in TGI_LIMITS
    ]


def _published_batch(case: Case, published: float, ours: float, output: float) -> str:
    """What the published bar says about its batch, if one request at a time takes as long as ours."""
    stated, alone = (60e3 / (rate * output) for rate in (published, ours))
    return (
        f"{case.label}, outputs of {output:.0f}: one request after the other, {published} requests/min are "
        f"{stated:.0f} ms a step; ours takes {alone:.0f} ms, as if in batches of {max(alone / stated, 1):.1f}"
    )


def _claim(baseline: str, samples: int, title: str, stated: str, why: str) -> Claim:
    ratios = {key: bars["vllm"] / bars[baseline] for key, bars in BARS.items() if key[1] == samples}
    many = "one output" if samples == 1 else "three outputs"
    return Claim(
        id=f"{baseline}-{'one' if samples == 1 else 'three'}",
        title=f"{title}, {many} a request ({stated})",
        source="vLLM launch post, 2023-06-20, bar labels",
        setup="offline, all requests there at once, lengths of ShareGPT; vllm-0.2 for the release of the launch",
        unknown="number of requests, seeds, dtype, which means the lengths had, "
        + ("batch of generate()" if baseline == "hf" else "TGI's version and limits"),
        why=why,
        published=tuple(
            Published(label, round(ratio, 1), round(ratio, 1)) for (label, _), ratio in ratios.items()
        ),
        run=partial(run, baseline=baseline, samples=samples),
    )


WHY_HF = (
    "the ratio is one over the batch of generate(), which the post does not state; releases before 0.2 ran without "
    "CUDA graphs and with other limits than the 0.2.7 that is modelled"
)
WHY_TGI = (
    "TGI of June 2023 (0.8) kept KV of a batch in one tensor and counted tokens against a limit set by hand; what is "
    "modelled is its later paged cache, which reserves prompt and max_new_tokens"
)
CLAIMS = (
    _claim("hf", 1, "vLLM against Hugging Face", "14 to 24 ×", WHY_HF),
    _claim("hf", 3, "vLLM against Hugging Face", "8.5 to 15 ×", WHY_HF),
    _claim("tgi", 1, "vLLM against TGI", "2.2 to 2.5 ×", WHY_TGI),
    _claim("tgi", 3, "vLLM against TGI", "3.3 to 3.5 ×", WHY_TGI),
)
