"""Encoding tracklets of any length: frames of many are packed into the tower's batches.

A clip is described by its own frames alone, so which clips share a batch does not matter. A frame
that a clip would repeat (the reference fills up its last clip by cycling) goes through the tower
once and counts as often as it would have been repeated: the same result for less.
"""

from __future__ import annotations

import collections
import contextlib
import operator
import os
import threading
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from tfclip.ahead import check_workers, read_ahead
from tfclip.diffusion import mean_over_frames
from tfclip.errors import FrameError
from tfclip.frames import open_frames, sample_dense
from tfclip.preprocess import Preprocess
from tfclip.reading import Reading, Sampling, TrackletRequest, request_tracklet

if TYPE_CHECKING:
    import numpy as np

    from tfclip.model import TFCLIP

BATCH_FRAMES = 64
"""Frames that go through the tower at once, unless said otherwise."""

# A clip whose tokens take more than this is read twice rather than kept.
_MAX_TOKEN_BYTES = 256 * 2**20

# For each model in ``eval_mode``: how many are using it, and whether it was in training before.
_IN_EVAL: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
_EVAL_LOCK = threading.Lock()


@dataclass
class _Clip:
    """Frames of one clip, each once, and how often each counts."""

    key: Hashable
    frames: list[Tensor]  # uint8, (3, H, W) each
    counts: list[int]
    camera: int


class _Batch(NamedTuple):
    """Clips whose embeddings are on their way."""

    clips: list[_Clip]
    embeddings: Tensor  # (B, F) float32 on the CPU, to be read after ``arrived``
    arrived: torch.cuda.Event | None  # None: they are there


@dataclass
class _Tracklet:
    """What is known of a tracklet so far."""

    camera: int
    buffer: list[Tensor] = field(default_factory=list)
    total: Tensor | None = None
    num_clips: int = 0
    num_waiting: int = 0
    closed: bool = False


