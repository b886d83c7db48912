"""Measure a gallery in Milvus: how fast it fills, what it finds, and how long a search takes.

    python examples/benchmark_milvus.py --size 20000
    python examples/benchmark_milvus.py --size 20000 --partition camera
    python examples/benchmark_milvus.py --size 1000000 --uri http://127.0.0.1:19530 --clients 1 2 8

Without ``--uri`` it is Milvus Lite in a folder that is removed afterwards. Half of the entries are
added by ``Gallery.add``, a thousand at a time, the other half imported from a parquet file. The
vectors are those of ``benchmark_gallery.py``, of six cameras. Recall is against the exact search.
Clients are processes where Milvus is a server. Milvus Lite lets one process at a time open a
folder, so that there they are threads. On a server the collection is dropped at the end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_gallery import PER_PERSON, WIDTH, chunks, draw, recall, seconds

from tfclip import Gallery
from tfclip.data import EmbeddingTable

CAMERAS = 6
STEP = 1_000  # entries in one call of add
TOP = 10
BATCH = 32  # queries in one search


def opened(address: str, options: dict[str, Any]) -> Gallery:
    """Open the gallery that is measured."""
    return Gallery.open(address, storage="milvus", **options)


def fill(gallery: Gallery, exact: Gallery, size: int, scratch: Path) -> tuple[float, float]:
    """Fill both galleries; return how many entries a second were added, and imported."""
    spent = {"added": 0.0, "imported": 0.0}
    count = {"added": 0, "imported": 0}
    for start, vectors in chunks(size):
        ids = [str(start + row) for row in range(len(vectors))]
        cameras = [(start + row) % CAMERAS for row in range(len(vectors))]
        exact.add(vectors, ids, cameras)
        half = len(vectors) // 2
        for row in range(0, half, STEP):
            some = slice(row, min(row + STEP, half))
            columns = vectors[some], ids[some], cameras[some]
            took, _ = seconds(lambda c=columns: gallery.add(*c))
            spent["added"] += took
        file = scratch / "half.parquet"
        EmbeddingTable(
            embeddings=torch.from_numpy(vectors[half:]),
            names=tuple(ids[half:]),
            cameras=tuple(cameras[half:]),
        ).save(file)
        took, _ = seconds(lambda f=file: gallery.import_file(f))
        spent["imported"] += took
        count["added"] += half
        count["imported"] += len(vectors) - half
    gallery.save()
    return count["added"] / spent["added"], count["imported"] / spent["imported"]


def latencies(search: Callable[[np.ndarray], Any], parts: list[np.ndarray]) -> np.ndarray:
    """Return how many milliseconds each search took, after one that does not count."""
    search(parts[0])
    return 1_000 * np.array([seconds(lambda p=part: search(p))[0] for part in parts])


def shown(times: np.ndarray) -> str:
    """Return median and 95th percentile."""
    return f"p50 {np.percentile(times, 50):8.2f} ms   p95 {np.percentile(times, 95):8.2f} ms"


def client(address: str, options: dict[str, Any], queries: np.ndarray, wanted: float) -> np.ndarray:
    """Search single queries for some seconds; return the milliseconds of each."""
    with opened(address, options) as gallery:
        gallery.search(queries[0], TOP)
        times, end = [], time.perf_counter() + wanted
        while time.perf_counter() < end:
            query = queries[len(times) % len(queries)]
            times.append(1_000 * seconds(lambda q=query: gallery.search(q, TOP))[0])
    return np.array(times)


def several(
    number: int, address: str, options: dict[str, Any], queries: np.ndarray, wanted: float
) -> None:
    """Measure some clients at the same time."""
    pool: Executor
    if "://" in address:
        pool = ProcessPoolExecutor(number, get_context("spawn"))
    else:
        pool = ThreadPoolExecutor(number)
    with pool:
        work = [pool.submit(client, address, options, queries, wanted) for _ in range(number)]
        times = [job.result() for job in work]
    rate = sum(len(some) for some in times) / wanted
    print(f"{number} client(s)           {shown(np.concatenate(times))}   {rate:8.1f} queries/s")


def measure(gallery: Gallery, exact: Gallery, queries: np.ndarray) -> None:
    """Print recall, and how long a search takes."""
    found = gallery.search(queries, TOP).ids
    print(f"recall@{TOP}             {recall(found, exact.search(queries, TOP).ids):.4f}")
    single = [queries[row : row + 1] for row in range(len(queries))]
    batches = [queries[row : row + BATCH] for row in range(0, len(queries) - BATCH + 1, BATCH)]
    where = {"camera": 1}
    for what, parts, condition in (
        ("one query", single, None),
        (f"{BATCH} queries", batches, None),
        ("one query, a camera", single, where),
    ):
        times = latencies(lambda part, c=condition: gallery.search(part, TOP, where=c), parts)
        print(f"{what:<20}  {shown(times)}")
    found = gallery.search(queries, TOP, where=where).ids
    expected = exact.search(queries, TOP, where=where).ids
    print(f"recall@{TOP}, a camera   {recall(found, expected):.4f}")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--uri", help="a folder, or http://HOST:PORT; default: Milvus Lite")
    parser.add_argument("--token", default="", help="Milvus's token, or user:password")
    parser.add_argument("--size", type=int, default=20_000, help="entries (20000)")
    parser.add_argument("--queries", type=int, default=200, help="at least 32 (200)")
    parser.add_argument("--partition", help="camera: a partition for each of the six")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2], help="at once (1 2)")
    parser.add_argument("--seconds", type=float, default=10, help="that clients search (10)")
    options = parser.parse_args()
    random = np.random.default_rng(options.size)
    persons = random.integers(0, max(1, options.size // PER_PERSON), options.queries)
    queries = draw(options.queries, persons, seed=options.size)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        address = options.uri or str(scratch / "milvus")
        how: dict[str, Any] = {"collection": "tfclip_benchmark", "token": options.token}
        made = {"dim": WIDTH, "partition": options.partition}
        exact = Gallery.open(scratch / "exact", dim=WIDTH)
        with opened(address, {**how, **made}) as gallery:
            if len(gallery):
                parser.error(f"{address} has a collection tfclip_benchmark with entries already")
            print(f"{options.size:,} entries x {WIDTH}, partition: {options.partition or '-'}")
            added, imported = fill(gallery, exact, options.size, scratch)
            print(f"add                   {added:8.0f} entries/s, {STEP} at a time")
            print(f"import                {imported:8.0f} entries/s")
            measure(gallery, exact, queries)
        for number in options.clients:
            several(number, address, how, queries, options.seconds)
        exact.close()
        if "://" in address:
            drop(address, options.token)


def drop(address: str, token: str) -> None:
    """Remove what was measured from a server."""
    from pymilvus import MilvusClient

    milvus = MilvusClient(uri=address, token=token)
    for name in ("tfclip_benchmark", "tfclip_benchmark_about"):
        milvus.drop_collection(name)
    milvus.close()


if __name__ == "__main__":
    main()
