"""The techniques that make inference fast, as switches of a deployment: options, checks, and what each changes."""

from simulator.techniques.checks import check, check_context_parallel, check_speculation
from simulator.techniques.equipment import Equipment, policy_of
from simulator.techniques.memory import SCORES_CONTEXT, extra_memory, without_kv
from simulator.techniques.options import Techniques
from simulator.techniques.variants import kernels_of, traits_of, vary_attention, without_graphs

__all__ = [
    "SCORES_CONTEXT",
    "Equipment",
    "Techniques",
    "check",
    "check_context_parallel",
    "check_speculation",
    "extra_memory",
    "kernels_of",
    "policy_of",
    "traits_of",
    "vary_attention",
    "without_graphs",
    "without_kv",
]
