"""Measure what encoding costs, as ratios within one run.

    python examples/benchmark_encoding.py speed      # against one clip at a time, and a bare tower
    python examples/benchmark_encoding.py memory     # 5,000 frames of one tracklet

Machines are noisy: the rivals take turns, and the median of the ratios of neighbouring turns is
printed. The model is the full ViT-B/16 at 256 x 128 with random weights, on the CPU.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tfclip import TFCLIP, TFCLIPConfig
from tfclip.encoding import Sampling
from tfclip.frames import sample_dense
from tfclip.preprocess import Preprocess


def packed(model: TFCLIP, tracklets: list[np.ndarray]) -> None:
    """Encode as the library does: clips of all tracklets share batches, no frame twice."""
    model.encode_sequences(tracklets)


def one_clip_at_a_time(model: TFCLIP, tracklets: list[np.ndarray]) -> None:
    """Encode as the reference means to: every clip filled up to its length, one by one."""
    preprocess = Preprocess(model.config)
    with torch.inference_mode():
        for frames in tracklets:
            pixels = preprocess(frames)
            clips = sample_dense(len(frames), model.config.clip_length)
            torch.stack([model(pixels[clip][None]).embedding for clip in clips]).mean(0)


def bare_tower(model: TFCLIP, tracklets: list[np.ndarray]) -> None:
    """Run open_clip's own forward over the same frames, 64 at once: no temporal part at all."""
    preprocess = Preprocess(model.config)
    pixels = preprocess(frame for frames in tracklets for frame in frames)
    with torch.inference_mode():
        for chunk in pixels.split(64):
            model.backbone.tower(chunk)


def seconds(rival: Callable[..., object], *arguments: object) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    rival(*arguments)
    return time.perf_counter() - start


def measure_speed(model: TFCLIP, rounds: int) -> None:
    """Print frames per second and ratios for ragged tracklets."""
    random = np.random.default_rng(0)
    lengths = [1, 3, 9, 12, 17, 22, 30, 34]
    tracklets = [random.integers(0, 256, (n, 256, 128, 3), dtype=np.uint8) for n in lengths]
    rivals = {"packed": packed, "one clip at a time": one_clip_at_a_time, "bare tower": bare_tower}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    packed(model, tracklets[:3])  # warm up
    for _ in tqdm(range(rounds), unit="round"):
        for name, rival in rivals.items():
            times[name].append(seconds(rival, model, tracklets))
    print(f"{sum(lengths)} frames in tracklets of {lengths}, {torch.get_num_threads()} threads")
    for name in rivals:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["packed"], strict=True))
        rate = sum(lengths) / statistics.median(times[name])
        print(f"{name:>20}: {rate:6.1f} frames/s, {ratio:.2f} times the time of packed")


def measure_memory(model: TFCLIP, num_frames: int, sampling: Sampling) -> None:
    """Print how much the process grows while it encodes one long tracklet from files."""
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        for i in range(num_frames):
            pixels = random.integers(0, 256, (64, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{i:06d}.jpg")
        before = peak_mebibytes()
        spent = seconds(lambda: model.encode_sequence(folder, sampling=sampling))
    grown = peak_mebibytes() - before
    print(
        f"{num_frames} frames, sampling={sampling!r}: {num_frames / spent:.1f} frames/s, "
        f"peak {grown:.0f} MiB above the loaded model"
    )


def peak_mebibytes() -> float:
    """Return the most memory the process has held so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description="Measure what encoding costs.")
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("--sampling", choices=["dense", "rrs", "all"], default="dense")
    arguments = parser.parse_args()
    model = TFCLIP(TFCLIPConfig()).eval()
    if arguments.what == "speed":
        measure_speed(model, arguments.rounds)
    else:
        measure_memory(model, arguments.frames, arguments.sampling)


if __name__ == "__main__":
    main()
