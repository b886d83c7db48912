"""Groups of tracklets that a job encodes together and finishes together.

What a group's embeddings are, to the last bit, depends on the group alone: not on which others are
still to do. But frames of the next groups are read while one is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tfclip.ahead import Request, read_ahead
from tfclip.boxes import crop_frame
from tfclip.data.tracklets import Tracklet
from tfclip.encoding import StreamEncoder, push_tracklet
from tfclip.images import Pixels
from tfclip.preprocess import Preprocess
from tfclip.reading import Reading, Sampling, request_tracklet, spread_frames

if TYPE_CHECKING:
    from tfclip.model import TFCLIP

GROUP_FRAMES = 512
"""Frames after which finished work is put on disk."""

# Frames of a video that are read ahead; each holds a crop of everybody in it.
_RECORDING_AHEAD = 16

Group: TypeAlias = tuple[int, ...]  # rows of the tracklets that are encoded together
Encoded: TypeAlias = tuple[Group, Tensor, list[int | None]]  # embeddings, numbers of frames


def make_groups(
    tracklets: Sequence[Tracklet], recording_of: Callable[[Tracklet], str | None]
) -> list[Group]:
    """Cut the tracklets into groups of some frames; those of one video are kept apart from others.

    Within a video they go by their first frame, so that a group ends soon after it began.

    Args:
        tracklets: All of a job.
        recording_of: ``GroupEncoder.recording``.
    """
    by_recording: dict[str | None, list[int]] = {}
    for row, tracklet in enumerate(tracklets):
        by_recording.setdefault(recording_of(tracklet), []).append(row)
    groups: list[Group] = []
    for recording, rows in by_recording.items():
        if recording is not None:
            rows = sorted(rows, key=lambda row: (tracklets[row].frame_indices or (), row))
        group, size = [], 0
        for row in rows:
            group.append(row)
            size += num_frames(tracklets[row])
            if size >= GROUP_FRAMES:
                groups.append(tuple(group))
                group, size = [], 0
        if group:
            groups.append(tuple(group))
    return groups


def num_frames(tracklet: Tracklet) -> int:
    """Return how many frames a tracklet has, or a guess where its source must be opened for it."""
    if tracklet.frame_indices is not None:
        return len(tracklet.frame_indices)
    frames = tracklet.frames
    return len(frames) if isinstance(frames, (list, tuple)) else GROUP_FRAMES


@dataclass(frozen=True)
class GroupEncoder:
    """Encode groups, each in batches of its own.

    Args:
        model: The encoder.
        sampling: As in ``TFCLIP.encode_sequence``.
        use_cameras: Tell the model each tracklet's camera.
        reading: As in ``TFCLIP.encode_sequence``.
        batch_frames: Frames that go through the tower at once.
        workers: Threads that read frames.
    """

    model: TFCLIP
    sampling: Sampling
    use_cameras: bool
    reading: Reading
    batch_frames: int
    workers: int

    def encode(
        self,
        groups: Sequence[Group],
        tracklets: Sequence[Tracklet],
        count: Callable[[int], Any],
    ) -> Generator[Encoded, None, None]:
        """Yield each group as it is finished: its embeddings and numbers of frames, by row.

        Args:
            groups: Of ``make_groups``.
            tracklets: All of the job.
            count: Called with a number of frames whenever so many are done.

        Raises:
            FrameError: Frames cannot be used; the groups before were given.
        """
        files, recordings = self.by_source(groups, tracklets)
        yield from self._encode_files(files, tracklets, count)
        for recording, shared in recordings.items():
            yield from self._encode_recording(recording, shared, tracklets, count)

    def recording(self, tracklet: Tracklet) -> str | None:
        """Return the video that a tracklet shares with others, if they can go through together."""
        looks_first = self.reading.max_frames is not None and self.reading.selection == "diverse"
        shared = tracklet.frame_indices is not None and self.sampling == "dense" and not looks_first
        return str(tracklet.frames) if shared else None

    def by_source(
        self, groups: Sequence[Group], tracklets: Sequence[Tracklet]
    ) -> tuple[list[Group], dict[str, list[Group]]]:
        """Return the groups whose tracklets have files of their own, and those of each video."""
        files: list[Group] = []
        recordings: dict[str, list[Group]] = {}
        for group in groups:
            recording = self.recording(tracklets[group[0]])
            if recording is None:
                files.append(group)
            else:
                recordings.setdefault(recording, []).append(group)
        return files, recordings

    def _camera(self, tracklet: Tracklet) -> int | None:
        return tracklet.camera if self.use_cameras else None

    def _new_encoder(self) -> StreamEncoder:
        return StreamEncoder(
            self.model, batch_frames=self.batch_frames, preprocess=self._preprocess()
        )

    def _preprocess(self) -> Preprocess:
        return Preprocess(self.model.config, self.reading.resizer)

    def _encode_files(
        self,
        groups: Sequence[Group],
        tracklets: Sequence[Tracklet],
        count: Callable[[int], Any],
    ) -> Generator[Encoded, None, None]:
        preprocess = self._preprocess()
        requests = (
            request_tracklet(
                self.model, preprocess, row, tracklets[row].open(), self.sampling, self.reading
            )
            for group in groups
            for row in group
        )
        with read_ahead(requests, workers=self.workers, ahead=self.batch_frames) as read:
            for group in groups:
                encoder = self._new_encoder()
                lengths: list[int | None] = []
                for row in group:
                    request, frames = next(read)
                    counted = _Counted(frames, count)
                    push_tracklet(encoder, request, counted, self._camera(tracklets[row]))
                    length = request.frames.known_length
                    count((length or counted.total) - counted.total)  # what was not asked for
                    lengths.append(length)
                encoder.flush()
                found = dict(encoder.finished())
                yield group, torch.stack([found[row] for row in group]), lengths

    def _encode_recording(
        self,
        recording: str,
        groups: list[Group],
        tracklets: Sequence[Tracklet],
        count: Callable[[int], Any],
    ) -> Generator[Encoded, None, None]:
        """Encode all tracklets of a video in one pass over it."""
        encoders = {group: self._new_encoder() for group in groups}
        missing = {group: set(group) for group in groups}
        schedule = self._schedule(groups, tracklets)
        needed = tuple(sorted(schedule))
        frames = Tracklet(name=recording, frames=recording, frame_indices=needed).open()
        preprocess = self._preprocess()

        def crop_all(number: int, picture: Pixels) -> list[Tensor]:
            pixels = np.asarray(picture)
            return [
                preprocess.resize(_crop(pixels, tracklets[place.row], place.position))
                for place in schedule[needed[number]]
            ]

        request = Request(recording, frames, crop_all)
        with read_ahead([request], workers=self.workers, ahead=_RECORDING_AHEAD) as read:
            _, pictures = next(read)
            for index, crops in zip(needed, pictures, strict=True):
                for place, crop in zip(schedule[index], crops, strict=True):
                    group, row, encoder = place.group, place.row, encoders[place.group]
                    encoder.push_resized(row, crop, self._camera(tracklets[row]))
                    count(place.counts)
                    if place.is_last:
                        encoder.close(row)
                        missing[group].discard(row)
                    if not missing[group]:
                        encoder.flush()
                        found = dict(encoders.pop(group).finished())
                        embeddings = torch.stack([found[row] for row in group])
                        yield group, embeddings, [num_frames(tracklets[row]) for row in group]

    def _schedule(
        self, groups: Iterable[Group], tracklets: Sequence[Tracklet]
    ) -> dict[int, list[_Place]]:
        """Return whom each frame of a recording shows."""
        schedule: dict[int, list[_Place]] = {}
        for group in groups:
            for row in group:
                indices = tracklets[row].frame_indices or ()
                limit = self.reading.max_frames or len(indices)
                positions = spread_frames(len(indices), limit)
                for number, position in enumerate(positions):
                    is_last = number + 1 == len(positions)
                    after = len(indices) if is_last else positions[number + 1]
                    before = position if number else 0
                    place = _Place(group, row, position, is_last, after - before)
                    schedule.setdefault(indices[position], []).append(place)
        return schedule


@dataclass(frozen=True)
class _Place:
    """One frame of one tracklet of a recording."""

    group: Group
    row: int
    position: int  # among the frames of the tracklet
    is_last: bool
    counts: int  # frames of the tracklet up to the next one that is read


def _crop(pixels: np.ndarray, tracklet: Tracklet, position: int) -> np.ndarray:
    if tracklet.boxes is None:
        return pixels
    index = (tracklet.frame_indices or ())[position]
    name = f"the box of {tracklet.name} in frame {index + 1}"
    return crop_frame(pixels, tracklet.boxes[position], name)


class _Counted:
    """Frames that tell how many of them are done."""

    def __init__(self, frames: Iterable[Tensor], count: Callable[[int], Any]) -> None:
        self._frames = frames
        self._count = count
        self.total = 0

    def __iter__(self) -> Iterator[Tensor]:
        for frame in self._frames:
            yield frame
            self.total += 1
            self._count(1)
