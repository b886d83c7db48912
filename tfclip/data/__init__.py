"""Tracklets and where they come from: readers, drawn people, and files of embeddings.

Each name loads its module when first used, so that reading a table does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfclip.data.benchmarks import Counts as Counts
    from tfclip.data.benchmarks import Dataset as Dataset
    from tfclip.data.benchmarks import DatasetSpec as DatasetSpec
    from tfclip.data.benchmarks import Protocol as Protocol
    from tfclip.data.benchmarks import ProtocolRule as ProtocolRule
    from tfclip.data.benchmarks import Split as Split
    from tfclip.data.benchmarks import dataset_names as dataset_names
    from tfclip.data.benchmarks import load_dataset as load_dataset
    from tfclip.data.benchmarks import own_dataset as own_dataset
    from tfclip.data.benchmarks import read_ag_vpreid as read_ag_vpreid
    from tfclip.data.benchmarks import read_g2a_vreid as read_g2a_vreid
    from tfclip.data.benchmarks import read_ilidsvid as read_ilidsvid
    from tfclip.data.benchmarks import read_lsvid as read_lsvid
    from tfclip.data.benchmarks import read_market1501 as read_market1501
    from tfclip.data.benchmarks import read_mars as read_mars
    from tfclip.data.benchmarks import read_msmt17 as read_msmt17
    from tfclip.data.benchmarks import read_parts as read_parts
    from tfclip.data.benchmarks import read_prid2011 as read_prid2011
    from tfclip.data.box_files import read_boxes as read_boxes
    from tfclip.data.box_files import read_mot as read_mot
    from tfclip.data.box_files import read_tracks as read_tracks
    from tfclip.data.clips import ClipDataset as ClipDataset
    from tfclip.data.clips import TrackletDataset as TrackletDataset
    from tfclip.data.clips import collate_tracklets as collate_tracklets
    from tfclip.data.doctor import check_dataset as check_dataset
    from tfclip.data.embeddings import EmbeddingTable as EmbeddingTable
    from tfclip.data.embeddings import model_fingerprint as model_fingerprint
    from tfclip.data.encoding import encode_dataset as encode_dataset
    from tfclip.data.encoding import read_tracklets as read_tracklets
    from tfclip.data.mat import read_mat as read_mat
    from tfclip.data.readers import read_folder as read_folder
    from tfclip.data.samplers import IdentitySampler as IdentitySampler
    from tfclip.data.search import search_table as search_table
    from tfclip.data.shards import read_shards as read_shards
    from tfclip.data.synthetic import SyntheticTracklets as SyntheticTracklets
    from tfclip.data.synthetic import SyntheticVideo as SyntheticVideo
    from tfclip.data.tables import read_csv as read_csv
    from tfclip.data.tables import read_table as read_table
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
    "Counts": "benchmarks",
    "Dataset": "benchmarks",
    "DatasetSpec": "benchmarks",
    "EmbeddingTable": "embeddings",
    "IdentitySampler": "samplers",
    "Protocol": "benchmarks",
    "ProtocolRule": "benchmarks",
    "RandomErasing": "transforms",
    "Split": "benchmarks",
    "SyntheticTracklets": "synthetic",
    "SyntheticVideo": "synthetic",
    "Thumbnail": "tracklets",
    "Tracklet": "tracklets",
    "TrackletDataset": "clips",
    "check_dataset": "doctor",
    "collate_tracklets": "clips",
    "dataset_names": "benchmarks",
    "encode_dataset": "encoding",
    "load_dataset": "benchmarks",
    "load_thumbnails": "tracklets",
    "model_fingerprint": "embeddings",
    "own_dataset": "benchmarks",
    "read_ag_vpreid": "benchmarks",
    "read_boxes": "box_files",
    "read_csv": "tables",
    "read_folder": "readers",
    "read_g2a_vreid": "benchmarks",
    "read_ilidsvid": "benchmarks",
    "read_lsvid": "benchmarks",
    "read_market1501": "benchmarks",
    "read_mars": "benchmarks",
    "read_mat": "mat",
    "read_mot": "box_files",
    "read_msmt17": "benchmarks",
    "read_parts": "benchmarks",
    "read_prid2011": "benchmarks",
    "read_shards": "shards",
    "read_table": "tables",
    "read_tracklets": "encoding",
    "read_tracks": "box_files",
    "search_table": "search",
}

__all__ = [
    "ClipDataset",
    "ClipTransform",
    "ColourJitter",
    "Counts",
    "Dataset",
    "DatasetSpec",
    "EmbeddingTable",
    "IdentitySampler",
    "Protocol",
    "ProtocolRule",
    "RandomErasing",
    "Split",
    "SyntheticTracklets",
    "SyntheticVideo",
    "Thumbnail",
    "Tracklet",
    "TrackletDataset",
    "check_dataset",
    "collate_tracklets",
    "dataset_names",
    "encode_dataset",
    "load_dataset",
    "load_thumbnails",
    "model_fingerprint",
    "own_dataset",
    "read_ag_vpreid",
    "read_boxes",
    "read_csv",
    "read_folder",
    "read_g2a_vreid",
    "read_ilidsvid",
    "read_lsvid",
    "read_market1501",
    "read_mars",
    "read_mat",
    "read_mot",
    "read_msmt17",
    "read_parts",
    "read_prid2011",
    "read_shards",
    "read_table",
    "read_tracklets",
    "read_tracks",
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
