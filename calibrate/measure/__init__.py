"""Measuring a device through the bundled engine; needs nothing but numpy and torch.

`grid` says what is measured, `workbench` runs it and `collectives` what takes several devices, `campaign` writes raw
samples and resumes, `job` is all of it: ``python -m calibrate measure``.
"""

from calibrate.measure.campaign import Campaign
from calibrate.measure.grid import Limits, operator_shots, step_shots
from calibrate.measure.records import RawFolder
from calibrate.measure.shot import Sample, Shot

__all__ = ["Campaign", "Limits", "RawFolder", "Sample", "Shot", "operator_shots", "step_shots"]
