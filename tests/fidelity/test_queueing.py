"""Where a configuration reduces to a textbook queue, the simulated waiting times are the textbook's.

A step that always lasts `STEP` seconds turns an answer of *k* tokens into a service of ``k · STEP``: the
prompt's step gives the first token, every other step one more. What the policy allows to run together makes
the number of servers. Confidence intervals are of batch means (20 batches, Student's t); Little's law and
the formulas: Kleinrock, Queueing Systems I, and Gross & Harris, Fundamentals of Queueing Theory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import simpy
from scipy import stats

from simulator.cluster import Cluster
from simulator.scheduling import VllmV1
from simulator.workload import Trace

STEP = 0.01
MEAN_TOKENS = 50
MEAN_SERVICE = STEP * MEAN_TOKENS


class ConstantStep:
    """A device on which every step lasts the same, however many sequences take part."""

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        return STEP

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        return [STEP] * n


class SharedStep(ConstantStep):
    """A device whose step lasts as long as there are sequences in it: they share it equally."""

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        return STEP * (num_decodes + len(prefills))

    def segment(self, num_decodes: int, decode_context: int, n: int) -> list[float]:
        return [STEP * num_decodes] * n


def traffic(load: float, servers: int, n: int, seed: int, *, fixed: bool = False) -> Trace:
    """Poisson arrivals that keep *servers* busy for a fraction *load*; geometric answers, or all of one length."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(MEAN_SERVICE / (load * servers), n)
    tokens = np.full(n, MEAN_TOKENS) if fixed else rng.geometric(1 / MEAN_TOKENS, n)
    return Trace.from_columns(np.cumsum(gaps), np.ones(n, np.int64), tokens.astype(np.int64))


def times(trace: Trace, slots: int, step: Any, **cluster: Any) -> tuple[np.ndarray, np.ndarray]:
    """(waiting before the first step, time in system) of each request, s."""
    env = simpy.Environment()

    def scheduler() -> VllmV1:
        return VllmV1(num_gpu_blocks=200_000, max_num_seqs=slots, max_num_batched_tokens=10_000,
                      max_model_len=100_000, enable_prefix_caching=False)  # fmt: skip

    replicas = Cluster(env, trace, trace.output_length, scheduler, step, **cluster)
    env.run()
    records = replicas.records.build()
    return records.first_scheduled_time - records.arrival_time, records.finish_time - records.arrival_time


