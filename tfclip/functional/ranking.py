"""What a ranking is worth: CMC, mean average precision and mINP, with the protocol spelt out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

AveragePrecision = Literal["step", "trapezoid"]
Exclusion = Literal["person_and_camera", "camera"]
Labels: TypeAlias = Sequence[Hashable] | Tensor | np.ndarray

_LEFT_OUT: dict[Exclusion, str] = {
    "person_and_camera": "gallery rows of the query's person and camera are left out",
    "camera": "gallery rows of the query's camera are left out",
}
_BLOCK_ENTRIES = 4_000_000  # distances ranked at once: bounds the memory whatever the gallery


@dataclass(frozen=True, kw_only=True)
class RankingResult:
    """The figures of one evaluation, and the protocol they were measured with.

    Args:
        mAP: Mean over the valid queries of the average precision, from 0 to 1.
        cmc: ``(R,)`` float64; entry ``k - 1`` is the share of valid queries with a right match
            among their first ``k`` results.
        mINP: Mean inverse negative penalty: right matches over the rank of the last of them.
        num_valid_queries: Queries that have a right match in the gallery; the others are skipped.
        num_queries: All queries.
        protocol: One line that says what was counted, to be printed beside the figures.
    """

    mAP: float  # noqa: N815 - the field writes it so
    cmc: Tensor
    mINP: float  # noqa: N815 - the field writes it so
    num_valid_queries: int
    num_queries: int
    protocol: str

    def rank(self, k: int) -> float:
        """Return the share of valid queries with a right match among the first ``k`` results.

        Args:
            k: From 1 on. Beyond the end of ``cmc`` the answer is known only where all have one.

        Raises:
            ValueError: ``k`` is less than 1, or beyond the ``max_rank`` that was measured.
        """
        last = float(self.cmc[-1])
        if k < 1 or (k > len(self.cmc) and last < 1):
            raise ValueError(f"k must be from 1 to the measured {len(self.cmc)}, got {k}")
        return float(self.cmc[k - 1]) if k <= len(self.cmc) else last


def evaluate_ranking(
    distance: Tensor,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cameras: Labels,
    gallery_cameras: Labels,
    ap: AveragePrecision = "step",
    *,
    exclude: Exclusion = "person_and_camera",
    max_rank: int = 50,
) -> RankingResult:
    """Rank the gallery for every query and measure how early its right matches come.

    Gallery rows with the query's person **and** camera are left out of its ranking (see
    ``exclude``); a query that has no right match left is skipped. Equal distances keep the order of
    the gallery.

    Args:
        distance: ``(Q, G)``, finite, smaller is nearer.
        query_ids: ``(Q,)`` persons: a tensor, an array or a sequence of integers or strings.
        gallery_ids: ``(G,)`` persons.
        query_cameras: ``(Q,)`` cameras, in the order of ``query_ids``.
        gallery_cameras: ``(G,)`` cameras, in the order of ``gallery_ids``.
        ap: Average precision as the mean of the precision at every right match (``"step"``), or
            as the area under straight lines between ranks (``"trapezoid"``), which the official
            scripts of Market-1501 and MARS compute and which differs in the third digit.
        exclude: What is left out of a query's ranking: rows of its ``"person_and_camera"``, as all
            public benchmarks do, or everything from its ``"camera"``.
        max_rank: Longest CMC returned.

    Returns:
        The figures with their protocol.

    Raises:
        TypeError: ``distance`` is not floating point.
        ValueError: Lengths that do not fit, a distance that is not finite, an unknown choice, or
            no query with a right match; the message says what the likely cause is.

    Example:
        >>> distance = torch.tensor([[0.1, 0.2, 0.9]])  # right matches at ranks 1 and 3
        >>> result = evaluate_ranking(distance, [7], [7, 8, 7], [0], [1, 1, 2])
        >>> round(result.mAP, 4), result.cmc.tolist()
        (0.8333, [1.0, 1.0, 1.0])
    """
    if ap not in get_args(AveragePrecision):
        raise ValueError(f"ap must be one of {get_args(AveragePrecision)}, got {ap!r}")
    if exclude not in get_args(Exclusion):
        raise ValueError(f"exclude must be one of {get_args(Exclusion)}, got {exclude!r}")
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, got {max_rank}")
    distance = _check_distance(distance)
    num_queries, num_gallery = distance.shape
    query_ids = _as_list("query_ids", query_ids, num_queries, "rows")
    gallery_ids = _as_list("gallery_ids", gallery_ids, num_gallery, "columns")
    query_cameras = _as_list("query_cameras", query_cameras, num_queries, "rows")
    gallery_cameras = _as_list("gallery_cameras", gallery_cameras, num_gallery, "columns")
    query_codes, gallery_codes = _number(query_ids, gallery_ids, distance.device)
    query_views, gallery_views = _number(query_cameras, gallery_cameras, distance.device)

    blocks = []
    rows = max(1, _BLOCK_ENTRIES // num_gallery)
    for start in range(0, num_queries, rows):
        block = slice(start, start + rows)
        same_person = query_codes[block, None] == gallery_codes
        same_camera = query_views[block, None] == gallery_views
        removed = same_camera if exclude == "camera" else same_person & same_camera
        blocks.append(_score_rows(distance[block], same_person & ~removed, removed, ap))
    scores = _RowScores(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))
    valid = scores.num_matches > 0
    if not valid.any():
        cameras = query_cameras + gallery_cameras
        raise ValueError(_why_no_query_is_valid(query_ids, gallery_ids, cameras))

    length = min(max_rank, int(scores.num_candidates[valid].max()))
    first = scores.first_match[valid].clamp_max(max_rank + 1)
    reached = torch.bincount(first, minlength=max_rank + 2)[1 : length + 1].cumsum(0)
    num_valid = int(valid.sum())
    return RankingResult(
        mAP=float(scores.average_precision[valid].mean()),
        cmc=(reached.double() / num_valid).cpu(),
        mINP=float(scores.inverse_penalty[valid].mean()),
        num_valid_queries=num_valid,
        num_queries=num_queries,
        protocol=(
            f"{num_valid} of {num_queries} queries have a match in a gallery of "
            f"{num_gallery}; {_LEFT_OUT[exclude]}; "
            f"AP by {ap}; ties in gallery order"
        ),
    )


class _RowScores(NamedTuple):
    """What one query's ranking gives; every field is ``(Q,)``, ranks count from 1."""

    average_precision: Tensor
    inverse_penalty: Tensor
    first_match: Tensor
    num_matches: Tensor
    num_candidates: Tensor


