"""Cases recorded from vLLM 0.6.3 (``vllm-0.6.3-*``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.conformance.case import Case
from simulator.conformance.groups import GroupDriver
from simulator.scheduling.base import Batch
from simulator.scheduling.vllm_v0 import VllmV0

__all__ = ["replay"]


def replay(case: Case) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Our decisions beside the recorded ones, an iteration at a time."""
    scheduler = _scheduler(case.config)
    driver = GroupDriver(case, scheduler)
    for theirs, batch, finished in driver.run():
        ours = _decisions(driver, batch or Batch())
        ours.update(
            step=theirs["step"],
            finished=finished,
            running=scheduler.num_running,
            waiting=len(scheduler.waiting),
            swapped=len(scheduler.swapped),
            free_blocks=scheduler.blocks.num_free,
        )
        compared = {k: theirs[k] for k in ours if k in theirs}
        compared.update(finished=sorted(theirs["finished"]), ignored=sorted(theirs["ignored"]))
        yield ours, compared


def _scheduler(config: dict[str, Any]) -> VllmV0:
    return VllmV0(
        num_gpu_blocks=config["num_blocks"],
        num_cpu_blocks=config["num_cpu_blocks"],
        block_size=config["block_size"],
        max_num_seqs=config["max_num_seqs"],
        max_num_batched_tokens=config["max_num_batched_tokens"],
        max_model_len=config["max_model_len"],
        enable_chunked_prefill=config.get("enable_chunked_prefill", False),
        enable_prefix_caching=config["enable_prefix_caching"],
        policy=config.get("policy", "fcfs"),
        preemption_mode=config.get("preemption_mode"),
        explicit=True,
    )


def _decisions(driver: GroupDriver, batch: Batch) -> dict[str, Any]:
    scheduled = driver.scheduled(batch)
    prompts = {driver.ids[sequence.index] for sequence, _, _ in driver.prompts(batch)}
    notes: dict[str, Any] = batch.notes or {}
    forced = notes.get("forced", 0)  # the release does not count those that made way
    return {
        "scheduled": scheduled,
        "is_prefill": {id: id in prompts for id in scheduled},
        "preempted": len(driver.preempted(batch)[forced:]),
        "ignored": sorted(request.id for request, _ in batch.rejected),
        "swap_in": batch.blocks_swapped_in,
        "swap_out": batch.blocks_swapped_out,
        "copy": batch.blocks_copied,
    }
