"""Measure how frames reach the model: reading, the whole way from files, large jobs.

    python examples/benchmark_pipeline.py decode        # reading alone, against plain Pillow
    python examples/benchmark_pipeline.py end_to_end    # from files, against the model alone
    python examples/benchmark_pipeline.py jobs          # 10,000 ragged tracklets: rate and memory
    python examples/benchmark_pipeline.py differences   # what faster reading costs in accuracy

Pictures are drawn, or taken from --images. Rivals take turns, and medians of the ratios of
neighbouring turns are printed: machines are noisy.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from tqdm import tqdm

from tfclip import TFCLIP, TFCLIPConfig
from tfclip.ahead import Request, read_ahead
from tfclip.data import SyntheticTracklets, Tracklet, read_folder
from tfclip.frames import open_frames
from tfclip.functional import evaluate_ranking, squared_euclidean_distance
from tfclip.jobs import encode_to_file
from tfclip.preprocess import Preprocess
from tfclip.reading import Reading

_WORLD = 2**32 + 1  # one that the bundled model has not seen
_LAYOUT = "{person}/{camera}/{tracklet}"


def build_model(name: str) -> TFCLIP:
    """Return the bundled model, ViT-B/16 at 256 x 128 with random weights, or a miniature."""
    if name == "tiny":
        return TFCLIP.from_pretrained("tfclip-tiny")
    torch.manual_seed(0)
    if name == "vit":
        return TFCLIP(TFCLIPConfig()).eval()
    sizes = {"width": 64, "layers": 1, "heads": 1, "output_dim": 32}
    return TFCLIP(TFCLIPConfig(backbone_options=sizes, frame_size=(32, 16))).eval()


def find_images(options: argparse.Namespace, folder: str) -> list[Path]:
    """Return the JPEG files to read: the caller's, or drawn ones of the size that is asked for."""
    if options.images is None:
        frames = SyntheticTracklets(
            8, 2, 1, num_frames=(16, 16), frame_size=tuple(options.size), seed=_WORLD
        )
        frames.write(folder, "jpg")
    files = sorted(Path(options.images or folder).rglob("*.jpg"))
    return (files * (1 + options.frames // len(files)))[: options.frames]


def seconds(rival: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    rival()
    return time.perf_counter() - start


def compare(rivals: dict[str, Callable[[], object]], rounds: int, frames: int) -> None:
    """Let rivals take turns; print frames per second and times as ratios to the first."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for rival in rivals.values():
        rival()  # warm up
    for _ in tqdm(range(rounds), unit="round", disable=None):
        for name, rival in rivals.items():
            times[name].append(seconds(rival))
    first = next(iter(times.values()))
    for name, spent in times.items():
        ratio = statistics.median(a / b for a, b in zip(spent, first, strict=True))
        rate = frames / statistics.median(spent)
        print(f"{name:>38}: {rate:9.1f} frames/s, {ratio:6.3f} times the time of the first")


# --- reading alone -------------------------------------------------------------------------------


def measure_decoding(options: argparse.Namespace) -> None:
    """Compare reading and resizing with what Pillow takes to decode alone."""
    config = build_model(options.model).config
    with tempfile.TemporaryDirectory() as folder:
        files = find_images(options, folder)
        rivals: dict[str, Callable[[], object]] = {
            "Pillow, decoding only": lambda: [plain(path, None) for path in files],
            "Pillow, decoding and resizing": lambda: [
                plain(path, config.frame_size) for path in files
            ],
        }
        for reading in (
            Reading(),
            Reading(resizer="tensor"),
            Reading(draft=True),
            Reading(draft=True, resizer="tensor"),
        ):
            for workers in options.workers:
                words = [f"workers={workers}", "draft" * reading.draft, reading.resizer]
                rivals[", ".join(filter(None, words))] = reader(files, config, reading, workers)
        with Image.open(files[0]) as image:
            print(f"JPEG {image.size[1]} x {image.size[0]} to {config.frame_size}")
        compare(rivals, options.rounds, len(files))


def plain(path: Path, size: tuple[int, int] | None) -> np.ndarray | None:
    """Read one file with Pillow's own calls."""
    with Image.open(path) as image:
        if size is None:
            return image.load() and None
        resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(resized)


def reader(
    files: list[Path], config: TFCLIPConfig, reading: Reading, workers: int
) -> Callable[[], object]:
    """Return a function that reads files as ``encode_sequences`` does."""
    preprocess = Preprocess(config, reading.resizer)

    def read() -> None:
        request = Request(
            "files",
            open_frames(files),
            lambda position, picture: preprocess.resize_picture(picture),
            draft=reading.draft_size(preprocess.size),
        )
        with read_ahead([request], workers=workers, ahead=64) as requests:
            for _, frames in requests:
                for _ in frames:
                    pass

    return read


# --- the whole way -------------------------------------------------------------------------------


def measure_end_to_end(options: argparse.Namespace) -> None:
    """Compare encoding from files with encoding the same frames, resized and in memory."""
    model = build_model(options.model)
    preprocess = Preprocess(model.config)
    with tempfile.TemporaryDirectory() as folder:
        files = find_images(options, folder)
        tracklets = [files[start : start + 16] for start in range(0, len(files), 16)]
        held = [
            torch.stack([preprocess.resize(frame) for frame in open_frames(paths)])
            for paths in tracklets
        ]

        def encode(sources: Sequence[object], **how: object) -> Callable[[], object]:
            return lambda: model.encode_sequences(
                sources,
                batch_frames=options.batch_frames,
                **how,  # type: ignore[arg-type]
            )

        fast = Reading(draft=True, resizer="tensor")
        rivals = {"the model alone": encode(held, workers=0), "files": encode(tracklets)}
        for workers in options.workers:
            rivals[f"files, workers={workers}"] = encode(tracklets, workers=workers)
            rivals[f"files, workers={workers}, draft, tensor"] = encode(
                tracklets, workers=workers, reading=fast
            )
        with Image.open(files[0]) as image:
            print(
                f"{len(files)} JPEG {image.size[1]} x {image.size[0]} to "
                f"{model.config.frame_size}, {torch.get_num_threads()} threads"
            )
        compare(rivals, options.rounds, len(files))


# --- large jobs ----------------------------------------------------------------------------------


def measure_job(options: argparse.Namespace) -> None:
    """Print rate and memory over time of one job of many tracklets of very different lengths."""
    model = build_model(options.model)
    random = np.random.default_rng(0)
    # As long as the tracklets of MARS: 59 frames in the mean, but 2 to 900.
    lengths = np.clip(random.lognormal(3.7, 0.9, options.tracklets), 2, 900).astype(int)
    lengths[:2] = 2, 900
    with tempfile.TemporaryDirectory() as folder:
        files = [str(path) for path in find_images(options, folder)]
        tracklets = [
            Tracklet(name=f"{i:06d}", frames=[files[k] for k in random.integers(0, len(files), n)])
            for i, n in enumerate(lengths)
        ]
        out = Path(folder, "embeddings.safetensors")
        watch = Watch(out, np.cumsum(lengths))
        spent = seconds(
            lambda: encode_to_file(
                model, tracklets, out, batch_frames=options.batch_frames, workers=options.workers[0]
            )
        )
        watch.stop()
    print(f"{len(tracklets)} tracklets of {lengths.sum()} frames, {spent:.0f} s with all")
    tenths = watch.tenths()
    for tenth, (rate, memory) in enumerate(tenths, 1):
        print(f"tenth {tenth:2}: {rate:8.0f} frames/s, {memory:5.0f} MiB resident at its end")
    print(f"last tenth: {tenths[-1][0] / tenths[0][0]:.3f} times the rate of the first")


class Watch(threading.Thread):
    """Note four times a second how much of a job is on disk, and the memory of the process."""

    def __init__(self, out: Path, frames_before: np.ndarray) -> None:
        super().__init__(daemon=True)
        self._parts = out.with_name(f"{out.name}.parts")
        self._frames_before = frames_before  # the end of each tracklet, in frames
        self._stopped = threading.Event()
        self._notes: list[tuple[float, int, float]] = []  # time, frames, MiB
        self.start()

    def run(self) -> None:
        """Take notes until the job is done."""
        while not self._stopped.wait(0.25):
            try:  # a part is called by the first tracklet of its group
                rows = [int(path.stem.rsplit("-", 1)[1]) for path in self._parts.iterdir()]
            except (OSError, ValueError):
                continue
            if rows and max(rows) > 0:
                frames = int(self._frames_before[max(rows) - 1])
                self._notes.append((time.perf_counter(), frames, resident_mebibytes()))

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join()

    def tenths(self) -> list[tuple[float, float]]:
        """Return the rate in each tenth of the frames and the memory at its end."""
        times, frames, memory = (
            np.array(column, float) for column in zip(*self._notes, strict=True)
        )
        edges = np.linspace(frames[0], frames[-1], 11)
        at = np.interp(edges, frames, times)
        rates = np.diff(edges) / np.diff(at)
        return list(zip(rates, np.interp(edges[1:], frames, memory), strict=True))


def resident_mebibytes() -> float:
    """Return the memory that the process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- accuracy ------------------------------------------------------------------------------------


def measure_differences(options: argparse.Namespace) -> None:
    """Print what each way of reading does to embeddings and to a search across cameras."""
    model = build_model("tiny")
    people = SyntheticTracklets(
        options.identities,
        3,
        tracklets_per_camera=1,
        num_frames=tuple(options.length),
        frame_size=tuple(options.size),
        seed=_WORLD,
    )
    ways = [Reading(), Reading(resizer="tensor"), Reading(draft=True)]
    ways.append(Reading(draft=True, resizer="tensor"))
    ways += [
        Reading(max_frames=number, selection=selection)
        for number in (32, 16, 8)
        for selection in ("spread", "diverse")
    ]
    with tempfile.TemporaryDirectory() as folder:
        people.write(folder, "jpg")
        tracklets = read_folder(folder, _LAYOUT)
        frames = [tracklet.open() for tracklet in tracklets]
        print(f"{len(tracklets)} tracklets of {sum(map(len, frames))} frames")
        exact: torch.Tensor | None = None
        for reading in ways:
            start = time.perf_counter()
            embeddings = model.encode_sequences(frames, reading=reading)
            spent = time.perf_counter() - start
            exact = embeddings if exact is None else exact
            cosines = F.cosine_similarity(embeddings, exact).double()
            result = rank(embeddings, tracklets)
            print(
                f"{reading.settings() or 'exact'!s:>45}: {spent:5.1f} s, cosine at least "
                f"{cosines.min():.6f}, median {cosines.median():.6f}; {result}"
            )


def rank(embeddings: torch.Tensor, tracklets: Sequence[Tracklet]) -> str:
    """Search every tracklet among those of the other cameras."""
    persons = [tracklet.person for tracklet in tracklets]
    cameras = [tracklet.camera for tracklet in tracklets]
    distance = squared_euclidean_distance(embeddings, embeddings)
    result = evaluate_ranking(distance, persons, persons, cameras, cameras, exclude="camera")
    return f"mAP {100 * result.mAP:.2f} %, rank-1 {100 * float(result.cmc[0]):.2f} %"


def main() -> None:
    """Read the command line and measure."""
    modes = {
        "decode": measure_decoding,
        "end_to_end": measure_end_to_end,
        "jobs": measure_job,
        "differences": measure_differences,
    }
    parser = argparse.ArgumentParser(description="Measure how frames reach the model.")
    parser.add_argument("mode", choices=modes)
    parser.add_argument("--model", choices=("tiny", "vit", "miniature"), default="tiny")
    parser.add_argument("--images", type=Path, help="a folder of JPEG files instead of drawn ones")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), help="of drawn frames")
    parser.add_argument("--frames", type=int, default=512, help="files to read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-frames", type=int, default=64)
    parser.add_argument("--tracklets", type=int, default=10_000, help="of the large job")
    parser.add_argument("--identities", type=int, default=60, help="people for differences")
    parser.add_argument("--length", type=int, nargs=2, default=(60, 120), help="of their tracklets")
    options = parser.parse_args()
    modes[options.mode](options)


if __name__ == "__main__":
    main()
