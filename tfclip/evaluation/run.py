"""Evaluate a model on a data set: every tracklet is encoded once, every figure has its protocol."""

from __future__ import annotations

import contextlib
import itertools
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tfclip import __version__, functional
from tfclip.data.benchmarks import Dataset, Protocol, Split
from tfclip.data.benchmarks.records import FrameRule
from tfclip.data.embeddings import EmbeddingTable, model_fingerprint
from tfclip.data.tracklets import Tracklet
from tfclip.encoding import BATCH_FRAMES
from tfclip.errors import TableError
from tfclip.evaluation.report import EvaluationReport, EvaluationRow, Verification
from tfclip.functional import Pairs, RankingResult
from tfclip.jobs import encode_cached

if TYPE_CHECKING:
    from tfclip.model import TFCLIP

UseCameras = bool | Literal["both"]

RATES = (1e-2, 1e-3)
"""False match rates at which the true match rate is reported."""

_K1, _K2, _LAMBDA = 20, 6, 0.3
_RERANKED = (
    f"; k-reciprocal re-ranking (k1 {_K1}, k2 {_K2}, lambda {_LAMBDA}) of squared Euclidean "
    "distances, by all queries and the whole gallery"
)
_PAIR_ENTRIES = 2**26  # distances held at once to take pairs from: 256 MiB
_LOGGED = "%s, protocol %s: %d tracklets, frames %s, %s cameras"

_logger = logging.getLogger(__name__)


def evaluate_model(
    model: TFCLIP,
    dataset: Dataset,
    protocol: str | None = None,
    *,
    frames: FrameRule | Sequence[FrameRule] | None = None,
    use_cameras: UseCameras = False,
    rerank: bool = False,
    cache: str | Path | None = None,
    model_name: str = "",
    revision: str | None = None,
    fingerprint: str | None = None,
    batch_frames: int = BATCH_FRAMES,
    progress: bool = False,
) -> EvaluationReport:
    """Measure how well a model finds the people of a data set again.

    The tracklets that the protocol needs are encoded once for each frame rule, without and with
    cameras as asked; each gives a row of figures. Queries are ranked by the squared Euclidean
    distance of embeddings of length 1. A protocol of several splits gives the mean of their
    figures.

    Args:
        model: The encoder.
        dataset: As ``tfclip.data.load_dataset`` or ``own_dataset`` returns it; frames in files.
        protocol: Name of one of its protocols; None is the first, the one to report.
        frames: ``"dense"``, ``"rrs"``, ``"all"`` or several of them, as in
            ``TFCLIP.encode_sequence``; None is what the protocol says.
        use_cameras: Tell the model each tracklet's camera, which is right only if it was trained
            with these very cameras. ``"both"`` gives a row without and a row with.
        rerank: Give a second row below each, ranked by ``functional.k_reciprocal_rerank``. It uses
            all queries at once and is no substitute for the first.
        cache: Folder where embeddings are kept, so that an interruption costs little and another
            run of the same model on the same files encodes nothing; see ``jobs.encode_cached``.
            They are personal data. None keeps nothing.
        model_name: What the report calls the model.
        revision: The model's revision, where it has one.
        fingerprint: ``model_fingerprint`` of the model; None computes it.
        batch_frames: Frames that go through the tower at once.
        progress: Show a progress bar.

    Returns:
        The report; ``print`` shows it as tables.

    Raises:
        ValueError: An unknown protocol, frame rule or choice of cameras, or cameras for a model
            without a camera table.
        TableError: A tracklet of an unknown person or camera, a camera that the model does not
            know, or no query with a match.
        FrameError: The frames of a tracklet cannot be used.
        SaveError: The cache cannot be written.
    """
    chosen = dataset.protocol(protocol)
    rules = _frame_rules(frames, chosen)
    cameras = _camera_choices(use_cameras)
    rows = sorted({row for split in chosen.splits for row in (*split.query, *split.gallery)})
    tracklets = [dataset.test[row] for row in rows]
    _check_labels(tracklets, chosen)
    if True in cameras:
        check_cameras(model, tracklets)
    fingerprint = fingerprint or model_fingerprint(model)
    found: list[EvaluationRow] = []
    with cache_folder(cache) as folder:
        for rule, told in itertools.product(rules, cameras):
            words = dataset.name, chosen.name, len(rows), rule, "with" if told else "without"
            _logger.info(_LOGGED, *words)
            table = encode_cached(
                model,
                tracklets,
                folder,
                fingerprint=fingerprint,
                sampling=rule,
                use_cameras=told,
                batch_frames=batch_frames,
                progress=progress,
            )
            features = dict(zip(rows, _features(table, tracklets), strict=True))
            settings: dict[str, Any] = {
                "frames": rule,
                "cameras": told,
                "num_tracklets": len(rows),
                "num_frames": sum(count or 0 for count in table.num_frames),
            }
            for again in (False, True) if rerank else (False,):
                found.append(_evaluate(dataset, chosen, features, again, settings))
    return EvaluationReport(
        dataset=dataset.name,
        protocol=chosen,
        model=model_name,
        revision=revision,
        fingerprint=fingerprint,
        dtype=model.precision,
        tfclip_version=__version__,
        torch_version=torch.__version__,
        rows=tuple(found),
        queries=tuple(tuple(dataset.test[row] for row in s.query) for s in chosen.splits),
    )


