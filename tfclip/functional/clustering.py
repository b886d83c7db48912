"""What a grouping of tracklets into people is worth, when the people are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np

from tfclip.errors import MissingExtraError
from tfclip.functional.candidates import Labels

_PRINTED = {
    "pairwise F1": ("pairwise_f1", "pairwise_precision", "pairwise_recall"),
    "B-cubed F1": ("bcubed_f1", "bcubed_precision", "bcubed_recall"),
}


@dataclass(frozen=True, kw_only=True)
class ClusteringResult:
    """How well groups of tracklets agree with the people they show; 1 is best throughout.

    ``print`` shows it as a small table.

    Args:
        pairwise_precision: Share of the pairs in one group that are of one person; 1 where no
            group has two rows.
        pairwise_recall: Share of the pairs of one person that are in one group; 1 where no person
            has two rows.
        pairwise_f1: Harmonic mean of the two.
        bcubed_precision: Mean over the rows of the share of the row's group that is its person.
        bcubed_recall: Mean over the rows of the share of its person that is in its group.
        bcubed_f1: Harmonic mean of the two.
        identity_f1: Share of rows right when every group may stand for one person and every person
            for one group, matched as well as can be (IDF1). As each row has one label and one
            person, identity precision, recall and F1 are one number here.
        purity: Share of rows that are of the most frequent person of their group.
        inverse_purity: Share of rows that are in the most frequent group of their person.
        adjusted_rand_index: 0 is what chance gives; it can be negative.
        num_tracklets: Rows that were counted.
        num_clusters: Groups among them.
        num_persons: People among them.
    """

    pairwise_precision: float
    pairwise_recall: float
    pairwise_f1: float
    bcubed_precision: float
    bcubed_recall: float
    bcubed_f1: float
    identity_f1: float
    purity: float
    inverse_purity: float
    adjusted_rand_index: float
    num_tracklets: int
    num_clusters: int
    num_persons: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON types, without loss."""
        return asdict(self)

    def to_json(self) -> str:
        """Return ``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` returned.

        Raises:
            ValueError: A figure is missing, or an entry unknown.
        """
        odd = sorted(set(values) ^ {field.name for field in fields(cls)})
        if odd:
            raise ValueError(f"a result must have its figures and no other entry, check {odd}")
        return cls(**values)

    def __str__(self) -> str:
        lines = []
        for name, (f1, precision, recall) in _PRINTED.items():
            parts = f"precision {getattr(self, precision):.2%}, recall {getattr(self, recall):.2%}"
            lines.append(f"{name:<14}  {getattr(self, f1):8.2%}  ({parts})")
        for name in ("identity_f1", "purity", "inverse_purity"):
            text = name.replace("_", " ").replace("f1", "F1")
            lines.append(f"{text:<14}  {getattr(self, name):8.2%}")
        lines.append(f"{'adjusted Rand':<14}  {self.adjusted_rand_index:8.4f}")
        counted = (
            f"{self.num_tracklets} of {self.num_persons} persons in {self.num_clusters} groups"
        )
        return "\n".join([*lines, f"{'tracklets':<14}  {counted}"])


class _Table(NamedTuple):
    """How many rows each group has of each person; only pairs that occur."""

    clusters: np.ndarray
    """``(P,)`` group of each pair, from 0."""
    persons: np.ndarray
    """``(P,)`` person of each pair, from 0."""
    counts: np.ndarray
    """``(P,)`` rows of each pair, int64."""
    cluster_sizes: np.ndarray
    person_sizes: np.ndarray


