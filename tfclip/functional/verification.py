"""Are these two of one person? Pairs, ROC and error rates, for distances: smaller is nearer."""

from __future__ import annotations

from collections.abc import Collection, Hashable
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


class Pairs(NamedTuple):
    """Pairs of a query and a gallery row, for verification; on the CPU."""

    distance: Tensor
    """``(M,)`` floating point, smaller is nearer."""
    same: Tensor
    """``(M,)`` bool: both are of one person."""


class RocCurve(NamedTuple):
    """Error rates at every threshold that matters; a pair matches if ``distance <= threshold``."""

    threshold: Tensor
    """``(P,)`` float64, every distinct distance, ascending, after minus infinity."""
    false_match_rate: Tensor
    """``(P,)`` float64, share of pairs of two persons that match."""
    true_match_rate: Tensor
    """``(P,)`` float64, share of pairs of one person that match."""


def pair_scores(
    distance: Tensor,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cameras: Labels | None,
    gallery_cameras: Labels | None,
    *,
    exclude: Exclusion = "person_and_camera",
    junk_ids: Collection[Hashable] = (),
    query_rows: Labels | None = None,
    max_different: int = 5_000_000,
    seed: int = 0,
) -> Pairs:
    """Take the pairs for verification out of a matrix of distances.

    What ``evaluate_ranking`` leaves out of a query's ranking is left out here. Where queries are
    also in the gallery, a pair of queries comes twice, once from each side.

    Args:
        distance: ``(Q, G)``, finite, smaller is nearer.
        query_ids: ``(Q,)`` persons.
        gallery_ids: ``(G,)`` persons.
        query_cameras: ``(Q,)`` cameras, or ``None`` where nothing is left out for its camera.
        gallery_cameras: ``(G,)`` cameras, or ``None`` likewise.
        exclude: ``"person_and_camera"``, ``"camera"`` or ``"none"``.
        junk_ids: Persons whose gallery rows are in no pair.
        query_rows: ``(Q,)`` the gallery row that is the query itself, -1 for none.
        max_different: About how many pairs of two persons to keep. Where there are more, each is
            kept with the same probability, so that every rate stays unbiased; pairs of one person
            are all kept.
        seed: Of that choice.

    Returns:
        The pairs, query by query, in gallery order.

    Raises:
        TypeError: As ``evaluate_ranking``.
        ValueError: As ``evaluate_ranking``, or ``max_different`` is less than 1.

    Example:
        >>> distance = torch.tensor([[0.1, 0.2, 0.9]])
        >>> pair_scores(distance, [7], [7, 8, 7], [0], [0, 1, 2]).same.tolist()
        [False, True]
    """
    if max_different < 1:
        raise ValueError(f"max_different must be at least 1, got {max_different}")
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
    kept_share = min(1.0, max_different / distance.numel())
    random = np.random.default_rng(seed)
    distances, sames = [], []
    for block, rows in candidates.blocks(distance):
        same = np.zeros(block.shape, dtype=bool)
        for i, row in enumerate(rows):
            same[i, row.matches] = True
        kept = without(block, rows).isfinite().cpu().numpy()
        if kept_share < 1:
            kept &= same | (random.random(block.shape, dtype=np.float32) < kept_share)
        distances.append(block[torch.from_numpy(kept).to(block.device)].cpu())
        sames.append(torch.from_numpy(same[kept]))
    pairs = Pairs(torch.cat(distances), torch.cat(sames))
    if not pairs.same.any():
        raise ValueError(candidates.why_no_match())
    return pairs


def roc_curve(distance: Tensor, same: Tensor) -> RocCurve:
    """Return the rates of false and true matches at every threshold.

    A pair matches if its distance is at most the threshold, so pairs of equal distance match
    together.

    Args:
        distance: ``(M,)``, finite, smaller is nearer.
        same: ``(M,)`` bool: the pair is of one person. Both kinds must occur.

    Returns:
        The curve, from no match at all to all pairs matching.

    Raises:
        TypeError: ``distance`` is not floating point or ``same`` not boolean.
        ValueError: Two lengths, a distance that is not finite, or only one kind of pair.

    Example:
        >>> curve = roc_curve(torch.tensor([0.1, 0.4, 0.4]), torch.tensor([True, True, False]))
        >>> curve.true_match_rate.tolist(), curve.false_match_rate.tolist()
        ([0.0, 0.5, 1.0], [0.0, 0.0, 1.0])
    """
    distances, labels = check_pairs(distance, same)
    order = distances.argsort()
    distances, labels = distances[order], labels[order]
    last = np.append(distances[1:] != distances[:-1], True)  # of each distinct distance
    true = labels.cumsum()[last] / labels.sum()
    false = (~labels).cumsum()[last] / (~labels).sum()
    return RocCurve(
        torch.from_numpy(np.append(-np.inf, distances[last])),
        torch.from_numpy(np.append(0.0, false)),
        torch.from_numpy(np.append(0.0, true)),
    )


