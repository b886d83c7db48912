"""Public benchmarks: their layouts, their protocols, and what should be in them.

A reader is a function of the data set's folder. It reads lists and lists folders, opens no image,
downloads nothing and writes nothing. Labels and the order of tracklets come from the data set's own
lists, or from the natural order of names; never from the order in which a disk lists its files.
"""

from __future__ import annotations

from tfclip.data.benchmarks.aerial import read_ag_vpreid
from tfclip.data.benchmarks.folders import read_parts
from tfclip.data.benchmarks.images import read_market1501, read_msmt17
from tfclip.data.benchmarks.lsvid import read_lsvid
from tfclip.data.benchmarks.mars import read_g2a_vreid, read_mars
from tfclip.data.benchmarks.own import own_dataset
from tfclip.data.benchmarks.pairs import read_ilidsvid, read_prid2011
from tfclip.data.benchmarks.records import (
    Counts,
    Dataset,
    DatasetSpec,
    Protocol,
    ProtocolRule,
    Split,
)
from tfclip.data.benchmarks.registry import dataset_names, find_spec, load_dataset

__all__ = [
    "Counts",
    "Dataset",
    "DatasetSpec",
    "Protocol",
    "ProtocolRule",
    "Split",
    "dataset_names",
    "find_spec",
    "load_dataset",
    "own_dataset",
    "read_ag_vpreid",
    "read_g2a_vreid",
    "read_ilidsvid",
    "read_lsvid",
    "read_market1501",
    "read_mars",
    "read_msmt17",
    "read_parts",
    "read_prid2011",
]
