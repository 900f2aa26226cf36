"""The steady state of a replica in closed form: batch, step time, utilisation, stability limit, mean TTFT and TPOT.

A replica with continuous batching is a server that works in rounds. A round decodes the b running requests, T_d(b)
seconds, and prefills the prompts that arrived during the round before, x more seconds for each, so the mean round
lasts

    S = T_d(b) / (1 − λ x)            λ requests/s, x = T(b, prompt) − T_d(b)
    b = λ (o − 1) S                   Little's law for the decoding requests, o output tokens (o rounds with
                                      asynchronous scheduling, which notices an end one round late)

which is a fixed point in b. Each of a request's tokens takes one round: TPOT = S, at b + 1 (an arrival sees the
others as time does, and itself; Palm). At batch B the replica completes λ(B) = B / ((o − 1) T_d(B) + B x(B)); the
stability limit is λ(B) at the largest batch that the KV cache and ``max_num_seqs`` allow. With speculation a round
yields τ tokens of a request in the mean: it takes (o − 1) / τ rounds, and TPOT = S / τ.

Rounds vary because arrivals do. With Poisson arrivals N of rate λ in a round, S' = T_d + Σ X_i gives the variance
λ S E[X²] / (1 − (λ x)²) (a gated queue; Takagi 1986, Analysis of Polling Systems). A request waits for the rest of
the round it falls into, E[S²]/2S, then for the round that prefills it: T_d, the prompts that came in the same
round, λ x E[S²]/S, and its own. Asynchronous scheduling decides a round while the one before still runs, so that a
request waits one more. A prompt longer than the token budget takes further rounds.

That is a policy that puts prompts and decodes into one batch, vLLM's. For one that runs prompts in passes of their own
S and the wait follow from `simulator.prompts_first`; the rest is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.deployment import Resolved
from simulator.errors import CapacityError, ConfigurationError
from simulator.prompts_first import PromptsFirst
from simulator.scheduling import VllmV1
from simulator.scheduling.sglang import Sglang
from simulator.steptime import step_work
from simulator.workload import Trace

__all__ = ["SteadyState", "Traffic"]

Floats = NDArray[np.float64]
VALID_LOAD = 0.7
"""Share of the stability limit up to which the approximation is held against simulations."""
UNEVEN_ROUNDS = 0.016
"""`SteadyState._unevenness` up to which it was within 10 % of simulations (docs/background/analytic.md)."""
UNEVEN_PASSES, UNEVEN_FULL_PASSES = 0.03, 0.0125
"""The same where prompts have passes of their own; and where one fills more than half of what a pass takes."""
QUANTILES = 12
BATCHES = sorted({float(round(2 ** (k / 2))) for k in range(27)})
"""1, 2, 3, 4, 6, 8, 11, 16 … 8192."""
BISECTIONS = 4
RATE_BISECTIONS = 16
PREFILL_TOKENS = 16_384
"""Tokens of a prefill pass at most: SGLang's ``max_prefill_tokens`` where nothing is stated."""
AT_LIMIT = 0.999
"""Share of the stability limit that stands for the limit itself, where the formulas divide by what is left."""
LINK_FAMILIES = ("all_reduce", "collective")


