"""Measure what k-reciprocal re-ranking costs.

    python examples/benchmark_rerank.py mars      # 1,980 x 11,310 x 2048, against dense NumPy
    python examples/benchmark_rerank.py large     # 5,000 x 100,000 x 512
    python examples/benchmark_rerank.py growth --plot growth.png

Embeddings are drawn: people are random directions, tracklets are their person plus noise. Every
figure comes from a process of its own. Processor seconds are those of all threads, the system's
included, and are disturbed less than seconds by other work on the machine. Threads are torch's and
NumPy's: set OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from tfclip.functional import evaluate_ranking, k_reciprocal_rerank, squared_euclidean_distance

GROWTH = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
CAMERAS = 6
K1, K2, LAMBDA = 20, 6, 0.3
TILE = 1024, 4096


def draw(num_rows: int, width: int, tracklets: float, noise: float) -> tuple[torch.Tensor, ...]:
    """Draw unit vectors with their persons and cameras, so many for each person on average.

    ``noise`` is the length of what is added to a person's unit vector; the camera adds a sixth of
    it, so rows of one camera look somewhat alike.
    """
    random = torch.Generator().manual_seed(0)
    num_persons = max(1, round(num_rows / tracklets))
    persons = torch.randint(num_persons, (num_rows,), generator=random)
    cameras = torch.randint(CAMERAS, (num_rows,), generator=random)
    scale = width**-0.5
    directions = torch.randn(num_persons, width, generator=random).mul_(scale)
    views = torch.randn(CAMERAS, width, generator=random).mul_(scale * noise / 6)
    rows = torch.empty(num_rows, width)
    for part in torch.arange(num_rows).split(5_000):  # no second copy of the whole
        block = torch.randn(len(part), width, generator=random).mul_(scale * noise)
        block.add_(directions[persons[part]]).add_(views[cameras[part]])
        rows[part] = torch.nn.functional.normalize(block, dim=1)
    return rows, persons, cameras


def dense_rerank(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Re-rank as is usual: whole matrices among all rows, and one row after the other."""
    rows = np.concatenate([queries, gallery])
    num_queries, num_rows = len(queries), len(rows)
    squares = np.square(rows).sum(1)
    distance = squares[:, None] + squares - 2 * rows @ rows.T
    distance = np.maximum(distance, 0)
    distance = (distance / distance.max(0)).T
    order = np.argsort(distance, axis=1).astype(np.int32)

    def mutual(row: int, k: int) -> np.ndarray:
        near = order[row, : k + 1]
        return near[np.nonzero(order[near, : k + 1] == row)[0]]

    weights = np.zeros_like(distance)
    for row in range(num_rows):
        start = members = mutual(row, K1)
        for member in start:
            other = mutual(member, round(K1 / 2))
            if len(np.intersect1d(other, start)) > 2 / 3 * len(other):
                members = np.append(members, other)
        members = np.unique(members)
        weight = np.exp(-distance[row, members])
        weights[row, members] = weight / weight.sum()
    averaged = np.zeros_like(weights)
    for row in range(num_rows):
        averaged[row] = weights[order[row, :K2]].mean(0)
    del weights
    lists = [np.nonzero(averaged[:, column])[0] for column in range(num_rows)]
    jaccard = np.zeros((num_queries, num_rows), dtype=distance.dtype)
    for query in range(num_queries):
        shared = np.zeros(num_rows, dtype=distance.dtype)
        for column in np.nonzero(averaged[query])[0]:
            who = lists[column]
            shared[who] += np.minimum(averaged[query, column], averaged[who, column])
        jaccard[query] = 1 - shared / (2 - shared)
    return ((1 - LAMBDA) * jaccard + LAMBDA * distance[:num_queries])[:, num_queries:]


def dense_gibibytes(num_rows: int) -> float:
    """Return what four of its float32 matrices among all rows take."""
    return 4 * 4 * num_rows**2 / 2**30


