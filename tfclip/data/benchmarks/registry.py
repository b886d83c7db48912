"""The benchmarks that can be loaded by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tfclip.data.benchmarks.records import Counts, Dataset, DatasetSpec, refuse_withdrawn

_HOME = "tfclip.data.benchmarks"
_RESEARCH = "academic research only"

SPECS = (
    DatasetSpec(
        name="mars",
        title="MARS",
        reader=f"{_HOME}.mars:read_mars",
        expected={
            "train": Counts(
                tracklets=8298, persons=625, frames=509914, cameras=6, shortest=5, longest=900
            ),
            "test": Counts(
                tracklets=12180, persons=636, frames=681089, cameras=6, shortest=2, longest=920
            ),
            "official/query": Counts(tracklets=1980, persons=626),
            "official/gallery": Counts(tracklets=11310, persons=635),
        },
        protocols=("official", "without-queries"),
        layout="""
MARS/
  bbox_train/0001/0001C1T0001F001.jpg ...
  bbox_test/0000/..., 00-1/..., 0002/...
  info/train_name.txt, test_name.txt
  info/tracks_train_info.mat, tracks_test_info.mat, query_IDX.mat
""",
        source="its authors (Liang Zheng and others), images and lists apart from one another",
        terms="no licence stated",
        url="http://www.liangzheng.com.cn/Project/project_mars.html",
        citation="Zheng et al., MARS: A Video Benchmark for Large-Scale Person Re-Identification, "
        "ECCV 2016",
        notes="info/ is github.com/liangzheng06/MARS-evaluation",
    ),
    DatasetSpec(
        name="lsvid",
        title="LS-VID",
        reader=f"{_HOME}.lsvid:read_lsvid",
        expected={
            "train": Counts(tracklets=2831, persons=842, cameras=15),
            "test": Counts(tracklets=11333, persons=2730, cameras=15),
            "official/query": Counts(tracklets=3504),
            "official/gallery": Counts(tracklets=11333),
        },
        protocols=("official", "without-queries"),
        layout="""
LS-VID/
  tracklet_train/..., tracklet_test/...
  info/list_sequence/list_seq_train.txt, list_seq_test.txt   (or list_sequence/)
  info/data/info_test.mat                                    (or test/data/)
""",
        source="its authors, on request",
        terms=f"{_RESEARCH}, by a signed agreement",
        url="http://www.pkuvmc.com/dataset.html",
        citation="Li et al., Global-Local Temporal Representations for Video Person "
        "Re-Identification, ICCV 2019",
        notes="needs h5py: pip install 'tfclip[mat]'",
    ),
    DatasetSpec(
        name="ilidsvid",
        title="iLIDS-VID",
        reader=f"{_HOME}.pairs:read_ilidsvid",
        expected={
            "train": Counts(tracklets=300, persons=150, cameras=2),
            "test": Counts(tracklets=600, persons=300, cameras=2, shortest=23, longest=192),
        },
        protocols=("split-0", "union-gallery", "ten-splits"),
        layout="""
