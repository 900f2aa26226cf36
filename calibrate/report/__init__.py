"""Pages that show a calibration and its validation: self-contained HTML that opens without a network."""

from calibrate.report.fit_page import write_fit_report
from calibrate.report.validation_page import validation_sections, write_validation_report

__all__ = ["validation_sections", "write_fit_report", "write_validation_report"]