class StreamEncoder:
    """Encode tracklets whose frames arrive one by one and interleaved (dense sampling).

    Each tracklet keeps fewer frames than a clip has; full clips of all tracklets wait together
    until they fill a batch. The results are those of ``TFCLIP.encode_sequence``.

    Args:
        model: The encoder; used in eval mode, and left in the mode it was in.
        batch_frames: Frames that go through the tower at once.
        normalize: Give embeddings length 1.
        preprocess: Resizes and normalises frames; None does it as the model's configuration says.

    Raises:
        ValueError: ``batch_frames`` is less than 1.
    """

    def __init__(
        self,
        model: TFCLIP,
        *,
        batch_frames: int = BATCH_FRAMES,
        normalize: bool = True,
        preprocess: Preprocess | None = None,
    ) -> None:
        if batch_frames < 1:
            raise ValueError(f"batch_frames must be at least 1, got {batch_frames}")
        self.model = model
        self.batch_frames = batch_frames
        self.normalize = normalize
        self.preprocess = Preprocess(model.config) if preprocess is None else preprocess
        self._tracklets: dict[Hashable, _Tracklet] = {}
        self._waiting: list[_Clip] = []
        self._running: _Batch | None = None
        self._uploads: torch.cuda.Stream | None = None
        self._finished: list[tuple[Hashable, Tensor]] = []

    def push(self, key: Hashable, frame: np.ndarray, camera: int | None = None) -> None:
        """Add the next frame of a tracklet.

        Args:
            key: The tracklet's key; a new one begins a tracklet.
            frame: RGB, ``(H, W, 3)`` uint8, of any size.
            camera: Number of the camera, from 0, when the tracklet begins; None is not known.

        Raises:
            ValueError: The camera is out of range.
        """
        number = self._check_camera(key, camera)
        self.push_resized(key, self.preprocess.resize(frame), number)

    def push_resized(self, key: Hashable, frame: Tensor, camera: int | None = None) -> None:
        """Add the next frame of a tracklet, which ``self.preprocess`` has resized.

        Args:
            key: As in ``push``.
            frame: RGB, ``(3, H, W)`` uint8, of the model's frame size.
            camera: As in ``push``.

        Raises:
            ValueError: The camera is out of range.
        """
        number = self._check_camera(key, camera)
        tracklet = self._tracklets.setdefault(key, _Tracklet(number))
        tracklet.buffer.append(frame)
        if len(tracklet.buffer) == self.model.config.clip_length:
            self._add_buffer(key, tracklet)

    def _check_camera(self, key: Hashable, camera: int | None) -> int:
        """Return the number of a tracklet's camera, which its first frame tells."""
        tracklet = self._tracklets.get(key)
        return check_camera(self.model, camera) if tracklet is None else tracklet.camera

    def close(self, key: Hashable) -> None:
        """Say that a tracklet has no more frames.

        Raises:
            FrameError: It had none.
        """
        tracklet = self._tracklets.get(key)
        if tracklet is None:
            raise FrameError(f"tracklet {key!r} must have at least one frame, got none")
        if tracklet.buffer:
            self._add_buffer(key, tracklet)
        tracklet.closed = True
        self._finish_if_complete(key)

    def finished(self) -> list[tuple[Hashable, Tensor]]:
        """Return the tracklets completed since the last call, as (key, embedding ``(F,)``)."""
        finished, self._finished = self._finished, []
        return finished

    def flush(self) -> None:
        """Run the clips that wait for a batch to fill."""
        while self._waiting:
            self._run_batch()
        self._collect()

    def _add_buffer(self, key: Hashable, tracklet: _Tracklet) -> None:
        """Make a clip of the waiting frames; fewer than a clip has are cycled."""
        (indices,) = sample_dense(len(tracklet.buffer), self.model.config.clip_length)
        self.add_clip(key, tracklet.buffer, indices, tracklet.camera)
        tracklet.buffer = []

    def add_clip(
        self, key: Hashable, frames: Sequence[Tensor], indices: Sequence[int], camera: int = -1
    ) -> None:
        """Add one clip of a tracklet.

        Args:
            key: The tracklet's key.
            frames: Resized frames, uint8, ``(3, H, W)`` each.
            indices: Which of them make the clip, in order; some may repeat.
            camera: Number of the camera, or -1.
        """
        if self.model.temporal.order_free:
            counts = Counter(indices)
        else:  # a repeated frame has a place of its own
            frames = [frames[i] for i in indices]
            counts = dict.fromkeys(range(len(frames)), 1)
        clip = _Clip(key, [frames[i] for i in counts], list(counts.values()), camera)
        tracklet = self._tracklets.setdefault(key, _Tracklet(camera))
        tracklet.num_waiting += 1
        self._waiting.append(clip)
        if sum(len(waiting.frames) for waiting in self._waiting) >= self.batch_frames:
            self._run_batch()

    def _run_batch(self) -> None:
        """Start on the oldest clips that fit into one batch, at least one."""
        size, longest, number = 0, 0, 0
        for clip in self._waiting:
            size += len(clip.frames)
            longest = max(longest, len(clip.frames))
            padded = longest * (number + 1)  # what the temporal head sees
            if number and (size > self.batch_frames or padded > 2 * self.batch_frames):
                break
            number += 1
        clips, self._waiting = self._waiting[:number], self._waiting[number:]
        batch = self._start(clips)
        self._collect()
        self._running = batch
        if batch.arrived is None:
            self._collect()

    def _start(self, clips: list[_Clip]) -> _Batch:
        """Embed clips; a GPU is given the work and is not waited for, so that it never idles."""
        embeddings = self._embed(clips)
        device = embeddings.device
        if device.type != "cuda":
            return _Batch(clips, embeddings.cpu(), None)
        arrived = torch.cuda.Event()
        embeddings = embeddings.to("cpu", non_blocking=True)
        arrived.record(torch.cuda.current_stream(device))
        return _Batch(clips, embeddings, arrived)

    def _collect(self) -> None:
        """Add the embeddings of the batch that is running, if there is one, to their tracklets."""
        batch, self._running = self._running, None
        if batch is None:
            return
        if batch.arrived is not None:
            batch.arrived.synchronize()
        for clip, embedding in zip(batch.clips, batch.embeddings, strict=True):
            tracklet = self._tracklets[clip.key]
            tracklet.total = embedding if tracklet.total is None else tracklet.total + embedding
            tracklet.num_clips += 1
            tracklet.num_waiting -= 1
            self._finish_if_complete(clip.key)

    def _finish_if_complete(self, key: Hashable) -> None:
        tracklet = self._tracklets[key]
        if not tracklet.closed or tracklet.num_waiting or tracklet.total is None:
            return
        embedding = tracklet.total / tracklet.num_clips
        if self.normalize:
            embedding = F.normalize(embedding, dim=0)
        self._finished.append((key, embedding))
        del self._tracklets[key]

    def _embed(self, clips: list[_Clip]) -> Tensor:
        """Return the embeddings of a batch of clips, (B, F), float32 on the model's device."""
        with torch.inference_mode(), eval_mode(self.model):
            if len(clips) == 1 and self._is_long(clips[0]):
                return self._embed_long(clips[0])
            lengths = [len(clip.frames) for clip in clips]
            frames = [frame for clip in clips for frame in clip.frames]
            cameras = [clip.camera for clip in clips for _ in clip.frames]
            mask = None
            if any(count != 1 for clip in clips for count in clip.counts) or len(set(lengths)) > 1:
                counts = [torch.tensor(clip.counts, dtype=torch.float32) for clip in clips]
                mask = self._upload(pad_sequence(counts, batch_first=True))
            tokens = torch.cat(list(self._tokens(frames, cameras)))
            padded = pad_sequence(list(tokens.split(lengths)), batch_first=True)
            return self.model.embed(padded, mask).float()

    def _upload(self, values: Tensor) -> Tensor:
        """Bring a tensor to the model's device; to a GPU while it works on something else."""
        device = self.model.device
        if device.type != "cuda":
            return values.to(device)
        if self._uploads is None:
            self._uploads = torch.cuda.Stream(device)
        with torch.cuda.stream(self._uploads):
            values = values.pin_memory().to(device, non_blocking=True)
        current = torch.cuda.current_stream(device)
        current.wait_stream(self._uploads)
        values.record_stream(current)  # its memory is not given to others before that is done
        return values

    def _tokens(self, frames: list[Tensor], cameras: list[int]) -> Iterator[Tensor]:
        """Yield the tokens of frames in pieces that the tower takes at once."""
        for start in range(0, len(frames), self.batch_frames):
            stop = start + self.batch_frames
            pixels = self._upload(torch.stack(frames[start:stop]))
            codes = self.model.camera_codes(
                torch.tensor(cameras[start:stop]), len(cameras[start:stop])
            )
            yield self.model.encode_frames(
                self.preprocess.normalize(pixels, dtype=self.model.dtype), codes
            )

    def _is_long(self, clip: _Clip) -> bool:
        backbone = self.model.backbone
        num_tokens = 1 + backbone.num_registers + backbone.grid[0] * backbone.grid[1]
        return len(clip.frames) * num_tokens * backbone.width * 4 > _MAX_TOKEN_BYTES

    def _embed_long(self, clip: _Clip) -> Tensor:
        """Embed one clip whose tokens are not kept: the tower runs again for each reading."""
        model, head = self.model, self.model.temporal
        cameras = [clip.camera] * len(clip.frames)
        weights = torch.tensor(clip.counts, dtype=torch.float32, device=model.device)
        class_tokens: list[Tensor] = []
        projected: list[Tensor] = []

        def read_tokens() -> Iterator[Tensor]:
            first = not class_tokens
            for tokens in self._tokens(clip.frames, cameras):
                if first:
                    class_tokens.append(tokens[:, 0].clone())  # a view would keep all tokens
                    projected.append(model.backbone.project_class(tokens))
                yield model.backbone.without_registers(tokens)

        frame_temporal = None
        if head.reads_tokens and "temporal" in model.config.descriptor:
            frame_temporal = head.stream(read_tokens, weights)
        else:
            collections.deque(read_tokens(), maxlen=0)  # only for the class tokens
        frames = {"appearance": torch.cat(class_tokens), "projected": torch.cat(projected)}
        if frame_temporal is None and "temporal" in model.config.descriptor:
            unread = frames["appearance"][None, :, None]
            frame_temporal = head(unread, frames["projected"][None], weights[None])[0]
        if frame_temporal is not None:
            frames["temporal"] = frame_temporal
        parts = {
            part: mean_over_frames(frames[part][None], weights[None])
            for part in model.config.descriptor
        }
        return model.assemble(parts).float()


