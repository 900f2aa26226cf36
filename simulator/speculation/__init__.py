"""Speculative decoding as a switch of a deployment: what is stated, what it means for model, memory and policy."""

from simulator.speculation.option import METHODS, Speculation, Stated
from simulator.speculation.plan import SpeculationPlan, plan_speculation

__all__ = ["METHODS", "Speculation", "SpeculationPlan", "Stated", "plan_speculation"]
