"""Measure how fast a gallery takes entries and finds them, and how much an index misses.

    python examples/benchmark_gallery.py --sizes 10000 100000 1000000
    python examples/benchmark_gallery.py --sizes 10000 --storages exact hnsw milvus

The vectors are drawn: of every ten one person, around whose random direction they scatter so that
two of one person are as far apart as those of a good model are (a cosine of 0.8); different persons
are as far apart as random directions. Queries are new vectors of persons in the gallery. The files
of exact and FAISS are the same, so they are written once.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfclip import Gallery

WIDTH = 512
COSINE = 0.8  # between two vectors of one person
PER_PERSON = 10
CHUNK = 50_000


def draw(count: int, persons: np.ndarray, seed: int) -> np.ndarray:
    """Return vectors ``(count, WIDTH)`` of some persons, each given by a number."""
    random = np.random.default_rng((seed, 1))
    centres = np.stack([np.random.default_rng((p, 0)).normal(size=WIDTH) for p in persons])
    noise = random.normal(size=(count, WIDTH)) * np.sqrt(1 / COSINE - 1)
    return (centres + noise).astype(np.float32)


def chunks(size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of the first entry and the vectors of some, until there are enough."""
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        persons = np.arange(start, start + count) // PER_PERSON
        distinct, places = np.unique(persons, return_inverse=True)
        centres = np.stack(
            [np.random.default_rng((p, 0)).normal(size=WIDTH).astype(np.float32) for p in distinct]
        )
        noise = np.random.default_rng((start, 1)).standard_normal((count, WIDTH), dtype=np.float32)
        yield start, centres[places] + noise * np.float32(np.sqrt(1 / COSINE - 1))


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long some work took, and its result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def fill(gallery: Gallery, size: int) -> float:
    """Add entries in chunks; return the seconds within ``add``."""
    spent = 0.0
    for start, vectors in chunks(size):
        cameras = [(start + row) % 6 for row in range(len(vectors))]
        took, _ = seconds(lambda v=vectors, c=cameras: gallery.add(v, cameras=c))
        spent += took
    return spent


def one_by_one(folder: Path, storage: str) -> float:
    """Return how many single entries are added in a second."""
    gallery = Gallery.open(folder, storage=storage, dim=WIDTH)  # type: ignore[arg-type]
    vectors = draw(50, np.arange(50), 7)
    took, _ = seconds(lambda: [gallery.add(vectors[row : row + 1]) for row in range(50)])
    gallery.close()
    return 50 / took


def measure(gallery: Gallery, queries: np.ndarray) -> tuple[float, float, list[list[str]]]:
    """Return queries per second, all at once and one at a time, and the ids found."""
    gallery.search(queries[:1])  # makes the index, and brings files into memory
    together, result = seconds(lambda: gallery.search(queries))
    single = min(20, len(queries))
    alone, _ = seconds(lambda: [gallery.search(queries[row]) for row in range(single)])
    return len(queries) / together, single / alone, result.ids


def recall(found: list[list[str]], exact: list[list[str]]) -> float:
    """Return which share of the exact neighbours was found, on average."""
    pairs = zip(found, exact, strict=True)
    return float(np.mean([len(set(ours) & set(theirs)) / len(theirs) for ours, theirs in pairs]))


def run(size: int, storages: list[str], number: int, scratch: Path) -> None:
    """Measure all storages at one size."""
    random = np.random.default_rng(size)
    queries = draw(number, random.integers(0, size // PER_PERSON, number), seed=size)
    folder = scratch / f"{size}"
    gallery = Gallery.open(folder, dim=WIDTH)
    added = size / fill(gallery, size)
    together, alone, exact = measure(gallery, queries)
    opening, _ = seconds(lambda: Gallery.open(folder, read_only=True).search(queries[:1]))
    show(size, "exact", added, opening, together, alone, 1.0)
    complete = exact
    forgetting, _ = seconds(lambda: gallery.forget(["0", str(size // 2), str(size - 1)]))
    print(f"    forgetting three entries: {forgetting:.2f} s", flush=True)
    exact = gallery.search(queries).ids
    for kind in ("flat", "hnsw", "ivf"):
        if kind not in storages or size <= 20_000:  # so few are compared one by one anyway
            continue
        options: dict[str, Any] = {"storage": "faiss", "index": kind}
        with Gallery.open(folder, **options) as gallery:
            building, _ = seconds(lambda g=gallery: g.search(queries[:1]))
            together, alone, found = measure(gallery, queries)
        opening, _ = seconds(
            lambda o=options: Gallery.open(folder, read_only=True, **o).search(queries[:1])
        )
        show(size, f"faiss {kind}", size / building, opening, together, alone, recall(found, exact))
    if "milvus" in storages:
        options = {"storage": "milvus", "dim": WIDTH}
        with Gallery.open(scratch / f"milvus-{size}", **options) as gallery:
            added = size / fill(gallery, size)
            together, alone, found = measure(gallery, queries)
        opening, gallery = seconds(lambda: Gallery.open(scratch / f"milvus-{size}", **options))
        gallery.close()
        show(size, "milvus lite", added, opening, together, alone, recall(found, complete))


def show(size: int, name: str, added: float, opening: float, *rest: float) -> None:
    """Print a row of the table."""
    together, alone, found = rest
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"| {size:,} | {name} | {added:,.0f} | {opening:.2f} | {together:,.0f} | {alone:,.0f} "
        f"| {found:.3f} | {peak:.1f} |",
        flush=True,
    )


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--storages",
        nargs="+",
        choices=("exact", "flat", "hnsw", "ivf", "milvus"),
        default=["exact", "flat", "hnsw", "ivf", "milvus"],
    )
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    options = parser.parse_args()
    print(f"single additions: {one_by_one(Path(tempfile.mkdtemp()) / 'g', 'exact'):.0f} per second")
    print(
        "| entries | storage | added or indexed / s | opening, s | queries / s, together "
        "| queries / s, one by one | recall@10 | peak, GiB |\n"
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for size in options.sizes:
            run(size, options.storages, options.queries, Path(scratch))


if __name__ == "__main__":
    main()
