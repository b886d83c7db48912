"""Tracklets of several cameras grouped into people, under rules of what cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tfclip.association_rules import Rule, Rules
from tfclip.functional.calibration import Calibration
from tfclip.functional.clustering import check_scipy
from tfclip.functional.distance import Metric

Linkage = Literal["average", "complete", "single"]
Pairs: TypeAlias = Sequence[tuple[int, int]] | Tensor | np.ndarray

_BLOCK_ENTRIES = 4_000_000  # distances looked at together: bounds the memory whatever M
# Where rows must be together they stand at 0 and all others at least here, so that they merge
# first. Distances below the second are 0 to the threshold.
_LEAST = 1e-200
_NOTHING = 1e-150
_SCALE = {"squared_euclidean": 1.0, "cosine": 0.5}  # of the squared distance of vectors of length 1
_FLOAT32 = np.finfo(np.float32)


class Forbidden(NamedTuple):
    """How often one rule said that two tracklets cannot be one person."""

    rule: Rule
    """``"overlap"``, ``"travel"`` or ``"cannot_link"``."""
    num_pairs: int
    """Pairs it forbids."""
    num_near: int
    """Those of them whose distance is within the threshold: what the rule changed, or could."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Association:
    """Tracklets grouped into people.

    Args:
        labels: ``(M,)`` int64 on the CPU, the person of each row, from 0, in the order in which
            they first occur.
        num_people: How many.
        threshold: What was cut at.
        linkage: How the distance of two groups was measured.
        forbidden: What each rule that was given forbade; a pair that two rules forbid is in both.
        largest_part: Rows of the largest part that was clustered at once: a time and memory figure.
        rules: What the pairs were judged by.
    """

    labels: Tensor
    num_people: int
    threshold: float
    linkage: Linkage
    forbidden: tuple[Forbidden, ...]
    largest_part: int
    rules: Rules

    def why_not(self, first: int, second: int) -> str | None:
        """Return in words why two rows cannot be one person, or None where no rule forbids it.

        Two rows with different labels and no reason here were not near enough, or not to the
        others of the group.
        """
        return self.rules.why(first, second)


