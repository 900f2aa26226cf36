"""Host costs of a serving system from what a client saw of it.

The device's laws stay; what is fitted is the host work of a step that the device waits for, a + b·sequences. A trial
simulates the very requests with the costs at hand; each request's predicted time per token then says, through the
iterations it took part in, how it depends on a and b:

    TPOT·(n - 1) = Σ over its iterations of (step + a + b·sequences)

Non-negative least squares on relative errors, reweighted to absolute ones, gives the next costs. They change the
schedule, so this repeats. The system's own costs count as one more, vague, measurement: a short recording moves them
little, a long one makes them irrelevant. The front end (HTTP, tokenisation, network) is the median of what TTFT takes
beyond its prediction. The last part of the recording is simulated but not fitted to: the error there is reported.
Standard errors come from stretches of the recording, because requests that share steps share their errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from calibrate.observe.kv_budget import KVBudget, kv_budget_seen
from calibrate.observe.observation import Observation
from simulator.deployment import Deployment, Resolved
from simulator.errors import ConfigurationError
from simulator.results import FINISHED, STATUS
from simulator.simulation import Result, simulate

__all__ = ["HostFit", "fit_host_costs"]

Vector = NDArray[np.float64]
ROUNDS = 12
DAMPING = (1.0, 0.5, 0.25, 0.1)
REWEIGHTINGS = 8
LEAST_REQUESTS = 20
"""Finished requests with at least two tokens, fitted and held out together."""
LEAST_RATIO = 1.2
"""P90 over P10 of the batches that requests were in; below it, step and sequence cannot be told apart."""
STRETCHES = 20
VAGUE = np.array([5e-4, 1e-5])
"""Seconds that the system's own costs of a step and a sequence may be off, or by as much as they are. Assumed."""
LEAST_ERROR = 0.005
"""Relative error of a time per token below which more agreement says nothing."""
LEAST_GAIN = 0.002
"""Share of the remaining distance that a round must take off for another one."""
SPLITS = (1.0, 0.6, 0.85)
"""Shares of the step, of all that a step was found to cost, from which the search begins anew."""
CLOSE = 1e-3
"""Distance at which there is nothing left to explain."""
TOLERANCE = 1e-4
"""Relative change of the predicted times at which the fit has settled."""
LEAST_SPREAD = 0.01
NORMAL_90 = 1.6449
"""90 % of a standard normal lie within this of nought."""


@dataclass(frozen=True)
class HostFit:
    """*step_s*, *seq_s*, *request_s* with standard errors of the first two; *errors*: simulated / seen - 1 on the part
    held out, by metric and statistic, *before* with the system's own costs and *after*.
    """

    step_s: float
    seq_s: float
    request_s: float
    standard_errors: Mapping[str, float]
    seq_fixed: bool
    """Whether the batches were too alike to tell a sequence's share: then it is the system's own."""
    kv: KVBudget | None
    seen: Mapping[str, float]
    before: Mapping[str, float]
    after: Mapping[str, float]
    spread_step: float
    spread_ttft: float
    num_fitted: int
    num_held_out: int
    too_slow: float
    """Median of predicted / seen - 1 of the fitted times per token: above 0 where even no cost at all is too much."""
    own: tuple[float, float]
    """The system's own costs of a step and a sequence, s."""
    resolved: Resolved


def fit_host_costs(observation: Observation, deployment: Deployment, hold_out: float = 0.3) -> HostFit:
    """Fit the host costs of *deployment*'s system to *observation*, but for its last *hold_out* share of requests."""
    if not 0 < hold_out < 1:
        raise ConfigurationError(f"--hold-out {hold_out:g}: must be between 0 and 1")
    kv = kv_budget_seen(observation)
    resolved = _resolve(deployment, kv)
    problem = _Problem(observation, resolved, hold_out)
    own = problem.own
    first = problem.run(own)
    problem.leave_out_rejected(first)
    fixed = problem.alike(first)
    best, costs = problem.search(own, first, fixed)
    request_s = problem.front_end(best)
    return HostFit(
        step_s=float(costs[0]),
        seq_s=float(costs[1]),
        request_s=request_s,
        standard_errors=problem.standard_errors(best, fixed),
        seq_fixed=fixed,
        kv=kv,
        seen=problem.statistics(problem.ttft, problem.tpot),
        before=problem.errors(first, first.resolved.steptime.traits.engine.request_s),
        after=problem.errors(best, request_s),
        spread_step=problem.spread(problem.tpot, _tpot(best)),
        spread_ttft=problem.spread(problem.ttft, _ttft(best) + request_s),
        num_fitted=int(problem.fitted.sum()),
        num_held_out=int(problem.held_out.sum()),
        too_slow=problem.bias(best),
        own=(float(own[0]), float(own[1])),
        resolved=resolved,
    )


