"""The whole path on drawn people: draw, encode, search across cameras, measure, show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from tfclip.data.embeddings import EmbeddingTable
from tfclip.data.readers import read_folder
from tfclip.data.search import search_table
from tfclip.data.synthetic import SyntheticTracklets
from tfclip.data.tracklets import Tracklet
from tfclip.functional import RankingResult, evaluate_ranking, squared_euclidean_distance
from tfclip.jobs import encode_to_file
from tfclip.visualize import check_matplotlib, cmc_curves, draw_search, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tfclip.model import TFCLIP

# Another seed is another world, and no training draws from one this far: nobody here was seen.
_FIRST_SEED = 2**32

_BINS = 8  # of each colour in the histogram
_PICTURED = 6


class DemoReport(NamedTuple):
    """What the demo did; paths are files it wrote."""

    num_tracklets: int
    num_frames: int
    model: RankingResult
    untrained: RankingResult
    histogram: RankingResult
    people: Path
    embeddings: Path
    picture: Path
    curves: Path


def run_demo(
    model: TFCLIP,
    out: str | Path,
    *,
    model_name: str = "",
    fingerprint: str | None = None,
    identities: int = 12,
    num_cameras: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> DemoReport:
    """Search drawn people across cameras, and compare with untrained weights and a histogram.

    Args:
        model: The encoder.
        out: Folder to write to: the drawn frames, the embeddings, a picture of the results and the
            curves of the three (cumulative match characteristics).
        model_name: What the file of embeddings calls the model.
        fingerprint: As in ``encode_to_file``.
        identities: How many people.
        num_cameras: How many cameras each walks through, at least 2.
        seed: Other people and places for another seed.
        progress: Show a progress bar.

    Raises:
        SaveError: ``out`` cannot be written.
        MissingExtraError: Matplotlib is not installed.
        ValueError: A number is too small.
    """
    if num_cameras < 2:
        raise ValueError(f"num_cameras must be at least 2 to search across, got {num_cameras}")
    check_matplotlib()
    out = Path(out)
    people = SyntheticTracklets(
        identities,
        num_cameras,
        tracklets_per_camera=1,
        num_frames=(12, 20),
        frame_size=(128, 64),
        seed=_FIRST_SEED + seed,
    )
    # The name tells what is in it, so that another run never mixes its frames with these.
    folder = out / f"people-{identities}x{num_cameras}-seed-{seed}"
    people.write(folder, "jpg")
    tracklets = read_folder(folder, "{person}/{camera}/{tracklet}")
    table = encode_to_file(
        model,
        tracklets,
        out / "embeddings.safetensors",
        model_name=model_name,
        fingerprint=fingerprint,
        progress=progress,
    )
    histograms = torch.stack([_colour_histogram(tracklet) for tracklet in tracklets])
    untrained = _untrained(model).encode_sequences([tracklet.open() for tracklet in tracklets])
    report = DemoReport(
        num_tracklets=len(table),
        num_frames=sum(count or 0 for count in table.num_frames),
        model=_evaluate(table.embeddings, tracklets),
        untrained=_evaluate(untrained, tracklets),
        histogram=_evaluate(histograms, tracklets),
        people=folder,
        embeddings=out / "embeddings.safetensors",
        picture=out / "ranked.png",
        curves=out / "cmc.png",
    )
    save_figure(_ranked(table), report.picture)
    results = {
        model_name or "model": report.model,
        "untrained weights": report.untrained,
        "colour histogram": report.histogram,
    }
    title = "Drawn people, searched in other cameras"
    save_figure(cmc_curves(results, max_rank=10, title=title), report.curves)
    return report


def _untrained(model: TFCLIP) -> TFCLIP:
    """Return a model of the same shape with random weights, the same ones each time."""
    from tfclip.model import TFCLIP

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TFCLIP(model.config).to(model.device, model.dtype).eval()


def _evaluate(embeddings: torch.Tensor, tracklets: Sequence[Tracklet]) -> RankingResult:
    """Search every tracklet among those of the other cameras."""
    persons = [tracklet.person for tracklet in tracklets]
    cameras = [tracklet.camera for tracklet in tracklets]
    distance = squared_euclidean_distance(embeddings, embeddings)
    return evaluate_ranking(distance, persons, persons, cameras, cameras, exclude="camera")


def _colour_histogram(tracklet: Tracklet) -> torch.Tensor:
    """Describe a tracklet by how often each colour occurs in its upper and its lower half.

    The root makes the Euclidean distance that of Hellinger, the usual one between histograms.
    """
    counts = np.zeros((2, _BINS**3))
    for frame in tracklet.open():
        bins = (frame // (256 // _BINS)).astype(np.int64)
        colours = (bins[..., 0] * _BINS + bins[..., 1]) * _BINS + bins[..., 2]
        middle = len(colours) // 2
        for half, part in enumerate((colours[:middle], colours[middle:])):
            counts[half] += np.bincount(part.ravel(), minlength=_BINS**3)
    shares = counts / counts.sum()
    return torch.from_numpy(np.sqrt(shares).ravel()).float()


def _ranked(table: EmbeddingTable) -> Figure:
    step = max(1, len(table) // _PICTURED)
    queries = table.select(range(0, len(table), step)[:_PICTURED])
    results = search_table(queries, table, top=8, exclude_same_camera=True)
    return draw_search(queries, table, results, title="Drawn people, found in other cameras")
