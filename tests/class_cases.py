"""Every public class of the library that is no module: how one is made, to be sent elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.data_trees import mars_tree
from tfclip import (
    TFCLIP,
    Gallery,
    TFCLIPConfig,
    TFCLIPOutput,
    TrackletEncoder,
    data,
    evaluation,
    export,
    functional,
    gallery,
    tracking,
    video,
    visualize,
)
from tfclip.association import Association, associate
from tfclip.boxes import FrameBoxes
from tfclip.cluster import RayCluster
from tfclip.data.benchmarks.registry import find_spec
from tfclip.data.synthetic import SyntheticTracklet
from tfclip.frames import Frames, open_frames
from tfclip.objective import Losses
from tfclip.preprocess import Preprocess
from tfclip.reading import Reading
from tfclip.temporal_attention import Look, look_at
from tfclip.training import Recipe

CONFIG = TFCLIPConfig(
    backbone_options={"width": 64, "layers": 2, "output_dim": 32},
    frame_size=(32, 16),
    clip_length=4,
    drop_path=0.5,
    neck="after",
)
IDS = torch.arange(24) % 6
CAMERAS = torch.arange(24) // 6


@functools.cache
def model() -> TFCLIP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TFCLIP(CONFIG).eval()


def people(seed: int = 0) -> Any:
    return data.SyntheticTracklets(3, 2, 2, (3, 6), (40, 20), seed=seed)


def crops(count: int = 3) -> np.ndarray:
    return np.random.default_rng(count).integers(256, size=(count, 40, 20, 3), dtype=np.uint8)


def features(seed: int = 0) -> Tensor:
    return torch.randn(24, 8, generator=torch.Generator().manual_seed(seed))


def ranking(seed: int = 0) -> functional.RankingResult:
    found = functional.cosine_distance(features(seed), features(seed))
    return functional.evaluate_ranking(found, IDS, IDS, CAMERAS, CAMERAS)


def pairs(seed: int = 0) -> functional.Pairs:
    found = functional.cosine_distance(features(seed), features(seed))
    return functional.pair_scores(found, IDS, IDS, CAMERAS, CAMERAS)


def protocol() -> data.Protocol:
    split = data.Split((1,), (0, 3))
    return data.Protocol(name="two", query=[0, 1], gallery=[2, 3], description="", repeats=(split,))


def report() -> evaluation.EvaluationReport:
    row = evaluation.EvaluationRow(
        frames="dense",
        cameras=True,
        reranked=False,
        num_tracklets=4,
        num_frames=18,
        splits=(ranking(), ranking(1)),
        verification=evaluation.Verification(
            num_same=2, num_different=5, equal_error_rate=None, true_match_rates={0.01: 0.5}
        ),
        pairs=pairs(),
    )
    return evaluation.EvaluationReport(
        dataset="own",
        protocol=protocol(),
        model="m",
        revision=None,
        fingerprint="f",
        dtype="float32",
        tfclip_version="1",
        torch_version="2",
        rows=(row,),
        queries=((people()[0],),),
    )


def parity() -> export.ParityReport:
    trial = export.Trial("drawn", 1, 7, 0.9999, 1e-6)
    latency = export.Latency(1, 8, 5, 1, 0.2, 0.1)
    return export.ParityReport(
        "m.onnx", {"frames": {}}, 0.999, 0.9999, 1e-6, 0.8, (trial,), latency, 9, {}, {}
    )


def entries(folder: Path) -> Gallery:
    opened = Gallery.open(folder / "people", dim=8)
    opened.add(features(), cameras=CAMERAS.tolist(), persons=IDS.tolist(), times=range(24))
    return opened


def tracks() -> TrackletEncoder:
    encoder = TrackletEncoder(model(), gate=tracking.QualityGate(min_height=8, min_width=8))
    encoder.update([7, 8, 9], crops())
    return encoder


def clip_file(folder: Path) -> str:
    path = folder / "clip.mp4"
    if not path.exists():
        video.write_video(path, crops(5))
    return str(path)


def losses() -> Losses:
    terms = {"identity_projected": torch.tensor(0.5), "triplet_projected": torch.tensor(2.0)}
    return Losses(terms, {"identity_projected": 1.0, "triplet_projected": 1.0})


# A new public class is added here, or below where it cannot be pickled. Each is made in a folder
# that is its own.
PICKLED: dict[type, Callable[[Path], Any]] = {
    TFCLIPConfig: lambda _: CONFIG.replace(provenance={"weights": "none"}),
    TFCLIPOutput: lambda _: TFCLIPOutput._make([*features().split(4), features(1)]),
    TrackletEncoder: lambda _: tracks(),
    tracking.CropEncoder: lambda _: tracking.CropEncoder(model(), tracklets=tracks()),
    tracking.Judgement: lambda _: tracking.QualityGate()(crops()[0]),
    tracking.QualityGate: lambda _: tracking.QualityGate(edge_margin=None),
    tracking.TrackState: lambda _: tracks().state(7),
    tracking.Tracked: lambda _: tracking.tracked_boxes(np.array([[0, 0, 4, 8, 7.0]])),
    gallery.Imported: lambda _: gallery.Imported(added=2, there=1),
    data.ClipDataset: lambda _: data.ClipDataset(people(), CONFIG, data.ClipTransform.reference()),
    data.TrackletDataset: lambda _: data.TrackletDataset(people(), CONFIG, "rrs"),
    data.IdentitySampler: lambda _: data.IdentitySampler(IDS, 2, 2, numbered=True),
    data.ClipTransform: lambda _: data.ClipTransform(jitter=data.ColourJitter()),
    data.ColourJitter: lambda _: data.ColourJitter(gain=0.5),
    data.RandomErasing: lambda _: data.RandomErasing(legacy=True),
    data.Counts: lambda _: data.Counts(tracklets=3),
    data.Dataset: lambda folder: data.load_dataset("mars", mars_tree(folder / "mars")),
    data.DatasetSpec: lambda _: find_spec("mars"),
    data.EmbeddingTable: lambda _: data.EmbeddingTable(
        embeddings=features(), names=tuple(map(str, range(24))), settings={"sampling": "dense"}
    ),
    data.Protocol: lambda _: protocol(),
    data.ProtocolRule: lambda _: data.ProtocolRule(
        name="up", query={"platform": ("ground",)}, gallery={}, description=""
    ),
    data.Split: lambda _: data.Split((0,), (1, 2)),
    data.SyntheticTracklets: lambda _: people(),
    SyntheticTracklet: lambda _: people()[1],
    data.SyntheticVideo: lambda _: data.SyntheticVideo(
        [0, 1], 0, num_frames=4, frame_size=(64, 96)
    ),
    data.Thumbnail: lambda _: data.Thumbnail(path="a.png", box=(1, 2, 3, 4)),
    data.Tracklet: lambda _: data.Tracklet(name="a", frames=crops(), boxes=[[0, 0, 9, 9]] * 3),
    evaluation.EvaluationReport: lambda _: report(),
    evaluation.EvaluationRow: lambda _: report().rows[0],
    evaluation.Verification: lambda _: report().rows[0].verification,
    evaluation.FittedThreshold: lambda _: evaluation.FittedThreshold(
        calibration=functional.fit_threshold(*pairs(), false_match_rate=0.1),
        fitted_on="noise",
        fingerprint="f",
        sampling="dense",
        cameras=False,
    ),
    export.ParityReport: lambda _: parity(),
    export.Trial: lambda _: parity().trials[0],
    export.Latency: lambda _: parity().latency,
    functional.Calibration: lambda _: functional.fit_threshold(*pairs(), false_match_rate=0.1),
    functional.ClusteringResult: lambda _: functional.evaluate_clustering(IDS, CAMERAS),
    functional.OpenSetResult: lambda _: functional.open_set_identification(
        functional.cosine_distance(features(), features()),
        IDS,
        IDS % 5,
        CAMERAS,
        CAMERAS,
        false_alarm_rates=[0.5],
    ),
    functional.Pairs: lambda _: pairs(),
    functional.QueryScores: lambda _: ranking().per_query,
    functional.RankingResult: lambda _: ranking(),
    functional.RocCurve: lambda _: functional.roc_curve(*pairs()),
    gallery.Between: lambda _: gallery.Between(1, None),
    gallery.Entries: lambda folder: entries(folder).entries(),
    gallery.SearchResult: lambda folder: entries(folder).search(features(), k=3),
    gallery.Match: lambda folder: entries(folder).search(features(), k=3)[0][0],
    video.TimedFrame: lambda _: video.TimedFrame(crops()[0], 0.5, None),
    video.Video: lambda folder: video.Video(clip_file(folder)),
    visualize.Shown: lambda _: visualize.Shown(picture=crops()[0], person=3),
    # Public by their page in docs/api.md alone:
    Association: lambda _: associate(features(), threshold=0.5, cannot_link=[(0, 1)]),
    FrameBoxes: lambda _: FrameBoxes(frame=0, boxes=np.ones((1, 4)), track_ids=np.array([3])),
    Frames: lambda folder: open_frames(clip_file(folder), boxes=[[0, 0, 9, 9]] * 5),
    Look: lambda _: look_at(model(), crops()),
    Losses: lambda _: losses(),
    Preprocess: lambda _: Preprocess(CONFIG, "tensor"),
    RayCluster: lambda _: RayCluster(actors=2),
    Reading: lambda _: Reading(max_frames=8, draft=True),
    Recipe: lambda _: Recipe.preset("tiny"),
}

# These hold threads, locks or another library's session, which stay in their process.
REFUSED: dict[type, Callable[[Path], Any]] = {
    Gallery: entries,
    video.LiveVideo: lambda _: video.LiveVideo("rtsp://camera/stream"),
    export.ExportedModel: lambda folder: exported(folder),
}


def exported(folder: Path) -> export.ExportedModel:
    path = folder / "model.pt2"
    export.export_model(model(), path, format="torch")
    return export.ExportedModel(path)
