"""From measurements to the laws of a profile: robust smooth fit, correction on few knots, held-out error by
shape."""

from calibrate.fit.families import FAMILIES, Axis, Family, predict_rows
from calibrate.fit.law_fit import LawFit, error_summary, shape_numbers
from calibrate.fit.profiles import Fitted, fit_folder, fit_frames
from calibrate.fit.resident import resident_rows, usable_rows
from calibrate.fit.score import Score, score_frames, summarize
from calibrate.fit.smooth import SmoothLaw
from calibrate.fit.surface import Surface

__all__ = [
    "FAMILIES",
    "Axis",
    "Family",
    "Fitted",
    "LawFit",
    "Score",
    "SmoothLaw",
    "Surface",
    "error_summary",
    "fit_folder",
    "fit_frames",
    "predict_rows",
    "resident_rows",
    "score_frames",
    "shape_numbers",
    "summarize",
    "usable_rows",
]
