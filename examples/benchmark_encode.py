"""Measure what encoding costs, against the reference's way and the machine's limit, in one run.

    python examples/benchmark_encode.py rates                # every way: 4 clips of 8 frames
    python examples/benchmark_encode.py rates --device cuda  # the same on a GPU
    python examples/benchmark_encode.py rates --ways reference "ours bfloat16" --memory
    python examples/benchmark_encode.py growth               # with the tracklet, and with the batch
    python examples/benchmark_encode.py accuracy             # what precision and merging cost
    python examples/benchmark_encode.py speed                # ragged tracklets, one clip at a time
    python examples/benchmark_encode.py memory               # 5,000 frames of one tracklet

Machines are noisy: the rivals take turns, and the median of the ratios of neighbouring turns is
printed, the greatest products of matrices among them. The model is the full ViT-B/16 at 256 x 128
with random weights, which rates do not depend on; `accuracy` takes the bundled model and drawn
people. A training step is measured by `benchmark_training.py step`, which takes --device too.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from reference_encoder import reference
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from tfclip import TFCLIP, TFCLIPConfig, functional, int8, speed
from tfclip.data import SyntheticTracklets
from tfclip.encoding import Sampling
from tfclip.frames import sample_dense
from tfclip.precision import choose_dtype, convert, processor_name
from tfclip.preprocess import Preprocess

NUM_FRAMES = 8
WORLD = 2**32  # no training draws from a world this far

# What makers state for dense bfloat16 products, TFLOP/s; the first name that fits counts.
STATED_PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121}

Encode = Callable[[Tensor], Tensor]  # frames (B, T, 3, H, W) to embeddings (B, F) or, bare, (M, E)


# --- ways to encode the same clips


def ours(model: TFCLIP, frames: Tensor) -> Tensor:
    """Encode as the library's pipeline does once it has pixels."""
    tokens = model.encode_frames(frames.to(model.dtype).flatten(0, 1))
    return model.embed(tokens.unflatten(0, frames.shape[:2]))


def make(way: str, device: str) -> Encode:
    """Build one way of encoding from its name, with the same weights each time."""
    name, *words = way.split()
    torch.manual_seed(0)
    model = TFCLIP(TFCLIPConfig()).eval()
    if name == "timm":
        return timm_tower(words, device)
    if "auto" in words:
        words.append(str(choose_dtype(model.to(device))).removeprefix("torch."))
    dtype = torch.bfloat16 if {"bfloat16", "int8"} & set(words) else torch.float32
    model = model.to(device, torch.float16 if "float16" in words else dtype)
    if name == "reference":
        return lambda frames: reference(model, frames.to(model.dtype))
    if name == "open_clip":
        tower = model.backbone.tower
        return lambda frames: tower(frames.to(model.dtype).flatten(0, 1))
    if "compiled" in words:
        mode = "reduce-overhead" if device == "cuda" else None
        model.compile_tower(mode, frames=4 * NUM_FRAMES if device == "cuda" else NUM_FRAMES)
    merged = [int(word.removeprefix("merge")) for word in words if word.startswith("merge")]
    model.merge_tokens(merged[0] if merged else 0)
    model.quantize_dynamic("int8" in words)
    return lambda frames: ours(model, frames)


def timm_tower(words: list[str], device: str) -> Encode:
    """Build timm's tower of the same size, with weights of its own."""
    import timm

    tower = timm.create_model(
        "vit_base_patch16_clip_224", img_size=TFCLIPConfig().frame_size, num_classes=0
    )
    tower = tower.eval().to(device, torch.bfloat16 if "bfloat16" in words else torch.float32)
    dtype = next(tower.parameters()).dtype
    return lambda frames: tower(frames.to(dtype).flatten(0, 1))


WAYS = (
    "reference",
    "open_clip float32",
    "timm float32",
    "ours float32",
    "open_clip bfloat16",
    "timm bfloat16",
    "ours bfloat16",
    "ours auto",
    "ours int8",
    "ours bfloat16 merge8",
    "ours bfloat16 merge16",
)
BARE = ("open_clip", "timm")  # towers alone: no temporal part, so their vectors are others


# --- the machine


def products_per_frame(config: TFCLIPConfig, *, bare: bool = False) -> float:
    """Return the least floating-point operations in products that one frame's vector takes.

    A multiplication and an addition are two. What a way does beyond that counts against it.
    """
    width, tokens, layers, pixels = 768, 129, 12, 3 * 16 * 16
    tower = 2 * (tokens - 1) * pixels * width
    tower += layers * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)
    if bare:
        return tower
    # One more block over one more token, whose last layer takes the mean; the messages are little.
    return tower + 2 * (tokens + 1) * 8 * width**2 + 4 * (tokens + 1) ** 2 * width


