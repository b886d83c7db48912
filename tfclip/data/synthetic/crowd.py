"""Drawn videos: several people walk through one camera's picture, with their boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfclip.boxes import FrameBoxes
from tfclip.data.synthetic.body import View
from tfclip.data.synthetic.dataset import SyntheticTracklets
from tfclip.data.synthetic.figure import Figure, cast_shadow
from tfclip.data.synthetic.look import Look, uniform
from tfclip.data.synthetic.paint import Canvas, Floats
from tfclip.data.synthetic.place import MARGIN
from tfclip.files import replace_when_done
from tfclip.video.decoding import TimedFrame

_LOOK, _CROWD, _NOISE = 0, 3, 4  # purposes of random numbers; the first is SyntheticTracklets' own
_PIXELS_AT_ONCE = 2**20

# In body heights: the box of a person, and how far the detector that drew it is off.
_BOX = (0.5, 1.08)
_UNSTEADY = 0.015
_LEAST_INSIDE = 0.5  # share of a box that must be in the picture for a detector to find it


@dataclass(frozen=True)
class _Walker:
    """One person on the way through the picture; arrays over all frames, ``(T,)``."""

    person: int
    look: Look
    view: View
    phase: Floats
    boxes: NDArray[np.float64]  # (T, 4)


class SyntheticVideo:
    """A drawn video of people who cross the picture of one camera, with who is where.

    People and cameras are those of ``SyntheticTracklets`` of the same seed: person 3 looks in every
    video as there, and camera 1 has its place, light and colours. Each person crosses once, so a
    person is one track; nearer people hide others. Frames are drawn as they are iterated, the same
    each time; a few are in memory.

    Args:
        people: Numbers of the people, each once.
        camera: Number of the camera, from 0.
        num_frames: Frames of the video, at least 2.
        frame_size: Height and width in pixels, at least 64.
        rate: Frames a second.
        seed: The world.

    Raises:
        TypeError: A number is not whole.
        ValueError: An argument is out of its range.

    Example:
        >>> video = SyntheticVideo([4, 7], camera=0, num_frames=20, frame_size=(72, 128))
        >>> next(iter(video)).pixels.shape, sorted(video.persons.values())
        ((72, 128, 3), [4, 7])
    """

    def __init__(
        self,
        people: Sequence[int],
        camera: int,
        *,
        num_frames: int = 100,
        frame_size: tuple[int, int] = (270, 480),
        rate: float = 10.0,
        seed: int = 0,
    ) -> None:
        if len(set(people)) != len(people) or not people:
            raise ValueError(f"people must be different numbers, at least one, got {people}")
        if num_frames < 2:
            raise ValueError(f"num_frames must be 2 or more, got {num_frames}")
        if min(frame_size) < 64:
            raise ValueError(f"frame_size must be 64 pixels or more, got {frame_size}")
        if not 0 < rate < math.inf:
            raise ValueError(f"rate must be above 0 and finite, got {rate}")
        # It checks the numbers, and keeps looks and places the same as in its tracklets.
        self._world = SyntheticTracklets(
            frame_size=(frame_size[0], frame_size[1]), seed=seed, first_camera=camera
        )
        self.camera, self.rate = self._world.first_camera, float(rate)
        self.num_frames, self.frame_size = num_frames, self._world.frame_size
        self._scene = self._world._scene(self.camera)
        random = self._world._random(_CROWD, self.camera)
        self._first_column = int(random.random() * self._scene.background.shape[2])
        tilt = uniform(random, -0.6, 0.6)  # how far people are seen from the front or from behind
        order = random.permutation(len(people))
        walkers = [
            self._walker(int(person), (place + 0.5) / len(people), tilt)
            for person, place in zip(people, order, strict=True)
        ]
        self._walkers = sorted(walkers, key=lambda walker: float(walker.view.ground[0]))
        numbers = {walker.person: track for track, walker in enumerate(self._by_entry(), start=1)}
        self.persons = {track: person for person, track in numbers.items()}
        """Who each track is."""
        self.boxes = self._find_boxes(numbers)
        """What a perfect tracker would see, by frame."""

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[TimedFrame]:
        height, width = self.frame_size
        figures = [
            Figure(w.look.as_seen(self._scene.tint), w.view, w.phase, self._scene.light)
            for w in self._walkers
        ]
        together = max(1, _PIXELS_AT_ONCE // (height * width))
        for start in range(0, self.num_frames, together):
            frames = slice(start, min(start + together, self.num_frames))
            for number, pixels in enumerate(self._draw(figures, frames), start):
                yield TimedFrame(pixels, number / self.rate, number)

    def write(self, folder: str | Path, name: str) -> tuple[Path, Path]:
        """Write the video and its boxes: ``NAME.mp4`` (extra ``video``) and ``NAME.txt`` (MOT).

        Args:
            folder: Where to; made when it is missing.
            name: Of the two files.

        Raises:
            MissingExtraError: PyAV is not installed.
            SaveError: The folder cannot be written.
        """
        from tfclip.video.writing import write_video

        video, table = Path(folder, f"{name}.mp4"), Path(folder, f"{name}.txt")
        write_video(video, self, rate=self.rate)
        lines = [
            f"{frame + 1},{track},{','.join(f'{value:.2f}' for value in box)},1,-1,-1,-1\n"
            for frame, found in self.boxes.items()
            for track, box in zip(found.track_ids.tolist(), found.boxes.tolist(), strict=True)
        ]
        with replace_when_done(table) as temporary:
            temporary.write_text("".join(lines))
        return video, table

    def _walker(self, person: int, middle: float, tilt: float) -> _Walker:
        """Draw how a person crosses the picture, half way at a share of the video's length."""
        random = self._world._random(_CROWD, self.camera, person)
        height, width = self.frame_size
        depth = random.random()  # 0 far to 1 near
        scale = height * (0.5 + 0.14 * depth) * uniform(random, 0.97, 1.03)
        side = 1 if random.random() < 0.5 else -1
        yaw = side * (math.pi / 2 + tilt + uniform(random, -0.15, 0.15))
        step = 2 * math.pi / uniform(random, 9, 13) * min(10.0 / self.rate, 2.0)
        # Two steps, a whole period of the gait, carry a person by about 0.8 of their height.
        speed = 0.8 * scale * step / (2 * math.pi) * math.sin(yaw)
        time = np.arange(self.num_frames) - (middle + uniform(random, -0.06, 0.06)) * len(self)
        phase = random.random() * 2 * math.pi + step * np.arange(self.num_frames)
        view = View(
            scale=np.full(self.num_frames, scale, dtype=np.float32),
            column=(width / 2 + speed * time).astype(np.float32),
            ground=np.full(self.num_frames, height * (0.8 + 0.17 * depth), dtype=np.float32),
            yaw=np.full(self.num_frames, yaw, dtype=np.float32),
            pitch=self._scene.pitch,
        )
        size = np.array(_BOX) * scale
        unsteady = (random.random((self.num_frames, 4)) * 2 - 1) * _UNSTEADY * scale
        left_top = np.stack([view.column - size[0] / 2, view.ground + 0.03 * scale - size[1]], 1)
        boxes = np.concatenate([left_top, np.broadcast_to(size, left_top.shape)], axis=1)
        look = Look.draw(self._world._random(_LOOK, person))
        return _Walker(person, look, view, phase.astype(np.float32), boxes + unsteady)

    def _inside(self, walker: _Walker) -> NDArray[np.bool_]:
        """Return in which frames a detector would find a person, ``(T,)``."""
        height, width = self.frame_size
        low = np.maximum(walker.boxes[:, :2], 0)
        high = np.minimum(walker.boxes[:, :2] + walker.boxes[:, 2:], (width, height))
        area = np.clip(high - low, 0, None).prod(axis=1)
        return area >= _LEAST_INSIDE * walker.boxes[:, 2:].prod(axis=1)

    def _by_entry(self) -> list[_Walker]:
        """Return those who are seen at all, as they come."""
        seen = [walker for walker in self._walkers if self._inside(walker).any()]
        return sorted(seen, key=lambda walker: (int(self._inside(walker).argmax()), walker.person))

    def _find_boxes(self, tracks: dict[int, int]) -> dict[int, FrameBoxes]:
        inside = {w.person: self._inside(w) for w in self._walkers}
        frames = {}
        for frame in range(self.num_frames):
            here = [walker for walker in self._by_entry() if inside[walker.person][frame]]
            if here:
                frames[frame] = FrameBoxes(
                    frame=frame,
                    boxes=np.stack([walker.boxes[frame] for walker in here]),
                    track_ids=np.array([tracks[walker.person] for walker in here]),
                )
        return frames

    def _draw(self, figures: Sequence[Figure], frames: slice) -> NDArray[np.uint8]:
        """Return the pixels of some frames, ``(T, H, W, 3)``."""
        height, width = self.frame_size
        count, scene = frames.stop - frames.start, self._scene
        top = math.ceil(MARGIN * height)
        columns = (self._first_column + np.arange(width)) % scene.background.shape[2]
        place = scene.background[:, top : top + height][:, :, columns]
        pixels = np.repeat(place[:, None], count, axis=1)
        softness = np.full(count, max(1.0, scene.softness * height / 512), dtype=np.float32)
        for walker, figure in zip(self._walkers, figures, strict=True):
            view = walker.view.part(frames)
            reach = view.scale[0]
            if view.column.max() < -reach or view.column.min() > width + reach:
                continue
            canvas = Canvas(pixels, view.scale, softness)
            cast_shadow(canvas, view, scene.shadow)
            figure.paint(canvas, frames)
        noise = self._world._random(_NOISE, self.camera, frames.start)
        pixels += noise.standard_normal(pixels.shape, dtype=np.float32) * np.float32(scene.noise)
        return np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 3, 0)