def associate(
    embeddings: Tensor,
    *,
    threshold: float | Calibration,
    cameras: Sequence[int | None] | Tensor | np.ndarray | None = None,
    times: Sequence[Sequence[float]] | Tensor | np.ndarray | None = None,
    min_travel: Sequence[Sequence[float]] | Tensor | np.ndarray | None = None,
    cannot_link: Pairs = (),
    must_link: Pairs = (),
    linkage: Linkage = "average",
    metric: Metric = "squared_euclidean",
    max_part: int = 20_000,
) -> Association:
    """Group tracklets into people by constrained agglomerative clustering.

    Groups merge, nearest first, as long as their distance is at most the threshold and no rule
    forbids it; two groups with a forbidden pair between them never merge. Hence no group ever
    holds one. It is SciPy's hierarchy (for ``"single"`` under rules, which SciPy's cannot express,
    a union of the nearest pairs that refuses forbidden ones).

    The rules: two tracklets of one camera whose times overlap are two persons; nobody is faster
    from camera to camera than ``min_travel``; and pairs given one by one. What is unknown forbids
    nothing.

    Memory: only groups of tracklets that are linked by near pairs, step by step, can become one
    person. These parts are found from strips of distances, of which none is kept; each part of
    ``n`` rows is then clustered by itself in about ``10 n²`` bytes, under rules
    and with ``"single"`` in twice that.

    Args:
        embeddings: ``(M, F)``, floating point, finite, at least one row.
        threshold: At least 0, in the units of ``metric``; infinity merges all that may merge. Or
            what ``fit_threshold`` returned for this model and this metric.
        cameras: ``(M,)`` whole numbers from 0, None where unknown. Given together with ``times``.
        times: ``(M, 2)`` when each tracklet begins and ends, on one clock for one camera, and for
            all of them with ``min_travel``; NaN where unknown. Both ends belong to the tracklet.
        min_travel: ``(C, C)`` least time from the end in one camera to the beginning in another,
            in the unit of ``times``; the row is where one comes from. 0: nobody is in both at
            once. Minus infinity: anything goes, as where both see one place. The diagonal is not
            looked at.
        cannot_link: ``(P, 2)`` rows that are not one person.
        must_link: ``(P, 2)`` rows that are, whatever their distance.
        linkage: Distance of two groups: the ``"average"`` over all pairs, the largest
            (``"complete"``: no pair of a group is beyond the threshold) or the smallest
            (``"single"``, which chains).
        metric: ``"squared_euclidean"`` or ``"cosine"``.
        max_part: Refuse to cluster more rows than this at once.

    Returns:
        The person of each row, and what was forbidden. Without equal distances the groups do not
        depend on the order of the rows.

    Raises:
        MissingExtraError: SciPy is not installed.
        TypeError: ``embeddings`` are not floating point, or cameras or rows no whole numbers.
        ValueError: Shapes that do not fit, an entry out of its range, rules that contradict each
            other, or a threshold that links more than ``max_part`` rows.

    Example:
        >>> embeddings = torch.tensor([[0.0], [0.1], [0.2], [5.0]])
        >>> associate(embeddings, threshold=0.5).labels.tolist()
        [0, 0, 0, 1]
        >>> seen = dict(cameras=[0, 1, 0, 1], times=[(0, 9), (50, 60), (5, 12), (0, 9)])
        >>> association = associate(embeddings, threshold=0.5, **seen)
        >>> association.labels[0] == association.labels[2], association.num_people
        (tensor(False), 3)
        >>> association.why_not(0, 2)
        'rows 0 and 2 are both of camera 0, from 0 to 9 and from 5 to 12'
    """
    check_scipy()
    if linkage not in get_args(Linkage):
        raise ValueError(f"linkage must be one of {get_args(Linkage)}, got {linkage!r}")
    cut = threshold.threshold if isinstance(threshold, Calibration) else float(threshold)
    if not cut >= 0:
        raise ValueError(f"threshold must be at least 0, got {cut}")
    if max_part < 1:
        raise ValueError(f"max_part must be at least 1, got {max_part}")
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {get_args(Metric)}, got {metric!r}")
    embeddings = _check_embeddings(embeddings, metric)
    rules = Rules.check(len(embeddings), cameras, times, min_travel, cannot_link, must_link)
    tied = _join(np.arange(len(embeddings)), *rules.must_link.T)
    _check_tied(tied, rules)
    parts, forbidden = _find_parts(embeddings, cut, metric, rules, tied)
    largest = int(np.bincount(parts).max())
    if largest > max_part:
        bytes_ = (20 if linkage == "single" and rules.given else 10) * largest**2
        raise ValueError(
            f"threshold {cut:g} links {largest} rows step by step, more than max_part {max_part}; "
            f"lower it, or raise max_part where {bytes_ / 2**30:.1f} GiB are at hand"
        )
    labels = np.empty(len(parts), dtype=np.int64)
    num_people = 0
    for rows in _groups(parts):
        labels[rows] = num_people
        if len(rows) > 1:
            part = _Part.of(embeddings, rows, metric, rules, tied)
            labels[rows] += _cut_tree(part, cut, linkage)
        num_people = int(labels[rows].max()) + 1
    return Association(
        labels=torch.from_numpy(_in_order_of_occurrence(labels)),
        num_people=num_people,
        threshold=cut,
        linkage=linkage,
        forbidden=forbidden,
        largest_part=largest,
        rules=rules,
    )


def _check_embeddings(embeddings: Tensor, metric: Metric) -> Tensor:
    """Return them in float32 or float64, of length 1 where the metric is the cosine."""
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(
            f"embeddings must be (M, F) with at least one row, got shape {tuple(embeddings.shape)}"
        )
    if not embeddings.is_floating_point():
        raise TypeError(f"embeddings must be floating point, got {embeddings.dtype}")
    embeddings = embeddings.detach()
    if embeddings.dtype != torch.float64:
        embeddings = embeddings.float()
    bad = (~embeddings.isfinite().all(dim=1)).nonzero()
    if len(bad):
        raise ValueError(f"embeddings must be finite, which row {int(bad[0])} is not")
    if metric == "cosine":
        bad = (embeddings == 0).all(dim=1).nonzero()
        if len(bad):
            raise ValueError(f"embeddings must have a direction, got zeros in row {int(bad[0])}")
        largest = embeddings.abs().amax(dim=1, keepdim=True)  # squares must not over- or underflow
        embeddings = normalize(embeddings / largest, dim=1)
    farthest = 4 * embeddings.float().square().sum(dim=1).max()
    if not farthest.isfinite():
        raise ValueError(
            "embeddings must be short enough for their squares in float32, got entries up to "
            f"{embeddings.abs().max():g}"
        )
    return embeddings