def encode_sequences(
    model: TFCLIP,
    tracklets: Iterable[Any],
    cameras: Sequence[int | None] | Tensor | None = None,
    *,
    boxes: Sequence[Any] | None = None,
    channels: Literal["rgb", "bgr"] = "rgb",
    sampling: Sampling = "dense",
    normalize: bool = True,
    reading: Reading | None = None,
    batch_frames: int = BATCH_FRAMES,
    workers: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Encode many tracklets; see ``TFCLIP.encode_sequences``."""
    if isinstance(tracklets, (str, os.PathLike)):
        raise TypeError(
            "tracklets must be several of what encode_sequence takes, "
            f"got one path, {os.fspath(tracklets)!r}; put it into a list"
        )
    if sampling not in get_args(Sampling):
        raise ValueError(f"sampling must be one of {get_args(Sampling)}, got {sampling!r}")
    reading = Reading() if reading is None else reading
    workers = check_workers(workers, model.device.type)
    sources = list(tracklets)
    told = cameras.tolist() if isinstance(cameras, Tensor) else cameras
    told = _one_each("cameras", told, len(sources))
    boxes = _one_each("boxes", boxes, len(sources))
    numbers = [check_camera(model, camera) for camera in told]
    opened = [
        open_frames(source, boxes=box, channels=channels)
        for source, box in zip(sources, boxes, strict=True)
    ]
    preprocess = Preprocess(model.config, reading.resizer)
    encoder = StreamEncoder(
        model, batch_frames=batch_frames, normalize=normalize, preprocess=preprocess
    )
    embeddings = torch.empty(len(opened), model.embedding_dim)
    requests = (
        request_tracklet(model, preprocess, i, frames, sampling, reading)
        for i, frames in enumerate(opened)
    )
    with (
        read_ahead(requests, workers=workers, ahead=batch_frames) as read,
        tqdm(total=len(opened), unit="tracklet", disable=not progress) as bar,
    ):
        for request, frames in read:
            push_tracklet(encoder, request, frames, numbers[request.key])
            bar.update()
            for key, embedding in encoder.finished():
                embeddings[key] = embedding  # type: ignore[index]
    encoder.flush()
    for key, embedding in encoder.finished():
        embeddings[key] = embedding  # type: ignore[index]
    return embeddings


def _one_each(name: str, values: Any, num_tracklets: int) -> Sequence[Any]:
    """Return the entries of an argument that has one for each tracklet; None is None for each."""
    if values is None:
        return [None] * num_tracklets
    if not hasattr(values, "__len__"):
        raise TypeError(f"{name} must be a sequence, got {type(values).__name__}")
    if len(values) != num_tracklets:
        raise ValueError(
            f"{name} must have one entry per tracklet, got {len(values)} for {num_tracklets}"
        )
    return values


def push_tracklet(
    encoder: StreamEncoder, request: TrackletRequest, frames: Iterable[Tensor], camera: int | None
) -> None:
    """Give all clips of a tracklet to an encoder, and close it.

    Args:
        encoder: The encoder.
        request: What ``request_tracklet`` returned.
        frames: The frames it asked for, resized, ``(3, H, W)`` uint8 each.
        camera: Number of the tracklet's camera; None or -1 is not known.

    Raises:
        FrameError: A frame cannot be read.
        ValueError: The camera is out of range.
    """
    if request.clip is None:
        for frame in frames:
            encoder.push_resized(request.key, frame, camera)
    else:
        number = check_camera(encoder.model, camera)
        resized = list(frames)
        encoder.add_clip(request.key, resized, request.clip(len(resized)), number)
    encoder.close(request.key)


def check_camera(model: TFCLIP, camera: int | None) -> int:
    """Return a camera number that the model knows, or -1 for one that is not known.

    Args:
        model: The model.
        camera: Number of the camera, from 0; None or -1 is not known.

    Raises:
        ValueError: The camera is out of range, or the model has no camera table.
        TypeError: It is no whole number.
    """
    if camera is None:
        return -1
    try:
        camera = operator.index(camera)
    except TypeError as error:
        raise TypeError(
            f"camera must be a whole number or None, got {type(camera).__name__}"
        ) from error
    if camera == -1:
        return -1
    if not model.config.num_cameras:
        raise ValueError(
            f"camera must be None for a model without a camera table (num_cameras 0), got {camera}"
        )
    if not 0 <= camera < model.config.num_cameras:
        raise ValueError(
            f"camera must be 0 to {model.config.num_cameras - 1}, or None, got {camera}"
        )
    return camera


@contextlib.contextmanager
def eval_mode(model: TFCLIP) -> Iterator[None]:
    """Put a model into eval mode for a while; the last of several threads to leave sets it back."""
    with _EVAL_LOCK:
        users, training = _IN_EVAL.get(model, (0, model.training))
        if any(module.training for module in model.modules()):
            model.eval()  # setting it takes longer than running a small model
        _IN_EVAL[model] = (users + 1, training)
    try:
        yield
    finally:
        with _EVAL_LOCK:
            users, training = _IN_EVAL.pop(model)
            if users > 1:
                _IN_EVAL[model] = (users - 1, training)
            elif training:
                model.train()