iLIDS-VID/
  i-LIDS-VID/sequences/cam1/person001/*.png, cam2/...
  train-test people splits/train_test_splits_ilidsvid.mat   (or splits.json)
""",
        source="its authors (Queen Mary University of London)",
        terms=f"{_RESEARCH}; the i-LIDS recordings are the UK Home Office's",
        url="http://www.eecs.qmul.ac.uk/~xiatian/downloads_qmul_iLIDS-VID_ReID_dataset.html",
        citation="Wang et al., Person Re-Identification by Video Ranking, ECCV 2014",
        notes="one model a split; the figure of a paper is the mean of ten",
    ),
    DatasetSpec(
        name="prid2011",
        title="PRID2011",
        reader=f"{_HOME}.pairs:read_prid2011",
        expected={
            "train": Counts(tracklets=178, persons=89, cameras=2),
            "test": Counts(tracklets=356, persons=178, cameras=2),
        },
        protocols=("split-0", "ten-splits"),
        layout="""
PRID2011/
  splits_prid2011.json
  prid_2011/multi_shot/cam_a/person_0001/0001.png ..., cam_b/...
""",
        source="its authors (TU Graz)",
        terms="no licence stated",
        url="https://www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/PRID11/",
        citation="Hirzer et al., Person Re-Identification by Descriptive and Discriminative "
        "Classification, SCIA 2011",
        notes="the file of splits comes from later repositories, not from the authors",
    ),
    DatasetSpec(
        name="g2a-vreid",
        title="G2A-VReID",
        reader=f"{_HOME}.mars:read_g2a_vreid",
        expected={},
        protocols=("official", "ground-to-aerial", "aerial-to-ground"),
        layout="""
G2A-VReID/
  bbox_train/..., bbox_test/..., info/...   (as MARS)
""",
        source="its authors (Northwestern Polytechnical University)",
        terms=f"{_RESEARCH}, not for profit, by agreement",
        url="https://github.com/FHR-L/G2A-VReID",
        citation="Zhang et al., Cross-Platform Video Person ReID: A New Benchmark Dataset and "
        "Adaptation Approach, ECCV 2024",
        notes="layout known from loaders of others; 2,788 persons, 5,576 tracklets, 185,907 images "
        "in all, counts of the parts not published",
    ),
    DatasetSpec(
        name="ag-vpreid",
        title="AG-VPReID",
        reader=f"{_HOME}.aerial:read_ag_vpreid",
        expected={
            "train": Counts(persons=689, cameras=6),
            "aerial-to-ground/query": Counts(persons=645),
            "aerial-to-ground/gallery": Counts(persons=645),
            "ground-to-aerial/query": Counts(persons=645),
            "ground-to-aerial/gallery": Counts(persons=1309),
        },
        protocols=("aerial-to-ground", "ground-to-aerial"),
        layout="""
AG-VPReID/
  train/<person>/<tracklet>/*.jpg
  case1_aerial_to_ground/query/..., gallery/...
  case2_ground_to_aerial/query/..., gallery/...
""",
        source="the challenge of 2025 on Kaggle",
        terms="the rules of the challenge",
        url="https://github.com/agvpreid25/AG-VPReID",
        citation="Nguyen et al., AG-VPReID: A Challenging Large-Scale Benchmark for Aerial-Ground "
        "Video-based Person Re-Identification, CVPR 2025",
        notes="counts are those of the challenge's attribute tables",
    ),
    DatasetSpec(
        name="market1501",
        title="Market-1501",
        reader=f"{_HOME}.images:read_market1501",
        expected={
            "train": Counts(tracklets=12936, persons=751, frames=12936, cameras=6),
            "official/query": Counts(tracklets=3368, persons=750),
            "official/gallery": Counts(tracklets=15913, persons=751),
        },
        protocols=("official",),
        layout="""
Market-1501-v15.09.15/
  bounding_box_train/0002_c1s1_000451_03.jpg ...
  bounding_box_test/..., query/...
""",
        source="its authors (Liang Zheng and others)",
        terms="no licence stated",
        url="http://www.liangzheng.com.cn/Project/project_reid.html",
        citation="Zheng et al., Scalable Person Re-Identification: A Benchmark, ICCV 2015",
    ),
    DatasetSpec(
        name="msmt17",
        title="MSMT17",
        reader=f"{_HOME}.images:read_msmt17",
        expected={
            "train": Counts(tracklets=30248, persons=1041, cameras=15),
            "official/query": Counts(tracklets=11659, persons=3060),
            "official/gallery": Counts(tracklets=82161, persons=3060),
        },
        protocols=("official",),
        layout="""
MSMT17_V1/  (or MSMT17_V2/ with mask_train_v2, mask_test_v2)
  train/0000/0000_000_01_0303morning_0015_0.jpg ..., test/...
  list_train.txt, list_val.txt, list_query.txt, list_gallery.txt
""",
        source="its authors, on request",
        terms=f"{_RESEARCH}, by a signed agreement",
        url="http://www.pkuvmc.com/dataset.html",
        citation="Wei et al., Person Transfer GAN to Bridge Domain Gap for Person "
        "Re-Identification, CVPR 2018",
        notes="version 2 has blurred faces; images of list_val are of no tracklet unless with_val",
    ),
)


def dataset_names() -> tuple[str, ...]:
    """Return the names that ``load_dataset`` knows.

    Example:
        >>> dataset_names()[:3]
        ('mars', 'lsvid', 'ilidsvid')
    """
    return tuple(spec.name for spec in SPECS)


def find_spec(name: str | DatasetSpec) -> DatasetSpec:
    """Return the table of a benchmark.

    Args:
        name: One of ``dataset_names()``, or a table of your own.

    Raises:
        ValueError: There is none of that name, or it is that of a withdrawn data set.

    Example:
        >>> find_spec("mars").expected["official/gallery"].tracklets
        11310
    """
    if isinstance(name, DatasetSpec):
        return name
    refuse_withdrawn(name)
    for spec in SPECS:
        if spec.name == name:
            return spec
    raise ValueError(f"data set must be one of {', '.join(dataset_names())}, got {name!r}")


def load_dataset(name: str | DatasetSpec, root: str | Path, **options: Any) -> Dataset:
    """Read a benchmark. Nothing is downloaded, and nothing is written.

    Args:
        name: One of ``dataset_names()``, or a ``DatasetSpec`` of your own.
        root: Its folder.
        options: Of its reader, such as ``split=3`` of ``read_ilidsvid``.

    Returns:
        Training and test tracklets, and the protocols.

    Raises:
        TableError: The folder is not the data set, or not all of it.
        ValueError: There is no data set of that name.
        TypeError: An option that its reader does not have.
    """
    spec = find_spec(name)
    reader = spec.reader
    if isinstance(reader, str):
        module, _, function = reader.partition(":")
        reader = getattr(importlib.import_module(module), function)
    return reader(root, **{**spec.options, **options})
