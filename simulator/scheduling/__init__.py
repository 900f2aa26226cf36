"""Scheduling policies: the same objects are driven by the simulator and by the engine.

A policy decides, iteration by iteration, which sequences compute how many tokens; its block manager decides where
their KV lives. Neither knows a clock or a device. Needs nothing but the standard library.
"""

from simulator.scheduling.base import Batch, Scheduler, Wait
from simulator.scheduling.blocks import BlockManager
from simulator.scheduling.decoding import DecodeSet
from simulator.scheduling.request import Content, Request
from simulator.scheduling.vllm_v1 import V1Rules, VllmV1

__all__ = [
    "Batch",
    "BlockManager",
    "Content",
    "DecodeSet",
    "Request",
    "Scheduler",
    "V1Rules",
    "VllmV1",
    "Wait",
]