@contextlib.contextmanager
def cache_folder(cache: str | Path | None) -> Iterator[Path]:
    """Give the folder for embeddings; where none is wanted, one that is removed afterwards."""
    if cache is not None:
        yield Path(cache)
        return
    with tempfile.TemporaryDirectory(prefix="tfclip-") as folder:
        yield Path(folder)


def check_cameras(model: TFCLIP, tracklets: Sequence[Tracklet]) -> None:
    """Refuse to tell a model cameras that it cannot know.

    Raises:
        ValueError: The model has no camera table.
        TableError: A tracklet's camera is unknown, or beyond the table.
    """
    count = model.config.num_cameras
    if not count:
        raise ValueError(
            "use_cameras is for a model with a camera table, and this one has none (num_cameras 0)"
        )
    for tracklet in tracklets:
        if tracklet.camera is None or tracklet.camera >= count:
            camera = "an unknown camera" if tracklet.camera is None else f"camera {tracklet.camera}"
            raise TableError(
                f"tracklet {tracklet.name!r} is of {camera}; the model knows cameras 0 to "
                f"{count - 1}, so it cannot be told the cameras of this data set"
            )


def _frame_rules(
    frames: FrameRule | Sequence[FrameRule] | None, protocol: Protocol
) -> tuple[FrameRule, ...]:
    if frames is None:
        return (protocol.frames,)
    rules: tuple[Any, ...] = (frames,) if isinstance(frames, str) else tuple(frames)
    known = get_args(FrameRule)
    if not rules or len(set(rules)) != len(rules) or not set(rules) <= set(known):
        raise ValueError(f"frames must be some of {known}, each once, got {frames!r}")
    return rules


def _camera_choices(use_cameras: UseCameras) -> tuple[bool, ...]:
    if use_cameras == "both":
        return False, True
    if not isinstance(use_cameras, bool):
        raise ValueError(f"use_cameras must be True, False or 'both', got {use_cameras!r}")
    return (use_cameras,)


def _check_labels(tracklets: Sequence[Tracklet], protocol: Protocol) -> None:
    for tracklet in tracklets:
        if tracklet.person is None:
            raise TableError(f"it is not known whom tracklet {tracklet.name!r} shows")
        if tracklet.camera is None and protocol.exclude != "none":
            raise TableError(
                f"the camera of tracklet {tracklet.name!r} is not known, and protocol "
                f"{protocol.name!r} leaves out rows for their camera"
            )


def _features(table: EmbeddingTable, tracklets: Sequence[Tracklet]) -> Tensor:
    """Return the embeddings in the order of the tracklets, of which none may be lost."""
    if len(table) != len(tracklets):
        lost = next(t.name for t in tracklets if t.name not in set(table.names))
        raise TableError(f"tracklet {lost!r} has no box inside its picture, so it has no embedding")
    return table.embeddings


