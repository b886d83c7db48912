"""Building the CLIP-Memory of a training set, and keeping it on disk for the next run.

The reference does this once, before training, with the weights that training starts from
(Yu et al., AAAI 2024, "CLIP-Memory construction", Algorithm 1).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from tfclip import __version__
from tfclip.data.clips import number_people
from tfclip.data.tracklets import Tracklet
from tfclip.distributed import from_first_process, gather_dealt, place
from tfclip.encoding import BATCH_FRAMES, eval_mode
from tfclip.errors import FrameError, SaveError
from tfclip.files import replace_when_done
from tfclip.frames import sample_dense
from tfclip.memory import CLIPMemory
from tfclip.model import TFCLIP
from tfclip.preprocess import Preprocess

Item = TypeVar("Item")

# What of a configuration a sequence feature depends on, beside the backbone's weights.
_FIELDS = (
    "backbone", "backbone_options", "activation", "frame_size", "stride", "mean", "std",
    "interpolation", "clip_length",
)  # fmt: skip

_logger = logging.getLogger(__name__)


def build_memory(
    model: TFCLIP,
    tracklets: Sequence[Tracklet],
    identities: Tensor | None = None,
    *,
    cache: str | Path | None = None,
    batch_frames: int = BATCH_FRAMES,
    progress: bool = False,
) -> CLIPMemory:
    """Average the sequence features of each training identity (Eq. 2-6, Algorithm 1).

    A tracklet's feature is the mean of its dense clips' projected features, computed in eval mode,
    in float32 and without cameras; a row of the memory is the mean over an identity's tracklets.
    The processes of a group of ``torch.distributed`` share the tracklets; all get the same memory.

    Args:
        model: With the weights that training starts from; left in the mode it was in.
        tracklets: The training set.
        identities: Number of each tracklet's person, ``(M,)``, where every one of 0 to K-1 occurs.
            None numbers the persons in natural order, as ``ClipDataset`` does.
        cache: A ``.safetensors`` file to read the memory from when it was built by the same
            version from the same weights and frames, and to write it to otherwise.
        batch_frames: Frames that go through the backbone at once.
        progress: Show a progress bar.

    Returns:
        The memory, on the CPU.

    Raises:
        ValueError: The model is not in float32, or identities are missing or too many.
        FrameError: The frames of a tracklet cannot be used.
    """
    if model.dtype != torch.float32:
        raise ValueError(f"model must be in float32 to build a memory, got {model.dtype}")
    if batch_frames < 1:
        raise ValueError(f"batch_frames must be at least 1, got {batch_frames}")
    if identities is None:
        identities, _ = number_people(tracklets)
    num_identities = _count_identities(identities, len(tracklets))
    key = ""
    if cache is not None:
        key = _memory_key(model, tracklets, identities)
        shape = (num_identities, model.backbone.projected_width)
        found = from_first_process(_read_cache(Path(cache), key, shape))
        if found is not None:
            _logger.info("read the memory of %d identities from %s", num_identities, cache)
            return CLIPMemory(found)
    rank, size = place()
    mine = [tracklets[i] for i in range(rank, len(tracklets), size)]
    features = sequence_features(model, mine, batch_frames=batch_frames, progress=progress)
    features = gather_dealt(features.to(model.device), len(tracklets)).cpu()
    memory = CLIPMemory.from_features(features, identities, num_identities=num_identities)
    if cache is not None and rank == 0:
        _write_cache(Path(cache), key, memory.centroids)
    return memory


def sequence_features(
    model: TFCLIP,
    tracklets: Iterable[Tracklet],
    *,
    batch_frames: int = BATCH_FRAMES,
    progress: bool = False,
) -> Tensor:
    """Return the mean of the dense clips' projected features of each tracklet, without cameras.

    Args:
        model: Used in eval mode, and left in the mode it was in.
        tracklets: Read one after the other.
        batch_frames: Frames that go through the backbone at once.
        progress: Show a progress bar.

    Returns:
        Features, ``(M, E)``, float32 on the CPU, not normalised.

    Raises:
        FrameError: The frames of a tracklet cannot be used.
    """
    preprocess, backbone = Preprocess(model.config), model.backbone
    features = []
    with eval_mode(model), torch.no_grad(), torch.autocast(model.device.type, enabled=False):
        for tracklet in tqdm(tracklets, unit="tracklet", disable=not progress):
            parts = []
            for frames in _batches(map(preprocess.resize, tracklet.open()), batch_frames):
                pixels = preprocess.normalize(torch.stack(frames).to(model.device))
                parts.append(backbone.project_class(backbone(pixels)).cpu())
            if not parts:
                raise FrameError(
                    f"tracklet {tracklet.name!r} must have at least one frame, got none"
                )
            of_frames = torch.cat(parts)
            clips = sample_dense(len(of_frames), model.config.clip_length)
            features.append(of_frames[torch.tensor(clips)].mean(1).mean(0))
    return torch.stack(features) if features else torch.empty(0, model.part_widths["projected"])


def _count_identities(identities: Tensor, num_tracklets: int) -> int:
    """Return the number of identities, all of which must occur, before any frame is read."""
    if identities.shape != (num_tracklets,):
        raise ValueError(
            f"identities must be (M,) = ({num_tracklets},), got shape {tuple(identities.shape)}"
        )
    present = identities.unique()
    if present.tolist() != list(range(len(present))):
        missing = sorted(set(range(int(present.max()) + 1)) - set(present.tolist()))
        raise ValueError(
            "identities must be 0 to K-1, each at least once; "
            + (f"missing: {missing[:10]}" if missing else f"got {int(present.min())}")
        )
    return len(present)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _memory_key(model: TFCLIP, tracklets: Iterable[Tracklet], identities: Tensor) -> str:
    """Return a text that stands for all that the memory depends on."""
    config = model.config.to_dict()
    facts = {"tfclip": __version__, **{name: config[name] for name in _FIELDS}}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(model.backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(json.dumps(identities.tolist()).encode())
    for tracklet in tracklets:
        boxes = [] if tracklet.boxes is None else tracklet.boxes
        digest.update(repr((tracklet.frame_indices, len(boxes))).encode())
        digest.update(np.asarray(boxes, dtype=np.float64).tobytes())
        _add_frames(digest, tracklet)
    return digest.hexdigest()


def _add_frames(digest: Any, tracklet: Tracklet) -> None:
    """Add what changes when the frames do: sizes and times of files, or else the pixels."""
    frames = tracklet.frames
    files = list(frames) if isinstance(frames, (list, tuple)) else [frames]
    if not all(isinstance(file, (str, Path)) for file in files):
        for frame in tracklet.open():
            digest.update(str(frame.shape).encode())
            digest.update(frame.tobytes())
        return
    for file in map(Path, files):
        for path in sorted(file.iterdir()) if file.is_dir() else [file]:
            if path.exists():  # a missing file is found, and named, when it is read
                stat = path.stat()
                digest.update(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode())


def _read_cache(path: Path, key: str, shape: tuple[int, int]) -> Tensor | None:
    """Return the centroids of a cache that has the key, ``(K, E)``, or None."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                centroids = file.get_tensor("centroids")
                if centroids.shape == shape and bool(centroids.isfinite().all()):
                    return centroids
                raise SafetensorError(f"{tuple(centroids.shape)} are not {shape} finite numbers")
    except (SafetensorError, OSError) as error:
        _logger.warning("the memory in %s is damaged (%s); building it anew", path, error)
        return None
    _logger.info("the memory in %s is of other weights or frames; building it anew", path)
    return None


def _write_cache(path: Path, key: str, centroids: Tensor) -> None:
    """Keep centroids; a disk that is full costs the next run time, and this one nothing."""
    try:
        with replace_when_done(path) as temporary:
            save_file({"centroids": centroids}, temporary, metadata={"key": key})
    except SaveError as error:
        _logger.warning("the memory is not kept: %s", error)
