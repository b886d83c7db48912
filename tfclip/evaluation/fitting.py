"""A threshold for a model, fitted on training tracklets and kept in the model's folder."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tfclip import hub
from tfclip.data.benchmarks import Dataset
from tfclip.data.benchmarks.records import FrameRule
from tfclip.data.embeddings import model_fingerprint
from tfclip.data.tracklets import Tracklet
from tfclip.encoding import BATCH_FRAMES
from tfclip.errors import TableError
from tfclip.evaluation.run import cache_folder, check_cameras
from tfclip.files import check_folder
from tfclip.functional import (
    Calibration,
    Pairs,
    fit_threshold,
    squared_euclidean_distance,
)
from tfclip.functional.verification import check_rate
from tfclip.jobs import encode_cached

if TYPE_CHECKING:
    from torch import Tensor

    from tfclip.model import TFCLIP

_BLOCK_ENTRIES = 16_000_000  # distances looked at together
_MAX_DIFFERENT = 5_000_000  # pairs of two persons to keep


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedThreshold:
    """A calibration and all that it holds for.

    Args:
        calibration: Threshold and probabilities, for squared Euclidean distances.
        fitted_on: The data, in words.
        fingerprint: ``model_fingerprint`` of the model.
        sampling: Frame rule of the embeddings.
        cameras: Whether the model was told the cameras.
    """

    calibration: Calibration
    fitted_on: str
    fingerprint: str
    sampling: FrameRule
    cameras: bool

    def to_dict(self) -> dict[str, Any]:
        """Return what ``TFCLIPConfig.calibration`` holds."""
        return {
            **self.calibration.to_dict(),
            "fitted_on": self.fitted_on,
            "fingerprint": self.fingerprint,
            "sampling": self.sampling,
            "cameras": self.cameras,
        }


def fit_on_training(
    model: TFCLIP,
    dataset: Dataset,
    false_match_rate: float,
    protocol: str | None = None,
    *,
    frames: FrameRule | None = None,
    use_cameras: bool = False,
    cache: str | Path | None = None,
    fingerprint: str | None = None,
    batch_frames: int = BATCH_FRAMES,
    progress: bool = False,
) -> FittedThreshold:
    """Fit a threshold on the training tracklets of a data set: other people than are tested.

    Every pair of tracklets from two cameras counts once. If the model was trained on these very
    people, it knows them, and among strangers more pairs will match wrongly than was asked.

    Args:
        model: The encoder.
        dataset: With training tracklets.
        false_match_rate: Share of pairs of two persons that may match; see ``fit_threshold``.
        protocol: Whose test tracklets must not be fitted on; None is the first.
        frames: Which frames are encoded; None is what the protocol says.
        use_cameras: Tell the model the cameras.
        cache: As in ``evaluate_model``.
        fingerprint: As in ``evaluate_model``.
        batch_frames: Frames that go through the tower at once.
        progress: Show a progress bar.

    Raises:
        ValueError: A rate that so few pairs cannot show or no threshold reaches, and what
            ``evaluate_model`` refuses.
        TableError: There are no training tracklets of other people, no two of one person in two
            cameras, or one of an unknown person or camera.
        FrameError: The frames of a tracklet cannot be used.
        SaveError: The cache cannot be written.
    """
    chosen = dataset.protocol(protocol)
    sampling = frames or chosen.frames
    tested = {row for split in chosen.splits for row in (*split.query, *split.gallery)}
    tracklets = _of_other_people(dataset, [dataset.test[row] for row in sorted(tested)])
    for tracklet in tracklets:
        if tracklet.person is None or tracklet.camera is None:
            unknown = "person" if tracklet.person is None else "camera"
            raise TableError(f"the {unknown} of training tracklet {tracklet.name!r} is not known")
    _check_pairs(tracklets, dataset.name, false_match_rate)
    if use_cameras:
        check_cameras(model, tracklets)
    fingerprint = fingerprint or model_fingerprint(model)
    with cache_folder(cache) as folder:
        table = encode_cached(
            model,
            tracklets,
            folder,
            fingerprint=fingerprint,
            sampling=sampling,
            use_cameras=use_cameras,
            batch_frames=batch_frames,
            progress=progress,
        )
    by_name = {tracklet.name: tracklet for tracklet in tracklets}
    encoded = [by_name[name] for name in table.names]
    pairs = _cross_camera_pairs(table.embeddings, encoded)
    persons = len({tracklet.person for tracklet in encoded})
    return FittedThreshold(
        calibration=fit_threshold(*pairs, false_match_rate=false_match_rate),
        fitted_on=f"pairs of two cameras among {len(encoded):,} training tracklets of "
        f"{persons:,} persons of {dataset.name}, none of them in protocol {chosen.name}",
        fingerprint=fingerprint,
        sampling=sampling,
        cameras=use_cameras,
    )


def save_calibrated(
    name_or_path: str | Path,
    folder: str | Path,
    fitted: FittedThreshold,
    *,
    revision: str | None = None,
) -> None:
    """Write a copy of a model whose ``config.json`` holds a threshold; the weights are the same.

    Args:
        name_or_path: The model: a folder, a bundled name or a Hub id.
        folder: Where to; made when it is missing. The model's own folder is possible.
        fitted: For this very model.
        revision: Of a Hub repository.

    Raises:
        SaveError: The folder cannot be written.
        WeightsError: There is no such model.
        ConfigError: Its configuration is invalid.
        ValueError: A revision of something that is not on the Hub.
    """
    check_folder(Path(folder))
    hub.copy_with_config(name_or_path, folder, revision=revision, calibration=fitted.to_dict())


def _of_other_people(dataset: Dataset, tested: Sequence[Tracklet]) -> list[Tracklet]:
    """Return the training tracklets of people of whom no tracklet is tested.

    People are told by their files: the numbers of training and test persons may count anew.
    """
    if not dataset.train:
        raise TableError(f"{dataset.name} has no training tracklets to fit a threshold on")
    files = {_first_file(tracklet) for tracklet in tested}
    known = {tracklet.person for tracklet in dataset.train if _first_file(tracklet) in files}
    others = [tracklet for tracklet in dataset.train if tracklet.person not in known]
    if not others:
        raise TableError(
            f"{dataset.name}: every person of the training tracklets is also tested, and a "
            "threshold must be fitted on other people"
        )
    return others


def _first_file(tracklet: Tracklet) -> Any:
    frames = tracklet.frames
    first = frames[0] if isinstance(frames, (list, tuple)) else frames
    return str(first), tracklet.frame_indices


def _check_pairs(tracklets: Sequence[Tracklet], name: str, false_match_rate: float) -> None:
    """Refuse, before anything is encoded, what pairs of two cameras cannot show."""

    def across(members: Iterable[Tracklet]) -> int:
        """Return how many pairs of these tracklets are of two cameras."""
        counts = Counter(tracklet.camera for tracklet in members)
        return math.comb(counts.total(), 2) - sum(math.comb(n, 2) for n in counts.values())

    of_person: dict[Any, list[Tracklet]] = defaultdict(list)
    for tracklet in tracklets:
        of_person[tracklet.person].append(tracklet)
    num_same = sum(across(members) for members in of_person.values())
    if not num_same:
        raise TableError(f"{name}: no person of the training tracklets was seen by two cameras")
    num_different = across(tracklets) - num_same
    check_rate("false_match_rate", false_match_rate, num_different, "pairs of two persons")


def _cross_camera_pairs(features: Tensor, tracklets: Sequence[Tracklet]) -> Pairs:
    """Return the distances of tracklets from two cameras, each pair once.

    Of too many pairs of two persons each is kept with the same probability.
    """
    numbers: dict[Any, int] = {}
    persons = torch.tensor([numbers.setdefault(t.person, len(numbers)) for t in tracklets])
    cameras = torch.tensor([t.camera for t in tracklets])
    share = min(1.0, _MAX_DIFFERENT / (len(tracklets) ** 2 / 2))
    random = np.random.default_rng(0)
    size = max(1, _BLOCK_ENTRIES // len(tracklets))
    distances, sames = [], []
    for start in range(0, len(tracklets), size):
        rows = slice(start, start + size)
        distance = squared_euclidean_distance(features[rows], features)
        same = persons[rows, None] == persons
        kept = (cameras[rows, None] != cameras).triu(start + 1)
        if share < 1:
            kept &= same | torch.from_numpy(random.random(kept.shape, dtype=np.float32) < share)
        distances.append(distance[kept])
        sames.append(same[kept])
    return Pairs(torch.cat(distances), torch.cat(sames))