def _score_rows(distance: Tensor, matches: Tensor, removed: Tensor, ap: str) -> _RowScores:
    """Score each row of ``distance`` ``(Q, G)``; rows without a match get meaningless numbers."""
    order = distance.argsort(dim=1, stable=True)
    matches = matches.gather(1, order)
    rank = (~removed.gather(1, order)).cumsum(1)  # a removed row repeats the rank before it
    found = matches.cumsum(1)
    num_matches = found[:, -1]
    precision = found.double() / rank.clamp_min(1)
    if ap == "trapezoid":
        # Precision one rank earlier; by the scripts' convention it is 1 before the first rank.
        earlier = (found - 1).double() / (rank - 1).clamp_min(1)
        precision = (precision + torch.where(rank > 1, earlier, 1.0)) / 2
    divisor = num_matches.clamp_min(1)
    last_rank = torch.where(matches, rank, 0).amax(1)
    beyond = distance.shape[1] + 1
    return _RowScores(
        average_precision=torch.where(matches, precision, 0.0).sum(1) / divisor,
        inverse_penalty=num_matches.double() / last_rank.clamp_min(1),
        first_match=torch.where(matches, rank, beyond).amin(1),
        num_matches=num_matches,
        num_candidates=rank[:, -1],
    )


def _check_distance(distance: Tensor) -> Tensor:
    if distance.ndim != 2 or 0 in distance.shape:
        raise ValueError(
            "distance must be (Q, G) with at least one query and one gallery row, "
            f"got shape {tuple(distance.shape)}"
        )
    if not distance.is_floating_point():
        raise TypeError(f"distance must be floating point, got {distance.dtype}")
    bad = (~distance.isfinite()).nonzero()
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"distance must be finite, got {distance[row, column].item()} "
            f"for query {row} and gallery row {column}"
        )
    return distance


def _as_list(name: str, labels: Any, length: int, axis: str) -> list[Hashable]:
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if not isinstance(values, list) or len(values) != length:
        got = len(values) if isinstance(values, list) else "a single value"
        raise ValueError(
            f"{name} must have one entry for each of the {length} {axis} of distance, got {got}"
        )
    if None in values:
        raise ValueError(f"{name} must be known, got None at position {values.index(None)}")
    return values


def _number(
    queries: list[Hashable], gallery: list[Hashable], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Give equal labels equal numbers, so that strings and integers compare on any device."""
    numbers: dict[Hashable, int] = {}
    codes = [numbers.setdefault(label, len(numbers)) for label in queries + gallery]
    both = torch.tensor(codes, device=device)
    return both[: len(queries)], both[len(queries) :]


def _why_no_query_is_valid(
    query_ids: list[Hashable], gallery_ids: list[Hashable], cameras: list[Hashable]
) -> str:
    if not set(query_ids) & set(gallery_ids):
        cause = (
            f"no person is in both (queries have {query_ids[0]!r}, ..., "
            f"the gallery {gallery_ids[0]!r}, ...)"
        )
    elif len(set(cameras)) == 1:
        cause = (
            f"every camera is {cameras[0]!r}, so every match is in the query's own camera; "
            "were the cameras given?"
        )
    else:
        cause = "every person was seen by one camera only"
    return f"no query has a right match in the gallery: {cause}"