@dataclass(frozen=True)
class _Ranking:
    """Queries and gallery of one split, with all that a ranking of them needs."""

    queries: Tensor
    gallery: Tensor
    labels: tuple[Any, Any, Any, Any]  # persons and cameras, of queries and gallery
    options: dict[str, Any]  # exclusion, junk and own rows

    @classmethod
    def of(
        cls, tracklets: Sequence[Tracklet], protocol: Protocol, split: Split, features: Any
    ) -> _Ranking:
        queries = [tracklets[row] for row in split.query]
        gallery = [tracklets[row] for row in split.gallery]
        persons = [t.person for t in queries], [t.person for t in gallery]
        cameras: Any = [t.camera for t in queries], [t.camera for t in gallery]
        own = None
        if protocol.exclude == "none":
            # No camera takes the query itself out of its ranking, so its row has to be named.
            cameras = None, None
            places = {row: place for place, row in enumerate(split.gallery)}
            own = [places.get(row, -1) for row in split.query]
        options = {
            "exclude": protocol.exclude,
            "junk_ids": [person for person in protocol.junk if person in set(persons[1])],
            "query_rows": own,
        }
        return cls(
            torch.stack([features[row] for row in split.query]),
            torch.stack([features[row] for row in split.gallery]),
            (*persons, cameras[0], cameras[1]),
            options,
        )

    def rank(self, protocol: Protocol, rerank: bool) -> tuple[RankingResult, Pairs]:
        """Return the figures of the ranking, and its pairs."""
        if not rerank:
            result = functional.evaluate_ranking_from_features(
                self.queries, self.gallery, *self.labels, protocol.ap, **self.options
            )
            return result, self._pairs()
        distance = functional.k_reciprocal_rerank(
            self.queries, self.gallery, k1=_K1, k2=_K2, lambda_value=_LAMBDA
        )
        result = functional.evaluate_ranking(distance, *self.labels, protocol.ap, **self.options)
        pairs = functional.pair_scores(distance, *self.labels, **self.options)
        return replace(result, protocol=result.protocol + _RERANKED), pairs

    def _pairs(self) -> Pairs:
        """Take pairs of all queries, or of as many, drawn by lot, as fit into the memory."""
        most = max(1, _PAIR_ENTRIES // len(self.gallery))
        rows = np.arange(len(self.queries))
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
        query_ids, gallery_ids, query_cameras, gallery_cameras = self.labels
        own = self.options["query_rows"]
        distance = functional.squared_euclidean_distance(self.queries[rows], self.gallery)
        return functional.pair_scores(
            distance,
            [query_ids[row] for row in rows],
            gallery_ids,
            None if query_cameras is None else [query_cameras[row] for row in rows],
            gallery_cameras,
            **{**self.options, "query_rows": None if own is None else [own[row] for row in rows]},
        )


def _evaluate(
    dataset: Dataset,
    protocol: Protocol,
    features: dict[int, Tensor],
    rerank: bool,
    settings: dict[str, Any],
) -> EvaluationRow:
    """Rank every split of a protocol and average the figures."""
    results, pairs = [], []
    for split in protocol.splits:
        ranking = _Ranking.of(dataset.test, protocol, split, features)
        try:
            result, found = ranking.rank(protocol, rerank)
        except ValueError as error:  # what is left is what the tracklets' labels do not allow
            raise TableError(f"{dataset.name}, protocol {protocol.name!r}: {error}") from error
        results.append(result)
        pairs.append(found)
    return EvaluationRow(
        **settings,
        reranked=rerank,
        splits=tuple(results),
        verification=_verify(pairs),
        pairs=pairs[0],
    )


def _verify(splits: Sequence[Pairs]) -> Verification:
    """Return error rates averaged over splits, as far as each split has the pairs to show them."""
    different = [int((~pairs.same).sum()) for pairs in splits]
    fewest = min(different)
    measured = [rate for rate in RATES if fewest * rate >= 1 - 1e-9]
    return Verification(
        num_same=sum(int(pairs.same.sum()) for pairs in splits),
        num_different=sum(different),
        equal_error_rate=(
            float(np.mean([functional.equal_error_rate(*pairs) for pairs in splits]))
            if fewest
            else None
        ),
        true_match_rates={
            rate: float(np.mean([functional.tpr_at_fpr(*pairs, rate) for pairs in splits]))
            for rate in measured
        },
        too_few_pairs_for=tuple(rate for rate in RATES if rate not in measured),
    )
