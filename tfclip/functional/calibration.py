"""From a distance to a decision: a threshold for a false match rate, and P(same person)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from tfclip.functional.candidates import check_distance
from tfclip.functional.verification import check_pairs, check_rate, operating_point, roc_curve

CalibrationKind = Literal["isotonic", "logistic"]

_NEWTON_STEPS = 100
_CONVERGED = 1e-10


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a distance means, for one model, one distance and one kind of data.

    A threshold fitted on one set of cameras says little about others; fit it on pairs that look
    like those to be decided. Plain JSON types in and out, to be kept beside the model.

    Args:
        threshold: A pair matches if its distance is at most this.
        asked_false_match_rate: What was asked for.
        false_match_rate: Share of the fitted pairs of two persons that match: at most that.
        false_non_match_rate: Share of the fitted pairs of one person that do not.
        num_same: Fitted pairs of one person.
        num_different: Fitted pairs of two persons.
        prior: Share of pairs of one person that ``probability`` assumes.
        kind: ``"isotonic"`` or ``"logistic"``.
        distances: Isotonic: where the probability is known, ascending; between it is a straight
            line, beyond the ends it stays. Logistic: empty.
        probabilities: Isotonic: its values there, never rising.
        slope: Logistic: P(same) is ``1 / (1 + exp(slope * distance + intercept))``; at least 0.
        intercept: Logistic, likewise.

    Raises:
        ValueError: Fields that do not fit together.
    """

    threshold: float
    asked_false_match_rate: float
    false_match_rate: float
    false_non_match_rate: float
    num_same: int
    num_different: int
    prior: float
    kind: CalibrationKind
    distances: tuple[float, ...] = ()
    probabilities: tuple[float, ...] = ()
    slope: float = 0.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        for name in ("distances", "probabilities"):  # JSON makes lists of tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.kind not in get_args(CalibrationKind):
            raise ValueError(f"kind must be one of {get_args(CalibrationKind)}, got {self.kind!r}")
        rates = ("asked_false_match_rate", "false_match_rate", "false_non_match_rate", "prior")
        for name in (*rates, "threshold", "slope", "intercept", "num_same", "num_different"):
            _check_number(name, getattr(self, name))
        for name in ("distances", "probabilities"):
            for entry in getattr(self, name):
                _check_number(name, entry)
        for name in rates:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.slope < 0:
            raise ValueError(f"slope must be at least 0, got {self.slope}")
        if self.kind == "isotonic":
            known = np.array(self.probabilities)
            if not len(known) or len(known) != len(self.distances):
                raise ValueError(
                    "distances and probabilities must be of one length, at least 1, got "
                    f"{len(self.distances)} and {len(known)}"
                )
            if (np.diff(self.distances) < 0).any() or (np.diff(known) > 0).any():
                raise ValueError("distances must ascend and probabilities must not rise")
            if not ((known >= 0) & (known <= 1)).all():
                raise ValueError("probabilities must be from 0 to 1")

    def match(self, distance: Tensor) -> Tensor:
        """Return, in the shape of ``distance``, whether each pair matches."""
        return distance.double() <= self.threshold

    def probability(self, distance: Tensor) -> Tensor:
        """Return how probably each pair is of one person, as float64 in the shape of ``distance``.

        It never rises with the distance. It holds for ``prior``: where one pair in a thousand is
        of one person, a probability fitted on even shares is far too high.

        Raises:
            ValueError: A distance is NaN.
        """
        values = distance.detach().double()
        if values.isnan().any():
            raise ValueError("distance must be a number, got NaN")
        if self.kind == "logistic":
            return torch.sigmoid(-(self.slope * values + self.intercept))
        known = np.interp(values.cpu().numpy(), self.distances, self.probabilities)
        return torch.from_numpy(np.asarray(known)).to(values.device)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types, without loss."""
        values = asdict(self)
        return values | {name: list(values[name]) for name in ("distances", "probabilities")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` returned.

        Raises:
            ValueError: A field is missing, unknown or out of its range.
        """
        odd = set(values) ^ {field.name for field in fields(cls)}
        if odd:
            raise ValueError(
                f"a calibration must have its fields and no other, check {sorted(odd)}"
            )
        return cls(**values)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be finite numbers, got {value!r}")


