"""Search in an open set: the person may not be in the gallery at all."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tfclip.functional.candidates import (
    Candidates,
    Exclusion,
    Labels,
    check_distance,
    matrix_sizes,
    without,
)
from tfclip.functional.verification import check_rate


class OpenSetResult(NamedTuple):
    """Detection and identification rates at several false alarm rates; fields in their order."""

    false_alarm_rates: tuple[float, ...]
    """What was asked for."""
    reached: tuple[float, ...]
    """The share of non-mated queries that raise an alarm at the threshold."""
    thresholds: tuple[float, ...]
    """An alarm is ``distance <= threshold``; minus infinity where no alarm can be allowed."""
    rates: tuple[float, ...]
    """Share of mated queries whose nearest row is right and raises an alarm (DIR at rank 1)."""
    num_mated: int
    """Queries with a right match in their ranking."""
    num_non_mated: int
    """Queries without."""


def open_set_identification(
    distance: Tensor,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cameras: Labels | None,
    gallery_cameras: Labels | None,
    *,
    exclude: Exclusion = "person_and_camera",
    junk_ids: Collection[Hashable] = (),
    query_rows: Labels | None = None,
    false_alarm_rates: Sequence[float] = (0.01, 0.1),
) -> OpenSetResult:
    """Measure how many queries are found at a threshold that few strangers pass.

    A query is mated if a right match stands in its ranking, else non-mated: its person is not in
    the gallery, or only in rows that are left out. The nearest row of a query raises an alarm if
    its distance is at most the threshold. The false alarm rate is the share of non-mated queries
    that raise one; the detection and identification rate (DIR) at rank 1 is the share of mated
    queries whose nearest row is right and raises one. This is the watch-list measure of Phillips,
    Grother and Micheals, "Evaluation Methods in Face Recognition" (Handbook of Face Recognition,
    2011); ISO/IEC 19795-1 calls one minus DIR the false negative identification rate and the
    false alarm rate the false positive identification rate.

    The threshold is the largest nearest distance of any query whose false alarm rate is at most
    the one asked; nothing is interpolated. Of equally near rows the first in the gallery counts.

    Args:
        distance: ``(Q, G)``, finite, smaller is nearer.
        query_ids: ``(Q,)`` persons.
        gallery_ids: ``(G,)`` persons.
        query_cameras: ``(Q,)`` cameras, or ``None`` where nothing is left out for its camera.
        gallery_cameras: ``(G,)`` cameras, or ``None`` likewise.
        exclude: ``"person_and_camera"``, ``"camera"`` or ``"none"``.
        junk_ids: Persons whose gallery rows are in no ranking.
        query_rows: ``(Q,)`` the gallery row that is the query itself, -1 for none.
        false_alarm_rates: Each above 0 and at most 1. To measure one takes at least one over it
            non-mated queries.

    Returns:
        Rates and thresholds.

    Raises:
        TypeError: As ``evaluate_ranking``.
        ValueError: As ``evaluate_ranking``, no false alarm rate, or too few non-mated queries.

    Example:
        >>> distance = torch.tensor([[0.1, 0.7], [0.8, 0.3], [0.2, 0.9], [0.6, 0.5]])
        >>> persons, cameras = [1, 2, 3, 4], [0, 0, 0, 0]  # 3 and 4 are strangers
        >>> result = open_set_identification(
        ...     distance, persons, [1, 2], cameras, [1, 1], false_alarm_rates=[0.5]
        ... )
        >>> result.rates, round(result.thresholds[0], 4)
        ((1.0,), 0.3)
    """
    distance = check_distance(distance)
    candidates = Candidates(
        query_ids,
        gallery_ids,
        query_cameras,
        gallery_cameras,
        sizes=matrix_sizes(distance),
        exclude=exclude,
        junk_ids=junk_ids,
        query_rows=query_rows,
    )
    nearest, mated, right = _nearest(distance, candidates)
    if not mated.any():
        raise ValueError(candidates.why_no_match())
    rates = tuple(float(rate) for rate in false_alarm_rates)
    if not rates:
        raise ValueError("false_alarm_rates must have at least one rate, got none")
    strangers = np.sort(nearest[~mated])
    for rate in rates:
        check_rate("false_alarm_rates", rate, len(strangers), "non-mated queries")
    seen = np.unique(nearest[np.isfinite(nearest)])
    alarms = strangers.searchsorted(seen, side="right") / len(strangers)
    places = [int((alarms <= rate).sum()) for rate in rates]  # alarms ascend
    thresholds = [float(seen[place - 1]) if place else -np.inf for place in places]
    return OpenSetResult(
        false_alarm_rates=rates,
        reached=tuple(float(alarms[place - 1]) if place else 0.0 for place in places),
        thresholds=tuple(thresholds),
        rates=tuple(float((right & (nearest <= t))[mated].mean()) for t in thresholds),
        num_mated=int(mated.sum()),
        num_non_mated=len(strangers),
    )


def _nearest(distance: Tensor, candidates: Candidates) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each query's nearest distance, whether it is mated, and its nearest row right."""
    nearest, mated, right = [], [], []
    for block, rows in candidates.blocks(distance):
        kept = without(block, rows)
        first = kept.argmin(dim=1, keepdim=True)  # of equal ones the first
        nearest.append(kept.gather(1, first)[:, 0].double().cpu())
        mated += [len(row.matches) > 0 for row in rows]
        right += [
            place in row.matches for place, row in zip(first[:, 0].tolist(), rows, strict=True)
        ]
    return torch.cat(nearest).numpy(), np.array(mated), np.array(right)