def tpr_at_fpr(distance: Tensor, same: Tensor, false_match_rate: float) -> float:
    """Return the best true match rate whose false match rate is at most the one asked.

    Nothing is interpolated: it is a rate that a threshold really reaches.

    Args:
        distance: ``(M,)``, finite, smaller is nearer.
        same: ``(M,)`` bool: the pair is of one person.
        false_match_rate: From 0 (excluded) to 1. To measure it takes at least one over it pairs of
            two persons.

    Returns:
        Share of pairs of one person that match, from 0 to 1.

    Raises:
        TypeError: As ``roc_curve``.
        ValueError: As ``roc_curve``, or too few pairs of two persons for the rate asked.

    Example:
        >>> distance = torch.tensor([0.1, 0.2, 0.3, 0.4])
        >>> tpr_at_fpr(distance, torch.tensor([True, False, True, False]), 0.5)
        1.0
    """
    curve = roc_curve(distance, same)
    check_rate("false_match_rate", false_match_rate, int((~same).sum()), "pairs of two persons")
    return float(curve.true_match_rate[operating_point(curve, false_match_rate)])


def equal_error_rate(distance: Tensor, same: Tensor) -> float:
    """Return the error rate at which false matches are as frequent as false non-matches.

    Where no threshold makes them equal, the straight line between the two neighbouring points of
    the ROC curve does.

    Args:
        distance: ``(M,)``, finite, smaller is nearer.
        same: ``(M,)`` bool: the pair is of one person.

    Returns:
        From 0 to 1; 0.5 is chance.

    Raises:
        TypeError: As ``roc_curve``.
        ValueError: As ``roc_curve``.

    Example:
        >>> distance = torch.tensor([0.1, 0.2, 0.3, 0.4])
        >>> equal_error_rate(distance, torch.tensor([True, False, True, False]))
        0.5
    """
    curve = roc_curve(distance, same)
    false_match, false_non_match = curve.false_match_rate, 1 - curve.true_match_rate
    surplus = false_match - false_non_match  # rises strictly from -1 to 1
    after = int((surplus >= 0).nonzero()[0])
    share = -surplus[after - 1] / (surplus[after] - surplus[after - 1])
    return float(torch.lerp(false_match[after - 1], false_match[after], share))


def operating_point(curve: RocCurve, false_match_rate: float) -> int:
    """Return the last point of a curve whose false match rate is at most the one asked."""
    return int((curve.false_match_rate <= false_match_rate).nonzero()[-1])


def check_pairs(distance: Tensor, same: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs as float64 and bool arrays, or say what is wrong with them."""
    if distance.ndim != 1 or distance.shape != same.shape:
        raise ValueError(
            "distance and same must both be (M,), got shapes "
            f"{tuple(distance.shape)} and {tuple(same.shape)}"
        )
    if not distance.is_floating_point():
        raise TypeError(f"distance must be floating point, got {distance.dtype}")
    if same.dtype != torch.bool:
        raise TypeError(f"same must be boolean, got {same.dtype}")
    bad = (~distance.isfinite()).nonzero()
    if len(bad):
        position = int(bad[0])
        raise ValueError(
            f"distance must be finite, got {distance[position].item()} at position {position}"
        )
    if not same.any() or same.all():
        kind = "two persons" if same.all() else "one person"
        raise ValueError(f"same must have pairs of both kinds, got none of {kind}")
    return distance.detach().cpu().double().numpy(), same.cpu().numpy()


def check_rate(name: str, rate: float, count: int, what: str) -> None:
    """Refuse a rate that so few trials cannot show."""
    if not 0 < rate <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {rate}")
    if count * rate < 1 - 1e-9:  # 10 trials are enough for 0.1, whatever its last bit
        raise ValueError(
            f"{name} of {rate:g} cannot be measured with {count} {what}; "
            f"it takes at least {int(np.ceil(1 / rate - 1e-6))}"
        )
