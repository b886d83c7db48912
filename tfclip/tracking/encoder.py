"""Tracklets that grow: one embedding for each track of a live video, at any moment."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tfclip.encoding import BATCH_FRAMES, check_camera
from tfclip.images import Channels, Picture
from tfclip.tracking.clips import Clip, ClipDescriber, FrameFeatures, crop_key
from tfclip.tracking.crops import cut_crops
from tfclip.tracking.quality import Gate
from tfclip.tracking.tracks import (
    Given,
    Track,
    TrackState,
    check_crops,
    check_given_boxes,
    check_id,
    check_ids,
    check_times,
    spread,
)
from tfclip.tracking.windows import Policy, check_window, make_window

if TYPE_CHECKING:
    from tfclip.model import TFCLIP

_logger = logging.getLogger(__name__)

MAX_TRACKS = 1000
"""Tracks that are kept, unless said otherwise."""


class _Reading(NamedTuple):
    """A crop that goes through the tower."""

    track: Track
    crop: np.ndarray
    number: int
    passed: bool


class TrackletEncoder:
    """Turn tracks into embeddings as their crops come, each crop through the tower once.

    The embedding of a track is what ``TFCLIP.encode_sequence`` gives for the crops that count
    (``state(track_id).kept``), to rounding. Full clips are kept as their embedding, so a crop costs
    one pass of the tower and the temporal head over the frames of one clip, of its own track only.

    Args:
        model: The encoder; used in eval mode, and left in the mode it was in.
        max_frames: The most crops of a track that count: at most the model's ``clip_length``, or a
            multiple of it. None counts all, and takes no more memory for it.
        policy: Which they are: the ``"newest"``, or a ``"diverse"`` choice, which takes the tokens
            of all of them into memory and must have ``max_frames``.
        gate: Judges each crop before it is used, such as a ``QualityGate``; None takes all. While
            no crop of a track has passed, its embedding is that of its best one.
        max_age: A track that got nothing for longer, in the unit of ``times``, is forgotten, and
            begins anew if its id comes again. None keeps it.
        max_tracks: How many tracks are kept; beyond, the least recently updated are forgotten. None
            is any number.
        normalize: Give embeddings length 1.
        batch_frames: Crops that go through the tower at once.
        token_dtype: Floating type in which tokens are kept; None is the model's. ``torch.float16``
            takes half the memory of a float32 model's and rounds.

    Attributes:
        counts: What happened so far: ``crops``, one entry for each reason of the gate, ``outside``
            (boxes without a pixel in their frame), ``restarted``, ``aged`` and ``evicted`` tracks.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> from tfclip import TFCLIP
        >>> encoder = TrackletEncoder(TFCLIP.from_pretrained("tfclip-tiny"))
        >>> crops = np.zeros((2, 128, 64, 3), dtype=np.uint8)
        >>> found = encoder.update([3, 7], crops, times=0.04)
        >>> sorted(found), found[3].shape, len(encoder)
        ([3, 7], torch.Size([352]), 2)
    """

    def __init__(
        self,
        model: TFCLIP,
        *,
        max_frames: int | None = None,
        policy: Policy = "newest",
        gate: Gate | None = None,
        max_age: float | None = None,
        max_tracks: int | None = MAX_TRACKS,
        normalize: bool = True,
        batch_frames: int = BATCH_FRAMES,
        token_dtype: torch.dtype | None = None,
    ) -> None:
        check_window(policy, model.config.clip_length, max_frames)
        for name, value in (("max_tracks", max_tracks), ("batch_frames", batch_frames)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if max_age is not None and not max_age >= 0:  # nor NaN
            raise ValueError(f"max_age must be at least 0, or None, got {max_age}")
        if token_dtype is not None and not token_dtype.is_floating_point:
            raise ValueError(f"token_dtype must be a floating type, or None, got {token_dtype}")
        self.model = model
        self.max_frames = max_frames
        self.policy: Policy = policy
        self.gate = gate
        self.max_age = max_age
        self.max_tracks = max_tracks
        self.normalize = normalize
        self.batch_frames = batch_frames
        self.token_dtype = token_dtype
        self.counts: Counter[str] = Counter()
        self._describer = ClipDescriber(model, batch_frames, token_dtype)
        self._tracks: dict[Hashable, Track] = {}  # the least recently updated first
        self._recent: dict[bytes, FrameFeatures] = {}  # what a CropEncoder just read
        self._num_calls = 0
        self._has_times: bool | None = None  # not known before the first call

    # --- growing ---------------------------------------------------------------------------------

    def update(
        self,
        track_ids: Iterable[Any],
        crops: Iterable[Picture],
        times: Sequence[float] | np.ndarray | float | None = None,
        *,
        cameras: Sequence[int | None] | int | None = None,
        channels: Channels = "rgb",
        boxes: Any = None,
        frame_size: tuple[int, int] | None = None,
    ) -> dict[Hashable, Tensor]:
        """Add crops to tracks, and begin those that are new.

        Args:
            track_ids: The track of each crop, ``M`` of them; an id may repeat.
            crops: The crops in order of time, ``(h, w, 3)`` uint8 arrays of any sizes, or other
                pictures that ``encode_sequence`` takes.
            times: When each was taken, or one time for all; any unit. None counts the calls.
            cameras: Number of each crop's camera, from 0, or one for all; None is not known.
            channels: Order of the colours in arrays: ``"rgb"``, or ``"bgr"`` (OpenCV's).
            boxes: Left, top, width and height in pixels of each crop in its frame, ``(M, 4)``; for
                the gate.
            frame_size: Height and width of the frame; for the gate.

        Returns:
            The embedding, ``(F,)`` float32 on the CPU, of each track that was named.

        Raises:
            FrameError: A crop or box cannot be used.
            ValueError: The numbers of entries differ, a time is before the track's newest, a
                camera is out of range or another than the track's, or more than ``max_tracks``
                tracks are named.
            TypeError: An argument is of another type.
        """
        ids = check_ids(track_ids)
        pixels = check_crops(crops, len(ids), channels)
        numbers = check_times(times, len(ids))
        if ids:
            self._check_clock(numbers is not None)
        given = [
            Given(*values, frame_size)
            for values in zip(
                ids,
                pixels,
                [float(self._num_calls)] * len(ids) if numbers is None else numbers,
                spread("cameras", cameras, len(ids)),
                check_given_boxes(boxes, len(ids)),
                strict=True,
            )
        ]
        cameras_of = self._check_given(given)
        now = max((one.time for one in given), default=None)  # time passes without crops, too
        if not given and not isinstance(times, (Sequence, np.ndarray, Tensor)):
            now = float(self._num_calls if times is None else times)
        self._num_calls += 1
        if given:
            self._has_times = numbers is not None
        self._make_room(ids, now)
        self._add(given, cameras_of)
        return {track_id: self.embedding(track_id) for track_id in ids}

    def update_frame(
        self,
        track_ids: Iterable[Any],
        frame: np.ndarray,
        boxes: Any,
        time: float | None = None,
        *,
        camera: int | None = None,
        channels: Channels = "rgb",
    ) -> dict[Hashable, Tensor]:
        """Add the crops of one frame to tracks.

        Boxes are clipped to the frame. One without a pixel in it, or without an area, adds nothing
        to its track and is counted as ``outside``.

        Args:
            track_ids: The track of each box, ``M`` of them.
            frame: The whole frame, ``(H, W, 3)`` uint8.
            boxes: Left, top, width and height in pixels, ``(M, 4)``.
            time: When it was taken; None counts the calls.
            camera: Number of its camera, from 0; None is not known.
            channels: ``"rgb"``, or ``"bgr"`` (OpenCV's).

        Returns:
            The embedding, ``(F,)``, of each track that was named; not of one whose only box so far
            is outside.

        Raises:
            FrameError: The frame or the boxes cannot be used.
            ValueError: As ``update``.
            TypeError: As ``update``.
        """
        ids = check_ids(track_ids)
        cut = cut_crops(frame, boxes, len(ids))
        inside = [place for place, crop in enumerate(cut.crops) if crop is not None]
        found = self.update(
            [ids[place] for place in inside],
            [cut.crops[place] for place in inside],  # type: ignore[misc]
            time,
            cameras=camera,
            channels=channels,
            boxes=cut.boxes[inside] if inside else None,
            frame_size=(frame.shape[0], frame.shape[1]),
        )
        self.counts["outside"] += len(ids) - len(inside)
        return {
            track_id: found.get(track_id, self.embedding(track_id))
            for track_id in ids
            if track_id in self._tracks
        }

    def _check_clock(self, has_times: bool) -> None:
        """Refuse times after calls without, and the other way round: their units differ."""
        if self._has_times is not None and has_times != self._has_times:
            raise ValueError(
                "times must be given in every call or in none, got a call "
                f"{'with' if has_times else 'without'} them after one "
                f"{'with' if self._has_times else 'without'}; clear() begins anew"
            )

    def _check_given(self, given: list[Given]) -> dict[Hashable, int]:
        """Check crops against their tracks; return the camera of each track."""
        cameras: dict[Hashable, int] = {}
        newest: dict[Hashable, float] = {}
        for one in given:
            track = self._tracks.get(one.track_id)
            last = newest.get(one.track_id, track.last_time if track else one.time)
            if one.time < last:
                raise ValueError(
                    f"times must not go backwards within a track, got {one.time:g} for track "
                    f"{one.track_id!r} after {last:g}; forget() it, or clear(), where a stream "
                    "begins anew"
                )
            newest[one.track_id] = one.time
            camera = check_camera(self.model, one.camera)
            begins = track is None or self._is_old(track, one.time)
            own = cameras.get(one.track_id, camera if begins or not track else track.camera)
            if camera != own and one.camera is not None:
                raise ValueError(
                    f"cameras must not change within a track, got {camera} for track "
                    f"{one.track_id!r} of camera {own if own >= 0 else None}"
                )
            cameras[one.track_id] = own
        if self.max_tracks is not None and len(newest) > self.max_tracks:
            raise ValueError(
                f"track_ids must name at most max_tracks = {self.max_tracks} tracks in one call, "
                f"got {len(newest)}"
            )
        return cameras

    def _is_old(self, track: Track, now: float) -> bool:
        return self.max_age is not None and now - track.last_time > self.max_age

    def _make_room(self, named: Sequence[Hashable], now: float | None) -> None:
        """Forget tracks that are too old or too many, but none that is named."""
        keep = set(named)
        if now is not None and self.max_age is not None:
            old = [key for key, t in self._tracks.items() if self._is_old(t, now)]
            self._forget_all([key for key in old if key not in keep], "aged")
        if self.max_tracks is not None:
            num_new = sum(key not in self._tracks for key in keep)
            excess = len(self._tracks) + num_new - self.max_tracks
            if excess > 0:
                others = [key for key in self._tracks if key not in keep]
                self._forget_all(others[:excess], "evicted")

    def _forget_all(self, keys: list[Hashable], reason: str) -> None:
        for key in keys:
            del self._tracks[key]
        self.counts[reason] += len(keys)
        if keys:
            _logger.debug("%d tracks %s, %d left", len(keys), reason, len(self._tracks))

    def _add(self, given: list[Given], cameras: dict[Hashable, int]) -> None:
        """Bring crops into their tracks, in batches of the tower."""
        try:
            plan = self._plan(given, cameras)
            for start in range(0, len(plan), self.batch_frames):
                self._read(plan[start : start + self.batch_frames])
            touched = dict.fromkeys(reading.track for reading in plan)
            self._describer.describe(clip for track in touched for clip in track.clips())
            for track in touched:
                track.window.tidy()
                embedding = track.mean()
                track.embedding = F.normalize(embedding, dim=0) if self.normalize else embedding
        except BaseException:
            for one in given:  # rather no track than one without an embedding
                track = self._tracks.get(one.track_id)
                if track is not None and track.embedding is None:
                    del self._tracks[one.track_id]
            raise

    def _plan(self, given: list[Given], cameras: dict[Hashable, int]) -> list[_Reading]:
        """Count every crop; return those that the tower must read."""
        plan: list[_Reading] = []
        best: dict[Track, _Reading] = {}
        for one in given:
            track = self._track_of(one, cameras[one.track_id])
            self.counts["crops"] += 1
            number, track.num_crops = track.num_crops, track.num_crops + 1
            judgement = self.gate(one.crop, one.box, one.frame_size) if self.gate else None
            if judgement is None or judgement.reason is None:
                track.num_used += 1
                track.stand_in_score = float("inf")
                best.pop(track, None)
                plan.append(_Reading(track, one.crop, number, True))
                continue
            track.gated[judgement.reason] += 1
            self.counts[judgement.reason] += 1
            if judgement.score > track.stand_in_score:
                track.stand_in_score = judgement.score
                best[track] = _Reading(track, one.crop, number, False)
        return plan + list(best.values())

    def _track_of(self, one: Given, camera: int) -> Track:
        """Return the track of a crop, which becomes the most recent; begin it if it is new."""
        track = self._tracks.pop(one.track_id, None)
        if track is not None and self._is_old(track, one.time):
            self.counts["restarted"] += 1
            track = None
        if track is None:
            window = make_window(self.policy, self.model.config.clip_length, self.max_frames)
            track = Track(window, camera, one.time, one.time)
        track.last_time = one.time
        self._tracks[one.track_id] = track
        return track

    def _read(self, plan: list[_Reading]) -> None:
        """Run the tower over crops and put them into their windows; finish the clips they fill."""
        features = self._features(plan)
        for (track, _, number, passed), frame in zip(plan, features, strict=True):
            if passed:
                track.stand_in = None
                track.window.add(frame, number)
            else:
                track.stand_in = Clip([number], [frame])
        tracks = dict.fromkeys(reading.track for reading in plan)
        length = self.model.config.clip_length
        full = [clip for t in tracks for clip in t.window.clips if len(clip.numbers) == length]
        self._describer.describe(full)
        for track in tracks:
            track.window.tidy()

    def _features(self, plan: Sequence[_Reading]) -> list[FrameFeatures]:
        """Run the tower over crops that a ``CropEncoder`` did not just run it over."""
        found = [
            self._recent.get(crop_key(reading.crop))
            if self._recent and reading.track.camera < 0
            else None
            for reading in plan
        ]
        new = [r for r, features in zip(plan, found, strict=True) if features is None]
        if not new:
            return [features for features in found if features is not None]
        read = iter(self._describer.read([r.crop for r in new], [r.track.camera for r in new]))
        return [next(read) if features is None else features for features in found]

    # --- what there is ---------------------------------------------------------------------------

    @property
    def track_ids(self) -> tuple[Hashable, ...]:
        """The tracks, the least recently updated first."""
        return tuple(self._tracks)

    def __len__(self) -> int:
        return len(self._tracks)

    def __contains__(self, track_id: object) -> bool:
        return check_id(track_id) in self._tracks

    def embedding(self, track_id: Any) -> Tensor:
        """Return the embedding of a track, ``(F,)`` float32 on the CPU.

        Raises:
            KeyError: There is no such track.
        """
        embedding = self._find(track_id).embedding
        assert embedding is not None  # each track that is kept has one
        return embedding.clone()

    def embeddings(self) -> tuple[tuple[Hashable, ...], Tensor]:
        """Return the tracks and their embeddings, ``(M, F)`` float32 on the CPU."""
        rows = [self.embedding(track_id) for track_id in self._tracks]
        width = self.model.embedding_dim
        return self.track_ids, torch.stack(rows) if rows else torch.empty(0, width)

    def state(self, track_id: Any) -> TrackState:
        """Return what is known of a track.

        Raises:
            KeyError: There is no such track.
        """
        return self._find(track_id).state()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors that are kept, those of the model not included."""
        return sum(track.num_bytes for track in self._tracks.values())

    def _find(self, track_id: Any) -> Track:
        track = self._tracks.get(check_id(track_id))
        if track is None:
            raise KeyError(f"there is no track {track_id!r}; it never came, or was forgotten")
        return track

    # --- forgetting and keeping ------------------------------------------------------------------

    def forget(self, track_id: Any) -> bool:
        """Forget a track; return whether there was one."""
        return self._tracks.pop(check_id(track_id), None) is not None

    def clear(self) -> None:
        """Forget all tracks and the times; for a stream that begins anew. ``counts`` stay."""
        self._tracks.clear()
        self._num_calls = 0
        self._has_times = None

    def snapshot(self, path: str | Path) -> None:
        """Write everything into one safetensors file, readable by its owner only.

        Track ids must be numbers, texts, or tuples of these. No pixel is written, but what is
        describes people.

        Args:
            path: The file; what stood there is replaced when the new one is complete.

        Raises:
            SaveError: The file cannot be written; what stood there is untouched.
            TypeError: A track id cannot be written.
        """
        from tfclip.tracking.snapshot import write_snapshot

        write_snapshot(self, path)

    @classmethod
    def restore(cls, path: str | Path, model: TFCLIP, *, gate: Gate | None = None) -> Self:
        """Return an encoder that goes on where ``snapshot`` was taken, with the same options.

        Args:
            path: What ``snapshot`` wrote.
            model: The model it was taken with.
            gate: The gate; None is the ``QualityGate`` of the file, if it had one.

        Raises:
            SnapshotError: The file is missing, damaged, or of another model or version; or it had a
                gate of another kind, and none is given.
        """
        from tfclip.tracking.snapshot import read_snapshot

        return read_snapshot(cls, path, model, gate)
