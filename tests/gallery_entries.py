"""Entries to fill a gallery with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfclip import Gallery


def rows(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width))


def filled(folder: Path, count: int = 60, **options: Any) -> Gallery:
    """Open a gallery with something in every column, in several segments."""
    gallery = Gallery.open(folder, dim=8, **options)
    for start, stop in ((0, count // 2), (count // 2, count - 3), (count - 3, count)):
        numbers = range(start, stop)
        gallery.add(
            rows(count)[start:stop],
            ids=[f"track-{i}" for i in numbers],
            cameras=[i % 3 if i % 7 else None for i in numbers],
            times=[float(i) if i % 5 else None for i in numbers],
            persons=[i % 11 if i % 2 else None for i in numbers],
            metadata=[{"zone": f"z{i % 4}", "score": i / 10} if i % 3 else None for i in numbers],
        )
    return gallery
