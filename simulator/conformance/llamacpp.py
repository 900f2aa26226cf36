"""Cases recorded from llama.cpp's server (``llamacpp-0.3.36-*``): one row per pass of its loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.conformance.case import Case
from simulator.scheduling.base import Batch
from simulator.scheduling.llamacpp import LlamaCpp
from simulator.scheduling.llamacpp_slots import Completion
from simulator.scheduling.request import Request

__all__ = ["replay"]

OPTIONS = (
    "n_parallel",
    "n_ctx",
    "n_batch",
    "n_ubatch",
    "kv_unified",
    "kv_unified_per_slot",
    "cont_batching",
    "cache_ram_mib",
    "cache_idle_slots",
    "cache_reuse",
    "slot_prompt_similarity",
    "context_shift",
)
WISHES = ("cache_prompt", "id_slot", "n_keep", "n_discard")
KV_BYTES = 128
"""Of one token of the recorded model: one layer, 32 wide, K and V in two bytes."""
LENGTHS = {"launch": 4, "load": 1}
"""Fields that are compared; the rest are fractions rounded for print."""


def replay(case: Case) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Our decisions beside the recorded ones, a pass of the loop at a time."""
    loop = _Loop(case)
    arrivals = list(reversed(case.requests))
    for theirs in case.steps:
        while arrivals and arrivals[-1]["arrival_step"] <= theirs["step"]:
            loop.add(arrivals.pop(), theirs["step"])
        started = [id for id, r in case.raw["results"].items() if r.get("first_step") == theirs["step"]]
        ours = loop.run(theirs["step"])
        ours["cached"] = {id: loop.cached.get(id) for id in started}
        yield ours, _expected(theirs) | {"cached": {id: case.raw["results"][id]["cached"] for id in started}}


class _Loop:
    def __init__(self, case: Case) -> None:
        config = {name: case.config[name] for name in OPTIONS if name in case.config}
        names = {name for r in case.requests for name, _ in r["prompt"]} | {
            f"out:{r['id']}" for r in case.requests
        }
        self.names = {name: i for i, name in enumerate(sorted(names))}
        constant = case.raw.get("token_mode") == "constant"
        uniform = {i for name, i in self.names.items() if constant or name.startswith("out:")}
        self.scheduler = LlamaCpp(
            num_kv_cells=config["n_ctx"],
            kv_bytes_per_token=KV_BYTES,
            uniform=uniform,
            explicit=True,
            **config,
        )
        self.limits = {i: r["n_predict"] for i, r in enumerate(case.requests)}
        self.shifts = case.config.get("context_shift", False)
        self.cached: dict[str, int] = {}
        self.num_added = 0

    def add(self, r: dict[str, Any], step: int) -> None:
        request = Request(
            r["id"],
            sum(n for _, n in r["prompt"]),
            r["n_predict"],
            index=self.num_added,
            n=r.get("n_cmpl", 1),
            content=[(self.names[name], n) for name, n in r["prompt"]],
            output_id=self.names[f"out:{r['id']}"],
        )
        request.state = Completion(**{name: r[name] for name in WISHES if name in r})
        self.num_added += 1
        self.scheduler.add(request, step)

    def run(self, step: int) -> dict[str, Any]:
        prefill: dict[str, int] = {}
        decode: list[str] = []
        while True:
            batch = self.scheduler.schedule(step)
            if not isinstance(batch, Batch):
                break
            for request, chunk, _ in batch.prefills:
                prefill[request.id] = prefill.get(request.id, 0) + chunk
            decode += [request.id for request in batch.decodes or ()]
            self.cached |= {request.id: tokens for request, tokens in batch.cached.items()}
            rows = [*(batch.decodes or ()), *batch.joining]
            self.scheduler.commit(batch, [request for request in rows if self._ends(request)], step)
            if not self.scheduler.mid_step:
                break
        return {"step": step, "prefill": prefill, "decode": decode, **self._journal()}

    def _ends(self, request: Request) -> bool:
        full = not self.shifts and self.scheduler.tokens(request) + 1 >= self.scheduler.n_ctx
        return full or self.scheduler.decoding.generated(request) == self.limits[request.index]

    def _journal(self) -> dict[str, Any]:
        journal = [list(entry) for entry in self.scheduler.journal]
        start = journal.index(["step"])
        calls = [entry[1:] for entry in journal if entry[0] == "call"]
        return {
            "queue": [entry[: LENGTHS.get(entry[0])] for entry in journal[:start]],
            "calls": calls if len(calls) > 1 or any(code for _, code in calls) else [],
            "events": [e for e in journal[start + 1 :] if e[0] not in ("call", "release")],
            "released": [entry[1:] for entry in journal if entry[0] == "release"],
        }


def _expected(theirs: dict[str, Any]) -> dict[str, Any]:
    events = [["error", e[1], _kind(e[2])] if e[0] == "error" else e for e in theirs.get("events", [])]
    return {
        "step": theirs["step"],
        "prefill": theirs["prefill"],
        "decode": theirs["decode"],
        "queue": [entry[: LENGTHS.get(entry[0])] for entry in theirs.get("queue", [])],
        "calls": theirs.get("calls", []),
        "events": events,
        "released": theirs.get("released", []),
    }


def _kind(message: str) -> str:
    """What the server's error *message* is about."""
    kinds = {"Context size": "exceeded", "request (": "prompt", "context shift": "shared"}
    return next((kind for start, kind in kinds.items() if message.startswith(start)), message)