def _check_tied(tied: np.ndarray, rules: Rules) -> None:
    """Refuse rows that must and must not be one person."""
    for rows in _groups(tied):
        for _, forbids in rules.forbidden(rows, rows) if len(rows) > 1 else ():
            np.fill_diagonal(forbids, False)
            if forbids.any():
                first, second = rows[np.argwhere(forbids)[0]].tolist()
                raise ValueError(
                    f"must_link makes one person of rows {first} and {second}, directly or through "
                    f"others, but {rules.why(first, second)}"
                )


def _find_parts(
    embeddings: Tensor, cut: float, metric: Metric, rules: Rules, tied: np.ndarray
) -> tuple[np.ndarray, tuple[Forbidden, ...]]:
    """Return the part of each row, ``(M,)`` from 0, and what the rules forbid.

    Rows of two parts are never one person: when two groups merge, the mean, the largest or the
    smallest of the distances between them is within the threshold, hence one of them is, and it
    is of a pair that is allowed.
    """
    rows = embeddings.float()
    squares = rows.square().sum(dim=1)
    reach = min(cut + _rounding(rows.shape[1], float(squares.max())), float(_FLOAT32.max))
    near = min(cut, reach)
    every = np.arange(len(rows))
    parts = tied
    num_pairs, num_near = dict.fromkeys(rules.given, 0), dict.fromkeys(rules.given, 0)
    start = 0
    while start < len(every):
        stop = start + max(1, _BLOCK_ENTRIES // (len(every) - start))
        block, rest = every[start:stop], every[start:]
        sums = squares[start:stop, None] + squares[start:]
        products = torch.addmm(sums, rows[start:stop], rows[start:].T, alpha=-2)
        distance = products.mul_(_SCALE[metric]).cpu().numpy()
        later = rest > block[:, None]  # each pair once
        linked = (distance <= reach) & later
        for rule, forbids in rules.forbidden(block, rest):
            forbids &= later
            num_pairs[rule] += int(forbids.sum())
            num_near[rule] += int((distance[forbids] <= near).sum())
            linked &= ~forbids
        parts = _join(parts, *(linked.nonzero() + np.array(start)))
        start = stop
    forbidden = tuple(Forbidden(rule, num_pairs[rule], num_near[rule]) for rule in rules.given)
    return parts, forbidden


def _rounding(width: int, squared_length: float) -> float:
    """Return by how much rounding can change a squared distance in float32, at most.

    A sum of F products is off by at most F roundings of its largest possible value; there are
    three such sums. The bound is generous, since a part too large does no harm.
    """
    exact = torch.get_float32_matmul_precision() == "highest"
    factors = 0 if exact else 8 * 2.0**-8  # else they may be rounded to bfloat16
    share = 4 * (width + 8) * float(_FLOAT32.eps) + factors
    return share * squared_length + float(_FLOAT32.tiny)


class _Part(NamedTuple):
    """Rows that are clustered by themselves; the pairs are in SciPy's condensed order."""

    size: int
    distance: np.ndarray
    """``(n (n - 1) / 2,)`` float64."""
    forbidden: np.ndarray | None
    """``(n (n - 1) / 2,)`` bool, or None where nothing is."""
    tied: np.ndarray
    """``(n,)`` equal where rows must be together."""

    @classmethod
    def of(
        cls, embeddings: Tensor, rows: np.ndarray, metric: Metric, rules: Rules, tied: np.ndarray
    ) -> _Part:
        """Compute the distances of a part anew, each from its two rows alone.

        So they are 0 for equal rows, and do not depend on what else is in the part.
        """
        from scipy.spatial.distance import pdist, squareform

        points = embeddings[torch.from_numpy(rows).to(embeddings.device)].double().cpu().numpy()
        distance = pdist(points, "sqeuclidean")
        distance *= _SCALE[metric]
        if not rules.given:
            return cls(len(rows), distance, None, tied[rows])
        mask = np.zeros((len(rows), len(rows)), dtype=bool)
        step = max(1, _BLOCK_ENTRIES // len(rows))
        for start in range(0, len(rows), step):
            for _, forbids in rules.forbidden(rows[start : start + step], rows):
                mask[start : start + step] |= forbids
        forbidden = squareform(mask, force="tovector", checks=False)
        return cls(len(rows), distance, forbidden if forbidden.any() else None, tied[rows])


def _cut_tree(part: _Part, cut: float, linkage: Linkage) -> np.ndarray:
    """Return the group of each row of a part, ``(n,)`` from 0."""
    from scipy.cluster.hierarchy import fcluster
    from scipy.cluster.hierarchy import linkage as build_tree

    distance = part.distance
    if len(np.unique(part.tied)) < part.size:
        from scipy.spatial.distance import squareform

        together = part.tied[:, None] == part.tied
        np.maximum(distance, _LEAST, out=distance)
        distance[squareform(together, force="tovector", checks=False)] = 0
    allowed = True if part.forbidden is None else ~part.forbidden
    # Twice: a mean of equal distances may be rounded to more than they are.
    cut = max(_NOTHING, min(cut, 2 * distance.max(where=allowed, initial=0)))
    if part.forbidden is not None:
        if linkage == "single":
            return _unite(distance, part.forbidden, part.size, cut)
        # At most n² / 4 pairs lie between two groups. One of them at this distance is enough to
        # lift their mean, and their maximum, above the cut; so they never merge, while no distance
        # of groups without a forbidden pair is touched.
        distance[part.forbidden] = max(1.0, cut) * part.size**2
    return fcluster(build_tree(distance, linkage), cut, criterion="distance") - 1


def _unite(distance: np.ndarray, forbidden: np.ndarray, size: int, cut: float) -> np.ndarray:
    """Unite the rows of the nearest pairs first, unless a forbidden pair would be in one group.

    This is single linkage under the rules: the nearest pair of two groups is their distance, and a
    merge that is refused once stays forbidden, for groups only grow.
    """
    from scipy.spatial.distance import squareform

    pairs = np.flatnonzero((distance <= cut) & ~forbidden)
    pairs = pairs[distance[pairs].argsort(kind="stable")]
    before = np.arange(size) * (2 * size - np.arange(size) - 1) // 2  # pairs of earlier rows
    labels = np.arange(size)
    apart = squareform(forbidden).astype(bool)  # of groups, in the row of their label
    for start in range(0, len(pairs), size):
        some = pairs[start : start + size]
        first = before.searchsorted(some, side="right") - 1
        second = some - before[first] + first + 1
        a, b = labels[first], labels[second]
        open_ = np.flatnonzero((a != b) & ~apart[a, b])  # most pairs are settled by now
        for i, j in zip(first[open_].tolist(), second[open_].tolist(), strict=True):
            kept, gone = labels[i], labels[j]
            if kept == gone or apart[kept, gone]:
                continue
            labels[labels == gone] = kept
            apart[kept] |= apart[gone]
            apart[:, kept] |= apart[:, gone]
    return np.unique(labels, return_inverse=True)[1]


def _join(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return labels from 0 after the groups of each pair of rows have become one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(first):
        return labels
    edges = (labels[first], labels[second])
    graph = coo_array((np.ones(len(first), dtype=bool), edges), shape=(len(labels), len(labels)))
    return connected_components(graph, directed=False)[1][labels].astype(np.int64)


def _groups(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of each label, ascending."""
    order = labels.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    yield from np.split(order, starts[1:])


def _in_order_of_occurrence(labels: np.ndarray) -> np.ndarray:
    """Number labels anew, from 0 in the order in which they first occur."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse]
