"""The parity gate: an export passes only if it gives the embeddings that the model gives."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tfclip import __version__
from tfclip.data.synthetic import SyntheticTracklets
from tfclip.errors import ExportError
from tfclip.export.graph import longest_clip
from tfclip.export.runtimes import ExportedModel
from tfclip.model import TFCLIP
from tfclip.preprocess import Preprocess

# (clips, frames): one of each, more of one than of the other, and what attention kernels of some
# processors work on differently, 16 and more. A clip of the model's own length comes beside them.
SHAPES = ((1, 1), (1, 7), (2, 8), (4, 3), (1, 16))
ROUNDS = 5
_SEED = 2**32 + 17  # drawn people that no training draws


@dataclass(frozen=True)
class Trial:
    """One batch that went through both.

    Args:
        kind: ``"drawn"`` people or ``"random"`` pixels.
        clips: Clips in the batch.
        frames: Frames in each.
        cosine: The least cosine between the two embeddings of a clip.
        difference: The greatest difference between two numbers of embeddings of length 1.
    """

    kind: str
    clips: int
    frames: int
    cosine: float
    difference: float


@dataclass(frozen=True)
class Latency:
    """Median seconds of one batch, the two taking turns."""

    clips: int
    frames: int
    rounds: int
    threads: int
    torch: float
    exported: float


@dataclass(frozen=True)
class ParityReport:
    """What was compared, how well it agreed, and how long both took.

    Args:
        path: The exported file.
        description: What the file says about itself.
        least_cosine: What was demanded.
        cosine: The least cosine of all trials.
        difference: The greatest difference of all trials, of embeddings of length 1.
        nearest_others: The greatest cosine between the model's embeddings of two drawn people in
            the trials: what a difference has to be small against.
        trials: Every batch.
        latency: Of the model in float32, as it is in torch, and of the export.
        size: Bytes of all files.
        versions: Of the packages that took part.
        machine: The processor.
    """

    path: str
    description: dict[str, Any]
    least_cosine: float
    cosine: float
    difference: float
    nearest_others: float
    trials: tuple[Trial, ...]
    latency: Latency
    size: int
    versions: dict[str, str]
    machine: dict[str, str | int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def check_parity(
    model: TFCLIP, exported: ExportedModel, *, least_cosine: float, name: str
) -> tuple[tuple[Trial, ...], float]:
    """Run both on drawn people and on random pixels, in batches of several shapes.

    Args:
        model: The model, float32 on the CPU, in eval mode.
        exported: Its export.
        least_cosine: Between the two embeddings of every clip.
        name: The file, for the message.

    Returns:
        The trials, and the greatest cosine between two drawn people of the model itself.

    Raises:
        ExportError: A cosine is less, or an embedding is nearer to another person's: the message
            names the worst case.
    """
    trials: list[Trial] = []
    wanted, got = [], []
    for kind, pixels in _batches(model):
        cameras = _cameras(model, exported, len(pixels))
        mine = F.normalize(_reference(model, pixels, cameras), dim=1)
        theirs = F.normalize(_exported(model, exported, pixels, cameras), dim=1)
        cosine = (mine * theirs).sum(1).min().item()
        trials.append(
            Trial(kind, *pixels.shape[:2], cosine, (mine - theirs).abs().max().item())  # type: ignore[arg-type]
        )
        if kind == "drawn":
            wanted.append(mine)
            got.append(theirs)
    worst = min(trials, key=lambda trial: (trial.cosine >= -1, trial.cosine))  # NaN is the worst
    if not worst.cosine >= least_cosine:
        raise ExportError(
            f"{name} is not written: its embeddings are not the model's; the worst of "
            f"{len(trials)} trials has a cosine of {worst.cosine:.6f}, less than {least_cosine} "
            f"({worst.clips} x {worst.frames} {worst.kind} frames)"
        )
    mine, theirs = torch.cat(wanted), torch.cat(got)
    people = mine @ mine.T - 2 * torch.eye(len(mine))
    confused = (theirs @ mine.T).argmax(1) != torch.arange(len(mine))
    if confused.any():
        raise ExportError(
            f"{name} is not written: {int(confused.sum())} of {len(mine)} drawn people are nearer "
            f"to another person's embedding than to their own, though the worst cosine is "
            f"{worst.cosine:.6f}"
        )
    return tuple(trials), people.max().item()


def measure_latency(model: TFCLIP, exported: ExportedModel, threads: int) -> Latency:
    """Time one clip of the config's length in both, in turns, after one turn that does not count.

    Frames are pixels in memory and normalisation counts for both.
    """
    length = model.config.clip_length
    pixels = _random_pixels(model, 1, length)
    cameras = _cameras(model, exported, 1)
    runs: tuple[Callable[..., object], ...] = (
        lambda: _reference(model, pixels, cameras),
        lambda: _exported(model, exported, pixels, cameras),
    )
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(1 + ROUNDS):
        for run, spent in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            if turn:
                spent.append(time.perf_counter() - start)
    medians = (statistics.median(spent) for spent in times)
    return Latency(1, length, ROUNDS, threads, *medians)


def versions() -> dict[str, str]:
    """Return the versions of the packages that take part."""
    found = {
        "python": platform.python_version(),
        "tfclip": __version__,
        "torch": str(torch.__version__),
    }
    for name in ("numpy", "onnx", "onnxscript", "onnxruntime", "openvino"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str | int]:
    """Return what processor this is, as far as torch and the system tell."""
    return {
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "cores": os.cpu_count() or 1,
    }


def _batches(model: TFCLIP) -> Iterator[tuple[str, Tensor]]:
    """Yield kind and pixels, (B, T, 3, H, W) uint8; every drawn clip shows another person."""
    longest = longest_clip(model)
    shapes = {(b, t if longest is None else min(t, longest)) for b, t in SHAPES}
    shapes.add((2, model.config.clip_length))
    first = 0
    for clips, length in sorted(shapes):
        yield "drawn", _drawn_pixels(model, clips, length, first)
        yield "random", _random_pixels(model, clips, length)
        first += clips


def _drawn_pixels(model: TFCLIP, clips: int, length: int, first: int) -> Tensor:
    people = SyntheticTracklets(
        clips,
        num_cameras=1,
        tracklets_per_camera=1,
        num_frames=length,
        frame_size=(128, 64),
        seed=_SEED,
        first_identity=first,
    )
    preprocess = Preprocess(model.config)
    drawn = [people[i].frames for i in range(clips)]
    return torch.stack([torch.stack([preprocess.resize(f) for f in frames]) for frames in drawn])


def _random_pixels(model: TFCLIP, clips: int, length: int) -> Tensor:
    """Return noise of another contrast and brightness in each channel of each clip."""
    generator = torch.Generator().manual_seed(clips * 1000 + length)
    low, high = torch.rand(2, clips, 1, 3, 1, 1, generator=generator).sort(0).values * 255
    noise = torch.rand(clips, length, 3, *model.config.frame_size, generator=generator)
    return (low + noise * (high - low)).round().to(torch.uint8)


def _cameras(model: TFCLIP, exported: ExportedModel, clips: int) -> Tensor | None:
    """Return every camera in turn, the unknown one first, if the export takes cameras."""
    if not exported.description["cameras"]["input"]:
        return None
    return torch.arange(clips) % (model.config.num_cameras + 1) - 1


def _reference(model: TFCLIP, pixels: Tensor, cameras: Tensor | None) -> Tensor:
    with torch.inference_mode():
        return model(Preprocess(model.config).normalize(pixels), cameras).embedding


def _exported(
    model: TFCLIP, exported: ExportedModel, pixels: Tensor, cameras: Tensor | None
) -> Tensor:
    frames = pixels
    if exported.description["frames"]["normalize"]:
        frames = Preprocess(model.config).normalize(pixels)
    numbers = None if cameras is None else cameras.numpy()
    return torch.from_numpy(np.asarray(exported(frames.numpy(), numbers), dtype=np.float32))
