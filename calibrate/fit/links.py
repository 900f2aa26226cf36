"""What a ring over PCIe reaches, from published runs on boxes without NVLink.

Nobody publishes the links of such a box beside its throughput, but throughput shows them: with four L40S a Llama-70B
spends more time in all-reduces than in products. So every run with several GPUs is simulated with a ladder of ring
bandwidths, as shares of the rate of card and host; the share that is least off over all of them is the law's. A (GPU,
system, model) group is judged by the share that the other groups give.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibrate.serving.case import Case
from calibrate.serving.score import predict_case
from simulator.deployment import Deployment
from simulator.errors import InputError, SimError
from simulator.steptime.engine_costs import engine_costs_file
from simulator.steptime.interconnect import GB, find_interconnect, host_rate

__all__ = ["LinkFit", "fit_links", "pcie_cases"]

Array = NDArray[np.float64]
SHARES = (0.15, 0.25, 0.35, 0.45, 0.55, 0.7, 0.9)
FINE = np.round(np.arange(SHARES[0], SHARES[-1], 0.01), 2)
SCALE = 0.12
"""Where the loss turns from quadratic to logarithmic, in ln: some rows of any collection are not what they say."""


@dataclass(frozen=True)
class LinkFit:
    """*share* of the PCIe rate of card and host, the same for all numbers of GPUs; by number it is ``by_gpus``.

    *errors*: one row per measured value with ``gpu``, ``gpus``, ``group`` and ``held_out``, predicted / measured - 1
    with the share of the other groups.
    """

    share: float
    by_gpus: dict[int, float]
    errors: pd.DataFrame


def pcie_cases(cases: Sequence[Case]) -> list[Case]:
    """Those of *cases* whose tensor parallel ring runs over PCIe, by systems whose own costs are fitted."""
    known = engine_costs_file()["systems"]
    return [case for case in cases if case.traits in known and _over_pcie(case.deployment, case.gpu)]


def _over_pcie(deployment: Deployment, gpu: str) -> bool:
    from hwprofiles import load_profile

    box = find_interconnect(load_profile(gpu), deployment.interconnect, deployment.interconnect_bandwidth)
    size = deployment.tensor_parallel_size
    return size > 1 and box.ring_bandwidth is None and box.over_pcie(size)


def fit_links(cases: Sequence[Case], progress: Callable[[], None] | None = None) -> LinkFit:
    """The share that explains *cases* (see `pcie_cases`) best. Raises `InputError` if none can be simulated."""
    frames = []
    for case in cases:
        frames += _ladder(case)
        if progress is not None:
            progress()
    if not frames:
        raise InputError("data", "holds no run with several GPUs over PCIe that can be simulated")
    table = pd.DataFrame(frames)
    logs = np.array([np.interp(FINE, SHARES, ladder) for ladder in table.pop("logs")])
    held_out = np.empty(len(table))
    for group in table["group"].unique():
        mine = (table["group"] == group).to_numpy()
        others = logs[~mine] if (~mine).any() else logs
        held_out[mine] = logs[mine][:, _best(others)]
    by_gpus = {
        int(n): float(FINE[_best(logs[(table["gpus"] == n).to_numpy()])]) for n in np.unique(table["gpus"])
    }
    return LinkFit(float(FINE[_best(logs)]), by_gpus, table.assign(held_out=np.expm1(held_out)))


def _ladder(case: Case) -> list[dict[str, object]]:
    """ln(predicted / measured) at every share, one row per measured value; none if the case cannot be simulated."""
    rate = host_rate(case.resolve().profile) / GB
    try:
        steps = [predict_case(_with_ring(case, share * rate)) for share in SHARES]
    except SimError:
        return []  # counted by `sim validate serving`, which says why
    name = {"gpu": case.gpu, "gpus": case.deployment.tensor_parallel_size, "group": "/".join(case.group)}
    return [
        {**name, "logs": [float(np.log(step[metric] / value)) for step in steps]}
        for metric, value in case.measured.items()
    ]


def _with_ring(case: Case, ring_gbs: float) -> Case:
    stated = case.deployment.model_copy(update={"interconnect": "pcie", "interconnect_bandwidth": ring_gbs})
    return replace(case, deployment=stated)


def _best(logs: Array) -> int:
    """Index of the share with the least Cauchy loss over rows."""
    return int(np.argmin(np.log1p((logs / SCALE) ** 2).sum(axis=0)))
