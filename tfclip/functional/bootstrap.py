"""How far a mean would move had other queries been drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

_BLOCK_DRAWS = 4_000_000  # draws held at once


def bootstrap_interval(
    values: Tensor | np.ndarray | Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean.

    The values are drawn again with replacement, as many as there are, ``resamples`` times; the
    interval is between the ``(1 - level) / 2`` and ``(1 + level) / 2`` quantiles of the means,
    interpolated linearly. It takes the values for independent: queries of one person are not
    quite, so the interval is rather too short than too long. It says nothing about other training
    seeds, cameras or places.

    Args:
        values: ``(M,)`` finite, one for each query.
        level: Between 0 and 1, both excluded.
        resamples: At least 1.
        seed: The same values, resamples and seed give the same interval.

    Returns:
        Its two ends, lower first.

    Raises:
        ValueError: Values that are not a non-empty finite vector, or an option out of its range.

    Example:
        >>> low, high = bootstrap_interval([0.0, 1.0] * 50)  # in theory 0.5 -+ 1.96 * 0.05
        >>> round(low, 2), round(high, 2)
        (0.4, 0.6)
    """
    sample = np.asarray(values.cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError(f"values must be (M,) with at least one, got shape {sample.shape}")
    if not np.isfinite(sample).all():
        position = int(np.flatnonzero(~np.isfinite(sample))[0])
        raise ValueError(f"values must be finite, got {sample[position]} at position {position}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    random = np.random.default_rng(seed)
    rows = max(1, _BLOCK_DRAWS // len(sample))
    means = np.empty(resamples)
    for first in range(0, resamples, rows):
        block = means[first : first + rows]  # a view; the last may be shorter
        draws = random.integers(len(sample), size=(len(block), len(sample)))
        block[:] = sample[draws].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
