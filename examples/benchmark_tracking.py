"""Measure tracklets that grow: rate, memory, cost by window, and identity switches on real tracks.

    python examples/benchmark_tracking.py rate --tracks 1000 --updates 10000
    python examples/benchmark_tracking.py window
    python examples/benchmark_tracking.py memory
    python examples/benchmark_tracking.py people DATA/tud_campus/crops DATA/pets09_s2l1/crops

`people` reads crops of true boxes, ``PERSON/SEGMENT/FRAME.jpg``, of one camera. Each person's track
is cut every so many frames, as if the tracker had lost everybody, and the pieces are put together
again by appearance alone: by a moving average of crop features, as trackers have it, by their
mean, and by TrackletEncoder; all of the same crops and the same model. Threads are torch's: set
OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from tfclip import TFCLIP, TFCLIPConfig, TrackletEncoder
from tfclip.functional import evaluate_ranking, squared_euclidean_distance
from tfclip.tracking import CropEncoder

MODEL = "tfclip-tiny"
KEEP = 0.9  # share of the old vector in a moving average, as BoT-SORT and those after it have
PHASES = 5  # where the first cut is


def miniature() -> TFCLIP:
    """Return a model of random weights that takes next to no time, to measure what is around it."""
    torch.manual_seed(0)
    sizes = {"width": 64, "layers": 2, "heads": 2, "output_dim": 32}
    return TFCLIP(TFCLIPConfig(backbone_options=sizes, frame_size=(64, 32))).eval()


def load(name: str) -> TFCLIP:
    """Load a model by name, or make the miniature."""
    return miniature() if name == "miniature" else TFCLIP.from_pretrained(name)


def draw(count: int, seed: int) -> np.ndarray:
    """Return noise in place of crops."""
    return np.random.default_rng(seed).integers(0, 256, (count, 128, 64, 3), dtype=np.uint8)


def resident() -> float:
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- rate ----------------------------------------------------------------------------------------


def measure_rate(arguments: argparse.Namespace) -> None:
    """Update random ones of many tracks; print the rate, and memory as it goes on."""
    model = load(arguments.model)
    encoder = TrackletEncoder(model, max_tracks=arguments.tracks, max_frames=arguments.max_frames)
    random = np.random.default_rng(0)
    pool = draw(500, 0)
    for start in range(0, arguments.tracks, 100):  # all are there from the start
        ids = range(start, min(start + 100, arguments.tracks))
        encoder.update(ids, pool[: len(ids)], 0.0)
    print(f"{arguments.model}, {len(encoder)} tracks, {arguments.crops} crops an update")
    print("updates   updates/s   crops/s   tracks' memory   process")
    step, begin = max(1, arguments.updates // 5), time.perf_counter()
    for update in range(1, arguments.updates + 1):
        ids = random.choice(arguments.tracks, arguments.crops, replace=False)
        encoder.update(ids, pool[random.integers(0, len(pool), arguments.crops)], float(update))
        if update % step == 0:
            rate = step / (time.perf_counter() - begin)
            print(
                f"{update:7d} {rate:11.1f} {rate * arguments.crops:9.0f} "
                f"{encoder.num_bytes / 2**20:12.1f} MiB {resident():6.0f} MiB",
                flush=True,
            )
            begin = time.perf_counter()


# --- cost by window ------------------------------------------------------------------------------


def milliseconds(work: Callable[[int], Any], repeats: int) -> float:
    """Return the median time of one call, given its number."""
    spent = []
    for number in range(repeats):
        begin = time.perf_counter()
        work(number)
        spent.append(time.perf_counter() - begin)
    return 1000 * statistics.median(spent)


def measure_window(arguments: argparse.Namespace) -> None:
    """Print what one more crop costs by window, beside encoding the window anew."""
    model = load(arguments.model)
    pool = list(draw(256, 0))
    print(f"{arguments.model}: milliseconds for one more crop of one track, and bytes kept")
    print("frames      newest       diverse   the window anew   newest      diverse")
    for frames in (8, 16, 32, 64, 128):
        row, kept = [], []
        for policy in ("newest", "diverse"):
            encoder = TrackletEncoder(model, max_frames=frames, policy=policy)
            for start in range(0, frames, 8):
                encoder.update([0] * 8, pool[start : start + 8])
            row.append(
                milliseconds(lambda n, e=encoder: e.update([0], [pool[n]]), arguments.repeats)
            )
            kept.append(encoder.num_bytes)
        anew = milliseconds(lambda _, f=frames: model.encode_sequence(pool[:f]), 5)
        print(
            f"{frames:6d} {row[0]:8.1f} ms {row[1]:10.1f} ms {anew:14.1f} ms "
            f"{kept[0] / 2**10:9.0f} KiB {kept[1] / 2**10:6.0f} KiB",
            flush=True,
        )
    encoder = TrackletEncoder(model)
    encoder.update([0] * 128, pool[:128])
    every = milliseconds(lambda n: encoder.update([0], [pool[n]]), arguments.repeats)
    print(f"   all {every:8.1f} ms")


def measure_memory(_: argparse.Namespace) -> None:
    """Print the most bytes that a track takes, with random weights where there are no others."""
    print("model                     window               tokens     most bytes a track")
    for name in (MODEL, "ViT-B-16"):
        model = load(name) if name == MODEL else TFCLIP(TFCLIPConfig()).eval()
        windows: list[dict[str, Any]] = [
            {},
            {"max_frames": 32},
            {"max_frames": 8, "policy": "diverse"},
        ]
        for window in windows:
            for dtype in (None, torch.float16):
                encoder = TrackletEncoder(model, token_dtype=dtype, **window)
                most = 0
                for crop in draw(window.get("max_frames", 8) + 8, 0):
                    encoder.update([0], [crop])
                    most = max(most, encoder.num_bytes)
                text = " ".join(str(value) for value in window.values()) or "all"
                print(f"{name:25s} {text:20s} {dtype or 'float32'!s:15s} {most:10d}", flush=True)


# --- people --------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Part of a person's track."""

    person: int
    block: int
    crops: list[int]


