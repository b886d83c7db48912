"""Measure what k-reciprocal re-ranking costs.

    python examples/benchmark_rerank.py mars      # 1,980 x 11,310 x 2048, against dense NumPy
    python examples/benchmark_rerank.py large     # 5,000 x 100,000 x 512
    python examples/benchmark_rerank.py growth --plot growth.svg
    python examples/benchmark_rerank.py approximate     # with an index of FAISS

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
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tfclip.functional import (
    evaluate_ranking,
    evaluate_ranking_topk,
    k_reciprocal_rerank,
    k_reciprocal_rerank_topk,
    pairwise,
    reranking,
    shortlist,
    squared_euclidean_distance,
)

GROWTH = (2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)
CAMERAS = 6
K1, K2, LAMBDA = 20, 6, 0.3
TILE = 1024, 4096
TOP = 100
SEARCHES = "exact", "hnsw", "ivf"


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
    """Print time and peak memory of both, and whether they rank alike."""
    reports: dict[str, list[dict[str, float]]] = {"tfclip": [], "dense": []}
    with tempfile.TemporaryDirectory() as folder:
        saved = {name: Path(folder) / f"{name}.npy" for name in reports}
        for _ in range(arguments.rounds):
            for name, path in saved.items():
                reports[name].append(in_child(arguments, arguments.gallery, name, path))
        ours, theirs = (torch.from_numpy(np.load(path)) for path in saved.values())
    _, persons, cameras = draw(  # the same people, whatever the width
        arguments.queries + arguments.gallery, 1, arguments.tracklets, arguments.noise
    )
    split = arguments.queries
    labels = persons[:split], persons[split:], cameras[:split], cameras[split:]
    threads = reports["dense"][0]["threads"]
    print(f"{split} x {arguments.gallery} x {arguments.width}, {threads} threads, ", end="")
    print(f"medians of {arguments.rounds}")
    print(
        f"{'':>10}  {'seconds':>8}  {'processor s':>11}  {'peak MiB':>8}  {'mAP':>6}  {'rank-1':>6}"
    )
    for name, distance in (("tfclip", ours), ("dense", theirs)):
        result = evaluate_ranking(distance, *labels)
        seconds, busy, peak = (
            median(report[key] for report in reports[name])
            for key in ("seconds", "processor_seconds", "peak_mebibytes")
        )
        print(
            f"{name:>10}  {seconds:8.2f}  {busy:11.1f}  {peak:8.0f}  {result.mAP:6.1%}  "
            f"{result.rank(1):6.1%}"
        )
    for key, word in (
        ("seconds", "seconds"),
        ("processor_seconds", "processor seconds"),
        ("peak_mebibytes", "peak memory of the process, with torch"),
        ("grown_mebibytes", "peak above what stood before the call"),
    ):
        ratios = [
            other[key] / max(1e-9, own[key])
            for own, other in zip(reports["tfclip"], reports["dense"], strict=True)
        ]
        each = ", ".join(f"{ratio:.1f}" for ratio in ratios)
        print(f"{word}: {median(ratios):.1f} x less (rounds: {each})")
    same = (ours.argsort(dim=1, stable=True) == theirs.argsort(dim=1, stable=True)).double()
    # In float32 two neighbours can be closer than rounding, and then a set gains another member.
    apart = (ours - theirs).abs()
    print(f"greatest difference of a distance: {apart.max():.1e}, ", end="")
    print(f"over 1e-5: {(apart > 1e-5).double().mean():.3%}")
    print(f"places of whole rankings that hold the same row: {same.mean():.3%}")
    print(f"of the first 100: {same[:, :100].mean():.3%}")
    print_product(reports["tfclip"][-1])


def measure_approximate(arguments: argparse.Namespace) -> None:
    """Print how many neighbours an index finds, and what that does to the result."""
    rows, persons, cameras = draw(
        arguments.queries + arguments.gallery,
        arguments.width,
        arguments.tracklets,
        arguments.noise,
    )
    split, k = arguments.queries, max(K1 + 1, K2)
    queries, gallery = rows[:split], rows[split:]
    labels = persons[:split], persons[split:], cameras[:split], cameras[split:]
    sample = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[:1000]
    true = torch.cat(
        [
            squared_euclidean_distance(rows[part], rows).topk(k, largest=False)[1]
            for part in sample.split(50)
        ]
    )
    nearest = torch.cat(
        [
            squared_euclidean_distance(part, gallery).topk(TOP, largest=False)[1]
            for part in queries.split(50)
        ]
    )
    print(f"{split} x {arguments.gallery} x {arguments.width}, {torch.get_num_threads()} threads")
    print(f"{'':>12}  {'seconds':>8}  {'search s':>8}  {'recall':>6}  {'mAP':>6}  {'rank-1':>6}")
    plain = evaluate_ranking_topk(nearest, *labels)
    print(f"{'not re-ranked':>14}{'':>26}  {plain.mAP:6.1%}  {plain.rank(1):6.1%}", flush=True)
    for search in arguments.searches:
        name = "find_neighbours" if search == "exact" else "find_approximately"
        original = getattr(reranking, name)

        found: dict[str, Any] = {}
        setattr(reranking, name, timed(original, found))
        clock = time.perf_counter()
        _, places = k_reciprocal_rerank_topk(
            queries, gallery, K1, K2, LAMBDA, top=TOP, neighbours=search, progress=True
        )
        spent = time.perf_counter() - clock
        setattr(reranking, name, original)
        ours = found["lists"].indices[sample]
        recall = (ours[:, :k, None] == true[:, None]).any(2).double().mean()
        result = evaluate_ranking_topk(places, *labels)
        print(
            f"{search:>12}  {spent:8.1f}  {found['seconds']:8.1f}  {recall:6.1%}  "
            f"{result.mAP:6.1%}  {result.rank(1):6.1%}",
            flush=True,
        )


def timed(search: Callable[..., Any], found: dict[str, Any]) -> Callable[..., Any]:
    """Return a search that notes what it found and how long it took."""

    def work(*given: object) -> Any:
        clock = time.perf_counter()
        found["lists"] = search(*given)
        found["seconds"] = time.perf_counter() - clock
        return found["lists"]

    return work


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
        f"products of matrices: {report['product_share']:.0%} of the seconds, "
        f"at {report['product_of_peak']:.0%} of the fastest of their types here "
        f"(float32 {report['float32_rate'] / 1e9:.0f}, bfloat16 "
        f"{report['bfloat16_rate'] / 1e9:.0f} GFLOP/s)"
    )


def measure_growth(arguments: argparse.Namespace) -> None:
    """Print time and memory for growing galleries, and draw them."""
    sizes = [size for size in GROWTH if arguments.first <= size <= arguments.gallery]
    print(f"{arguments.queries} queries x {arguments.width}")
    print(
        f"{'gallery':>8}  {'seconds':>8}  {'processor s':>11}  {'product':>7}  {'of peak':>7}  "
        f"{'MiB':>6}  {'dense GiB':>9}"
    )
    known = {}
    if arguments.json and arguments.json.exists():  # sizes measured before are drawn too
        known = {
            int(size): report for size, report in json.loads(arguments.json.read_text()).items()
        }
    for size in tqdm(sizes, unit="gallery"):
        report = known[size] = in_child(arguments, size, "tfclip", None)
        tqdm.write(
            f"{size:>8}  {report['seconds']:8.2f}  {report['processor_seconds']:11.1f}  "
            f"{report['product_share']:7.0%}  {report['product_of_peak']:7.0%}  "
            f"{report['peak_mebibytes']:6.0f}  {dense_gibibytes(arguments.queries + size):9.1f}"
        )
        if arguments.json:
            arguments.json.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    if arguments.plot:
        draw_growth(dict(sorted(known.items())), arguments)
        print(f"drawn in {arguments.plot}")


def draw_growth(reports: dict[int, dict[str, float]], arguments: argparse.Namespace) -> None:
    """Draw time, the share of products in it, and memory over the size of the gallery."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    def column(name: str) -> list[float]:
        return [report[name] for report in reports.values()]

    sizes, blue, grey, red = list(reports), "#1f5fa8", "#8a8f98", "#c4452d"
    pyplot.rcParams["svg.hashsalt"] = "tfclip"  # the same figures give the same file
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    seconds, shares = column("seconds"), column("product_share")
    left.loglog(sizes, seconds, marker="o", ms=4, color=blue, label="all")
    products = [spent * share for spent, share in zip(seconds, shares, strict=True)]
    thin = {"marker": "o", "ms": 3, "ls": "--", "color": grey}
    left.loglog(sizes, products, **thin, label="products of matrices")
    left.set(title="time", ylabel="seconds")
    middle.semilogx(sizes, shares, marker="o", ms=4, color=blue, label="share of the time")
    middle.semilogx(sizes, column("product_of_peak"), **thin, label="of the fastest product")
    middle.set(title="products of matrices", ylim=(0, 1.05))
    middle.yaxis.set_major_formatter(PercentFormatter(1))
    memory = [size / 1024 for size in column("peak_mebibytes")]
    right.loglog(sizes, memory, marker="o", ms=4, color=blue, label="tfclip, the whole process")
    dense = [dense_gibibytes(arguments.queries + size) for size in sizes]
    right.loglog(sizes, dense, ls="--", color=red, label="four matrices among all rows")
    right.set(title="peak memory", ylabel="GiB")
    for axes in (left, middle, right):
        axes.set_xlabel("gallery rows")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    dated = {"Date": None} if str(arguments.plot).endswith("svg") else None
    figure.savefig(arguments.plot, dpi=110, metadata=dated)
    pyplot.close(figure)


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
    if arguments.name == "dense":
        np.dot(rows[:8].numpy(), rows[:8].numpy().T)
    products = Products()
    before, clock, busy = peak_mebibytes(), time.perf_counter(), processor_seconds()
    if arguments.name == "tfclip":
        result = k_reciprocal_rerank(queries, gallery, K1, K2, LAMBDA).numpy()
    else:
        result = dense_rerank(queries.numpy(), gallery.numpy())
    spent, busy = time.perf_counter() - clock, processor_seconds() - busy
    peak, product_seconds = peak_mebibytes(), products.stop()
    if arguments.save:
        np.save(arguments.save, result)
    rates = {kind: product_rate(kind) for kind in (torch.float32, torch.bfloat16)}
    needed = sum(products.operations[kind] / rate for kind, rate in rates.items())
    report = {
        "seconds": spent,
        "processor_seconds": busy,
        "before_mebibytes": before,
        "peak_mebibytes": peak,
        "grown_mebibytes": peak - before,
        "threads": torch.get_num_threads(),
        "product_share": product_seconds / spent,
        "product_of_peak": needed / max(1e-9, product_seconds),
        "float32_rate": rates[torch.float32],
        "bfloat16_rate": rates[torch.bfloat16],
    }
    print(json.dumps(report))


