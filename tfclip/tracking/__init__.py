"""Tracks of a live video: embeddings that grow with them, and what the trackers people use ask for.

``TrackletEncoder`` gives one embedding for each track at any moment; ``CropEncoder`` gives one for
each detection, in the forms in which trackers ask for it.
"""

from __future__ import annotations

from tfclip.tracking.adapters import CropEncoder, embedding_distance
from tfclip.tracking.encoder import TrackletEncoder
from tfclip.tracking.quality import Judgement, QualityGate, sharpness
from tfclip.tracking.tracked import Tracked, tracked_boxes
from tfclip.tracking.tracks import TrackState

__all__ = [
    "CropEncoder",
    "Judgement",
    "QualityGate",
    "TrackState",
    "Tracked",
    "TrackletEncoder",
    "embedding_distance",
    "sharpness",
    "tracked_boxes",
]
