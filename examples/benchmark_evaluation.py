"""Measure what scoring a ranking costs.

    python examples/benchmark_evaluation.py matrix      # 1,980 x 11,310, against per-query loops
    python examples/benchmark_evaluation.py features    # 50,000 x 500,000 x 256, never as a matrix
    python examples/benchmark_evaluation.py growth --plot growth.png

Embeddings are drawn: people are random directions, tracklets are their person plus noise. Machines
are noisy: the rivals take turns, and the median of the ratios of neighbouring turns is printed.
Threads are torch's: set OMP_NUM_THREADS. `features` and `growth` measure in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from tfclip.functional import (
    RankingResult,
    evaluate_ranking,
    evaluate_ranking_from_features,
    squared_euclidean_distance,
)

CAMERAS = 6
GALLERY_SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)


class Drawn(NamedTuple):
    """Embeddings of drawn people; the queries stand in the gallery too, as in MARS."""

    gallery: torch.Tensor
    persons: np.ndarray
    cameras: np.ndarray


def draw(num_gallery: int, width: int, tracklets: float, noise: float) -> Drawn:
    """Draw a gallery with so many tracklets for each person on average."""
    random = torch.Generator().manual_seed(0)
    num_persons = max(1, round(num_gallery / tracklets))
    persons = torch.randint(num_persons, (num_gallery,), generator=random)
    cameras = torch.randint(CAMERAS, (num_gallery,), generator=random)
    directions = torch.randn(num_persons, width, generator=random)
    gallery = torch.empty(num_gallery, width)
    for rows in torch.arange(num_gallery).split(50_000):  # no second copy of the whole
        block = torch.randn(len(rows), width, generator=random).mul_(noise)
        gallery[rows] = torch.nn.functional.normalize(block.add_(directions[persons[rows]]), dim=1)
    return Drawn(gallery, persons.numpy(), cameras.numpy())


def numpy_loop(
    distance: np.ndarray,
    query_ids: np.ndarray,
    gallery_ids: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    listed: bool,
) -> tuple[np.ndarray, float]:
    """Score one query after the other, as is usual: sort, look up, drop, add up.

    Args:
        distance: ``(Q, G)``.
        query_ids: Persons, and so on.
        gallery_ids: Persons.
        query_cameras: Cameras.
        gallery_cameras: Cameras.
        listed: Compute precision in a list comprehension over the ranking, as is also usual.
    """
    rows, precisions = [], []
    order = np.argsort(distance, axis=1)
    matches = (gallery_ids[order] == query_ids[:, None]).astype(np.int32)
    for query in range(len(distance)):
        ranked = order[query]
        removed = (gallery_ids[ranked] == query_ids[query]) & (
            gallery_cameras[ranked] == query_cameras[query]
        )
        hits = matches[query][~removed]
        if not hits.any():
            continue
        found = hits.cumsum()
        rows.append(np.minimum(found, 1)[:50])
        if listed:
            precision = np.asarray([count / (i + 1.0) for i, count in enumerate(found)])
        else:
            precision = found / np.arange(1.0, len(found) + 1.0)
        precisions.append((precision * hits).sum() / hits.sum())
    return np.mean(rows, axis=0), float(np.mean(precisions))


def measure_matrix(arguments: argparse.Namespace) -> None:
    """Print seconds and ratios for one matrix of distances."""
    print(f"{arguments.queries} x {arguments.gallery}, {torch.get_num_threads()} threads")
    for noise in arguments.noises:
        drawn = draw(arguments.gallery, arguments.width, arguments.tracklets, noise)
        num_queries = arguments.queries
        distance = squared_euclidean_distance(drawn.gallery[:num_queries], drawn.gallery)
        labels = (
            drawn.persons[:num_queries],
            drawn.persons,
            drawn.cameras[:num_queries],
            drawn.cameras,
        )
        array = distance.numpy()
        rivals: dict[str, Callable[[], object]] = {
            "evaluate_ranking": partial(evaluate_ranking, distance, *labels),
            "numpy loop": partial(numpy_loop, array, *labels, listed=False),
            "numpy loop with list": partial(numpy_loop, array, *labels, listed=True),
        }
        result = evaluate_ranking(distance, *labels)
        cmc, mean = numpy_loop(array, *labels, listed=False)
        # Their sort is not stable, ours is; among drawn embeddings hardly anything ties.
        assert abs(result.mAP - mean) < 1e-6
        assert np.abs(result.cmc.numpy() - cmc).max() < 1e-3
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for _ in tqdm(range(arguments.rounds), unit="round", leave=False):
            for name, rival in rivals.items():
                times[name].append(seconds(rival))
        print(f"mAP {result.mAP:.1%}, rank-1 {result.rank(1):.1%} (noise {noise:g})")
        for name in rivals:
            pairs = zip(times[name], times["evaluate_ranking"], strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            print(f"{name:>22}  {statistics.median(times[name]):8.3f} s  {ratio:7.1f} x")


def measure_features(arguments: argparse.Namespace) -> None:
    """Print seconds and the peak memory of a process that scores embeddings."""
    report = in_child(arguments.queries, arguments.gallery, arguments)
    products = 2 * arguments.queries * arguments.gallery * arguments.width
    print(f"{arguments.queries} x {arguments.gallery} x {arguments.width}, {arguments.metric}")
    print(f"{'threads':>22}  {report['threads']}")
    print(f"{'seconds':>22}  {report['seconds']:.1f}")
    print(f"{'processor seconds':>22}  {report['processor_seconds']:.1f} (all threads)")
    print(f"{'products of matrices':>22}  {products / 1e12:.2f} TFLOP")
    print(f"{'peak memory':>22}  {report['peak_mebibytes']:.0f} MiB (the process, with torch)")
    print(f"{'before the call':>22}  {report['before_mebibytes']:.0f} MiB")
    print(f"{'mAP, rank-1':>22}  {report['mAP']:.1%}, {report['rank1']:.1%}")


def measure_growth(arguments: argparse.Namespace) -> None:
    """Print seconds for growing galleries, and draw them."""
    sizes = [max(1000, round(share * arguments.gallery)) for share in GALLERY_SHARES]
    reports = [in_child(arguments.queries, size, arguments) for size in tqdm(sizes, unit="gallery")]
    print(f"{arguments.queries} queries x {arguments.width}, {arguments.metric}")
    print(f"{'gallery':>10}  {'seconds':>8}  {'us per query and 1,000 rows':>28}  {'MiB':>6}")
    for size, report in zip(sizes, reports, strict=True):
        each = 1e9 * report["seconds"] / arguments.queries / size
        print(
            f"{size:>10}  {report['seconds']:8.2f}  {each:28.2f}  {report['peak_mebibytes']:6.0f}"
        )
    if arguments.plot:
        draw_growth(sizes, reports, arguments)
        print(f"drawn in {arguments.plot}")


def draw_growth(
    sizes: list[int], reports: list[dict[str, float]], arguments: argparse.Namespace
) -> None:
    """Draw time and memory over the size of the gallery."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axes, name, label in (
        (left, "seconds", "time (s)"),
        (right, "peak_mebibytes", "peak memory of the process (MiB)"),
    ):
        axes.plot(sizes, [report[name] for report in reports], marker="o", clip_on=False)
        axes.set(xlabel="gallery rows", ylabel=label, xlim=(0, None), ylim=(0, None))
        axes.locator_params(axis="x", nbins=5)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{arguments.queries} queries, {arguments.width} numbers each")
    figure.savefig(arguments.plot, dpi=120)


