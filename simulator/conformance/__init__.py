"""Recorded decisions of real schedulers, replayed through ours.

A case is a file of arrivals by iteration and, for every iteration, what the real scheduler decided. Each
format has a module here that feeds the arrivals to our policy and yields what we decided in the recording's own terms;
`check` compares the two, iteration by iteration.
"""

from simulator.conformance.case import Case, Difference, Verdict, check, load_case

__all__ = ["Case", "Difference", "Verdict", "check", "load_case"]