def read_crops(folder: Path) -> tuple[list[np.ndarray], list[int], list[int]]:
    """Return the crops of a folder, and the person and the frame of each."""
    paths = sorted(folder.glob("*/*/*.jpg"))
    crops = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    return crops, [int(p.parts[-3]) for p in paths], [int(p.stem) for p in paths]


def cut(persons: list[int], frames: list[int], length: int, seen: int, phase: int) -> list[Piece]:
    """Cut all tracks at the same frames; of each piece the first ``seen`` frames are seen."""
    pieces: dict[tuple[int, int], Piece] = {}
    for crop, (person, frame) in enumerate(zip(persons, frames, strict=True)):
        block, place = divmod(frame + phase, length)
        if place < seen:
            pieces.setdefault((person, block), Piece(person, block, [])).crops.append(crop)
    return [piece for piece in pieces.values() if len(piece.crops) >= min(4, seen)]


Describe = Callable[[list[int]], Tensor]


def methods(model: TFCLIP, crops: list[np.ndarray]) -> dict[str, Describe]:
    """Return ways to describe a piece by its crops, given by their numbers in order of time."""
    features = torch.from_numpy(np.stack(CropEncoder(model, channels="rgb").predict(crops)))

    def moving(numbers: list[int]) -> Tensor:
        vector = features[numbers[0]]
        for number in numbers[1:]:
            vector = F.normalize(KEEP * vector + (1 - KEEP) * features[number], dim=0)
        return vector

    def grown(**options: Any) -> Describe:
        def describe(numbers: list[int]) -> Tensor:
            encoder = TrackletEncoder(model, **options)
            return encoder.update([0] * len(numbers), [crops[number] for number in numbers])[0]

        return describe

    return {
        "moving average of crops": moving,
        "mean of crops": lambda numbers: F.normalize(features[numbers].mean(0), dim=0),
        "last crop": lambda numbers: features[numbers[-1]],
        "TrackletEncoder": grown(),
        "TrackletEncoder, newest 8": grown(max_frames=8),
        "TrackletEncoder, diverse 8": grown(max_frames=8, policy="diverse"),
    }