def measure_mars(arguments: argparse.Namespace) -> None:
    """Print processor seconds and peak memory of both, and whether they rank alike."""
    with tempfile.TemporaryDirectory() as folder:
        saved = {name: Path(folder) / f"{name}.npy" for name in ("tfclip", "dense")}
        reports = {
            name: in_child(arguments, arguments.gallery, name, path) for name, path in saved.items()
        }
        ours, theirs = (torch.from_numpy(np.load(path)) for path in saved.values())
    _, persons, cameras = draw(  # the same people, whatever the width
        arguments.queries + arguments.gallery, 1, arguments.tracklets, arguments.noise
    )
    split = arguments.queries
    labels = persons[:split], persons[split:], cameras[:split], cameras[split:]
    print(
        f"{split} x {arguments.gallery} x {arguments.width}, {reports['dense']['threads']} threads"
    )
    print(
        f"{'':>10}  {'processor s':>11}  {'seconds':>8}  {'peak MiB':>8}  {'mAP':>6}  {'rank-1':>6}"
    )
    for name, distance in (("tfclip", ours), ("dense", theirs)):
        result, report = evaluate_ranking(distance, *labels), reports[name]
        print(
            f"{name:>10}  {report['processor_seconds']:11.1f}  {report['seconds']:8.1f}  "
            f"{report['peak_mebibytes']:8.0f}  {result.mAP:6.1%}  {result.rank(1):6.1%}"
        )
    for key, word in (
        ("processor_seconds", "processor seconds"),
        ("user_seconds", "user seconds, without the system's"),
        ("seconds", "seconds"),
        ("peak_mebibytes", "peak memory of the process, with torch"),
    ):
        print(f"{word}: {reports['dense'][key] / reports['tfclip'][key]:.1f} x less")
    grown = [
        report["peak_mebibytes"] - report["before_mebibytes"]
        for report in (reports["dense"], reports["tfclip"])
    ]
    print(f"peak above what stood before the call: {grown[0]:.0f} and {grown[1]:.0f} MiB, ", end="")
    print(f"{grown[0] / max(1, grown[1]):.1f} x less")
    same = (ours.argsort(dim=1, stable=True) == theirs.argsort(dim=1, stable=True)).double()
    # In float32 two neighbours can be closer than rounding, and then a set gains another member.
    apart = (ours - theirs).abs()
    print(f"greatest difference of a distance: {apart.max():.1e}, ", end="")
    print(f"over 1e-5: {(apart > 1e-5).double().mean():.3%}")
    print(f"places of whole rankings that hold the same row: {same.mean():.3%}")
    print(f"of the first 100: {same[:, :100].mean():.3%}")
    print_product(reports["tfclip"])


def measure_large(arguments: argparse.Namespace) -> None:
    """Print processor seconds and peak memory of one large task."""
    report = in_child(arguments, arguments.gallery, "tfclip", None)
    print(f"{arguments.queries} x {arguments.gallery} x {arguments.width}")
    print(f"{'threads':>18}  {report['threads']}")
    print(f"{'seconds':>18}  {report['seconds']:.0f}")
    print(f"{'processor seconds':>18}  {report['processor_seconds']:.0f}")
    print(f"{'peak memory':>18}  {report['peak_mebibytes']:.0f} MiB (the process, with torch)")
    print(f"{'before the call':>18}  {report['before_mebibytes']:.0f} MiB")
    size = dense_gibibytes(arguments.queries + arguments.gallery)
    print(f"{'dense NumPy':>18}  {size:.0f} GiB for four matrices among all rows")
    print_product(report)


def print_product(report: dict[str, float]) -> None:
    """Print how much of the time went into products of matrices."""
    print(
        f"products of matrices: {report['product_share']:.0%} of the processor seconds, "
        f"at {report['product_of_peak']:.0%} of the fastest product here"
    )


def measure_growth(arguments: argparse.Namespace) -> None:
    """Print processor seconds and memory for growing galleries, and draw them."""
    sizes = [size for size in GROWTH if size <= arguments.gallery]
    print(f"{arguments.queries} queries x {arguments.width}")
    print(
        f"{'gallery':>8}  {'processor s':>11}  {'product':>7}  {'of peak':>7}  {'MiB':>6}  "
        f"{'dense GiB':>9}"
    )
    reports = []
    for size in tqdm(sizes, unit="gallery"):
        report = in_child(arguments, size, "tfclip", None)
        reports.append(report)
        tqdm.write(
            f"{size:>8}  {report['processor_seconds']:11.1f}  {report['product_share']:7.0%}  "
            f"{report['product_of_peak']:7.0%}  {report['peak_mebibytes']:6.0f}  "
            f"{dense_gibibytes(arguments.queries + size):9.1f}"
        )
    if arguments.plot:
        draw_growth(sizes, reports, arguments)
        print(f"drawn in {arguments.plot}")