def product(dtype: torch.dtype, device: str) -> dict[str, tuple[float, Callable[[], Tensor]]]:
    """Return products of matrices that a machine is fast at, with their operations."""
    rows, inner, outer = (1032, 768, 3072) if device == "cpu" else (8192, 8192, 8192)
    kept = torch.bfloat16 if dtype == torch.int8 else dtype
    x, weight = torch.randn(rows, inner).to(device, kept), torch.randn(outer, inner)
    weight, bias = weight.to(device, kept), torch.zeros(outer).to(device, kept)
    size = 2.0 * rows * inner * outer
    if dtype == torch.int8:
        rounded, (steps, _) = int8.round_weight(weight), int8.round_rows(x)
        return {
            "oneDNN, as a layer": (size, lambda: int8.multiply(steps, rounded, x.dtype)),
            "ours, with rounding": (size, lambda: int8.linear(x, weight, bias)),
        }
    square = torch.randn(2048, 2048).to(device, dtype)
    return {
        "torch, as a layer": (size, lambda: F.linear(x, weight, bias)),
        "torch, 2048 cubed": (2.0 * 2048**3, lambda: square @ square),
        "ours, as a layer": (size, lambda: speed.linear(x, weight, bias)),
    }


def wait(device: str) -> None:
    """Wait for a GPU to finish."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(rival: Callable[..., object], *arguments: object, device: str = "cpu") -> float:
    """Return how long a call takes."""
    wait(device)
    start = time.perf_counter()
    rival(*arguments)
    wait(device)
    return time.perf_counter() - start


def describe_machine(device: str) -> None:
    """Print what the figures hold for."""
    if device == "cuda":
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    else:
        capability = torch.backends.cpu.get_cpu_capability()
        threads = torch.get_num_threads()
        print(f"{processor_name()}, {capability}, {threads} threads, torch {torch.__version__}")


# --- what is measured


def measure_rates(options: argparse.Namespace) -> None:
    """Print frames a second of each way, its ratio to the reference and to the machine's limit."""
    device, ways = options.device, options.ways
    torch.manual_seed(1)
    frames = torch.randn(options.clips, NUM_FRAMES, 3, *TFCLIPConfig().frame_size, device=device)
    # Built outside of inference mode, as from_pretrained does: its tensors tell when they change.
    rivals = {way: make(way, device) for way in ways}
    rivals |= {f"exported {path}": exported(path) for path in options.exported}
    truth_of = make("reference", device)
    dtypes = {torch.float32, torch.bfloat16, *(kind_of(way, device) for way in ways)}
    products = {dtype: product(dtype, device) for dtype in sorted(dtypes, key=str)}
    times: dict[object, list[float]] = {}
    with torch.inference_mode():
        truth = truth_of(frames)
        found = {way: rival(frames) for way, rival in rivals.items()}  # warms up, too
        for _ in tqdm(range(options.rounds), unit="round"):
            for way, rival in rivals.items():
                times.setdefault(way, []).append(seconds(rival, frames, device=device))
            for dtype, kinds in products.items():
                for name, (_, run) in kinds.items():
                    best = min(seconds(run, device=device) for _ in range(5))
                    times.setdefault((dtype, name), []).append(best)
    describe_machine(device)
    limits = print_limits(products, times, device)
    print(f"\n{options.clips} clips of {NUM_FRAMES} frames, medians of {options.rounds} rounds")
    print("| way | frames/s | times the first | of the limit | least cosine | peak memory |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for way in rivals:
        spent = statistics.median(times[way])
        ratio = statistics.median(a / b for a, b in zip(times[ways[0]], times[way], strict=True))
        bare = way.startswith(BARE)
        number = frames.shape[0] * frames.shape[1]
        work = number * products_per_frame(TFCLIPConfig(), bare=bare)
        share = "-" if "merge" in way else f"{work / spent / limits[kind_of(way, device)]:.0%}"
        cosine = "-" if bare else f"{least_cosine(found[way], truth):.6f}"
        peak = f"{peak_of(way, options) / 1024:.1f} GiB" if options.memory else "-"
        print(f"| {way} | {number / spent:.1f} | {ratio:.2f} | {share} | {cosine} | {peak} |")


def print_limits(
    products: dict[torch.dtype, dict[str, tuple[float, Callable[[], Tensor]]]],
    times: dict[object, list[float]],
    device: str,
) -> dict[torch.dtype, float]:
    """Print the rates of products, and return the best of each type in operations a second."""
    limits = {}
    for dtype, kinds in products.items():
        rates = {
            name: size / statistics.median(times[dtype, name]) for name, (size, _) in kinds.items()
        }
        limits[dtype] = max(rates.values())
        shown = ", ".join(f"{rate / 1e9:,.0f} ({name})" for name, rate in rates.items())
        print(f"products in {str(dtype).removeprefix('torch.')}, GFLOP/s: {shown}")
    if device == "cuda":
        name = torch.cuda.get_device_name()
        stated = next((peak for part, peak in STATED_PEAKS.items() if part in name), None)
        if stated:
            share = limits[torch.bfloat16] / (stated * 1e12)
            print(
                f"the maker states {stated} TFLOP/s in bfloat16; products reach {share:.0%} of it"
            )
    return limits


def kind_of(way: str, device: str) -> torch.dtype:
    """Return the type whose limit a way is compared with."""
    if "auto" in way:
        return choose_dtype(TFCLIP(TFCLIPConfig()).to(device))
    if "int8" in way:
        return torch.int8
    return torch.bfloat16 if "float16" in way else torch.float32  # bfloat16, and float16 alike


def least_cosine(found: Tensor, truth: Tensor) -> float:
    """Return the cosine of the clip whose vector differs most."""
    return F.cosine_similarity(found.double(), truth.double()).min().item()


def exported(path: str) -> Encode:
    """Open a file of ``tfclip.export``, which takes normalised frames, in the runtime it is for."""
    module: Any = importlib.import_module("tfclip.export")
    run = module.ExportedModel(path, threads=torch.get_num_threads())
    return lambda frames: torch.from_numpy(np.asarray(run(frames.numpy()), dtype=np.float32))


def peak_of(way: str, options: argparse.Namespace) -> float:
    """Return the most MiB that a process of its own takes for encoding the clips twice."""
    command = [sys.executable, __file__, "one", "--ways", way, "--clips", str(options.clips)]
    command += ["--device", options.device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(options: argparse.Namespace) -> None:
    """Encode twice in one way and print the peak memory in MiB."""
    rival = make(options.ways[0], options.device)
    frames = torch.randn(
        options.clips, NUM_FRAMES, 3, *TFCLIPConfig().frame_size, device=options.device
    )
    with torch.inference_mode():
        for _ in range(2):
            rival(frames)
    cuda = options.device == "cuda"
    print(torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_mebibytes())


def measure_growth(options: argparse.Namespace) -> None:
    """Print frames a second against the length of a tracklet, and against ``batch_frames``."""
    model = convert(TFCLIP(TFCLIPConfig()).eval().to(options.device), options.dtype)
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (max(options.lengths), 256, 128, 3), dtype=np.uint8)
    model.encode_sequence(frames[:NUM_FRAMES])  # warm up
    describe_machine(options.device)
    print(f"{model.precision}, medians of {options.rounds}\n| frames | frames/s |\n| ---: | ---: |")
    for length in options.lengths:
        print(f"| {length} | {rate(model, frames[:length], options):.1f} |")
    print("\n| batch_frames | frames/s |\n| ---: | ---: |")
    for batch in (8, 16, 32, 64, 128):
        print(f"| {batch} | {rate(model, frames, options, batch_frames=batch):.1f} |")


def rate(
    model: TFCLIP, frames: np.ndarray, options: argparse.Namespace, *, batch_frames: int = 64
) -> float:
    """Return the median of frames a second."""

    def encode() -> None:
        model.encode_sequence(frames, batch_frames=batch_frames)

    rounds = (seconds(encode, device=options.device) for _ in range(options.rounds))
    return len(frames) / statistics.median(rounds)


def measure_accuracy(options: argparse.Namespace) -> None:
    """Print what precision and token merging cost on drawn people, with the bundled model."""
    people = SyntheticTracklets(
        options.people,
        3,
        tracklets_per_camera=1,
        num_frames=(12, 20),
        frame_size=(128, 64),
        seed=WORLD + 1,
    )
    tracklets = [tracklet.frames for tracklet in people]
    persons = torch.tensor([tracklet.person for tracklet in people])
    cameras = torch.tensor([tracklet.camera for tracklet in people])
    model = TFCLIP.from_pretrained("tfclip-tiny", device=options.device)
    exact = model.encode_sequences(tracklets)
    print(f"{len(tracklets)} tracklets of {options.people} drawn people, tfclip-tiny")
    print(
        "| what | mAP | rank-1 | least cosine | mean cosine |\n| --- | ---: | ---: | ---: | ---: |"
    )
    whats = ["float32", "bfloat16", "float16", *(f"merge {n}" for n in (1, 2, 3, 4, 6, 8))]
    if not int8.why_not():
        whats.insert(3, "int8")
    for what in whats:
        model = TFCLIP.from_pretrained("tfclip-tiny", device=options.device)
        if what.startswith("merge"):
            model.merge_tokens(int(what.removeprefix("merge ")))
        else:
            convert(model, what)
        found = model.encode_sequences(tracklets)
        distance = functional.squared_euclidean_distance(found, found)
        result = functional.evaluate_ranking(distance, persons, persons, cameras, cameras)
        cosines = F.cosine_similarity(found, exact)
        print(
            f"| {what} | {100 * result.mAP:.2f} | {100 * float(result.cmc[0]):.2f} "
            f"| {cosines.min():.5f} | {cosines.mean():.5f} |"
        )


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
            torch.stack([reference(model, pixels[clip][None]) for clip in clips]).mean(0)


def bare_tower(model: TFCLIP, tracklets: list[np.ndarray]) -> None:
    """Run open_clip's own forward over the same frames, 64 at once: no temporal part at all."""
    preprocess = Preprocess(model.config)
    pixels = preprocess(frame for frames in tracklets for frame in frames)
    with torch.inference_mode():
        for chunk in pixels.split(64):
            model.backbone.tower(chunk)


def measure_speed(options: argparse.Namespace) -> None:
    """Print frames per second and ratios for ragged tracklets, in float32."""
    model = TFCLIP(TFCLIPConfig()).eval()
    random = np.random.default_rng(0)
    lengths = [1, 3, 9, 12, 17, 22, 30, 34]
    tracklets = [random.integers(0, 256, (n, 256, 128, 3), dtype=np.uint8) for n in lengths]
    rivals = {"packed": packed, "one clip at a time": one_clip_at_a_time, "bare tower": bare_tower}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    packed(model, tracklets[:3])  # warm up
    for _ in tqdm(range(options.rounds), unit="round"):
        for name, rival in rivals.items():
            times[name].append(seconds(rival, model, tracklets))
    describe_machine("cpu")
    print(f"{sum(lengths)} frames in tracklets of {lengths}")
    for name in rivals:
        ratio = statistics.median(a / b for a, b in zip(times[name], times["packed"], strict=True))
        frames = sum(lengths) / statistics.median(times[name])
        print(f"{name:>20}: {frames:6.1f} frames/s, {ratio:.2f} times the time of packed")


def measure_memory(options: argparse.Namespace) -> None:
    """Print how much the process grows while it encodes one long tracklet from files."""
    model = TFCLIP(TFCLIPConfig()).eval()
    number, sampling = options.frames, options.sampling
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        for i in range(number):
            pixels = random.integers(0, 256, (64, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(Path(folder) / f"{i:06d}.jpg")
        before = peak_mebibytes()
        spent = seconds(lambda: model.encode_sequence(folder, sampling=sampling))
    grown = peak_mebibytes() - before
    print(
        f"{number} frames, sampling={sampling!r}: {number / spent:.1f} frames/s, "
        f"peak {grown:.0f} MiB above the loaded model"
    )


def peak_mebibytes() -> float:
    """Return the most memory the process has held so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


MODES = {
    "rates": measure_rates,
    "growth": measure_growth,
    "accuracy": measure_accuracy,
    "speed": measure_speed,
    "memory": measure_memory,
    "one": print_peak,
}


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description="Measure what encoding costs.")
    parser.add_argument("what", choices=MODES)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=4, help="rates: of 8 frames each (4)")
    parser.add_argument("--ways", nargs="+", default=WAYS, metavar="WAY", help="rates: which")
    parser.add_argument(
        "--exported", nargs="*", default=(), metavar="FILE", help="rates: of export"
    )
    parser.add_argument("--memory", action="store_true", help="rates: peak, in own processes")
    parser.add_argument("--dtype", default="float32", help="growth: float32, bfloat16, int8, auto")
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[1, 8, 32, 128], help="growth: of tracklets"
    )
    parser.add_argument("--people", type=int, default=100, help="accuracy: to draw")
    parser.add_argument("--frames", type=int, default=5000, help="memory: of the tracklet")
    parser.add_argument("--sampling", choices=get_args(Sampling), default="dense")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is here, so nothing was measured")
    MODES[options.what](options)


if __name__ == "__main__":
    main()