def switches(old: dict[int, Tensor], new: dict[int, Tensor]) -> tuple[int, int]:
    """Put pieces of two blocks together; return how many have the wrong past, and how many one."""
    persons, others = list(old), list(new)
    distance = squared_euclidean_distance(
        torch.stack([new[person] for person in others]),
        torch.stack([old[person] for person in persons]),
    )
    found = dict(zip(*linear_sum_assignment(distance.numpy()), strict=True))
    with_past = [row for row, person in enumerate(others) if person in old]
    wrong = sum(row not in found or persons[found[row]] != others[row] for row in with_past)
    return wrong, len(with_past)


def score(pieces: list[Piece], describe: Describe, begin: int) -> tuple[np.ndarray, Tensor]:
    """Return the switches and chances between blocks, and the vectors of whole pieces."""
    whole = torch.stack([describe(piece.crops) for piece in pieces])
    first = [describe(piece.crops[:begin]) for piece in pieces]
    total = np.zeros(2, dtype=int)
    for block in sorted({piece.block for piece in pieces}):
        old = {p.person: v for p, v in zip(pieces, whole, strict=True) if p.block == block}
        new = {p.person: v for p, v in zip(pieces, first, strict=True) if p.block == block + 1}
        if old and new:
            total += switches(old, new)
    return total, whole


def measure_people(arguments: argparse.Namespace) -> None:
    """Print switches and retrieval for every way to describe a piece."""
    model = load(arguments.model)
    for folder in arguments.folders:
        crops, persons, frames = read_crops(folder)
        print(f"{folder}: {len(crops)} crops of {len(set(persons))} persons; {arguments.model}")
        print(
            f"cut every {arguments.length} frames, {arguments.seen} of them seen; a new piece is "
            f"described by its first {arguments.begin} crops\n"
            "                               switches             mAP  rank-1"
        )
        for name, describe in methods(model, crops).items():
            total, scores = np.zeros(2, dtype=int), []
            for phase in range(0, arguments.length, -(-arguments.length // PHASES)):
                pieces = cut(persons, frames, arguments.length, arguments.seen, phase)
                counts, vectors = score(pieces, describe, arguments.begin)
                total += counts
                people = torch.tensor([piece.person for piece in pieces])
                blocks = torch.tensor([piece.block for piece in pieces])
                distance = squared_euclidean_distance(vectors, vectors)
                result = evaluate_ranking(distance, people, people, blocks, blocks)
                scores.append((result.mAP, float(result.cmc[0])))
            mean_ap, rank1 = np.mean(scores, axis=0)
            print(
                f"{name:28s} {total[0]:5d} of {total[1]:4d} ({total[0] / total[1]:5.1%}) "
                f"{100 * mean_ap:9.1f} {100 * rank1:7.1f}",
                flush=True,
            )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    rate = commands.add_parser("rate")
    rate.add_argument("--tracks", type=int, default=1000)
    rate.add_argument("--updates", type=int, default=10_000)
    rate.add_argument("--crops", type=int, default=10, help="in each update")
    rate.add_argument("--max-frames", type=int)
    rate.set_defaults(run=measure_rate)
    window = commands.add_parser("window")
    window.add_argument("--repeats", type=int, default=32)
    window.set_defaults(run=measure_window)
    commands.add_parser("memory").set_defaults(run=measure_memory)
    people = commands.add_parser("people")
    people.add_argument("folders", type=Path, nargs="+")
    people.add_argument("--length", type=int, default=24, help="frames from cut to cut")
    people.add_argument("--seen", type=int, default=12, help="frames of them that are seen")
    people.add_argument("--begin", type=int, default=4, help="crops to know a new piece by")
    people.set_defaults(run=measure_people)
    for command in (rate, window, people):
        command.add_argument("--model", default=MODEL)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