class Products:
    """Time and operations of the products of matrices that re-ranking takes from now on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.operations = {torch.float32: 0.0, torch.bfloat16: 0.0}
        self._add, self._multiply = pairwise.add_products, shortlist.multiply_halves
        pairwise.add_products = self.add_products
        shortlist.multiply_halves = self.multiply_halves

    def stop(self) -> float:
        """Put everything back, and return the seconds that the products took."""
        pairwise.add_products, shortlist.multiply_halves = self._add, self._multiply
        return self.seconds

    def add_products(
        self, result: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, factor: float
    ) -> torch.Tensor:
        """Do what ``products.add_products`` does."""
        return self._timed(rows, columns, lambda: self._add(result, rows, columns, factor))

    def multiply_halves(
        self, rows: torch.Tensor, columns: torch.Tensor, result: torch.Tensor
    ) -> torch.Tensor:
        """Do what ``products.multiply_halves`` does."""
        return self._timed(rows, columns, lambda: self._multiply(rows, columns, result))

    def _timed(
        self, rows: torch.Tensor, columns: torch.Tensor, work: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        clock = time.perf_counter()
        result = work()
        self.seconds += time.perf_counter() - clock
        self.operations[rows.dtype] += 2.0 * len(rows) * len(columns) * rows.shape[1]
        return result


def product_rate(kind: torch.dtype) -> float:
    """Return operations in a second of the fastest product of a large matrix."""
    left, right = (torch.randn(size, 2048).to(kind) for size in TILE)
    result = torch.zeros(len(left), len(right), dtype=kind)
    ways = [lambda: torch.mm(left, right.T, out=result)]
    if kind == torch.float32:
        ways.append(lambda: pairwise.add_products(result, left, right, 1.0))
    operations, best = 2.0 * result.numel() * left.shape[1], 0.0
    for work in ways * 4:
        clock = time.perf_counter()
        work()
        best = max(best, operations / (time.perf_counter() - clock))
    return best


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
        ("approximate", measure_approximate, 1_000, 100_000, 512),
        ("child", child, 100, 1_000, 64),
    ):
        command = commands.add_parser(name, help=(run.__doc__ or "").splitlines()[0])
        command.set_defaults(run=run)
        command.add_argument("--queries", type=int, default=queries)
        command.add_argument("--gallery", type=int, default=gallery)
        command.add_argument("--width", type=int, default=width)
        command.add_argument("--tracklets", type=float, default=12.0, help="of a person")
        command.add_argument("--noise", type=float, default=3.0, help="length of the noise")
        if name == "mars":
            command.add_argument("--rounds", type=int, default=3, help="of both, in turn")
        if name == "growth":
            command.add_argument("--plot", help="file to draw to; needs tfclip[viz]")
            command.add_argument("--first", type=int, default=0, help="smallest gallery")
            command.add_argument("--json", type=Path, help="file that keeps sizes between runs")
        if name == "approximate":
            command.add_argument(
                "--searches", nargs="+", default=SEARCHES, choices=SEARCHES, help="exact, hnsw, ivf"
            )
        if name == "child":
            command.add_argument("--name", choices=["tfclip", "dense"], default="tfclip")
            command.add_argument("--save", help="file for the distances")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
