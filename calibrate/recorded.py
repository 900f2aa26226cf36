"""A run that the engine recorded, and the simulator in its place.

The recorded deployment is simulated on a profile, with exactly the arguments that the engine gave its policy; or on
the recorded step times, handed out in the order in which they were measured. Then the simulator must decide what the
engine decided and give every token at the engine's moment: what differs is not the profile's.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from calibrate.decisions import Decision, DecisionLog, first_difference
from calibrate.fit.raw import host_traits
from simulator.deployment import Deployment, Resolved
from simulator.errors import InputError, SimError
from simulator.memory import MemoryBudget
from simulator.scheduling import Scheduler
from simulator.scheduling.system import find_system
from simulator.simulation import Result, simulate
from simulator.steptime import StepTime
from simulator.workload import Trace

__all__ = [
    "OutOfStepsError",
    "RecordedDeployment",
    "RecordedSteps",
    "SameSteps",
    "find_recordings",
    "read_recording",
    "recorded_trace",
    "resolve_recorded",
    "simulate_same_steps",
]

NEEDED = ("model", "system", "policy", "num_gpu_blocks", "block_size", "graph_sizes", "requests", "steps")


class OutOfStepsError(SimError):
    """The simulator asks for more iterations than were recorded."""


class RecordedSteps:
    """Takes the place of `simulator.steptime.StepTime` where every iteration is taken by itself (``stepped``).

    *seconds* of every iteration and the number of *forwards* that each is made of.
    """

    def __init__(self, seconds: Sequence[float], forwards: Sequence[int]) -> None:
        self._parts = [
            (duration / count, count) for duration, count in zip(seconds, forwards, strict=True) if count
        ]
        self._next, self._left = 0, 0

    def seconds(self, num_decodes: int, decode_context: int, prefills: Any = ()) -> float:
        """The next duration, whatever the batch."""
        if self._next == len(self._parts):
            raise OutOfStepsError(f"only {self._next} iterations were recorded")
        duration, count = self._parts[self._next]
        self._left = (self._left or count) - 1
        self._next += not self._left
        return duration

    @classmethod
    def of(cls, steps: Sequence[Mapping[str, Any]]) -> RecordedSteps:
        """Those of a recording."""
        return cls([step["seconds"] for step in steps], [step["forwards"] for step in steps])


@dataclass(frozen=True)
class RecordedDeployment(Resolved):
    """A resolved deployment whose policy gets exactly the recorded arguments, and is listened to in `logs`."""

    policy: dict[str, Any] = field(default_factory=dict)
    logs: list[DecisionLog] = field(default_factory=list)

    def scheduler(self, **more: Any) -> Scheduler:
        made = self.system.policy_class(**{**self.policy, **self.system.fixed, **more})
        self.logs.append(DecisionLog(made))
        return made


@dataclass(frozen=True)
class SameSteps:
    """The simulation that was given the recorded step times.

    *difference* is the first iteration that was decided otherwise (None: all were decided alike), *decided* what the
    simulator decided there; *result* is None where it asked for more iterations than there were.
    """

    count: int
    difference: int | None
    decided: Decision | None
    result: Result | None

    def text(self) -> str:
        """One line for a reader."""
        if self.difference is None:
            return f"decisions: given the recorded step times, all {self.count} batches are the engine's"
        where = f"decisions: batch {self.difference + 1} of {self.count} is not the engine's"
        return f"{where}; the simulator's: {self.decided or 'none'}"


def find_recordings(places: Sequence[Path]) -> list[Path]:
    """The files themselves, and those that end in ``.json.gz`` of the folders, sorted."""
    found: list[Path] = []
    for place in places:
        found += sorted(place.glob("*.json.gz")) if place.is_dir() else [place]
        if not found:
            raise InputError(place, "holds no recording (.json.gz)")
    return found


def read_recording(path: Path) -> dict[str, Any]:
    """A run that `calibrate.measure.recording` wrote, as JSON or compressed (``.json.gz``)."""
    try:
        data = path.read_bytes()
        content = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(path, f"cannot be decompressed, and is perhaps cut short: {error}") from error
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(path, f"must be JSON, and is perhaps cut short: {error}") from error
    for name in NEEDED:
        if not isinstance(content, dict) or name not in content:
            raise InputError(path, "is not a recorded run", field=name)
    return dict(content)


def recorded_trace(recording: Mapping[str, Any]) -> Trace:
    """The recorded requests; one that was given up would have gone on to its limit."""
    requests = pd.DataFrame(recording["requests"])
    done = requests["status"] == "finished"
    outputs = requests["token_times"].map(len).where(done, requests["max_tokens"])
    columns = (requests["arrival"], requests["input_length"], outputs)
    return Trace.from_columns(*columns, max_tokens=requests["max_tokens"])


def resolve_recorded(
    recording: Mapping[str, Any], profile: str, model: str | None = None
) -> RecordedDeployment:
    """The recorded deployment on *profile*: the engine's policy, its blocks and its host instead of a product's."""
    policy = {**recording["policy"], "explicit": True}
    stated = {"max_model_len": policy["max_model_len"]} if "max_model_len" in policy else {}
    block = policy.get("block_size", find_system(recording["system"]).block_size)
    resolved = Deployment.of(
        model=model or recording["model"],
        gpu=profile,
        system=recording["system"],
        num_gpu_blocks=max(1, recording["num_gpu_blocks"] * recording["block_size"] // block),
        **stated,
    ).resolve()
    traits = host_traits(resolved.profile.host, recording["graph_sizes"])
    old = resolved.steptime
    steptime = StepTime(old.model, old.laws, old.parallelism, traits, old.precision)
    given = {name: getattr(resolved, name) for name in resolved.__dataclass_fields__}
    given |= {"limits": policy, "steptime": steptime, "budget": _in_blocks_of(resolved.budget, block)}
    return RecordedDeployment(**given, policy=policy)


def _in_blocks_of(budget: MemoryBudget, size: int) -> MemoryBudget:
    """*budget* in blocks of *size* tokens, of which the engine's kernels take any."""
    return replace(budget, block_size=size, block_bytes=budget.block_bytes / budget.block_size * size)


def simulate_same_steps(recording: Mapping[str, Any], resolved: RecordedDeployment) -> SameSteps:
    """Simulate the recorded run with its own step times, and compare decision by decision."""
    watched = replace(resolved, steptime=RecordedSteps.of(recording["steps"]), logs=[])  # type: ignore[arg-type]
    try:
        result = simulate(recorded_trace(recording), watched, percentiles=(50, 90, 99), stepped=True)
    except OutOfStepsError:
        result = None
    decisions = list(watched.logs[0])
    theirs = [step["decision"] for step in recording["steps"]]
    place = first_difference(theirs, [decision.digest for decision in decisions])
    decided = decisions[place] if place is not None and place < len(decisions) else None
    return SameSteps(len(theirs), place, decided, result)