def _resolve(deployment: Deployment, kv: KVBudget | None) -> Resolved:
    """*deployment* with the KV cache that was seen, unless another is asked for."""
    resolved = deployment.resolve()
    if kv is None or deployment.num_gpu_blocks is not None:
        return resolved
    blocks = max(kv.tokens // resolved.budget.block_size, 1)
    return deployment.model_copy(update={"num_gpu_blocks": blocks}).resolve()


class _Problem:
    """The requests that were seen, in the order of the simulated trace."""

    def __init__(self, observation: Observation, resolved: Resolved, hold_out: float) -> None:
        self.trace, self.resolved = observation.trace(), resolved
        kept = sorted(observation.kept(), key=lambda request: request.sent)
        finished = np.array([request.status == STATUS[FINISHED] for request in kept])
        columns = [(r.sent, r.first_token, r.finish, r.output_length) for r in kept]
        sent, first, finish, outputs = np.array(columns, float).T
        self.gaps = np.maximum(outputs - 1, 1)
        self.ttft = np.where(finished, first - sent, np.nan)
        self.tpot = np.where(finished & (outputs > 1), (finish - first) / self.gaps, np.nan)
        usable = np.flatnonzero((self.tpot > 0) & (self.ttft > 0))
        if len(usable) < LEAST_REQUESTS:
            raise ConfigurationError(
                f"{len(usable)} finished requests with two tokens or more: a fit needs at least {LEAST_REQUESTS}"
            )
        last = min(max(1, round(hold_out * len(usable))), len(usable) - 1)
        self.own = self.costs_of(resolved)
        self.fitted, self.held_out = (np.zeros(len(kept), bool) for _ in range(2))
        self.fitted[usable[:-last]], self.held_out[usable[-last:]] = True, True

    def leave_out_rejected(self, result: Result) -> None:
        """Requests that the deployment as stated would turn away say nothing of its costs."""
        served = np.isfinite(_ttft(result)) & np.isfinite(_tpot(result))
        for part in (self.fitted, self.held_out):
            part &= served
        if not (self.fitted.any() and self.held_out.any()):
            reasons = "; ".join(result.rejections) or "none of them ran"
            raise ConfigurationError(f"the deployment does not serve what was observed: {reasons}")

    def costs_of(self, resolved: Resolved) -> Vector:
        """What the system has now: (per step, per sequence)."""
        traits = resolved.steptime.traits
        serial = (0.0, 0.0) if traits.overlap else (traits.per_step_s, traits.per_seq_s)
        return np.array([traits.engine.step_s + serial[0], traits.engine.seq_s + serial[1]])

    def run(self, costs: Vector) -> Result:
        """The requests with these costs."""
        traits = self.resolved.steptime.traits
        engine = replace(traits.engine, step_s=float(costs[0]), seq_s=float(costs[1]))
        traits = replace(traits, engine=engine)
        if not traits.overlap:  # what is serial is among the fitted
            traits = replace(traits, per_step_s=0.0, per_seq_s=0.0)
        steptime = self.resolved.steptime.with_traits(traits)
        return simulate(self.trace, replace(self.resolved, steptime=steptime), percentiles=(50, 99))

    def alike(self, result: Result) -> bool:
        """Whether all requests were in batches of much the same size."""
        steps, rows = _iterations(result).T
        batch = (rows / np.maximum(steps, 1))[self.fitted]
        return bool(np.quantile(batch, 0.9) < LEAST_RATIO * np.quantile(batch, 0.1))

    def search(self, own: Vector, first: Result, fixed: bool) -> tuple[Result, Vector]:
        """`fit` from the system's own costs, and, as schedules change in jumps, from other splits of what it found
        between step and sequences; the nearest.
        """
        best = self.fit(own, first, fixed)
        for share in () if fixed else SPLITS:
            if self.distance(best[0]) < CLOSE:
                break
            steps, rows = _iterations(best[0])[self.fitted].sum(axis=0)
            whole = float(best[1] @ [1.0, rows / steps])
            start = np.array([share * whole, (1 - share) * whole * steps / rows])
            found = self.fit(start, self.run(start), fixed)
            best = min(best, found, key=lambda one: self.distance(one[0]))
        return best

    def fit(self, start: Vector, first: Result, fixed: bool) -> tuple[Result, Vector]:
        """The costs whose prediction is nearest to what was seen, and that prediction."""
        result, costs, distance = first, start, self.distance(first)
        for _ in range(ROUNDS):
            step = self.step(result, costs, fixed) - costs
            for damping in DAMPING:  # near saturation a step of the device is many of the queue
                trial = self.run(costs + damping * step)
                if (now := self.distance(trial)) < distance:
                    break
            else:
                break
            settled = np.abs(self.design(result) @ (damping * step)) < TOLERANCE * self.tpot
            gained = distance - now
            result, costs, distance = trial, costs + damping * step, now
            if distance < CLOSE or settled[self.fitted].all() or gained < LEAST_GAIN * distance:
                break
        return result, costs

    def design(self, result: Result) -> Vector:
        """How each request's time per token depends on the two costs, as *result* was scheduled."""
        return np.asarray(_iterations(result) / self.gaps[:, None])

    def step(self, result: Result, costs: Vector, fixed: bool) -> Vector:
        """Costs that fit best if the schedule stayed as it is.

        Σ |r| + s/2 Σ ln(1 + z²) is least, r the relative errors, s their size where only the recording counts, z how
        far the costs are from the system's own, in doubts: a Cauchy, which lets go of costs that are nowhere near.
        """
        use, free = self.fitted & np.isfinite(_tpot(result)), np.array([True, not fixed])
        design, scale = self.design(result)[use], 1.0 / self.tpot[use]
        target = self.tpot[use] - _tpot(result)[use] + design @ costs - design[:, ~free] @ costs[~free]
        rows, goal = design[:, free] * scale[:, None], target * scale
        own, doubt = self.own[free], self.doubt()[free]
        seen = _absolute(rows, goal, own, doubt, 0.0, own)
        size = max(float(np.abs(rows @ seen - goal).mean()), LEAST_ERROR)
        tried = [_absolute(rows, goal, own, doubt, size, start) for start in (seen, own)]
        best = min(
            tried,
            key=lambda x: np.abs(rows @ x - goal).sum() + size / 2 * np.log1p(((x - own) / doubt) ** 2).sum(),
        )
        found = costs.copy()
        found[free] = best
        return found

    def doubt(self) -> Vector:
        """How far the system's own costs may be off, s."""
        return np.asarray(np.maximum(VAGUE, self.own))

    def distance(self, result: Result) -> float:
        """Mean absolute relative error of the time per token of the fitted requests; 1 for one that was turned away."""
        error = np.abs(_tpot(result)[self.fitted] / self.tpot[self.fitted] - 1.0)
        return float(np.mean(np.nan_to_num(error, nan=1.0)))

    def front_end(self, result: Result) -> float:
        """Seconds that TTFT takes beyond its prediction."""
        return max(0.0, float(np.nanmedian((self.ttft - _ttft(result))[self.fitted])))

    def standard_errors(self, result: Result, fixed: bool) -> dict[str, float]:
        """Of the costs: a sandwich over stretches of the recording, whose requests share their errors."""
        use, names = self.fitted & np.isfinite(_tpot(result)), ["step_s"] if fixed else ["step_s", "seq_s"]
        count = len(names)
        design = self.design(result)[use][:, :count] / self.tpot[use][:, None]
        error = 1.0 - (_tpot(result) / self.tpot)[use]
        stretch = np.arange(len(error)) * STRETCHES // len(error)
        scores = np.array([design[stretch == k].T @ error[stretch == k] for k in np.unique(stretch)])
        noise, doubt_s = max(float(np.mean(error**2)), LEAST_ERROR**2), self.doubt()[:count]
        engine = result.resolved.steptime.traits.engine
        far = (np.array([engine.step_s, engine.seq_s])[:count] - self.own[:count]) / doubt_s
        doubt = np.diag(noise / (doubt_s**2 * (1 + far**2)))
        bread = np.linalg.inv(design.T @ design + doubt)
        off = np.sqrt(np.diag(bread @ (scores.T @ scores + noise * doubt) @ bread))
        return {name: float(value) for name, value in zip(names, off, strict=True)}

    def bias(self, result: Result) -> float:
        """Median of predicted / seen - 1 of the time per token."""
        return float(np.nanmedian(_tpot(result)[self.fitted] / self.tpot[self.fitted])) - 1.0

    def spread(self, seen: Vector, predicted: Vector) -> float:
        """Standard deviation of ln(seen / predicted) on the part held out, of a normal with its 90th percentile; never
        below what repeats differ by.
        """
        use = self.held_out & (predicted > 0)
        size = np.abs(np.log(seen[use] / predicted[use]))
        return max(float(np.quantile(size, 0.9)) / NORMAL_90, LEAST_SPREAD)

    def statistics(self, ttft: Vector, tpot: Vector) -> dict[str, float]:
        """Mean, P50 and P99 on the part held out, s."""
        use = self.held_out & np.isfinite(tpot)
        columns = {"ttft": ttft[use], "tpot": tpot[use], "e2el": (ttft + tpot * self.gaps)[use]}
        found = {}
        for name, values in columns.items():
            found[f"{name}.mean"] = float(np.mean(values))
            found[f"{name}.p50"], found[f"{name}.p99"] = (float(q) for q in np.quantile(values, (0.5, 0.99)))
        return found

    def errors(self, result: Result, request_s: float) -> dict[str, float]:
        """Predicted / seen - 1 on the part held out."""
        predicted = self.statistics(_ttft(result) + request_s, _tpot(result))
        seen = self.statistics(self.ttft, self.tpot)
        return {name: predicted[name] / seen[name] - 1.0 for name in seen}


def _ttft(result: Result) -> Vector:
    records = result.records
    return np.asarray(records.first_token_time - records.arrival_time)


def _tpot(result: Result) -> Vector:
    """Seconds per token after the first; 0 for one token."""
    records = result.records
    gaps = np.maximum(records.output_length - 1, 1)
    return np.asarray((records.finish_time - records.first_token_time) / gaps)


def _iterations(result: Result) -> Vector:
    """Iterations, and the rows of their batches, from each request's first token to its last, float64[n, 2]."""
    frame = result.timeseries.sort_values("time", kind="stable")
    ends = (frame["time"] + frame["span"]).to_numpy(float)
    times = np.concatenate([[float(frame["time"].iloc[0])], ends])
    columns = []
    for name in ("iterations", "batch_iterations"):
        total = np.concatenate([[0.0], np.cumsum(frame[name].to_numpy(float))])
        first, last = result.records.first_token_time, result.records.finish_time
        columns.append(np.interp(last, times, total) - np.interp(first, times, total))
    return np.stack(columns, axis=1)


def _absolute(rows: Vector, goal: Vector, own: Vector, doubt: Vector, size: float, start: Vector) -> Vector:
    """Costs not below 0 for which Σ |rows · x - goal| + size/2 Σ ln(1 + ((x - own)/doubt)²) is least, near *start*."""
    found, weights = start, np.ones(len(goal))
    if start is not own:
        weights = 1.0 / np.maximum(np.abs(rows @ start - goal), 1e-3)
    for _ in range(REWEIGHTINGS):
        factor = np.sqrt(weights)
        # squares that touch from above, twice: |r| by r²/2|r₀|, ln(1 + z²) by z²/(1 + z₀²)
        hold = np.diag(np.sqrt(size / (1 + ((found - own) / doubt) ** 2)) / doubt)
        system = np.vstack([rows * factor[:, None], hold])
        found = np.asarray(nnls(system, np.concatenate([goal * factor, hold @ own]))[0])
        weights = 1.0 / np.maximum(np.abs(rows @ found - goal), 1e-3)
    return found