@dataclass(frozen=True)
class Traffic:
    """What a replica is asked for: *request_rate* (1/s) and the moments of the lengths that the formulas need."""

    request_rate: float
    prompts: tuple[float, ...]
    """Tokens of a prompt, values equally likely: one for equal prompts, quantiles of a trace's."""
    output: float
    """Mean tokens generated."""
    decode_context: float | None = None
    """Mean context of a decoding token, which is the mean KV of a running request; None: prompt + output/2."""
    dispersion: float = 1.0
    """Variance / mean of the arrivals in windows of ten requests; 1 for Poisson."""

    def __post_init__(self) -> None:
        if not 0 < self.request_rate < math.inf:
            raise ConfigurationError(f"request rate {self.request_rate}: must be above 0 and finite")
        if not self.prompts or min(self.prompts) < 0 or self.output < 1:
            raise ConfigurationError(
                f"lengths {self.prompts} + {self.output:g} tokens: must be at least 1 each"
            )

    @classmethod
    def of_trace(cls, trace: Trace, request_rate: float | None = None) -> Traffic:
        """The traffic of *trace*, at its own mean rate or at *request_rate*."""
        prompts, outputs = trace.input_length.astype(float), trace.output_length.astype(float)
        weight = np.maximum(outputs, 1.0)
        context = float((weight * (prompts + weight / 2)).sum() / weight.sum())
        rate = trace.request_rate if request_rate is None else request_rate
        if math.isinf(rate):
            raise ConfigurationError("request rate: all requests of the trace arrive at once; state a rate")
        parts = [part for part in np.array_split(np.sort(prompts), QUANTILES) if len(part)]
        means = np.array([part.mean() for part in parts])
        quantiles = tuple((means * (prompts.mean() / means.mean())).tolist())  # parts may differ by a request
        return cls(rate, quantiles, float(weight.mean()), context, _dispersion(trace))

    def at(self, request_rate: float) -> Traffic:
        """The same at another rate."""
        return replace(self, request_rate=request_rate)

    @property
    def prompt(self) -> float:
        """Mean tokens of a prompt."""
        return sum(self.prompts) / len(self.prompts)

    @property
    def context(self) -> float:
        """Mean context of a decoding token, tokens."""
        return self.prompt + self.output / 2 if self.decode_context is None else self.decode_context


