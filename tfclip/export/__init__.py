"""Models as files that run without this library: torch.export, ONNX and OpenVINO.

An export that does not give the model's own embeddings is refused; ``docs/export.md`` says what a
consumer has to do, and which format is the fastest.
"""

from __future__ import annotations

from tfclip.export.exporting import Format, export_model
from tfclip.export.graph import Pixels, Precision
from tfclip.export.parity import Latency, ParityReport, Trial
from tfclip.export.runtimes import ExportedModel

__all__ = [
    "ExportedModel",
    "Format",
    "Latency",
    "ParityReport",
    "Pixels",
    "Precision",
    "Trial",
    "export_model",
]
