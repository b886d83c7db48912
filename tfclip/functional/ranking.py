"""What a ranking is worth: CMC, mean average precision and mINP, with the protocol spelt out."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
from torch import Tensor
from tqdm import tqdm

from tfclip.functional.candidates import (
    Candidates,
    Exclusion,
    Labels,
    Rows,
    check_distance,
    matrix_sizes,
)
from tfclip.functional.distance import DistanceStrips, Metric
from tfclip.functional.ranks import match_ranks
from tfclip.functional.result import (
    AveragePrecision,
    QueryScores,
    RankingResult,
    score_ranks,
    summarise,
)

_METRIC_WORDS: dict[Metric, str] = {
    "squared_euclidean": "squared Euclidean distance",
    "cosine": "cosine distance",
}
_STRIP_ENTRIES = 2**25  # distances of one block of queries: 128 MiB in float32


def evaluate_ranking(
    distance: Tensor,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cameras: Labels | None,
    gallery_cameras: Labels | None,
    ap: AveragePrecision = "step",
    *,
    exclude: Exclusion = "person_and_camera",
    junk_ids: Collection[Hashable] = (),
    query_rows: Labels | None = None,
    max_rank: int = 50,
) -> RankingResult:
    """Rank the gallery for every query and measure how early its right matches come.

    Gallery rows with the query's person **and** camera are left out of its ranking (see
    ``exclude``); a query that has no right match left is skipped. Equal distances keep the order of
    the gallery. An id is only a name: a negative one is a person like any other, unless
    ``junk_ids`` names it.

    Args:
        distance: ``(Q, G)``, finite, smaller is nearer.
        query_ids: ``(Q,)`` persons: a tensor, an array or a sequence of integers or strings.
        gallery_ids: ``(G,)`` persons.
        query_cameras: ``(Q,)`` cameras, in the order of ``query_ids``; ``None`` is possible where
            nothing is left out for its camera.
        gallery_cameras: ``(G,)`` cameras, in the order of ``gallery_ids``, or ``None`` likewise.
        ap: Average precision as the mean of the precision at every right match (``"step"``), or
            as the area under straight lines between ranks (``"trapezoid"``), which the official
            scripts of Market-1501 and MARS compute and which differs in the third digit.
        exclude: What is left out of a query's ranking: rows of its ``"person_and_camera"``, as all
            public benchmarks do, everything from its ``"camera"``, or ``"none"``.
        junk_ids: Persons whose gallery rows are left out of every ranking, neither right nor
            wrong: ``[-1]`` for MARS and Market-1501.
        query_rows: ``(Q,)`` the gallery row that is the query itself, -1 for none; it is left out
            of that query's ranking. With ``"person_and_camera"`` it is left out anyway.
        max_rank: Longest CMC returned.

    Returns:
        The figures with their protocol.

    Raises:
        TypeError: ``distance`` is not floating point, ``query_rows`` are not integers, or
            ``junk_ids`` are a string.
        ValueError: Lengths that do not fit, a distance that is not finite, an unknown choice, a
            query of a junk person, an own row of another person, or no query with a right match;
            the message says what the likely cause is.

    Example:
        >>> import torch
        >>> distance = torch.tensor([[0.1, 0.2, 0.9]])  # right matches at ranks 1 and 3
        >>> result = evaluate_ranking(distance, [7], [7, 8, 7], [0], [1, 1, 2])
        >>> round(result.mAP, 4), result.cmc.tolist()
        (0.8333, [1.0, 1.0, 1.0])
    """
    _check_choices(ap, max_rank)
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
    return _rank_all(candidates, candidates.blocks(distance), ap, max_rank)


def evaluate_ranking_from_features(
    queries: Tensor,
    gallery: Tensor,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cameras: Labels | None,
    gallery_cameras: Labels | None,
    ap: AveragePrecision = "step",
    *,
    metric: Metric = "squared_euclidean",
    exclude: Exclusion = "person_and_camera",
    junk_ids: Collection[Hashable] = (),
    query_rows: Labels | None = None,
    max_rank: int = 50,
    block_queries: int | None = None,
    progress: bool = False,
) -> RankingResult:
    """Rank the gallery by embeddings, without ever holding the whole matrix of distances.

    Equal to ``evaluate_ranking`` of the matrix. All distances of one query come from one matrix
    product and each is computed once, so a right match and its rivals are rounded alike and every
    rank is that of one ranking. Products of other shapes may round the last digit otherwise, which
    can swap two gallery rows that differ by no more than that.

    Beside the embeddings it holds ``block_queries`` rows of distances, and for ``"cosine"`` a
    normalised copy of both embeddings.

    Args:
        queries: Embeddings, ``(Q, F)``, floating point, finite.
        gallery: Embeddings, ``(G, F)``, of the same type and on the same device.
        query_ids: As in ``evaluate_ranking``, and so on.
        gallery_ids: ``(G,)`` persons.
        query_cameras: ``(Q,)`` cameras.
        gallery_cameras: ``(G,)`` cameras.
        ap: ``"step"`` or ``"trapezoid"``.
        metric: ``"squared_euclidean"`` or ``"cosine"``, as the functions of these names compute.
        exclude: ``"person_and_camera"``, ``"camera"`` or ``"none"``.
        junk_ids: Persons whose gallery rows are in no ranking.
        query_rows: ``(Q,)`` the gallery row that is the query itself, -1 for none.
        max_rank: Longest CMC returned.
        block_queries: Queries whose distances are held at once; by default as many as give 33
            million distances, 128 MiB in float32.
        progress: Show a progress bar.

    Returns:
        The figures with their protocol.

    Raises:
        TypeError: Embeddings that are not floating point or of two types.
        ValueError: Embeddings of two widths or so large that a distance is not finite, and all
            that ``evaluate_ranking`` refuses.

    Example:
        >>> import torch
        >>> queries, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
        >>> evaluate_ranking_from_features(queries, gallery, [7], [8, 7], [0], [1, 1]).rank(1)
        1.0
    """
    _check_choices(ap, max_rank)
    if block_queries is not None and block_queries < 1:
        raise ValueError(f"block_queries must be at least 1, got {block_queries}")
    strips = DistanceStrips(queries, gallery, metric)
    num_queries, num_gallery = len(queries), len(gallery)
    candidates = Candidates(
        query_ids,
        gallery_ids,
        query_cameras,
        gallery_cameras,
        sizes=((num_queries, "rows of queries"), (num_gallery, "rows of gallery")),
        exclude=exclude,
        junk_ids=junk_ids,
        query_rows=query_rows,
    )
    size = block_queries or max(1, _STRIP_ENTRIES // num_gallery)

    def blocks() -> Iterator[tuple[Tensor, list[Rows]]]:
        with tqdm(total=num_queries, unit="query", disable=not progress) as bar:
            for first in range(0, num_queries, size):
                strip = strips.of(slice(first, first + size))
                yield strip, [candidates.of(first + i) for i in range(len(strip))]
                bar.update(len(strip))

    result = _rank_all(candidates, blocks(), ap, max_rank)
    return replace(result, protocol=f"{result.protocol}; {_METRIC_WORDS[metric]}")


def evaluate_ranking_topk(
    indices: Tensor | np.ndarray,
    query_ids: Labels,
    gallery_ids: Labels,
    query_cameras: Labels | None,
    gallery_cameras: Labels | None,
    ap: AveragePrecision = "step",
    *,
    exclude: Exclusion = "person_and_camera",
    junk_ids: Collection[Hashable] = (),
    query_rows: Labels | None = None,
    max_rank: int = 50,
) -> RankingResult:
    """Measure lists of nearest rows, as an index returns them.

    Rows that are left out of a ranking are taken out of its list, and the rest moves up. What is
    not in a list counts as not found, so mAP and mINP are lower bounds of those of whole rankings,
    and the protocol says so. The CMC ends where it would stop being exact: at the shortest list
    that holds no right match and is full. A list with a -1 is all that the index found.

    Args:
        indices: ``(Q, k)`` integers, gallery rows from the nearest on, padded with -1.
        query_ids: As in ``evaluate_ranking``, and so on.
        gallery_ids: ``(G,)`` persons of the whole gallery behind the index.
        query_cameras: ``(Q,)`` cameras.
        gallery_cameras: ``(G,)`` cameras.
        ap: ``"step"`` or ``"trapezoid"``.
        exclude: ``"person_and_camera"``, ``"camera"`` or ``"none"``.
        junk_ids: Persons whose gallery rows are in no ranking.
        query_rows: ``(Q,)`` the gallery row that is the query itself, -1 for none.
        max_rank: Longest CMC returned.

    Returns:
        The figures with their protocol.

    Raises:
        TypeError: ``indices`` are not integers.
        ValueError: A row that does not exist or comes twice in a list, a list of which nothing is
            left, and all that ``evaluate_ranking`` refuses.

    Example:
        >>> import torch
        >>> lists = torch.tensor([[1, 0], [2, -1]])
        >>> labels = [7, 8], [7, 9, 9, 7], [0, 0], [1, 1, 1, 1]
        >>> result = evaluate_ranking_topk(lists, *labels)  # 7 at rank 2 and unfound; 8 skipped
        >>> result.cmc.tolist(), result.mAP
        ([0.0, 1.0], 0.25)
    """
    _check_choices(ap, max_rank)
    num_gallery = len(gallery_ids)
    lists = _check_indices(indices, num_gallery)
    candidates = Candidates(
        query_ids,
        gallery_ids,
        query_cameras,
        gallery_cameras,
        sizes=((len(lists), "rows of indices"), (num_gallery, "entries of gallery_ids")),
        exclude=exclude,
        junk_ids=junk_ids,
        query_rows=query_rows,
    )
    mark = np.zeros(num_gallery, dtype=np.int8)  # 1: right, 2: left out, of one query at a time
    ranks, num_matches, exact_up_to = [], [], lists.shape[1]
    for query, row in enumerate(lists):
        matches, left_out = candidates.of(query)
        mark[matches], mark[left_out] = 1, 2
        kinds = mark[row[row >= 0]]
        mark[matches], mark[left_out] = 0, 0
        kinds = kinds[kinds != 2]
        ranks.append(np.flatnonzero(kinds) + 1)
        num_matches.append(len(matches))
        if len(matches) and not kinds.any() and row.min() >= 0:  # a match may come just after
            if not len(kinds):
                raise ValueError(
                    f"indices must hold more than what is left out, got a list of {len(row)} rows "
                    f"for query {query} of which none stays; ask the index for longer lists"
                )
            exact_up_to = min(exact_up_to, len(kinds))
    scores = score_ranks(ranks, np.array(num_matches), ap)
    protocol = _protocol(candidates, scores, ap, "ranks as in the lists")
    protocol += (
        f"; lists of {lists.shape[1]}, what is not in them counts as not found: "
        "mAP and mINP are lower bounds"
    )
    return summarise(scores, min(max_rank, exact_up_to), protocol)


def _rank_all(
    candidates: Candidates,
    blocks: Iterable[tuple[Tensor, list[Rows]]],
    ap: AveragePrecision,
    max_rank: int,
) -> RankingResult:
    """Score whole rankings, given block by block."""
    ranks: list[np.ndarray] = []
    lengths: list[int] = []
    for block, rows in blocks:
        ranks += match_ranks(block, rows)
        lengths += [candidates.num_gallery - len(row.left_out) for row in rows]
    scores = score_ranks(ranks, np.array([len(row) for row in ranks]), ap)
    protocol = _protocol(candidates, scores, ap, "ties in gallery order")
    longest = max(length for length, row in zip(lengths, ranks, strict=True) if len(row))
    return summarise(scores, min(max_rank, longest), protocol)


def _protocol(candidates: Candidates, scores: QueryScores, ap: str, order: str) -> str:
    """Return what was counted, or say why nothing was."""
    num_valid = int((scores.num_matches > 0).sum())
    if not num_valid:
        raise ValueError(candidates.why_no_match())
    return (
        f"{num_valid} of {candidates.num_queries} queries have a match in a gallery of "
        f"{candidates.num_gallery}; {candidates.protocol()}; AP by {ap}; {order}"
    )


def _check_choices(ap: AveragePrecision, max_rank: int) -> None:
    if ap not in get_args(AveragePrecision):
        raise ValueError(f"ap must be one of {get_args(AveragePrecision)}, got {ap!r}")
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, got {max_rank}")


def _check_indices(indices: Tensor | np.ndarray, num_gallery: int) -> np.ndarray:
    lists = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)
    if lists.ndim != 2 or 0 in lists.shape:
        raise ValueError(
            f"indices must be (Q, k) with at least one query and one result, got {lists.shape}"
        )
    if lists.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {lists.dtype}")
    lists = lists.astype(np.int64)
    low, high = int(lists.min()), int(lists.max())
    if low < -1 or high >= num_gallery:
        raise ValueError(
            f"indices must be gallery rows from 0 to {num_gallery - 1}, or -1 for none, "
            f"got {low if low < -1 else high}"
        )
    ordered = np.sort(lists, axis=1)
    query, place = np.nonzero((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0))
    if len(query):
        row = ordered[query[0], place[0]]
        raise ValueError(f"indices must not repeat a row, got {row} twice for query {query[0]}")
    return lists
