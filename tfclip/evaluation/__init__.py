"""A model on a data set: encode, rank by a protocol, and report what was measured and how."""

from __future__ import annotations

from tfclip.evaluation.files import write_page, write_report
from tfclip.evaluation.fitting import FittedThreshold, fit_on_training, save_calibrated
from tfclip.evaluation.report import EvaluationReport, EvaluationRow, Verification
from tfclip.evaluation.run import evaluate_model

__all__ = [
    "EvaluationReport",
    "EvaluationRow",
    "FittedThreshold",
    "Verification",
    "evaluate_model",
    "fit_on_training",
    "save_calibrated",
    "write_page",
    "write_report",
]
