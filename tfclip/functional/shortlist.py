"""Which rows may be nearest or farthest by rough distances, so that few have to be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tfclip.functional.pairwise import FeatureDistances
from tfclip.functional.products import multiply_halves, rounding_of_bfloat16
from tfclip.functional.sparse import parts

_ROWS_AT_ONCE = 4_096  # embeddings rounded at once
_LEAST_LOG, _LOG_PER_NEIGHBOUR = 2**22, 8  # pairs that a log may hold: always, and of each row
_WIDE = 4  # lengths of a list: with more new entries, selecting again is faster than merging


class TooManyError(Exception):
    """Rounding leaves so many pairs to compare that it saves nothing."""


class RoughDistances:
    """Distances as tiles give them, and how far those of single pairs may be from them.

    Args:
        exact: The distances.
    """

    def __init__(self, exact: FeatureDistances) -> None:
        self.exact = exact
        self._rounding = 2 * exact.rounding()  # that of the tile and that of the pair

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return ``(B, C)`` distances; they stand where those of the call before stood."""
        return self.exact.tile(rows, columns)

    def slack(self, rows: slice, values: Tensor) -> Tensor:
        """Bound how far distances may be from those of single pairs.

        Args:
            rows: B of them.
            values: ``(B,)`` a distance of each row, of this class.

        Returns:
            ``(B,)`` the bound of each. At a distance that is higher or lower by x it is greater by
            x / 100 at most.
        """
        del values
        return self._rounding[rows]


class HalfDistances(RoughDistances):
    """Distances whose products are of bfloat16.

    The mean of the gallery is taken from all rows, which leaves distances as they are: of shorter
    vectors less is lost.

    Args:
        exact: Distances of float32.
    """

    def __init__(self, exact: FeatureDistances) -> None:
        super().__init__(exact)
        split, total = exact.num_queries, exact.num_rows
        gallery = exact.rows(slice(split, total))
        mean, self._width = gallery.mean(0), gallery.shape[1]
        self._rows = mean.new_empty(total, self._width, dtype=torch.bfloat16)
        self._squares, lost = mean.new_empty(total), mean.new_empty(total)
        for first, last in ((0, split), (split, total)):
            for start in range(first, last, _ROWS_AT_ONCE):
                part = slice(start, min(start + _ROWS_AT_ONCE, last))
                centred = exact.rows(part) - mean
                self._rows[part] = centred
                self._squares[part] = centred.square().sum(1)
                lost[part] = centred.sub_(self._rows[part]).norm(dim=1)
        lengths = self._squares.sqrt()
        lost += 2.0**-22 * lengths  # the difference to the mean is rounded too
        kept = lengths + lost
        self._lengths = kept * kept.max()
        # |x·y - x'·y'| is at most |x - x'| |y| + |x'| |y - y'|.
        self._lost = lost * lengths.max() + kept * lost.max()
        self._strip, self._products = mean.new_empty(0), self._rows.new_empty(0)

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """Return ``(B, C)`` distances; they stand where those of the call before stood."""
        left, right = self._rows[rows], self._rows[columns]
        size = len(left) * len(right)
        if len(self._strip) < size:
            self._strip, self._products = self._strip.new_empty(size), left.new_empty(size)
        products = self._products[:size].view(len(left), len(right))
        tile = self._strip[:size].view_as(products)
        multiply_halves(left, right, products)
        torch.add(self._squares[rows, None], self._squares[columns], out=tile)
        tile.sub_(products, alpha=2)
        return tile.fill_diagonal_(0) if rows == columns else tile

    def slack(self, rows: slice, values: Tensor) -> Tensor:
        """Bound how far distances may be from those of single pairs."""
        own, squares = self._squares[rows], self._squares
        most, least = own + squares.max() - values, values - own - squares.min()
        products = torch.maximum(most, least) / 2  # the greatest at such a distance
        rounding = rounding_of_bfloat16(products, self._lengths[rows], self._width)
        return 2 * (self._lost[rows] + rounding) + self._rounding[rows]


