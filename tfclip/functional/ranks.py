"""Ranks of right matches, by counting what is nearer instead of sorting whole rankings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def match_ranks(block: Tensor, matches: list[np.ndarray]) -> list[np.ndarray]:
    """Return at which ranks each query's right matches stand.

    Equal distances keep the order of the gallery, so these are the ranks of a stable sort.

    Args:
        block: ``(B, G)`` float32 or float64, no NaN; infinite where a row is left out.
        matches: For each query the gallery rows that are right, none of them left out.

    Returns:
        For each query its ranks, ascending, from 1 on.
    """
    if block.device.type != "cpu":
        return _ranks_on_device(block, matches)
    return [
        _ranks_in_row(row, columns) for row, columns in zip(block.numpy(), matches, strict=True)
    ]


def _ranks_in_row(row: np.ndarray, columns: np.ndarray) -> np.ndarray:
    if not len(columns):
        return columns
    values = row[columns]
    near = row <= values.max()  # what is farther than the farthest match has no influence
    # Picking out many costs more than sorting all of them.
    kept = row[np.flatnonzero(near)] if np.count_nonzero(near) < len(row) // 3 else row
    ordered = np.sort(kept)
    nearer = ordered.searchsorted(values)
    tied = ordered.searchsorted(values, side="right") - nearer > 1  # with more than itself
    for i in np.flatnonzero(tied):
        nearer[i] += np.count_nonzero(row[: columns[i]] == values[i])
    nearer.sort()
    return nearer + 1


def _ranks_on_device(block: Tensor, matches: list[np.ndarray]) -> list[np.ndarray]:
    """Count for one match of every query at a time: slow on a processor, fast on a GPU."""
    columns = pad_sequence([torch.from_numpy(row) for row in matches], batch_first=True)
    columns = columns.to(block.device)
    values = block.gather(1, columns)
    position = torch.arange(block.shape[1], device=block.device)
    ranks = torch.empty_like(columns)
    for i in range(columns.shape[1]):
        value, column = values[:, i : i + 1], columns[:, i : i + 1]
        nearer = (block < value) | ((block == value) & (position < column))
        ranks[:, i] = nearer.sum(1) + 1
    found = ranks.cpu().numpy()
    return [np.sort(row[: len(right)]) for row, right in zip(found, matches, strict=True)]
