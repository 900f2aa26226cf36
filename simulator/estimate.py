"""The closed-form view of one batch: what it needs of memory, FLOPs and bandwidth, and how long it takes.

No queue, no trace: *batch* requests of equal length start together, are prefilled in chunks of at most
``max_num_batched_tokens`` and decode until all are done. *Ideal* is the roofline at the datasheet's peaks;
*expected* goes through the device's laws and the system's host costs.

    TTFT        all prompts of the batch prefilled
    TPOT        mean over the decode steps that follow, contexts growing
    throughput  batch · output / (TTFT + Σ decode steps)

With speculation a step yields (1 − α^(k+1)) / (1 − α) tokens of every sequence in the mean (Leviathan et al. 2023), and
TPOT is the mean step over that number.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from simulator.deployment import Resolved
from simulator.errors import CapacityError, ConfigurationError
from simulator.hand import HandCalculation
from simulator.models import ModelSpec
from simulator.steptime import OperatorWork, StepTime, step_work
from simulator.steptime.speculative import SpeculativeStepTime

__all__ = ["Estimate", "Phase", "SpeculationEstimate", "check_length"]


def check_length(model: ModelSpec, prompt: int, output: int) -> None:
    """Raise `CapacityError` where the context of *model* is shorter than *prompt* and *output* tokens."""
    if prompt + output > model.max_position_embeddings:
        raise CapacityError(
            f"prompt and output of {prompt + output} tokens exceed the context of {model.name}, "
            f"{model.max_position_embeddings} tokens"
        )


@dataclass(frozen=True)
class Phase:
    """One kind of forward on one GPU: *ideal_s* at peak rates, *expected_s* as the system would take."""

    name: str
    operators: list[OperatorWork]
    ideal_s: float
    expected_s: float
    parts: dict[str, float]

    @property
    def flops(self) -> float:
        """FLOPs per GPU."""
        return sum(work.flops for work in self.operators)

    @property
    def bytes(self) -> float:
        """Bytes that move through the memory of one GPU."""
        return sum(work.bytes for work in self.operators)

    @property
    def compute_s(self) -> float:
        """Seconds of the FLOPs at peak."""
        return sum(work.compute_s for work in self.operators)

    @property
    def memory_s(self) -> float:
        """Seconds of the bytes at full bandwidth."""
        return sum(work.memory_s for work in self.operators)

    @property
    def bound(self) -> str:
        """Which of the two takes longer."""
        return "compute" if self.compute_s > self.memory_s else "bandwidth"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, SI units."""
        names = ("name", "flops", "bytes", "compute_s", "memory_s", "bound", "ideal_s", "expected_s", "parts")
        plain = {name: getattr(self, name) for name in names}
        return plain | {"operators": [asdict(work) | {"bound": work.bound} for work in self.operators]}


@dataclass(frozen=True)
class SpeculationEstimate:
    """A decode step that yields *tokens_per_step* of every sequence: seconds of making drafts and of checking them,
    and of the same step without speculation (*plain_s*)."""

    tokens_per_step: float
    drafting_s: float
    verifying_s: float
    plain_s: float

    @property
    def speedup(self) -> float:
        """Time per token without speculation over that with it; below 1 it loses."""
        return self.tokens_per_step * self.plain_s / (self.drafting_s + self.verifying_s)

    def as_dict(self) -> dict[str, float]:
        """Plain values, SI units."""
        return asdict(self) | {"speedup": self.speedup}


