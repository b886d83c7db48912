"""Distances of which only those to the nearest rows are known."""

from __future__ import annotations

import torch
from torch import Tensor

from tfclip.functional.neighbours import Neighbours


class ListDistances:
    """Distances that somebody else found, with the nearest rows of each row.

    What neither of two rows has in its list is as far as the last in the list of the first.

    Args:
        indices: ``(M, L)`` int64, the nearest rows of each, from the nearest on.
        distances: ``(M, L)`` floating point, ascending.
        num_queries: How many of the rows are queries.
        farthest: ``(M,)`` the greatest distance of each row, or one number for all.
        width: How long the lists must be at least.

    Raises:
        TypeError: As said of each.
        ValueError: As said of each, or lists that are too short.
    """

    def __init__(
        self,
        indices: Tensor,
        distances: Tensor,
        num_queries: int,
        farthest: Tensor | float,
        width: int,
    ) -> None:
        _check_lists(indices, distances, num_queries, width)
        self.num_queries, self.num_rows = num_queries, len(indices)
        values = distances.detach()
        if values.dtype.itemsize < 4:
            values = values.float()
        greatest = _check_farthest(farthest, values)
        self.neighbours = Neighbours(indices, values.minimum(greatest[:, None]), greatest)
        keys = torch.arange(self.num_rows, device=indices.device)[:, None] * self.num_rows + indices
        self._keys, order = keys.view(-1).sort()
        self._values = values.reshape(-1)[order]
        same = self._keys[1:] == self._keys[:-1]
        if same.any():
            twice = int(self._keys[1:][same][0])
            raise ValueError(
                "indices must have no row twice in a list, "
                f"got {twice % self.num_rows} twice in list {twice // self.num_rows}"
            )

        # The queries in the lists of the gallery, query by query.
        row, place = (indices[num_queries:] < num_queries).nonzero(as_tuple=True)
        self._seen, order = indices[num_queries:][row, place].sort()
        self._seen_by, self._seen_at = row[order], values[num_queries:][row, place][order]

    def new_full(self, size: tuple[int, ...], value: float) -> Tensor:
        """Return a tensor of the type and on the device of the distances."""
        return self._values.new_full(size, value)

    def of_pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the distance ``(M,)`` of each pair of rows, as far as it is known."""
        values = self.neighbours.distances[rows, -1]  # as far as the last, if nothing else is known
        for first, second in ((columns, rows), (rows, columns)):
            keys = first * self.num_rows + second
            place = torch.searchsorted(self._keys, keys).clamp_max_(len(self._keys) - 1)
            values = torch.where(self._keys[place] == keys, self._values[place], values)
        return values.minimum(self.neighbours.farthest[rows])

    def across(self, queries: slice) -> Tensor:
        """Return the distances ``(B, G)`` of some queries to the gallery, as far as known."""
        split, lists = self.num_queries, self.neighbours
        last = lists.distances[queries, -1:]
        plain = last.expand(-1, self.num_rows - split).clone()
        ends = torch.searchsorted(self._seen, self._seen.new_tensor([queries.start, queries.stop]))
        part = slice(*ends.tolist())
        plain[self._seen[part] - queries.start, self._seen_by[part]] = self._seen_at[part]
        near, values = lists.indices[queries], lists.distances[queries]
        query, place = (near >= split).nonzero(as_tuple=True)
        plain[query, near[query, place] - split] = values[query, place]
        return plain


def _check_lists(indices: Tensor, distances: Tensor, num_queries: int, width: int) -> None:
    shape = tuple(indices.shape)
    if indices.ndim != 2 or distances.shape != indices.shape:
        raise ValueError(
            "indices and distances must both be (M, L), got shapes "
            f"{shape} and {tuple(distances.shape)}"
        )
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be int64, got {indices.dtype}")
    if not distances.is_floating_point():
        raise TypeError(f"distances must be floating point, got {distances.dtype}")
    num_rows, length = shape
    if not num_queries < num_rows:
        raise ValueError(
            f"num_queries must be less than the {num_rows} rows of indices, got {num_queries}"
        )
    if not min(width, num_rows) <= length <= num_rows:
        raise ValueError(
            f"indices must list {min(width, num_rows)} to {num_rows} rows for each row, "
            f"which k1 and k2 ask for, got {length}"
        )
    low, high = indices.aminmax()
    if low < 0 or high >= num_rows:
        wrong = low if low < 0 else high
        raise ValueError(f"indices must be rows from 0 to {num_rows - 1}, got {wrong.item()}")
    low, high = distances.detach().aminmax()  # NaN wins both
    if not (low >= 0 and high.isfinite()):
        wrong = low if not low >= 0 else high
        raise ValueError(f"distances must be finite and not negative, got {wrong.item()}")
    falls = distances[:, 1:] < distances[:, :-1]
    if falls.any():
        row, place = falls.nonzero()[0].tolist()
        raise ValueError(
            f"distances must ascend in each list, got {distances[row, place].item()} before "
            f"{distances[row, place + 1].item()} in list {row}"
        )


def _check_farthest(farthest: Tensor | float, like: Tensor) -> Tensor:
    each = torch.as_tensor(farthest, dtype=like.dtype, device=like.device).detach()
    if each.ndim and each.shape != like.shape[:1]:
        raise ValueError(
            f"farthest must be one number or ({len(like)},), got shape {tuple(each.shape)}"
        )
    low, high = each.aminmax()
    if not (low >= 0 and high.isfinite()):
        wrong = low if not low >= 0 else high
        raise ValueError(f"farthest must be finite and not negative, got {wrong.item()}")
    each = each.expand(len(like))
    return torch.where(each == 0, 1, each)  # to divide by