def draw_growth(
    sizes: list[int], reports: list[dict[str, float]], arguments: argparse.Namespace
) -> None:
    """Draw time, the share of products in it, and memory over the size of the gallery."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    spent = [report["processor_seconds"] for report in reports]
    left.loglog(sizes, spent, marker="o", label="all")
    products = [report["processor_seconds"] * report["product_share"] for report in reports]
    left.loglog(sizes, products, marker=".", label="products of matrices")
    left.set(xlabel="gallery rows", ylabel="processor time (s)")
    left.legend()
    middle.semilogx(sizes, [report["product_share"] for report in reports], marker="o")
    middle.set(xlabel="gallery rows", ylabel="products' share of the time", ylim=(0, 1))
    memory = [report["peak_mebibytes"] for report in reports]
    right.loglog(sizes, memory, marker="o", label="tfclip, the process")
    dense = [1024 * dense_gibibytes(arguments.queries + size) for size in sizes]
    right.loglog(sizes, dense, linestyle="--", label="four dense matrices")
    right.set(xlabel="gallery rows", ylabel="peak memory (MiB)")
    right.legend()
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{arguments.queries} queries, {arguments.width} numbers each")
    figure.savefig(arguments.plot, dpi=120)


def in_child(
    arguments: argparse.Namespace, gallery: int, name: str, path: Path | None
) -> dict[str, float]:
    """Measure in a new process, whose peak memory is that of this one task."""
    command = [
        *(sys.executable, __file__, "child", "--name", name),
        *("--queries", str(arguments.queries), "--gallery", str(gallery)),
        *("--width", str(arguments.width), "--noise", str(arguments.noise)),
        *("--tracklets", str(arguments.tracklets)),
    ]
    if path is not None:
        command += ["--save", str(path)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout)


def child(arguments: argparse.Namespace) -> None:
    """Re-rank drawn embeddings and write the figures as JSON."""
    rows, _, _ = draw(
        arguments.queries + arguments.gallery,
        arguments.width,
        arguments.tracklets,
        arguments.noise,
    )
    queries, gallery = rows[: arguments.queries], rows[arguments.queries :]
    squared_euclidean_distance(queries[:8], gallery[:8])  # loads what the first product loads
    before, clock, busy = peak_mebibytes(), time.perf_counter(), processor_seconds()
    user = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    if arguments.name == "tfclip":
        result = k_reciprocal_rerank(queries, gallery, K1, K2, LAMBDA).numpy()
    else:
        result = dense_rerank(queries.numpy(), gallery.numpy())
    spent, busy = time.perf_counter() - clock, processor_seconds() - busy
    user = resource.getrusage(resource.RUSAGE_SELF).ru_utime - user
    peak = peak_mebibytes()
    if arguments.save:
        np.save(arguments.save, result)
    rate, best = product_rate(rows), product_rate(torch.randn(4096, 2048))
    products = float(len(rows)) ** 2 * arguments.width  # half of the matrix, two operations each
    report = {
        "seconds": spent,
        "processor_seconds": busy,
        "user_seconds": user,
        "before_mebibytes": before,
        "peak_mebibytes": peak,
        "threads": torch.get_num_threads(),
        "product_share": products / rate / busy,
        "product_of_peak": rate / best,
    }
    print(json.dumps(report))


def product_rate(rows: torch.Tensor) -> float:
    """Return operations in a processor second of the product that fills one tile."""
    left, right = rows[: TILE[0]], rows[-TILE[1] :]
    tile = torch.empty(len(left), len(right))
    operations = 2.0 * tile.numel() * rows.shape[1]

    def repeat(times: int) -> float:
        busy = processor_seconds()
        for _ in range(times):
            torch.mm(left, right.T, out=tile)
        return max(1e-9, processor_seconds() - busy)

    times = 1
    while repeat(times) < 0.1:
        times *= 2
    return max(times * operations / repeat(times) for _ in range(3))


def processor_seconds() -> float:
    """Return how long the threads of this process have computed so far, added up."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_mebibytes() -> float:
    """Return the most memory the process has held so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description="Measure what k-reciprocal re-ranking costs.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, queries, gallery, width in (
        ("mars", measure_mars, 1_980, 11_310, 2048),
        ("large", measure_large, 5_000, 100_000, 512),
        ("growth", measure_growth, 1_000, 200_000, 512),
        ("child", child, 100, 1_000, 64),
    ):
        command = commands.add_parser(name, help=(run.__doc__ or "").splitlines()[0])
        command.set_defaults(run=run)
        command.add_argument("--queries", type=int, default=queries)
        command.add_argument("--gallery", type=int, default=gallery)
        command.add_argument("--width", type=int, default=width)
        command.add_argument("--tracklets", type=float, default=12.0, help="of a person")
        command.add_argument("--noise", type=float, default=3.0, help="length of the noise")
        if name == "growth":
            command.add_argument("--plot", help="file to draw to; needs tfclip[viz]")
        if name == "child":
            command.add_argument("--name", choices=["tfclip", "dense"], default="tfclip")
            command.add_argument("--save", help="file for the distances")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
