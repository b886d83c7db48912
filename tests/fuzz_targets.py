"""What is fuzzed: every file that tfclip parses, small valid samples of it, what may be raised."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzzing import data_sets, frames, galleries, tables, tracks, weights
from tests.fuzzing.target import MIB, Samples, Target

__all__ = ["MIB", "TARGETS", "Samples", "Target"]

TARGETS: Mapping[str, Target] = {
    **weights.TARGETS,
    **tables.TARGETS,
    **frames.TARGETS,
    **galleries.TARGETS,
    **tracks.TARGETS,
    **data_sets.TARGETS,
}
