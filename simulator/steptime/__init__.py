"""From the work of a step to its seconds: operators, laws, host; `StepTime` puts them together."""

from simulator.steptime.operators import Operator, step_operators
from simulator.steptime.parallelism import Parallelism
from simulator.steptime.protocol import Laws
from simulator.steptime.roofline import RooflineLaws
from simulator.steptime.steptime import StepTime
from simulator.steptime.traits import HostTraits, list_traits, load_traits
from simulator.steptime.work import OperatorWork, step_work

__all__ = [
    "HostTraits",
    "Laws",
    "Operator",
    "OperatorWork",
    "Parallelism",
    "RooflineLaws",
    "StepTime",
    "list_traits",
    "load_traits",
    "step_operators",
    "step_work",
]