def fit_threshold(
    distance: Tensor,
    same: Tensor,
    *,
    false_match_rate: float = 1e-3,
    kind: CalibrationKind = "isotonic",
    prior: float | None = None,
) -> Calibration:
    """Choose the threshold for a false match rate, and learn what a distance is worth.

    The threshold is the largest distance that occurs and whose false match rate is at most the
    one asked. The pairs come from ``pair_scores``: ``fit_threshold(*pair_scores(...))``. Fit on
    other people than you test on.

    Args:
        distance: ``(M,)``, finite, smaller is nearer.
        same: ``(M,)`` bool: the pair is of one person. Both kinds must occur.
        false_match_rate: Above 0 and at most 1. To measure it takes at least one over it pairs of
            two persons.
        kind: ``"isotonic"``: the never-rising function of the distance with the least squared
            error, found by pooling adjacent violators. ``"logistic"``: a logistic curve by maximum
            likelihood, with Platt's smoothed targets; for few pairs.
        prior: Share of pairs of one person to assume; by default that of the pairs given.

    Returns:
        The threshold, the rates that it reaches on these pairs, and the probabilities.

    Raises:
        TypeError: ``distance`` is not floating point or ``same`` not boolean.
        ValueError: Pairs that ``roc_curve`` refuses, too few pairs of two persons for the rate, no
            threshold that reaches it, pairs of one person that are not nearer on average than
            those of two, or an option out of its range.

    Example:
        >>> distance = torch.tensor([0.1, 0.2, 0.4, 0.3, 0.8, 0.9])
        >>> same = torch.tensor([True, True, True, False, False, False])
        >>> calibration = fit_threshold(distance, same, false_match_rate=0.34)
        >>> round(calibration.threshold, 4), calibration.match(torch.tensor([0.35, 0.5])).tolist()
        (0.4, [True, False])
        >>> calibration.probability(torch.tensor([0.1, 0.35, 0.9])).tolist()
        [1.0, 0.5, 0.0]
    """
    if kind not in get_args(CalibrationKind):
        raise ValueError(f"kind must be one of {get_args(CalibrationKind)}, got {kind!r}")
    if prior is not None and not 0 < prior < 1:
        raise ValueError(f"prior must be between 0 and 1, got {prior}")
    distances, labels = check_pairs(distance, same)
    num_same, num_different = int(labels.sum()), int((~labels).sum())
    check_rate("false_match_rate", false_match_rate, num_different, "pairs of two persons")
    mean_same, mean_different = distances[labels].mean(), distances[~labels].mean()
    if mean_same >= mean_different:
        raise ValueError(
            f"distance must be smaller for pairs of one person, got {mean_same:.4g} on average "
            f"against {mean_different:.4g}; is it a similarity?"
        )
    curve = roc_curve(distance, same)
    point = operating_point(curve, false_match_rate)
    if not point:
        raise ValueError(
            f"no threshold reaches a false_match_rate of {false_match_rate:g}: at the smallest "
            f"distance {float(curve.false_match_rate[1]):.4g} of the pairs of two persons match"
        )
    share = num_same / len(labels)
    prior = share if prior is None else prior
    weights = np.where(labels, prior / share, (1 - prior) / (1 - share))
    fitted: dict[str, Any] = {}
    if kind == "isotonic":
        fitted["distances"], fitted["probabilities"] = _fit_isotonic(distances, labels, weights)
    else:
        fitted["slope"], fitted["intercept"] = _fit_logistic(distances, labels, weights)
    return Calibration(
        threshold=float(curve.threshold[point]),
        asked_false_match_rate=float(false_match_rate),
        false_match_rate=float(curve.false_match_rate[point]),
        false_non_match_rate=float(1 - curve.true_match_rate[point]),
        num_same=num_same,
        num_different=num_different,
        prior=float(prior),
        kind=kind,
        **fitted,
    )