@dataclass(frozen=True)
class SteadyState:
    """One replica of *resolved* under *traffic*; everything follows from the fixed point. Times in s."""

    resolved: Resolved
    traffic: Traffic
    concurrency: float | None = None
    """Requests in the system, where their number is fixed and the rate follows from it."""

    @classmethod
    def at_concurrency(cls, resolved: Resolved, traffic: Traffic, concurrency: float) -> SteadyState:
        """The state in which *concurrency* requests are in the system all the time: the rate follows from it."""
        if not concurrency >= 1:
            raise ConfigurationError(f"concurrency {concurrency}: must be at least 1")
        state = cls(resolved, traffic)
        decoding = min(concurrency, state.max_batch)
        rate = state._rate(decoding)
        for _ in range(12):  # of those in the system some still wait for their first token
            now = cls(resolved, traffic.at(min(rate, AT_LIMIT * state.stability_limit)))
            waiting = min(rate * now.ttft_s, concurrency / 2)
            decoding = max(min(concurrency - waiting, state.max_batch), 1.0)
            rate = 0.5 * rate + 0.5 * state._rate(decoding)
        return cls(resolved, traffic.at(min(rate, AT_LIMIT * state.stability_limit)), concurrency)

    @cached_property
    def max_batch(self) -> float:
        """Requests that run at once at most: by KV cache, ``max_num_seqs`` and the token budget."""
        limits, budget = self.resolved.limits, self.resolved.budget
        tokens = self.resolved.num_gpu_blocks * budget.block_size
        by_memory = tokens / (
            self.traffic.context + budget.block_size / 2
        )  # half a block is empty on average
        if by_memory < 1:
            raise CapacityError(
                f"a request of {self.traffic.context:.0f} tokens does not fit the KV cache of {tokens} tokens"
            )
        if self.prompts_first is not None:
            return max(1.0, min(by_memory, limits.get("max_running_requests") or math.inf))
        by_rows = (limits.get("max_num_seqs") or math.inf) / (1 + 1 / self._rounds)  # prompts take rows too
        by_tokens = self.token_budget / (self._width + self.traffic.prompt / self._rounds)
        return max(1.0, min(by_memory, by_rows, by_tokens))

    @cached_property
    def prompts_first(self) -> PromptsFirst | None:
        """Passes of a policy that keeps prompts and decodes apart; None where they share a batch."""
        limits, plan = self.resolved.limits, self.resolved.speculation
        if not issubclass(self.resolved.system.policy_class, Sglang) or plan is not None:
            return None
        if limits.get("enable_mixed_chunk"):
            return None
        chunk, most = (limits.get(name) or 0 for name in ("chunked_prefill_size", "max_prefill_tokens"))
        budget = min([size for size in (chunk, most) if size > 0], default=PREFILL_TOKENS)
        depth = 1 if limits.get("disable_overlap_schedule") else 2
        return PromptsFirst(self.traffic.prompts, budget, depth, lambda tokens: self._seconds(0, tokens))

    def _sustained(self, apart: PromptsFirst, batch: float) -> float:
        """Requests/s at which *batch* decodes are just enough, with prompts in passes of their own."""
        decode = self._decode(batch)
        low, high = 0.0, batch / (self._rounds * decode)
        for _ in range(RATE_BISECTIONS):
            middle = (low + high) / 2
            passes = apart.passes(middle, decode)
            enough = passes is not None and middle * self._rounds * passes.per_token <= batch
            low, high = (middle, high) if enough else (low, middle)
        return low

    @property
    def token_budget(self) -> int:
        """Tokens of a step at most."""
        return int(self.resolved.limits.get("max_num_batched_tokens") or 8192)

    @cached_property
    def stability_limit(self) -> float:
        """Requests/s of one replica beyond which the queue grows without end."""
        apart = self.prompts_first
        if apart is not None:
            return max(self._sustained(apart, share * self.max_batch) for share in (0.25, 0.5, 1.0))
        batches = np.unique(np.rint(np.geomspace(1, self.max_batch, 24)))
        return max(self._rate(float(batch)) for batch in batches)

    def capacity_bound(self, tpot_s: float = math.inf) -> float:
        """Requests/s that no steady stream exceeds while a mean round lasts at most *tpot_s*; 0 where none is so
        short."""
        best = low = 0.0
        for batch in self._batches:
            if self._decode(batch) / self._yield > tpot_s:
                return 0.0 if batch == 1 else best
            rate = self._rate(batch)
            best = max(best, rate)
            if self._per_token(batch, rate) > tpot_s:
                break
            low = batch
        else:
            return best
        for _ in range(BISECTIONS):  # the largest batch whose round is short enough
            middle = (low + batch) / 2
            rate = self._rate(middle)
            low, batch = (middle, batch) if self._per_token(middle, rate) <= tpot_s else (low, middle)
            best = max(best, rate) if low == middle else best
        return best

    def prefill_limit(self) -> float:
        """Requests/s whose prompts a replica computes if it does nothing else."""
        most = max(int(self.token_budget // max(self.traffic.prompt, 1.0)), 1)
        return max(1 / self._mean(self._alone), most / self._seconds(0, most * self.traffic.prompt))

    def decode_limit(self, tpot_s: float = math.inf) -> float:
        """Requests/s that a replica decodes if their prompts are computed elsewhere and a step lasts at most *tpot_s*;
        0 where none is so short."""
        tokens = max(self.traffic.output - 1, 1e-9)  # the first comes with the prompt
        per_token = {batch: self._decode(batch) / self._yield for batch in self._batches}
        return max((b / (tokens * s) for b, s in per_token.items() if s <= tpot_s), default=0.0)

    def _per_token(self, batch: float, rate: float) -> float:
        """Seconds for each token of a request, where *batch* of them complete at *rate*, 1/s."""
        return batch / (rate * self._rounds * self._yield)

    @cached_property
    def _batches(self) -> list[float]:
        """Batches to look at: the same for replicas that differ in their limits alone, up to the largest possible."""
        known = [batch for batch in BATCHES if batch < self.max_batch]
        return [*known, self.max_batch]

    def shortest_step(self) -> float:
        """Seconds of the shortest round, one request that decodes, for each token that it yields."""
        return self._decode(1.0) / self._yield

    @property
    def load(self) -> float:
        """Request rate over the stability limit."""
        return self.traffic.request_rate / self.stability_limit

    @property
    def stable(self) -> bool:
        """Whether there is a steady state at all."""
        return self.load < 1

    @cached_property
    def batch(self) -> float:
        """Mean number of decoding requests; the largest batch where there is no steady state."""
        low, high = 0.0, self.max_batch
        if self._needed(high) > high:
            return high
        for _ in range(60):  # the needed batch exceeds the batch below the smallest fixed point
            middle = (low + high) / 2
            low, high = (middle, high) if self._needed(middle) > middle else (low, middle)
        return high

    @cached_property
    def step_s(self) -> float:
        """Mean round as a decoding request sees it; without a steady state that just below the stability limit."""
        return self._round(self.batch + 1) if self.stable else self._steady.step_s

    @property
    def replicas_needed(self) -> int:
        """The fewest replicas like this one over which the traffic has a steady state."""
        return math.floor(self.load) + 1

    @property
    def tpot_s(self) -> float:
        """Mean time per output token after the first; infinite without a steady state."""
        return self.step_s / self._yield if self.stable else math.inf

    @cached_property
    def ttft_s(self) -> float:
        """Mean time to first token; infinite without a steady state."""
        if not self.stable:
            return math.inf
        if (
            self.concurrency is not None and self.concurrency > self.max_batch
        ):  # the others wait: Little's law
            decoding = (self.traffic.output - 1) * self.tpot_s
            return self.concurrency / self.traffic.request_rate - decoding
        in_system = self.batch + self.traffic.request_rate * self.step_s
        busy = 1 - math.exp(-in_system)  # M/G/∞: somebody is there
        return busy * self._gated + (1 - busy) * self._mean(self._alone)

    @property
    def _gated(self) -> float:
        """TTFT of a request that arrives during a round."""
        if self.prompts_first is not None:
            return self.prompts_first.ttft(self.traffic.request_rate, self._decode(self.batch))
        extras, mean, load = self._extras(self.batch), self._round(self.batch), self._prefill_load(self.batch)
        extras = extras * (
            load / (self.traffic.request_rate * extras.mean())
        )  # what is left of each in company
        variance = self.traffic.request_rate * mean * float((extras**2).mean()) / (1 - load**2)
        biased = (mean**2 + variance) / mean
        ahead = mean if self.decides_ahead else 0.0
        further = self._mean(lambda prompt: self._chunks(prompt, self.batch) - 1) * mean
        return float(biased / 2 + ahead + self._decode(self.batch) + load * biased + extras.mean() + further)

    @property
    def e2el_s(self) -> float:
        """Mean end-to-end latency."""
        return self.ttft_s + (self.traffic.output - 1) * self.tpot_s

    @cached_property
    def utilisation(self) -> dict[str, float]:
        """Share of the time or room in use: ``compute`` at peak FLOP/s, ``bandwidth`` at full rate, ``kv``,
        ``busy``; beyond the stability limit work goes on as at it, with all room taken."""
        if not self.stable:
            return {**self._steady.utilisation, "kv": 1.0, "busy": 1.0}
        rate, decoding = self.traffic.request_rate, max(round(self.batch), 1)
        rounds = (1 - math.exp(-self.batch - rate * self.step_s)) / self._round(self.batch)
        decode = step_work(self.resolved.steptime, decoding, round(decoding * self.traffic.context))
        mixed = step_work(
            self.resolved.steptime,
            decoding,
            round(decoding * self.traffic.context),
            [(round(self.traffic.prompt), 0)],
        )
        per_second = {}
        for name, side in (("compute", "compute_s"), ("bandwidth", "memory_s")):
            once = sum(getattr(work, side) for work in decode)
            more = max(sum(getattr(work, side) for work in mixed) - once, 0.0)
            per_second[name] = min(rounds * once + rate * more, 1.0)
        kv = min(self.batch / self.max_batch, 1.0)
        return {**per_second, "kv": kv, "busy": min(rounds * self._round(self.batch), 1.0)}

    @cached_property
    def shares(self) -> dict[str, float]:
        """Where a mean round goes, by what limits it: compute, bandwidth, interconnect, host. Sums to 1."""
        return step_shares(self.resolved, self.batch, self.traffic.context, self._prefill_per_round)

    @cached_property
    def _steady(self) -> SteadyState:
        """This state, or without one that just below the stability limit."""
        return (
            self if self.stable else SteadyState(self.resolved, self.traffic.at(0.99 * self.stability_limit))
        )

    def cost_per_million(self, usd_per_gpu_hour: float) -> dict[str, float]:
        """$ per million input, output and all tokens of one replica; the time of a round is split by what prefill
        adds."""
        per_second = usd_per_gpu_hour * self.resolved.parallelism.num_gpus / 3600  # s per h
        rate = min(self.traffic.request_rate, self.stability_limit)
        share = min(self._steady._prefill_load(self._steady.batch), 1.0)
        return {
            "input": 1e6 * per_second * share / (rate * self.traffic.prompt),
            "output": 1e6 * per_second * (1 - share) / (rate * self.traffic.output),
            "all": 1e6 * per_second / (rate * (self.traffic.prompt + self.traffic.output)),
        }

    @property
    def caveats(self) -> list[str]:
        """Where the approximation does not hold for this case, one line each; empty where it does."""
        found = []
        if not self.stable:
            found.append(
                f"no steady state: {self.traffic.request_rate:,.4g} requests/s are {self.load:.3g} times the stability "
                f"limit of {self.stability_limit:.3g} per replica: the queue grows for as long as requests come; "
                f"{self.replicas_needed:,} replicas keep up, {math.ceil(self.load / VALID_LOAD):,} stay below "
                f"{VALID_LOAD:.0%} load"
            )
        elif self.load > VALID_LOAD:
            found.append(f"load {self.load:.0%}: above {VALID_LOAD:.0%} the latencies are too low; simulate")
        if self.concurrency is not None and self.concurrency > self.max_batch:
            found.append(
                f"{self.concurrency:,g} requests in the system, of which at most {self.max_batch:.0f} run: the others "
                "wait, and TTFT is what Little's law leaves for it"
            )
        elif self.stable and self.batch + 3 * math.sqrt(self.batch) > self.max_batch:
            found.append(
                f"batch {self.batch:.1f} of at most {self.max_batch:.1f}: requests wait for memory or a slot, "
                "which is not in the formula"
            )
        if self.stable and self._unevenness > self._bearable_unevenness:
            found.append(
                f"prompts make the rounds of a request too uneven ({self._unevenness:.1%}, above "
                f"{self._bearable_unevenness:.1%}): TTFT and TPOT are too low"
            )
        mixed = issubclass(self.resolved.system.policy_class, VllmV1)
        if not mixed and (self.prompts_first is None or self.concurrency is not None):
            held = "vLLM and SGLang" if self.concurrency is None else "vLLM"
            found.append(
                f"held against simulations of {held}; {self.resolved.system.name} has another policy: "
                "TTFT and TPOT may be much too low"
            )
        if self.traffic.dispersion > 2:
            found.append(
                f"arrivals are burstier than Poisson (variance / mean {self.traffic.dispersion:.1f} over ten "
                "requests): TTFT is too low"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values in SI units."""
        return {
            "request_rate": self.traffic.request_rate, "stability_limit": self.stability_limit, "load": self.load,
            "stable": self.stable, "replicas_needed": self.replicas_needed,
            "batch": self.batch, "max_batch": self.max_batch, "step_s": self.step_s,
            "tokens_per_step": self.resolved.tokens_per_step,
            "ttft_s": _finite(self.ttft_s), "tpot_s": _finite(self.tpot_s), "e2el_s": _finite(self.e2el_s),
            "output_tokens_per_s": min(self.traffic.request_rate, self.stability_limit) * self.traffic.output,
            "utilisation": self.utilisation, "time_shares": self.shares, "caveats": self.caveats,
        }  # fmt: skip

    @property
    def decides_ahead(self) -> bool:
        """Whether a round is decided while the one before it still runs: arrivals wait one more."""
        if self.prompts_first is not None:
            return self.prompts_first.depth > 1
        return bool(self.resolved.limits.get("async_scheduling", False))

    @property
    def _unevenness(self) -> float:
        """λ E[X²] / (T_d o): the variance that prompts bring into a round, by its length without them, over the rounds
        of a request."""
        apart = self.prompts_first
        extras = (
            self._extras(self.batch) if apart is None else np.array(list(map(apart.prefill, apart.prompts)))
        )
        squared = float((extras**2).mean())
        return self.traffic.request_rate * squared / (self._decode(self.batch) * max(self._rounds, 1.0))

    @property
    def _bearable_unevenness(self) -> float:
        """What it may be for the means to be within 10 % of simulations."""
        apart = self.prompts_first
        if apart is None:
            return UNEVEN_ROUNDS
        return UNEVEN_PASSES if apart.mean_prompt <= apart.budget / 2 else UNEVEN_FULL_PASSES

    @property
    def _prefill_per_round(self) -> float:
        """Prompt tokens of a mean round."""
        if not self.stable:
            return max(self.token_budget - self.batch * self._width, 1.0)
        return self.traffic.request_rate * self._round(self.batch) * self.traffic.prompt

    @property
    def _rounds(self) -> float:
        """Rounds in which a request occupies a row of the batch; its end is noticed late where the next is decided."""
        return (self.traffic.output - 1) / self._yield + float(self.decides_ahead)

    @property
    def _yield(self) -> float:
        """Tokens of a request that a round yields."""
        return self.resolved.tokens_per_step

    @property
    def _width(self) -> float:
        """Tokens of a decoding request that a round computes."""
        return self.resolved.steptime.width

    def _needed(self, batch: float) -> float:
        """Decoding requests by Little's law if the round were that of *batch*."""
        return self.traffic.request_rate * self._rounds * self._round(batch)

    def _rate(self, batch: float) -> float:
        """Requests/s completed at a constant *batch*, where prompts share the rounds of decodes."""
        prompts = batch / self._rounds  # of each round, since so many requests end in it
        extra = self._extra_of(batch, prompts, float(self._extras(batch).mean()))
        return batch / (self._rounds * self._decode(batch) + batch * extra)

    def _round(self, batch: float) -> float:
        """Mean seconds of a round beside *batch* decodes; infinite where the prompts alone are too much."""
        return (
            self._decode(batch) / (1 - self._prefill_load(batch))
            if self._prefill_load(batch) < 1
            else math.inf
        )

    def _prefill_load(self, batch: float) -> float:
        """λ x: share of the time that prompts add. Several in one round cost less each, so x depends on the round."""
        if self.prompts_first is not None:
            passes = self.prompts_first.passes(self.traffic.request_rate, self._decode(batch))
            return 1.0 if passes is None else 1 - passes.decode / passes.per_token
        rate, decode, alone = (
            self.traffic.request_rate,
            self._decode(batch),
            float(self._extras(batch).mean()),
        )
        if rate * alone < 1 and rate * decode / (1 - rate * alone) <= 1:
            return rate * alone
        low, high = decode, max(self.token_budget - batch * self._width, 1.0) / (rate * self.traffic.prompt)
        if decode + rate * high * self._extra_of(batch, rate * high, alone) > high:
            return 1.0
        for _ in range(30):
            middle = (low + high) / 2
            longer = decode + rate * middle * self._extra_of(batch, rate * middle, alone) > middle
            low, high = (middle, high) if longer else (low, middle)
        return rate * self._extra_of(batch, rate * high, alone)

    def _extra_of(self, batch: float, prompts: float, alone: float) -> float:
        """Seconds that each of *prompts* prompts adds to one round; *alone* where it has the round to itself."""
        if prompts <= 1:
            return alone
        together = self._seconds(batch, prompts * self.traffic.prompt) - self._decode(batch)
        return min(alone, together / prompts)

    def _decode(self, batch: float) -> float:
        return self._seconds(batch, 0.0)

    def _alone(self, prompt: float) -> float:
        """Seconds of the prefill of *prompt* with nobody else there."""
        chunks = self._chunks(prompt, 0.0)
        return chunks * self._seconds(0, prompt / chunks)

    def _extras(self, batch: float) -> Floats:
        """Seconds that each prompt adds to rounds of *batch* when it is prefilled by itself."""
        found = []
        for prompt in self.traffic.prompts:
            chunks = self._chunks(prompt, batch)
            found.append(chunks * (self._seconds(batch, prompt / chunks) - self._decode(batch)))
        return np.maximum(found, 0.0)

    def _chunks(self, prompt: float, batch: float) -> int:
        """Rounds that *prompt* takes beside *batch* decodes."""
        return max(math.ceil(prompt / max(self.token_budget - batch * self._width, 1.0)), 1)

    def _mean(self, of: Callable[[float], float]) -> float:
        """Over the prompts."""
        return sum(of(prompt) for prompt in self.traffic.prompts) / len(self.traffic.prompts)

    def _seconds(self, batch: float, prefill: float) -> float:
        """A round of *batch* decodes and *prefill* prompt tokens, linear between whole batches."""
        return _step_seconds(
            self.resolved.steptime, batch, self.traffic.context, prefill, self.traffic.prompt
        )


def step_shares(resolved: Resolved, batch: float, context: float, prefill: float) -> dict[str, float]:
    """What a step of *batch* decodes and *prefill* prompt tokens is limited by, as shares of its time."""
    step, decodes = resolved.steptime, max(round(batch), 0)
    prompts = [(round(prefill), 0)] if prefill >= 1 else []
    decodes = max(decodes, 0 if prompts else 1)
    shares = dict.fromkeys(("compute", "bandwidth", "interconnect", "host"), 0.0)
    for work in step_work(step, decodes, round(decodes * context), prompts):
        link = work.bound == "link" or work.family in LINK_FAMILIES
        shares["interconnect" if link else work.bound] += work.seconds
    total = max(step.seconds(decodes, round(decodes * context), prompts), sum(shares.values()))
    shares["host"] = total - sum(shares.values())
    return {name: seconds / total for name, seconds in shares.items()}


def _step_seconds(step: Any, batch: float, context: float, prefill: float, prompt: float) -> float:
    low = math.floor(batch)
    prompts = _prompts(prefill, prompt)
    if low < 1 and not prompts:
        return _whole(step, 1, context, prompts)
    at_low = _whole(step, low, context, prompts)
    if batch == low:
        return at_low
    return at_low + (batch - low) * (_whole(step, low + 1, context, prompts) - at_low)


def _whole(step: Any, decodes: int, context: float, prompts: tuple[tuple[int, int], ...]) -> float:
    return float(_cached_seconds(step, decodes, round(decodes * context), prompts))


@lru_cache(maxsize=65_536)
def _cached_seconds(step: Any, decodes: int, context: int, prompts: tuple[tuple[int, int], ...]) -> float:
    return float(step.seconds(decodes, context, prompts))


def _prompts(tokens: float, prompt: float) -> Any:
    """*tokens* of prefill as whole prompts of mean length and the rest of one."""
    whole, rest = divmod(round(tokens), max(round(prompt), 1))
    found = [(max(round(prompt), 1), 0)] * int(whole)
    return tuple(found + ([(int(rest), 0)] if rest else []))


def _dispersion(trace: Trace) -> float:
    """Variance / mean of the counts in windows that hold ten arrivals on average."""
    known = trace.arrival_time[~np.isnan(trace.arrival_time)]
    windows = len(known) // 10
    if windows < 10 or known[-1] <= known[0]:
        return 1.0
    counts = np.histogram(known, bins=windows)[0]
    return float(counts.var() / counts.mean())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
