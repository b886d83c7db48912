"""Nearest neighbours that an index of FAISS finds, for more rows than can all be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tfclip.errors import MissingExtraError
from tfclip.functional.distance import DistanceStrips
from tfclip.functional.neighbours import Neighbours
from tfclip.functional.pairwise import TILE_ROWS, FeatureDistances, cut
from tfclip.functional.shortlist import nearest_of_pairs

Search = Literal["exact", "hnsw", "ivf"]

_SPARE = 16  # neighbours asked for beyond those wanted, among which exact distances decide
_LINKS, _BUILDING_EFFORT, _EFFORT = 32, 80, 128  # of the graph
_PER_LIST, _LISTS = 64, 32  # rows of an inverted list, and how many of the lists are looked at
_TRAINING_ROWS = 64  # for each centroid
_ROWS_AT_ONCE = 4_096
_SAMPLE = 4_096  # rows of which the farthest is taken


def find_approximately(
    distances: FeatureDistances, width: int, search: Search, progress: bool = False
) -> Neighbours:
    """Find most of the nearest rows of every row; their distances are exact.

    The greatest distance of a row is that to 4,096 others, evenly spaced, so a little too small.

    Args:
        distances: Among M rows.
        width: Neighbours of a row; fewer where there are fewer rows.
        search: ``"hnsw"`` or ``"ivf"``.
        progress: Show progress bars.

    Returns:
        The neighbours.

    Raises:
        MissingExtraError: FAISS is not installed.
    """
    total, width = distances.num_rows, min(width, distances.num_rows)
    index, parameters = _build(distances, search, max(_EFFORT, 2 * width), progress)
    nearest = distances.new_full((total, width), 0)
    indices = torch.zeros_like(nearest, dtype=torch.int64)
    for block in _show(_blocks(distances), "neighbours", progress):
        vectors = _vectors(distances, block)
        found = index.search(vectors, min(width + _SPARE, total), params=parameters)[1]
        rows, columns = _pairs(torch.from_numpy(found).to(nearest.device), block, total, width)
        values = distances.of_pairs(rows, columns)
        indices[block], nearest[block] = nearest_of_pairs(rows, columns, values, block, width)
    return Neighbours(indices, nearest, _farthest(distances))


def check_search(search: Search) -> None:
    """Say what is wrong with the choice of a search.

    Raises:
        ValueError: It is unknown.
        MissingExtraError: It needs FAISS, which is not installed.
    """
    if search not in ("exact", "hnsw", "ivf"):
        raise ValueError(f"neighbours must be 'exact', 'hnsw' or 'ivf', got {search!r}")
    if search != "exact":
        _faiss(search)


def _faiss(search: Search) -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            f"neighbours={search!r} needs faiss; install it with: pip install 'tfclip[index]'"
        ) from error
    return faiss


def _build(
    distances: FeatureDistances, search: Search, effort: int, progress: bool
) -> tuple[Any, Any]:
    """Return an index of all rows, and how to search it."""
    faiss, total, width = _faiss(search), distances.num_rows, distances.width
    if search == "hnsw":
        index = faiss.IndexHNSWFlat(width, _LINKS)
        index.hnsw.efConstruction = _BUILDING_EFFORT
        parameters = faiss.SearchParametersHNSW(efSearch=effort)
    else:
        lists = max(1, min(total // _PER_LIST, round(4 * math.sqrt(total))))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, lists)
        index.cp.min_points_per_centroid = (
            1  # fewer are no reason for FAISS to write to the terminal
        )
        index.train(_sample(distances, lists * _TRAINING_ROWS).float().cpu().numpy())
        parameters = faiss.SearchParametersIVF(nprobe=_LISTS)
    for block in _show(_blocks(distances), "index", progress):
        index.add(_vectors(distances, block))
    return index, parameters


def _pairs(found: Tensor, block: slice, total: int, width: int) -> tuple[Tensor, Tensor]:
    """Return each row with what was found for it and with itself, ascending, no pair twice."""
    rows = torch.arange(block.start, block.stop, device=found.device)
    keys = [(rows[:, None] * total + found)[found >= 0], rows * (total + 1)]
    # Where the lists that were looked at hold too few, all rows are compared.
    short = rows[(found >= 0).sum(1) < width]
    keys.append((short[:, None] * total + torch.arange(total, device=found.device)).view(-1))
    unique = torch.cat(keys).unique()
    return unique // total, unique % total


def _farthest(distances: FeatureDistances) -> Tensor:
    sample, split = _sample(distances, _SAMPLE), distances.num_queries
    farthest = distances.new_full((distances.num_rows,), 0)
    for side in (slice(0, split), slice(split, distances.num_rows)):
        strips = DistanceStrips(distances.rows(side), sample, "squared_euclidean")
        for block in cut(side.start, side.stop, TILE_ROWS):
            inside = slice(block.start - side.start, block.stop - side.start)
            farthest[block] = strips.of(inside).amax(1)
    farthest[farthest == 0] = 1
    return farthest


def _sample(distances: FeatureDistances, count: int) -> Tensor:
    """Return so many rows, evenly spaced."""
    total, split = distances.num_rows, distances.num_queries
    count = min(count, total)
    gallery = distances.rows(slice(split, total))
    places = torch.arange(count, device=gallery.device) * total // count
    queries = distances.rows(slice(0, split))[places[places < split]]
    return torch.cat([queries, gallery[places[places >= split] - split]])


def _blocks(distances: FeatureDistances) -> list[slice]:
    split = distances.num_queries
    return [*cut(0, split, _ROWS_AT_ONCE), *cut(split, distances.num_rows, _ROWS_AT_ONCE)]


def _vectors(distances: FeatureDistances, block: slice) -> np.ndarray:
    return distances.rows(block).float().cpu().contiguous().numpy()


def _show(blocks: list[slice], what: str, progress: bool) -> Iterator[slice]:
    return iter(tqdm(blocks, unit="block", desc=what, disable=not progress))
