"""Products of matrices, by whichever routine is the fastest here that rounds as little."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import conv2d

_LARGE = 2**28  # multiplications; below, no choice of a routine pays for being measured
_TRIAL = 512, 512, 1024  # rows, columns and width of the products that are timed
_CLEARLY = 1.25  # times faster, so that noise in the timing does not decide
_PAIR_ENTRIES = 2**19  # numbers gathered at once for products of single pairs: stays in the cache
_FILTERS = threading.Lock()  # the filters of warnings are those of the whole process


def add_products(result: Tensor, rows: Tensor, columns: Tensor, factor: float) -> Tensor:
    """Add ``factor`` times the product of every row with every column, in place.

    Args:
        result: ``(B, C)``.
        rows: ``(B, F)``, of the type of ``result``.
        columns: ``(C, F)``, likewise.
        factor: Of the products.

    Returns:
        ``result``.
    """
    if (
        result.numel() * rows.shape[1] >= _LARGE
        and _is_plain_single(rows, columns)
        and convolution_is_faster(torch.get_num_threads())
    ):
        return result.add_(_convolve(rows, columns), alpha=factor)
    return result.addmm_(rows, columns.T, alpha=factor)


def multiply_halves(rows: Tensor, columns: Tensor, result: Tensor) -> Tensor:
    """Write the product of every row with every column into ``result``.

    Args:
        rows: ``(B, F)`` bfloat16.
        columns: ``(C, F)`` bfloat16.
        result: ``(B, C)`` bfloat16; sums are of float32 and rounded once.

    Returns:
        ``result``.
    """
    return torch.mm(rows, columns.T, out=result)


def pair_products(rows: Tensor, columns: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Multiply some rows with some columns, without the product of all.

    A pair always gives the same number, whatever the other pairs are, and whichever of its two
    comes first.

    Args:
        rows: ``(R, F)``.
        columns: ``(C, F)``.
        first: ``(M,)`` the row of each pair, ascending.
        second: ``(M,)`` the column of each pair; no pair comes twice.

    Returns:
        ``(M,)``.
    """
    if not len(first):
        return rows.new_empty(0)
    gather = _sampled if rows.device.type == "cpu" else _gathered
    return gather(rows, columns, first, second)


@lru_cache(maxsize=8)
def convolution_is_faster(threads: int) -> bool:
    """Tell whether a convolution multiplies matrices in float32 faster than their product does.

    PyTorch leaves products to MKL, which uses half of what some processors of other makers can do,
    and convolutions to oneDNN. Measured once.

    Args:
        threads: Of PyTorch; another number of them may give another answer.

    Returns:
        The answer.
    """
    rows, columns = _trial()
    return _CLEARLY * _seconds(lambda: _convolve(rows, columns)) < _seconds(
        lambda: torch.mm(rows, columns.T)
    )


@lru_cache(maxsize=8)
def bfloat16_is_faster(threads: int) -> bool:
    """Tell whether the processor multiplies faster in bfloat16, and adds up in float32. Measured.

    Args:
        threads: As in ``convolution_is_faster``.

    Returns:
        The answer.
    """
    rows, columns = _trial()
    halves = rows.bfloat16(), columns.bfloat16()
    exact = torch.mm(halves[0].float(), halves[1].float().T)
    apart = (torch.mm(halves[0], halves[1].T).float() - exact).abs()
    sums = halves[0].float().norm(dim=1)[:, None] * halves[1].float().norm(dim=1)
    # Its result is rounded once. Were sums rounded on the way, some would be off by much more.
    if (apart > rounding_of_bfloat16(exact.abs(), sums, rows.shape[1])).any():
        return False
    single = convolution_is_faster(threads)
    fastest = _seconds(
        lambda: _convolve(rows, columns) if single else torch.mm(rows, columns.T)  # what is used
    )
    return _CLEARLY * _seconds(lambda: torch.mm(halves[0], halves[1].T)) < fastest


def rounding_of_bfloat16(products: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Bound what rounding changes in a product of bfloat16 vectors that is added up in float32.

    Args:
        products: The greatest products there are, without sign.
        lengths: The greatest products of two vectors' lengths there are.
        width: Of the vectors.

    Returns:
        The bound: half a unit in the last of the 8 digits of the result, and one float32 rounding
        for every number added, in any order.
    """
    return 1.01 * 2.0**-8 * products + (width + 4) * 2.0**-24 * lengths


def _is_plain_single(*tensors: Tensor) -> bool:
    return torch.get_float32_matmul_precision() == "highest" and all(
        each.dtype == torch.float32 and each.device.type == "cpu" and each.is_contiguous()
        for each in tensors
    )


def _convolve(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the product as a convolution of a picture one pixel high by one-pixel filters."""
    height, width = rows.shape
    picture = rows.view(1, 1, height, width).permute(0, 3, 1, 2)  # channels last, as oneDNN likes
    return conv2d(picture, columns[:, :, None, None]).permute(0, 2, 3, 1).view(height, -1)


def _sampled(rows: Tensor, columns: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Multiply pairs as the entries of a product that is sparse, which is fast on a processor."""
    start, stop = int(first[0]), int(first[-1]) + 1
    starts = first.new_zeros(stop - start + 1)
    torch.cumsum((first - start).bincount(minlength=stop - start), 0, out=starts[1:])
    pairs = _sparse(starts, second, rows.new_zeros(len(first)), (stop - start, len(columns)))
    return torch.sparse.sampled_addmm(pairs, rows[start:stop], columns.T).values()


def _gathered(rows: Tensor, columns: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Multiply pairs as copies of their rows, a few at a time."""
    size = max(1, _PAIR_ENTRIES // rows.shape[1])
    parts = zip(first.split(size), second.split(size), strict=True)
    return torch.cat([(rows[one] * columns[other]).sum(1) for one, other in parts])


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts, columns, values, size, device=values.device, check_invariants=False
        )


def _trial() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    height, width, length = _TRIAL
    size = height + width, length
    rows = torch.randn(size, generator=random, dtype=torch.float32, device="cpu")
    return rows[:height], rows[height:]


def _seconds(work: Callable[[], Tensor]) -> float:
    """Return the shortest of some times: what else runs on the machine only makes it longer."""
    spent = []
    for _ in range(4):  # the first may have to wait for memory
        start = time.perf_counter()
        work()
        spent.append(time.perf_counter() - start)
    return min(spent)
