"""Measure grouping: how right it is on drawn people, and what it costs.

    python examples/benchmark_association.py people                # 40 people x 4 cameras
    python examples/benchmark_association.py scale --rows 100000   # time and memory of drawn rows

`people` draws people whom no training has seen, encodes them with the bundled model, fits the
threshold on other people and groups. `scale` measures in a process of its own. Threads are
torch's: set OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from typing import Any, get_args

import numpy as np
import torch

from tfclip import TFCLIP
from tfclip.association import Linkage, associate
from tfclip.data import SyntheticTracklets
from tfclip.functional import (
    evaluate_clustering,
    fit_threshold,
    pair_scores,
    squared_euclidean_distance,
)

WORLD = 2**32  # no training draws from a world this far
RATES = (1e-2, 1e-3, 1e-4)
FIT_PEOPLE = 1000  # number of the first person the threshold is fitted on
WIDTH = 512


def encode(model: TFCLIP, people: SyntheticTracklets) -> torch.Tensor:
    """Return one vector of length 1 for each tracklet."""
    return model.encode_sequences([tracklet.frames for tracklet in people])


def draw(num_people: int, num_cameras: int, first: int, world: int) -> SyntheticTracklets:
    """Draw people in cameras that are the same for all people of a world."""
    return SyntheticTracklets(
        num_people,
        num_cameras,
        tracklets_per_camera=1,
        num_frames=(12, 20),
        frame_size=(128, 64),
        seed=WORLD + world,
        first_identity=first,
    )


def measure_people(num_people: int, num_cameras: int, fit_people: int, world: int) -> None:
    """Print what groups are worth for each false match rate and linkage."""
    model = TFCLIP.from_pretrained("tfclip-tiny")
    people = draw(num_people, num_cameras, 0, world)
    others = draw(fit_people, num_cameras, FIT_PEOPLE, world)
    embeddings, other_embeddings = encode(model, people), encode(model, others)
    distance = squared_euclidean_distance(other_embeddings, other_embeddings)
    pairs = pair_scores(
        distance, others.identities, others.identities, others.cameras, others.cameras
    )
    print(f"{len(people)} tracklets, {num_people} people, {num_cameras} cameras, world {world};")
    print(f"thresholds fitted on {fit_people} other people in the same cameras\n")
    names = ("FMR", "linkage", "threshold", "people", "F1", "precision", "recall", "IDF1")
    print(("{:>8}  {:9}" + "{:>11}" * 8).format(*names, "purity", "ARI"))
    for rate in RATES:
        calibration = fit_threshold(*pairs, false_match_rate=rate)
        for linkage in get_args(Linkage):
            found = associate(embeddings, threshold=calibration, linkage=linkage)
            figures = _figures(found.labels, people.identities)
            head = f"{rate:8g}  {linkage:9}{found.threshold:11.4f}{found.num_people:11d}"
            print(head + figures)
    order = torch.randperm(len(people), generator=torch.Generator().manual_seed(0))
    ideal = torch.from_numpy(people.identities)[order]
    chance = f"{'':8}  {'chance':9}{'':11}{num_people:11d}"
    print(chance + _figures(ideal, people.identities))


def _figures(labels: torch.Tensor, persons: np.ndarray) -> str:
    result = evaluate_clustering(labels, persons)
    values = (result.pairwise_f1, result.pairwise_precision, result.pairwise_recall)
    values += (result.identity_f1, result.purity, result.adjusted_rand_index)
    return "".join(f"{value:11.3f}" for value in values)


def measure_scale(num_rows: int, with_rules: bool) -> None:
    """Print the time and the memory that grouping drawn rows takes."""
    random = torch.Generator().manual_seed(0)
    persons = torch.randint(num_rows // 8, (num_rows,), generator=random)
    directions = torch.randn(num_rows // 8, WIDTH, generator=random)
    rows = torch.randn(num_rows, WIDTH, generator=random).mul_(0.4).add_(directions[persons])
    rows = torch.nn.functional.normalize(rows, dim=1)
    seen: dict[str, Any] = {}
    if with_rules:
        cameras = torch.randint(8, (num_rows,), generator=random)
        begin = torch.randint(num_rows, (num_rows, 1), generator=random).double()
        seen = {"cameras": cameras, "times": torch.cat([begin, begin + 50], dim=1)}
        seen["min_travel"] = torch.full((8, 8), 20.0)
    del directions
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = associate(rows, threshold=0.5, **seen)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    result = evaluate_clustering(found.labels, persons)
    matrix = num_rows**2 * 4 / 2**30
    print(
        f"{num_rows} rows of {WIDTH}{' under rules' if with_rules else ''}: {seconds:.1f} s, "
        f"{peak / 2**20:.2f} GiB above the rows (the matrix of distances: {matrix:.1f} GiB), "
        f"largest part {found.largest_part}, {found.num_people} groups of "
        f"{result.num_persons} people, pairwise F1 {result.pairwise_f1:.3f}"
    )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", choices=("people", "scale", "scale-here"))
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--fit-people", type=int, default=100)
    parser.add_argument("--world", type=int, default=0)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rules", action="store_true", help="cameras, times and travel too")
    options = parser.parse_args()
    if options.part == "people":
        measure_people(options.people, options.cameras, options.fit_people, options.world)
    elif options.part == "scale-here":
        measure_scale(options.rows, options.rules)
    else:
        arguments = ["scale-here", *sys.argv[2:]]
        subprocess.run([sys.executable, __file__, *arguments], check=True)


if __name__ == "__main__":
    main()