@dataclass(frozen=True)
class Estimate:
    """*batch* requests of *prompt* and *output* tokens on what *resolved* deploys."""

    resolved: Resolved
    prompt: int
    output: int
    batch: int

    def __post_init__(self) -> None:
        for name in ("prompt", "output", "batch"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} {getattr(self, name)} must be at least 1")
        check_length(self.resolved.model, self.prompt, self.output)
        if self.batch > self.max_batch:
            tokens = self.resolved.num_gpu_blocks * self.resolved.budget.block_size
            raise CapacityError(
                f"batch {self.batch}: at most {self.max_batch:,} requests of {self.prompt + self.output:,} tokens fit "
                f"at once: the memory that is left holds {tokens:,} tokens"
            )

    @property
    def step(self) -> StepTime:
        """The step times that everything here rests on."""
        return self.resolved.steptime

    @property
    def max_batch(self) -> int:
        """Requests of these lengths whose KV fits at once."""
        size = self.resolved.budget.block_size
        return self.resolved.num_gpu_blocks // -(-(self.prompt + self.output) // size)

    @cached_property
    def chunks(self) -> list[list[tuple[int, int]]]:
        """The forwards of the prefill: prompts packed in order into the token budget."""
        budget = self.resolved.limits.get("max_num_batched_tokens", 8192)
        forwards: list[list[tuple[int, int]]] = [[]]
        left = budget
        for _ in range(self.batch):
            done = 0
            while done < self.prompt:
                if left == 0:
                    forwards.append([])
                    left = budget
                chunk = min(self.prompt - done, left)
                forwards[-1].append((chunk, done))
                done, left = done + chunk, left - chunk
        return forwards

    @cached_property
    def prefill(self) -> Phase:
        """The largest forward of the prefill."""
        largest = max(self.chunks, key=lambda forward: sum(chunk for chunk, _ in forward))
        return self._phase("prefill", 0, 0, largest)

    @cached_property
    def decode(self) -> Phase:
        """A decode step half-way through the output."""
        return self._phase("decode", self.batch, self.batch * (self.prompt + (self.output + 1) // 2), [])

    def _phase(self, name: str, decodes: int, context: int, prefills: list[tuple[int, int]]) -> Phase:
        batch = decodes, context, prefills
        return Phase(
            name, step_work(self.step, *batch), self.step.floor(*batch), self.step.seconds(*batch),
            self.step.breakdown(*batch),
        )  # fmt: skip

    def ttft(self, *, ideal: bool = False) -> float:
        """Seconds until the whole batch is prefilled."""
        step = self.step.ideal if ideal else self.step
        return sum(step.seconds(0, 0, forward) for forward in self.chunks)

    def tpot(self, *, ideal: bool = False) -> float:
        """Mean seconds of the decode steps; 0 for a single output token."""
        if self.output == 1:
            return 0.0
        step = self.step.ideal if ideal else self.step
        times = step.segment(self.batch, self.batch * (self.prompt + 1), self.output - 1)
        return float(sum(times)) / (self.output - 1) / self.resolved.tokens_per_step

    def throughput(self, *, ideal: bool = False) -> float:
        """Output tokens per second of the replica."""
        total = self.ttft(ideal=ideal) + (self.output - 1) * self.tpot(ideal=ideal)
        return self.batch * self.output / total

    @property
    def speculation(self) -> SpeculationEstimate | None:
        """What speculation does to a decode step half-way through the output; None without it."""
        step = self.step
        if not isinstance(step, SpeculativeStepTime):
            return None
        batch = self.batch, self.batch * (self.prompt + (self.output + 1) // 2)
        drafting = step.drafting(*batch)
        return SpeculationEstimate(
            self.resolved.tokens_per_step,
            drafting,
            step.seconds(*batch) - drafting,
            step.plain.seconds(*batch),
        )

    @property
    def hand(self) -> HandCalculation:
        """The well-known hand calculation for the same case."""
        return HandCalculation(
            self.resolved.model, self.prompt, self.batch, self.peak, self.step.laws.bandwidth,
            self.resolved.parallelism.num_gpus,
        )  # fmt: skip

    @property
    def peak(self) -> float:
        """FLOP/s of one GPU on the formats of the linear layers."""
        return self.step.laws.peak_flops(self.resolved.precision.linear.law)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain values in SI units."""
        model, budget = self.resolved.model, self.resolved.budget
        return {
            "model": model.name,
            "gpu": self.resolved.profile.name,
            "num_gpus": self.resolved.parallelism.num_gpus,
            "system": self.resolved.system.name,
            "weights_dtype": self.resolved.precision.weights,
            "kv_cache_dtype": self.resolved.precision.kv,
            "prompt": self.prompt,
            "output": self.output,
            "batch": self.batch,
            "total_parameters": model.total_parameters,
            "active_parameters": model.active_parameters,
            "prefill_flops": self.batch * model.prefill_flops(self.prompt),
            "flops_per_decoded_token": model.flops_per_token(self.prompt + self.output / 2),
            "kv_bytes_per_token": model.kv_bytes_per_token(self.resolved.precision.kv)
            * (self.resolved.deployment.kv_cache is not False),
            "memory_bytes": {**budget.items, "unused": budget.unused, "total": budget.total},
            "num_gpu_blocks": self.resolved.num_gpu_blocks,
            "kv_cache_tokens": self.resolved.num_gpu_blocks * budget.block_size,
            "max_batch": self.max_batch,
            "prefill": self.prefill.as_dict(),
            "decode": self.decode.as_dict(),
            **{
                f"{kind}_{name}": getattr(self, method)(ideal=kind == "ideal")
                for kind in ("ideal", "expected")
                for name, method in (
                    ("ttft_s", "ttft"), ("tpot_s", "tpot"), ("output_tokens_per_s", "throughput")
                )
            },
            "hand_calculation": self.hand.as_dict(),
            "speculation": None if self.speculation is None else self.speculation.as_dict(),
        }  # fmt: skip