class Shortlist:
    """The rows that may be among the nearest of a row, or be the farthest from it.

    Args:
        rough: The distances.
        width: How many nearest are asked for.
    """

    def __init__(self, rough: RoughDistances, width: int) -> None:
        self._rough, self._width = rough, width
        num_rows = rough.exact.num_rows
        self._nearest = rough.exact.new_full((num_rows, width), torch.inf)
        self._farthest = torch.zeros_like(self._nearest[:, 0])
        # Where to look for the nearest and the farthest: so far, then less and less.
        self._low, self._high = self._nearest[:, -1].clone(), self._farthest.clone()
        self._mask = torch.empty(0, dtype=torch.bool, device=self._low.device)
        self._near, self._far = (_Log(self._low, width) for _ in range(2))

    def add(self, rows: slice, columns: slice, tile: Tensor) -> None:
        """Take in the distances ``(B, C)`` of a tile, which serves its rows and its columns."""
        sides = [rows] if rows == columns else [rows, columns]
        full = [bool(self._nearest[side, -1].isfinite().all()) for side in sides]
        for axis, side in enumerate(sides):
            self._farthest[side] = torch.maximum(self._farthest[side], tile.amax(1 - axis))
            if not full[axis]:
                self._select(side, tile.T if axis else tile)
            self._tighten(side)
        places = self._places(sides, tile)
        found, width = tile.view(-1)[places], tile.shape[1]
        row = places // width
        both = row + rows.start, places - row * width + columns.start
        for axis, side in enumerate(sides):
            if full[axis]:
                self._merge(side, both[axis], found, tile.T if axis else tile)
                self._tighten(side)
        for own, other in (both, both[::-1])[: len(sides)]:
            self._near.add(own, other, found, self._is_near(own, found))
            self._far.add(own, other, found, self._is_far(own, found))
        self._near.shrink(self._is_near)
        self._far.shrink(self._is_far)

    def decide(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices and distances of the nearest ``(M, k)``, and the farthest ``(M,)``."""
        of_pairs = self._rough.exact.of_pairs
        indices = torch.empty_like(self._nearest, dtype=torch.int64)
        distances = torch.empty_like(self._nearest)
        for some, rows, columns in self._near.parts(self._is_near):
            values = of_pairs(rows, columns)
            indices[some], distances[some] = nearest_of_pairs(
                rows, columns, values, some, self._width
            )
        farthest = torch.zeros_like(self._farthest)
        for _, rows, columns in self._far.parts(self._is_far):
            farthest.scatter_reduce_(0, rows, of_pairs(rows, columns), "amax")
        farthest[farthest == 0] = 1
        return indices, distances, farthest

    def _is_near(self, rows: Tensor, values: Tensor) -> Tensor:
        return values <= self._low[rows]

    def _is_far(self, rows: Tensor, values: Tensor) -> Tensor:
        return values >= self._high[rows]

    def _tighten(self, side: slice) -> None:
        # k rows are no farther than the k-th here and a slack, and what is as near is no farther
        # here than another slack beyond that.
        last, farthest = self._nearest[side, -1], self._farthest[side]
        self._low[side] = last + 2.03 * self._rough.slack(side, last)
        self._high[side] = farthest - 2.03 * self._rough.slack(side, farthest)

    def _places(self, sides: list[slice], tile: Tensor) -> Tensor:
        """Return where in the flat tile is what may be near or far, for its row or its column."""
        size = tile.numel()
        words = -(-size // 8)
        if len(self._mask) < 16 * words:
            self._mask = self._mask.new_empty(16 * words)
        whole, other = self._mask[: 8 * words], self._mask[8 * words :][:size].view_as(tile)
        whole[size:] = False
        mask = whole[:size].view_as(tile)
        for axis, side in enumerate(sides):
            shape = (1, -1) if axis else (-1, 1)
            if axis:
                mask |= torch.le(tile, self._low[side].view(shape), out=other)
            else:
                torch.le(tile, self._low[side].view(shape), out=mask)
            mask |= torch.ge(tile, self._high[side].view(shape), out=other)
        # Almost all are false; eight at once take a sixth of the time of one by one.
        word = whole.view(torch.int64).nonzero()[:, 0]
        place, byte = whole.view(-1, 8)[word].nonzero(as_tuple=True)
        return word[place] * 8 + byte

    def _select(self, side: slice, tile: Tensor) -> None:
        """Keep the nearest of those known and all of a tile."""
        few = min(self._width, tile.shape[1])
        new = tile.contiguous().topk(few, dim=1, largest=False, sorted=False)[0]
        both = torch.cat([self._nearest[side], new], dim=1)
        self._nearest[side] = both.topk(self._width, dim=1, largest=False)[0]

    def _merge(self, side: slice, rows: Tensor, values: Tensor, tile: Tensor) -> None:
        """Keep the nearest of those known and some of a tile."""
        nearer = values <= self._nearest[rows, -1]
        rows, values = rows[nearer] - side.start, values[nearer]
        counts = rows.bincount(minlength=1)
        most = int(counts.max())
        if most > _WIDE * self._width:
            return self._select(side, tile)
        rows, order = rows.sort()
        slot = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        new = values.new_full((len(counts), most), torch.inf)
        new[rows, slot] = values[order]
        touched = counts.nonzero()[:, 0]
        both = torch.cat([self._nearest[touched + side.start], new[touched]], dim=1)
        both = both.topk(self._width, dim=1, largest=False)[0]
        self._nearest[touched + side.start] = both
        return None


def nearest_of_pairs(
    rows: Tensor, columns: Tensor, values: Tensor, some: slice, width: int
) -> tuple[Tensor, Tensor]:
    """Sort the pairs of each row; of equal distances the lower column comes first.

    Args:
        rows: ``(M,)`` a row of ``some``, ascending.
        columns: ``(M,)`` ascending within a row.
        values: ``(M,)`` their distances.
        some: The rows, each of which has ``width`` pairs or more.
        width: How many are wanted of each.

    Returns:
        The columns, ``(B, width)``, and their distances.
    """
    order = values.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    counts = (rows - some.start).bincount()
    places = torch.arange(width, device=rows.device)
    chosen = order[(counts.cumsum(0) - counts)[:, None] + places]
    return columns[chosen], values[chosen]


class _Log:
    """Pairs of rows with their rough distances."""

    def __init__(self, like: Tensor, width: int) -> None:
        self._num_rows = len(like)
        self._most = max(_LEAST_LOG, _LOG_PER_NEIGHBOUR * width * len(like))
        self._keys = [torch.empty(0, dtype=torch.int64, device=like.device)]
        self._values = [like.new_empty(0)]
        self._length = 0

    def add(self, rows: Tensor, columns: Tensor, values: Tensor, chosen: Tensor) -> None:
        """Note some pairs."""
        self._keys.append(rows[chosen] * self._num_rows + columns[chosen])
        self._values.append(values[chosen])
        self._length += len(self._keys[-1])

    def shrink(self, wanted: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Drop what is not wanted any more, once there is much.

        Raises:
            TooManyError: Too much is still wanted.
        """
        if self._length > self._most:
            self._drop(wanted)
            if 2 * self._length > self._most:
                raise TooManyError

    def parts(
        self, wanted: Callable[[Tensor, Tensor], Tensor]
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield some rows, and both rows of each of their pairs, ascending; every row has one."""
        self._drop(wanted)
        keys = self._keys.pop().sort()[0]
        self._values.clear()
        rows = keys // self._num_rows
        columns = keys.sub_(rows * self._num_rows)
        counts = rows.bincount(minlength=self._num_rows)
        ends = counts.cumsum(0)
        for some in parts(counts):
            entries = slice(int(ends[some.start] - counts[some.start]), int(ends[some.stop - 1]))
            yield some, rows[entries], columns[entries]

    def _drop(self, wanted: Callable[[Tensor, Tensor], Tensor]) -> None:
        keys, values = torch.cat(self._keys), torch.cat(self._values)
        kept = wanted(keys // self._num_rows, values)
        self._keys, self._values = [keys[kept]], [values[kept]]
        self._length = len(self._keys[0])
