"""Published serving measurements: read, simulated as what they were, and compared."""

from calibrate.serving.case import Case, CaseSet
from calibrate.serving.read import read_cases, read_closed_loops, thin
from calibrate.serving.schedule import Schedule, record_schedule
from calibrate.serving.score import ServingScore, predict_case, score_cases, summarize_serving

__all__ = [
    "Case",
    "CaseSet",
    "Schedule",
    "ServingScore",
    "predict_case",
    "read_cases",
    "read_closed_loops",
    "record_schedule",
    "score_cases",
    "summarize_serving",
    "thin",
]
