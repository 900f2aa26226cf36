"""Cases recorded from vLLM 0.2.7 (``vllm-0.2.7-*``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from simulator.conformance.case import Case
from simulator.conformance.groups import GroupDriver
from simulator.scheduling.base import Batch
from simulator.scheduling.vllm_027 import Vllm027

__all__ = ["replay"]


def replay(case: Case) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Our decisions beside the recorded ones, an iteration at a time."""
    config = case.config
    scheduler = Vllm027(
        num_gpu_blocks=config["num_blocks"],
        num_cpu_blocks=config["num_cpu_blocks"],
        block_size=config["block_size"],
        max_num_seqs=config["max_num_seqs"],
        max_num_batched_tokens=config["max_num_batched_tokens"],
        max_model_len=config["max_model_len"],
        max_paddings=config["max_paddings"],
        explicit=True,
    )
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
            free_cpu_blocks=scheduler.swap.num_free,
        )
        yield ours, {**{k: theirs[k] for k in ours if k in theirs}, "finished": sorted(theirs["finished"])}


def _decisions(driver: GroupDriver, batch: Batch) -> dict[str, Any]:
    prompts = bool(driver.prompts(batch) or batch.rejected)
    tokens = batch.num_tokens + batch.padded_tokens
    return {
        "prompt_run": prompts,
        "scheduled": driver.scheduled(batch),
        "num_batched_tokens": tokens,
        "preempted": driver.preempted(batch),
        "ignored": [request.id for request, _ in batch.rejected],
        "swap_in": batch.blocks_swapped_in,
        "swap_out": batch.blocks_swapped_out,
        "copy": batch.blocks_copied,
    }