def match(distance: Tensor, calibration: Calibration, reject: bool = True) -> Tensor:
    """Return the gallery row that each query matches, -1 where none is near enough.

    Args:
        distance: ``(Q, G)``, finite, smaller is nearer.
        calibration: Of the model and the distance that gave these numbers.
        reject: Answer -1 where the nearest row is beyond the threshold; else always the nearest.

    Returns:
        ``(Q,)`` int64. Of equally near rows the first.

    Raises:
        TypeError: ``distance`` is not floating point.
        ValueError: It is not a matrix, is empty or has an entry that is not finite.

    Example:
        >>> pairs = torch.tensor([0.1, 0.9]), torch.tensor([True, False])
        >>> calibration = fit_threshold(*pairs, false_match_rate=1)
        >>> match(torch.tensor([[0.8, 0.2], [0.95, 1.0]]), calibration).tolist()
        [1, -1]
    """
    rows = check_distance(distance).argmin(dim=1)
    if not reject:
        return rows
    nearest = distance.gather(1, rows[:, None])[:, 0]
    return rows.masked_fill(~calibration.match(nearest), -1)


def _fit_isotonic(
    distances: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Pool adjacent violators; return both ends of every pool with its weighted mean."""
    knots, group = np.unique(distances, return_inverse=True)
    weight = np.bincount(group, weights=weights)
    gain = np.bincount(group, weights=weights * labels)
    # Where the data do not fall the fit is flat, so a run that never falls is one pool: few are
    # left for the loop.
    mean = gain / weight
    starts = np.flatnonzero(np.append(True, mean[1:] < mean[:-1]))
    ends = np.append(starts[1:], len(knots)) - 1
    pools: list[list[float]] = []  # first, last, gain, weight
    for first, last, g, w in zip(
        knots[starts],
        knots[ends],
        np.add.reduceat(gain, starts),
        np.add.reduceat(weight, starts),
        strict=True,
    ):
        pools.append([first, last, g, w])
        while len(pools) > 1 and pools[-2][2] * pools[-1][3] <= pools[-1][2] * pools[-2][3]:
            _, last_of_both, g_after, w_after = pools.pop()
            pools[-1][1] = last_of_both
            pools[-1][2] += g_after
            pools[-1][3] += w_after
    places, values = [], []
    for first, last, g, w in pools:
        value = min(1.0, float(g / w))
        for place in (first,) if first == last else (first, last):
            places.append(float(place))
            values.append(min([value, *values[-1:]]))  # rounding must not let it rise
    return tuple(places), tuple(values)


def _fit_logistic(
    distances: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> tuple[float, float]:
    """Fit P(same) = 1 / (1 + exp(slope * d + intercept)) by Newton's method.

    The targets are smoothed as in Platt, "Probabilistic Outputs for Support Vector Machines"
    (1999), so that kinds which do not overlap give a finite slope.
    """
    num_same = labels.sum()
    num_different = len(labels) - num_same
    targets = np.where(labels, (num_same + 1) / (num_same + 2), 1 / (num_different + 2))
    centre, scale = distances.mean(), distances.std()
    inputs = np.stack([(distances - centre) / scale, np.ones_like(distances)])
    beta = np.zeros(2)  # of the logit of P(same)
    for _ in range(_NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-(beta @ inputs)))
        gradient = inputs @ (weights * (probability - targets))
        curvature = (inputs * (weights * probability * (1 - probability))) @ inputs.T
        step = np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient)
        # Close to the minimum a step changes the loss by no more than its rounding.
        bound = _cross_entropy(beta, inputs, targets, weights) * (1 + 1e-12)
        while _cross_entropy(beta - step, inputs, targets, weights) > bound:
            step /= 2  # too far: Newton's step is only locally a step down
        if np.abs(step).max() <= _CONVERGED:
            break
        beta = beta - step
    slope = max(0.0, -beta[0] / scale)
    return float(slope), float(-beta[1] - slope * centre)


def _cross_entropy(
    beta: np.ndarray, inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> float:
    logits = beta @ inputs
    return float((weights * (np.logaddexp(0, logits) - targets * logits)).sum())
