"""Tracklets and where they come from: readers, drawn people, and files of embeddings.

Each name loads its module when first used, so that reading a table does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfclip.data.clips import ClipDataset as ClipDataset
    from tfclip.data.embeddings import EmbeddingTable as EmbeddingTable
    from tfclip.data.embeddings import model_fingerprint as model_fingerprint
    from tfclip.data.readers import read_csv as read_csv
    from tfclip.data.readers import read_folder as read_folder
    from tfclip.data.readers import read_mot as read_mot
    from tfclip.data.samplers import IdentitySampler as IdentitySampler
    from tfclip.data.search import search_table as search_table
    from tfclip.data.synthetic import SyntheticTracklets as SyntheticTracklets
    from tfclip.data.tracklets import Thumbnail as Thumbnail
    from tfclip.data.tracklets import Tracklet as Tracklet
    from tfclip.data.tracklets import load_thumbnails as load_thumbnails
    from tfclip.data.transforms import ClipTransform as ClipTransform
    from tfclip.data.transforms import ColourJitter as ColourJitter
    from tfclip.data.transforms import RandomErasing as RandomErasing

_HOMES = {
    "ClipDataset": "clips",
    "ClipTransform": "transforms",
    "ColourJitter": "transforms",
    "EmbeddingTable": "embeddings",
    "IdentitySampler": "samplers",
    "RandomErasing": "transforms",
    "SyntheticTracklets": "synthetic",
    "Thumbnail": "tracklets",
    "Tracklet": "tracklets",
    "load_thumbnails": "tracklets",
    "model_fingerprint": "embeddings",
    "read_csv": "readers",
    "read_folder": "readers",
    "read_mot": "readers",
    "search_table": "search",
}

__all__ = [
    "ClipDataset",
    "ClipTransform",
    "ColourJitter",
    "EmbeddingTable",
    "IdentitySampler",
    "RandomErasing",
    "SyntheticTracklets",
    "Thumbnail",
    "Tracklet",
    "load_thumbnails",
    "model_fingerprint",
    "read_csv",
    "read_folder",
    "read_mot",
    "search_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfclip.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tfclip.data.{_HOMES[name]}"), name)
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
