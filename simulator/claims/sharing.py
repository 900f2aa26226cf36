"""Memory that several outputs of one prompt share, and what it is good for.

vLLM's paper (arXiv 2309.06180, section 6.3): saving = blocks saved by sharing / blocks without sharing, parallel sizes
and beam widths of 2, 4 and 6, OPT-13B on an A100. Throughput: the rate vLLM sustains over that of Orca (Oracle) on
Alpaca. Both sides are saturated here; Orca has no sharing, so that beams are sequences of their own to it.
"""

from __future__ import annotations

from functools import partial

from simulator.claims.beams import run_beams
from simulator.claims.claim import Claim, Outcome, Published, Range
from simulator.claims.lengths import ALPACA, Ints, Workloads
from simulator.claims.runs import at_once, in_vllms_engine, mean_level, requests_per_minute, served
from simulator.deployment import Deployment
from simulator.simulation import Result, simulate

__all__ = ["CLAIMS", "parallel_saving"]

WIDTHS = (2, 4, 6)
NUM_REQUESTS = {"Alpaca": 500, "ShareGPT": 150}
MODEL = {"model": "opt-13b", "gpu": "a100-sxm-40gb"}


def parallel_saving(result: Result) -> float:
    """Blocks saved over blocks without sharing, both averaged over time."""
    block_size = result.series[0].block_size
    saved = mean_level(result, "waste_shared") / block_size
    return saved / (mean_level(result, "kv_blocks_used") + saved)


def run_saving(workloads: Workloads, *, beams: bool) -> Outcome:
    """The saving for every width on both data sets."""
    resolved = Deployment.of(**MODEL, system="vllm-0.2").resolve()
    rows: list[tuple[str, ...]] = [("blocks saved", *(str(width) for width in WIDTHS))]
    ours: dict[str, Range] = {}
    sources = []
    for name, (prompt, output, source) in _lengths(workloads).items():
        savings = []
        for width in WIDTHS:
            if beams:
                savings.append(100 * run_beams(resolved, prompt, output, width).saving)
            else:
                trace = at_once(prompt, output, width)
                savings.append(100 * parallel_saving(served(trace, **MODEL, system="vllm-0.2")))
        ours |= {f"{name}, {width}": Range.of(s) for width, s in zip(WIDTHS, savings, strict=True)}
        rows.append((name, *(f"{saving:.1f} %" for saving in savings)))
        sources.append(f"{name}: {source}")
    return Outcome(ours, tuple(rows), (), "; ".join(sources))


def run_throughput(workloads: Workloads) -> Outcome:
    """Requests per minute of vLLM over Orca (Oracle), one output and six beams, on Alpaca."""
    prompt, output = ALPACA.draw(1500)
    rows: list[tuple[str, ...]] = [("requests/min, Alpaca", "vLLM", "Orca (Oracle)")]
    ours = {}
    for label, width in ((BASIC, 1), (BEAMS, 6)):
        few = slice(0, len(prompt) // width)
        trace = at_once(prompt[few], output[few], width)
        orca = requests_per_minute(simulate(trace, in_vllms_engine("orca-oracle", **MODEL)))
        vllm = (
            requests_per_minute(served(trace, **MODEL, system="vllm-0.2"))
            if width == 1
            else _beam_rate(prompt[few], output[few], width)
        )
        ours[label] = Range.of(vllm / orca)
        rows.append((label, f"{vllm:.0f}", f"{orca:.0f}"))
    return Outcome(ours, tuple(rows), (), f"Alpaca: {ALPACA.source}")


def _beam_rate(prompt: Ints, output: Ints, width: int) -> float:
    run = run_beams(Deployment.of(**MODEL, system="vllm-0.2").resolve(), prompt, output, width)
    return 60.0 * run.finished / run.duration


def _lengths(workloads: Workloads) -> dict[str, tuple[Ints, Ints, str]]:
    alpaca = (*ALPACA.draw(NUM_REQUESTS["Alpaca"]), ALPACA.source)
    return {"Alpaca": alpaca, "ShareGPT": workloads.sharegpt(NUM_REQUESTS["ShareGPT"])}


def _ends(alpaca: tuple[float, float], sharegpt: tuple[float, float]) -> tuple[Published, ...]:
    """The ends of the published ranges as those of the least and the most outputs."""
    return tuple(
        Published(f"{name}, {width}", value, value, "%")
        for name, ends in (("Alpaca", alpaca), ("ShareGPT", sharegpt))
        for width, value in zip((WIDTHS[0], WIDTHS[-1]), ends, strict=True)
    )


BASIC, BEAMS = "one output", "beam width 6"
SOURCE = "arXiv 2309.06180, section 6.3"
SETUP = "OPT-13B, A100-40GB; 2, 4 and 6 outputs of every request; vLLM with blocks of 16"
UNKNOWN = (
    "request rate and number of requests; the spread of the lengths; whether time or requests are averaged over; that "
    "the lower end is that of 2 and the upper of 6"
)
CLAIMS = (
    Claim(
        id="parallel-sampling",
        title="KV blocks saved by sharing the prompt of parallel samples (6 to 10 % on Alpaca)",
        source=SOURCE,
        setup=SETUP,
        unknown=UNKNOWN,
        why="only prompts are shared: it depends on how many fill whole blocks, and Alpaca's are about one block long",
        published=_ends((6.1, 9.8), (16.2, 30.5)),
        run=partial(run_saving, beams=False),
    ),
    Claim(
        id="beam-search",
        title="KV blocks saved by sharing between beams (38 to 55 % on Alpaca)",
        source=SOURCE,
        setup=SETUP + "; every beam is equally likely to go on",
        unknown=UNKNOWN + "; how soon beams descend from one of them, which is the model's",
        why="beams that are all equally likely to go on soon descend from one; scores that keep several alive longer "
        "make them share less, and the more so the more beams there are",
        published=_ends((37.6, 55.2), (44.3, 66.3)),
        run=partial(run_saving, beams=True),
    ),
    Claim(
        id="sharing-throughput",
        title="Throughput over Orca (Oracle), without and with sharing between beams (1.3 to 2.3 ×)",
        source=SOURCE,
        setup="OPT-13B, A100-40GB, Alpaca, saturated; Orca runs each beam as a sequence of its own",
        unknown="at which latency rates were compared; what Orca's copies between beams cost",
        why="the paper compares rates at equal latency, ours are rates of systems that never run dry",
        published=(Published(BASIC, 1.3, 1.3), Published(BEAMS, 2.3, 2.3)),
        run=run_throughput,
    ),
)
