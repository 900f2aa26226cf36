"""The field's well-known claims about LLM serving, and what the simulation says to each.

from simulator.claims import Workloads, find_claims, reproduce

for result in reproduce(find_claims(["kv-waste"]), Workloads()):
    print(result.outcome.ours)
"""

from simulator.claims.claim import Claim, Outcome, Published, Range, compare
from simulator.claims.lengths import Workloads
from simulator.claims.registry import Reproduced, find_claims, list_claims, reproduce

__all__ = [
    "Claim",
    "Outcome",
    "Published",
    "Range",
    "Reproduced",
    "Workloads",
    "compare",
    "find_claims",
    "list_claims",
    "reproduce",
]