def in_child(queries: int, gallery: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure in a new process, whose peak memory is that of this one task."""
    command = [
        *(sys.executable, __file__, "child"),
        *("--queries", str(queries), "--gallery", str(gallery)),
        *("--width", str(arguments.width), "--metric", arguments.metric),
        *("--tracklets", str(arguments.tracklets), "--noises", str(arguments.noises[0])),
    ]
    if arguments.progress:
        command.append("--progress")
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout)


def child(arguments: argparse.Namespace) -> None:
    """Score drawn embeddings and write the figures as JSON."""
    drawn = draw(arguments.gallery, arguments.width, arguments.tracklets, arguments.noises[0])
    place = torch.arange(arguments.queries) * max(1, arguments.gallery // arguments.queries)
    rows = (place % arguments.gallery).numpy()
    queries = drawn.gallery[rows]
    before = peak_mebibytes()
    result: list[RankingResult] = []

    def score() -> None:
        result.append(
            evaluate_ranking_from_features(
                queries,
                drawn.gallery,
                drawn.persons[rows],
                drawn.persons,
                drawn.cameras[rows],
                drawn.cameras,
                metric=arguments.metric,
                progress=arguments.progress,
            )
        )

    busy = processor_seconds()
    spent = seconds(score)
    report = {
        "seconds": spent,
        "processor_seconds": processor_seconds() - busy,
        "before_mebibytes": before,
        "peak_mebibytes": peak_mebibytes(),
        "threads": torch.get_num_threads(),
        "mAP": result[0].mAP,
        "rank1": result[0].rank(1),
    }
    print(json.dumps(report))


def seconds(rival: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    rival()
    return time.perf_counter() - start


def processor_seconds() -> float:
    """Return how long the threads of this process have run so far, added up."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_mebibytes() -> float:
    """Return the most memory the process has held so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description="Measure what scoring a ranking costs.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, queries, gallery, width, noises in (
        ("matrix", measure_matrix, 1_980, 11_310, 512, [2.0, 8.0]),
        ("features", measure_features, 50_000, 500_000, 256, [1.5]),
        ("growth", measure_growth, 2_000, 100_000, 256, [1.5]),
        ("child", child, 100, 1_000, 256, [1.5]),
    ):
        command = commands.add_parser(name, help=(run.__doc__ or "").splitlines()[0])
        command.set_defaults(run=run)
        command.add_argument("--queries", type=int, default=queries)
        command.add_argument("--gallery", type=int, default=gallery)
        command.add_argument("--width", type=int, default=width)
        command.add_argument("--tracklets", type=float, default=12.0, help="of a person")
        command.add_argument("--noises", type=float, nargs="+", default=noises)
        command.add_argument("--metric", default="squared_euclidean")
        command.add_argument("--progress", action="store_true")
        if name == "matrix":
            command.add_argument("--rounds", type=int, default=5)
        if name == "growth":
            command.add_argument("--plot", help="file to draw to; needs tfclip[viz]")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
