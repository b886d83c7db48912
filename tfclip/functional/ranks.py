"""Ranks of right matches, by counting what is nearer instead of sorting whole rankings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tfclip.functional.candidates import Rows, without


def match_ranks(block: Tensor, rows: list[Rows]) -> list[np.ndarray]:
    """Return at which ranks each query's right matches stand.

    Equal distances keep the order of the gallery, so these are the ranks of a stable sort.

    Args:
        block: ``(B, G)`` finite distances of some queries; it stays as it is.
        rows: For each query what is right and what is left out of its ranking.

    Returns:
        For each query its ranks, ascending, from 1 on.
    """
    if block.dtype.itemsize < 4:
        block = block.float()  # exact; NumPy knows no bfloat16
    if block.device.type != "cpu":
        return _ranks_on_device(without(block, rows), [row.matches for row in rows])
    ranks = []
    lines = block.numpy()
    line = np.empty_like(lines[0])  # one row at a time stays in the cache
    for distance, (matches, left_out) in zip(lines, rows, strict=True):
        if not len(matches):
            ranks.append(matches)
            continue
        line[:] = distance
        line[left_out] = np.inf
        ranks.append(_ranks_in_line(line, matches))
    return ranks


def _ranks_in_line(line: np.ndarray, matches: np.ndarray) -> np.ndarray:
    values = line[matches]
    near = line <= values.max()  # what is farther than the farthest match has no influence
    # Picking out many costs more than sorting all of them.
    kept = line[near.nonzero()[0]] if np.count_nonzero(near) < len(line) // 3 else line.copy()
    kept.sort()
    nearer = kept.searchsorted(values)
    tied = kept.searchsorted(values, side="right") - nearer > 1  # with more than itself
    if tied.any():
        for i in tied.nonzero()[0]:
            nearer[i] += np.count_nonzero(line[: matches[i]] == values[i])
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