def evaluate_clustering(labels: Labels, persons: Labels) -> ClusteringResult:
    """Compare groups with the people they should be.

    Nothing of the size ``(M, M)`` is made. The matching behind ``identity_f1`` is SciPy's (the
    Hungarian method), for each connected part of groups and people by itself.

    Args:
        labels: ``(M,)`` the group of each row: whole numbers or texts, as in
            ``Association.labels``.
        persons: ``(M,)`` the person of each row, likewise; leave out rows whose person is unknown.

    Returns:
        The figures.

    Raises:
        MissingExtraError: SciPy is not installed.
        ValueError: Two lengths, no row, or an unknown entry.

    Example:
        >>> result = evaluate_clustering([0, 0, 0, 1, 1], ["a", "a", "b", "b", "b"])
        >>> result.pairwise_f1, result.identity_f1, result.purity  # 2 of 4 pairs, 4 of 5 rows
        (0.5, 0.8, 0.8)
    """
    check_scipy()
    table = _count(_numbered("labels", labels), _numbered("persons", persons))
    total = int(table.cluster_sizes.sum())
    together, grouped, true = (
        _num_pairs(sizes) for sizes in (table.counts, table.cluster_sizes, table.person_sizes)
    )
    precision = together / grouped if grouped else 1.0
    recall = together / true if true else 1.0
    squares = table.counts.astype(np.float64) ** 2
    bcubed_precision = float((squares / table.cluster_sizes[table.clusters]).sum() / total)
    bcubed_recall = float((squares / table.person_sizes[table.persons]).sum() / total)
    return ClusteringResult(
        pairwise_precision=precision,
        pairwise_recall=recall,
        pairwise_f1=_harmonic(precision, recall),
        bcubed_precision=bcubed_precision,
        bcubed_recall=bcubed_recall,
        bcubed_f1=_harmonic(bcubed_precision, bcubed_recall),
        identity_f1=_matched(table) / total,
        purity=_largest(table.clusters, table.counts) / total,
        inverse_purity=_largest(table.persons, table.counts) / total,
        adjusted_rand_index=_adjusted_rand(together, grouped, true, total * (total - 1) // 2),
        num_tracklets=total,
        num_clusters=len(table.cluster_sizes),
        num_persons=len(table.person_sizes),
    )


def check_scipy() -> None:
    """Refuse to begin work that needs SciPy, where it is missing.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    try:
        import scipy.cluster.hierarchy
        import scipy.optimize  # noqa: F401 (only whether it is there)
    except ImportError as error:
        raise MissingExtraError(
            "grouping tracklets into people needs SciPy; install it with: "
            "pip install 'tfclip[cluster]'"
        ) from error


def _numbered(name: str, labels: Any) -> np.ndarray:
    """Give equal labels equal numbers from 0."""
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    if not isinstance(values, list) or not values or isinstance(values[0], list):
        raise ValueError(f"{name} must be (M,) with at least one row, got {labels!r:.80}")
    numbers: dict[Any, int] = {}
    for row, value in enumerate(values):
        if value is None or value != value:  # NaN is what tables hold for an unknown entry
            raise ValueError(f"{name} must be known, got {value} in row {row}")
        numbers.setdefault(value, len(numbers))
    return np.array([numbers[value] for value in values])


def _count(clusters: np.ndarray, persons: np.ndarray) -> _Table:
    if len(clusters) != len(persons):
        raise ValueError(
            f"labels and persons must have one length, got {len(clusters)} and {len(persons)}"
        )
    width = persons.max() + 1
    pairs, counts = np.unique(clusters * width + persons, return_counts=True)
    return _Table(
        pairs // width, pairs % width, counts, np.bincount(clusters), np.bincount(persons)
    )


def _num_pairs(sizes: np.ndarray) -> int:
    return int((sizes * (sizes - 1)).sum()) // 2


def _harmonic(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second else 0.0


def _largest(groups: np.ndarray, counts: np.ndarray) -> int:
    """Return the sum over the groups of each one's largest count."""
    largest = np.zeros(groups.max() + 1, dtype=np.int64)
    np.maximum.at(largest, groups, counts)
    return int(largest.sum())


def _adjusted_rand(together: int, grouped: int, true: int, total: int) -> float:
    """Return Hubert and Arabie's index; 1 where both sides are trivial in the same way."""
    expected = grouped * true / total if total else 0.0
    most = (grouped + true) / 2
    return (together - expected) / (most - expected) if most != expected else 1.0


def _matched(table: _Table) -> int:
    """Return how many rows the best one-to-one matching of groups and people gets right."""
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num_clusters, num_persons = len(table.cluster_sizes), len(table.person_sizes)
    size = num_clusters + num_persons
    edges = (table.clusters, table.persons + num_clusters)
    graph = coo_array((np.ones(len(table.counts)), edges), shape=(size, size))
    part_of_pair = connected_components(graph, directed=False)[1][table.clusters]
    order = np.argsort(part_of_pair, kind="stable")
    starts = np.flatnonzero(np.diff(part_of_pair[order], prepend=-1))
    right = 0
    for pairs in np.split(order, starts[1:]):
        clusters, rows = np.unique(table.clusters[pairs], return_inverse=True)
        persons, columns = np.unique(table.persons[pairs], return_inverse=True)
        if len(clusters) == 1 or len(persons) == 1:
            right += int(table.counts[pairs].max())  # one of them is matched with the other side
            continue
        dense = np.zeros((len(clusters), len(persons)))
        dense[rows, columns] = table.counts[pairs]
        right += int(dense[linear_sum_assignment(dense, maximize=True)].sum())
    return right