def agrees(sample: np.ndarray, theory: float, slack: float = 0.0) -> None:
    """The 99.9 % interval of the mean, by batch means, covers *theory* up to *slack* (s)."""
    settled = sample[len(sample) // 20 :]
    means = np.array([part.mean() for part in np.array_split(settled, 20)])
    half = stats.t.ppf(0.9995, 19) * means.std(ddof=1) / math.sqrt(20)
    assert abs(means.mean() - theory) <= half + slack, f"{means.mean():.4f} ± {half:.4f}, theory {theory:.4f}"
    assert half < 0.5 * theory, "the interval is too wide to say anything"


def second_moment() -> float:
    """E[S²] of a geometric service: variance (1 − p)/p² tokens²."""
    p = 1 / MEAN_TOKENS
    return STEP**2 * ((1 - p) / p**2 + MEAN_TOKENS**2)


def erlang_c(servers: int, load: float) -> float:
    """Probability to wait in M/M/c."""
    a = servers * load
    top = a**servers / math.factorial(servers) / (1 - load)
    return top / (sum(a**k / math.factorial(k) for k in range(servers)) + top)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_sequence_at_a_time_is_m_m_1(load: float) -> None:
    waiting, _ = times(traffic(load, 1, 12_000, 1), 1, ConstantStep())
    rate = load / MEAN_SERVICE
    agrees(
        waiting, rate * second_moment() / (2 * (1 - load))
    )  # Pollaczek–Khinchine, exact for geometric services
    agrees(waiting, load * MEAN_SERVICE / (1 - load), slack=0.02 * MEAN_SERVICE)  # its limit, M/M/1


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_one_sequence_of_fixed_length_is_m_d_1(load: float) -> None:
    waiting, _ = times(traffic(load, 1, 12_000, 2, fixed=True), 1, ConstantStep())
    agrees(waiting, load * MEAN_SERVICE / (2 * (1 - load)))


@pytest.mark.parametrize(("servers", "load"), [(4, 0.6), (2, 0.7)])
def test_slots_at_constant_step_time_are_m_m_c(servers: int, load: float) -> None:
    waiting, _ = times(traffic(load, servers, 12_000, 3), servers, ConstantStep())
    theory = erlang_c(servers, load) * MEAN_SERVICE / (servers * (1 - load))
    agrees(waiting, theory, slack=STEP)  # a request that finds others at work joins at the end of their step


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_a_shared_device_is_processor_sharing(load: float) -> None:
    _, sojourn = times(traffic(load, 1, 10_000, 4), 10_000, SharedStep())
    agrees(sojourn, MEAN_SERVICE / (1 - load), slack=0.02 * MEAN_SERVICE)


def test_random_split_is_n_independent_queues() -> None:
    waiting, _ = times(traffic(0.7, 4, 24_000, 5), 1, ConstantStep(), num_replicas=4, router="random")
    agrees(waiting, 0.7 * MEAN_SERVICE / 0.3, slack=0.02 * MEAN_SERVICE)


def test_round_robin_is_e_n_m_1() -> None:
    n, load = 4, 0.7
    waiting, _ = times(traffic(load, n, 24_000, 6), 1, ConstantStep(), num_replicas=n)
    # G/M/1: wait = σ/(μ(1 − σ)), σ the root of σ = A*(μ(1 − σ)); Erlang-n gaps: A*(s) = (nλ/(nλ + s))^n
    rate, mu, sigma = load / MEAN_SERVICE, 1 / MEAN_SERVICE, 0.5
    for _ in range(200):
        sigma = (n * rate / (n * rate + mu * (1 - sigma))) ** n
    agrees(waiting, sigma * MEAN_SERVICE / (1 - sigma), slack=0.02 * MEAN_SERVICE)


def test_sharing_the_traffic_evenly_waits_less_than_at_random() -> None:
    trace = traffic(0.8, 4, 12_000, 7)
    turns, _ = times(trace, 1, ConstantStep(), num_replicas=4, router="round-robin")
    random, _ = times(trace, 1, ConstantStep(), num_replicas=4, router="random")
    assert turns.mean() < random.mean()


@pytest.mark.parametrize(("servers", "load"), [(4, 0.7), (2, 0.6)])
def test_a_central_queue_is_m_m_c(servers: int, load: float) -> None:
    options = {"num_replicas": servers, "router": "central-queue"}
    waiting, _ = times(traffic(load, servers, 12_000, 8), 1, ConstantStep(), **options)
    agrees(
        waiting, erlang_c(servers, load) * MEAN_SERVICE / (servers * (1 - load)), slack=0.02 * MEAN_SERVICE
    )


def test_two_choices_of_many_are_the_supermarket_model() -> None:
    n, load = 40, 0.8
    _, two = times(traffic(load, n, 16_000, 9), 1, ConstantStep(), num_replicas=n, router="power-of-two")
    # mean time in system, in services, for n → ∞: Σ λ^(2^i − 2), Mitzenmacher (2001), theorem 1 with d = 2
    theory = MEAN_SERVICE * sum(load ** (2**i - 2) for i in range(1, 10))
    agrees(two, theory, slack=0.05 * MEAN_SERVICE)


def test_looking_at_the_replicas_beats_not_looking() -> None:
    trace = traffic(0.8, 8, 8_000, 10)
    routers = ("random", "round-robin", "power-of-two", "least-outstanding", "central-queue")
    waits = [times(trace, 1, ConstantStep(), num_replicas=8, router=router)[0].mean() for router in routers]
    assert waits == sorted(waits, reverse=True), dict(zip(routers, waits, strict=True))
