"""The data set of drawn people: who is seen where, what moves, and how it becomes pixels."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tfclip.data.synthetic.figure import Figure, cast_shadow
from tfclip.data.synthetic.look import Look, palette
from tfclip.data.synthetic.paint import Canvas, Floats
from tfclip.data.synthetic.scene import Scene, draw_scene
from tfclip.data.synthetic.walk import Obstacle, Walk
from tfclip.data.tracklets import Tracklet
from tfclip.files import replace_when_done

Cue = Literal["appearance", "badge", "gait", "order", "none"]
CUES: tuple[Cue, ...] = get_args(Cue)
BADGES = palette("e02b2b 2fae3f 2d55e0 f2c71c")  # red, green, blue, yellow

# What a stream of random numbers is for. Each stream is keyed by the seed, one of these and the
# numbers it depends on, so that nothing depends on what was drawn before or how much there is.
_LOOK, _CAMERA, _TRACKLET = range(3)
_PIXELS_AT_ONCE = 2**18  # painted together: enough to share the calls, few enough for the memory


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticTracklet(Tracklet):
    """A drawn tracklet: a ``Tracklet`` whose frames are pixels, with what was drawn.

    Args:
        frames: RGB, ``(T, H, W, 3)`` uint8.
        number: Which of the person's tracklets in this camera, from 0.
        badge: Colour of the badge in each frame, ``(T,)``, 0 to 3: red, green, blue, yellow.
            None where nobody wears one.
    """

    frames: NDArray[np.uint8]
    person: int = 0
    camera: int = 0
    number: int = 0
    badge: NDArray[np.int64] | None = None


class SyntheticTracklets:
    """Tracklets of drawn people, each drawn when it is asked for.

    A tracklet is a function of the seed, the person's, the camera's and its own number, and the
    arguments that describe frames; not of the size of the data set or of what was drawn before.
    Same numbers, same pixels, on the same numpy; the last bit may differ on another processor.

    ``cue`` says how people differ. With ``"appearance"`` everyone has a look of their own. With the
    other cues persons 2k and 2k + 1 share one look, and **a frame drawn from the tracklet of the
    one has exactly the distribution of a frame of the other**, given the camera (and, except for
    ``"order"``, even at every single position). So any average over frames, of any function of a
    single frame, has the same expectation for both; only its spread over tracklets, and what frames
    are together, can tell them apart:

    - ``"badge"``: 2k wears one badge colour all through, drawn for the tracklet; 2k + 1 a colour
      drawn for each frame. Who relates frames can tell them apart, even as a set.
    - ``"gait"``: 2k stays near one phase of the gait, drawn for the tracklet from the whole circle;
      2k + 1 goes through the phases, from one drawn for the tracklet. So the amplitude of the
      motion differs. Who relates frames can tell them apart, even as a set.
    - ``"order"``: 2k's badge goes red, green, blue, yellow, red, ...; 2k + 1's tracklet is one of
      2k's kind played backwards, postures and all. Each colour is worn equally often when the
      number of frames is a multiple of 4, and *sets* of frames have the same distribution then,
      also those of clips of such a length: only who knows the order can tell them apart.
    - ``"none"``: both wear a badge colour drawn for each frame. Whole tracklets have the same
      distribution: nobody can tell them apart.

    Args:
        num_identities: People; even where ``cue`` makes pairs.
        num_cameras: Cameras. Eight kinds of places follow one another.
        tracklets_per_camera: Tracklets of each person in each camera.
        num_frames: Frames of every tracklet, or ``(least, most)``: then drawn for each.
        frame_size: Height and width in pixels, at least 16 and 8.
        cue: How people differ.
        occlusion: Share of tracklets in which something passes in front, 0 to 1.
        seed: The world: other looks, places and walks for another seed.
        first_identity: Number of the first person; even where ``cue`` makes pairs. People of other
            numbers are other people, so ``first_identity=num_identities`` continues a data set.
        first_camera: Number of the first camera; cameras of other numbers are other places.

    Raises:
        TypeError: A number of an argument is not whole.
        ValueError: An argument is out of its range.

    Example:
        >>> people = SyntheticTracklets(num_identities=2, num_cameras=2, frame_size=(64, 32))
        >>> len(people), people.identities.tolist(), people.cameras.tolist()
        (8, [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 0, 0, 1, 1])
        >>> people[5].name, people[5].frames.shape
        ('0001/0/1', (16, 64, 32, 3))
    """

    def __init__(
        self,
        num_identities: int = 100,
        num_cameras: int = 4,
        tracklets_per_camera: int = 2,
        num_frames: int | tuple[int, int] = 16,
        frame_size: tuple[int, int] = (256, 128),
        *,
        cue: Cue = "appearance",
        occlusion: float = 0.3,
        seed: int = 0,
        first_identity: int = 0,
        first_camera: int = 0,
    ) -> None:
        if cue not in CUES:
            raise ValueError(f"cue must be one of {', '.join(CUES)}, got {cue!r}")
        pairs = cue != "appearance"
        self.num_identities = _whole("num_identities", num_identities, 1, even=pairs)
        self.num_cameras = _whole("num_cameras", num_cameras, 1)
        self.tracklets_per_camera = _whole("tracklets_per_camera", tracklets_per_camera, 1)
        self.num_frames = _frame_range(num_frames)
        self.frame_size = _frame_size(frame_size)
        self.cue: Cue = cue
        if not 0 <= occlusion <= 1:
            raise ValueError(f"occlusion must be from 0 to 1, got {occlusion}")
        self.occlusion = float(occlusion)
        self.seed = _whole("seed", seed, 0)
        self.first_identity = _whole("first_identity", first_identity, 0, even=pairs)
        self.first_camera = _whole("first_camera", first_camera, 0)
        self._scenes: dict[int, Scene] = {}

    def __repr__(self) -> str:
        low, high = self.num_frames
        frames = low if low == high else (low, high)
        return (
            f"SyntheticTracklets({self.num_identities}, {self.num_cameras}, "
            f"{self.tracklets_per_camera}, {frames}, {self.frame_size}, cue={self.cue!r}, "
            f"occlusion={self.occlusion}, seed={self.seed}, "
            f"first_identity={self.first_identity}, first_camera={self.first_camera})"
        )

    def __len__(self) -> int:
        return self.num_identities * self.num_cameras * self.tracklets_per_camera

    def __getitem__(self, index: int) -> SyntheticTracklet:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be from {-len(self)} to {len(self) - 1}, got {index}")
        index, number = divmod(index % len(self), self.tracklets_per_camera)
        person, camera = divmod(index, self.num_cameras)
        return self.draw(self.first_identity + person, self.first_camera + camera, number)

    def __iter__(self) -> Iterator[SyntheticTracklet]:
        return (self[index] for index in range(len(self)))

    @property
    def identities(self) -> NDArray[np.int64]:
        """The person of every tracklet, ``(M,)``, without drawing any."""
        people = np.arange(self.first_identity, self.first_identity + self.num_identities)
        return np.repeat(people, self.num_cameras * self.tracklets_per_camera)

    @property
    def cameras(self) -> NDArray[np.int64]:
        """The camera of every tracklet, ``(M,)``, without drawing any."""
        cameras = np.arange(self.first_camera, self.first_camera + self.num_cameras)
        return np.tile(np.repeat(cameras, self.tracklets_per_camera), self.num_identities)

    def draw(self, person: int, camera: int, number: int) -> SyntheticTracklet:
        """Draw a tracklet by its numbers, which need not lie within this data set.

        Args:
            person: Number of the person, from 0.
            camera: Number of the camera, from 0.
            number: Which of the person's tracklets in this camera, from 0.

        Returns:
            The tracklet; the same each time.

        Raises:
            ValueError: A number is negative.
        """
        person = _whole("person", person, 0)
        camera = _whole("camera", camera, 0)
        number = _whole("number", number, 0)
        paired = self.cue != "appearance"
        # A pair has the number of its first member, so that looks never repeat across cues.
        look = Look.draw(self._random(_LOOK, person - person % 2 if paired else person))
        random = self._random(_TRACKLET, person, camera, number)
        scene = self._scene(camera)
        low, high = self.num_frames
        length = low + int(random.random() * (high - low + 1))
        walk = Walk.draw(random, scene, length, self.frame_size)
        badge = None
        if self.cue == "gait":
            walk = walk if person % 2 else walk.nearly_still(random)
        elif paired:
            badge = _badge_colours(self.cue, person % 2 == 1, length, random)
        obstacle = None
        if random.random() < self.occlusion:
            obstacle = Obstacle.draw(random, length, self.frame_size)
        frames = _render(scene, look, walk, badge, obstacle, self.frame_size)
        if _plays_backwards(self.cue, person):
            # All that is in a frame is reversed, not the badge alone: a badge that goes backwards
            # while the legs go forwards would give itself away in the set of frames.
            frames, badge = frames[::-1].copy(), np.asarray(badge)[::-1].copy()
        return SyntheticTracklet(
            name=f"{person:04d}/{camera}/{number}",
            frames=frames,
            person=person,
            camera=camera,
            number=number,
            badge=badge,
        )

    def write(self, folder: str | Path, image_format: Literal["png", "jpg"] = "png") -> list[Path]:
        """Write every frame as ``person/camera/tracklet/frame.png``, ready to be read or encoded.

        Args:
            folder: Where to; made when it is missing.
            image_format: ``"png"`` keeps every bit, ``"jpg"`` (quality 92) is smaller.

        Returns:
            The folder of each tracklet, in the order of the data set.

        Raises:
            ValueError: Another image format.
            SaveError: The folder cannot be written.
        """
        if image_format not in ("png", "jpg"):
            raise ValueError(f"image_format must be 'png' or 'jpg', got {image_format!r}")
        folders = []
        for tracklet in self:
            folders.append(Path(folder, tracklet.name))
            for position, frame in enumerate(tracklet.frames):
                path = folders[-1] / f"{position:04d}.{image_format}"
                with replace_when_done(path) as temporary:
                    Image.fromarray(frame).save(temporary, quality=92)
        return folders

    def _random(self, purpose: int, *numbers: int) -> np.random.Generator:
        """Return the stream of random numbers of one look, camera or tracklet."""
        return np.random.Generator(np.random.PCG64([self.seed, purpose, *numbers]))

    def _scene(self, camera: int) -> Scene:
        if camera not in self._scenes:
            kind = self.seed + camera
            self._scenes[camera] = draw_scene(
                kind, self.frame_size[0], self._random(_CAMERA, camera)
            )
        return self._scenes[camera]


def _plays_backwards(cue: Cue, person: int) -> bool:
    return cue == "order" and person % 2 == 1


def _badge_colours(
    cue: Cue, second: bool, length: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """Draw the badge's colour in each frame: of person 2k, or of the second of the pair."""
    drawn = (random.random(length) * len(BADGES)).astype(np.int64)
    if cue == "order":
        return np.arange(length) % len(BADGES)
    return np.full_like(drawn, drawn[0]) if cue == "badge" and not second else drawn


def _render(
    scene: Scene,
    look: Look,
    walk: Walk,
    badge: NDArray[np.int64] | None,
    obstacle: Obstacle | None,
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return the pixels of a tracklet, ``(T, H, W, 3)`` uint8."""
    length, (height, width) = len(walk.phase), size
    tracklet = np.empty((length, height, width, 3), dtype=np.uint8)
    colours = None if badge is None else scene.tint(np.stack(BADGES, axis=1)[:, badge])
    figure = Figure(look.as_seen(scene.tint), walk.view, walk.phase, scene.light, colours)
    together = max(1, _PIXELS_AT_ONCE // (height * width))
    for start in range(0, length, together):
        frames = slice(start, start + together)
        part = walk.part(frames)
        pixels = _take_background(scene, part, size)
        canvas = Canvas(pixels, part.view.scale, part.softness)
        cast_shadow(canvas, part.view, scene.shadow)
        figure.paint(canvas, frames)
        if obstacle is not None:
            obstacle.part(frames).paint(pixels, scene, part.softness)
        _expose(pixels, scene, part, tracklet[frames])
    return tracklet


def _take_background(scene: Scene, walk: Walk, size: tuple[int, int]) -> Floats:
    """Return what the camera sees behind the person in each frame, ``(3, T, H, W)``."""
    height, width = size
    place = scene.background
    pixels = np.empty((3, len(walk.place), height, width), dtype=np.float32)
    columns = np.arange(width)
    for t, (left, top) in enumerate(zip(walk.place % place.shape[2], walk.height, strict=True)):
        rows = place[:, top : top + height]
        if left + width <= place.shape[2]:
            pixels[:, t] = rows[:, :, left : left + width]
        else:
            pixels[:, t] = rows[:, :, (left + columns) % place.shape[2]]
    return pixels


def _expose(pixels: Floats, scene: Scene, walk: Walk, frames: NDArray[np.uint8]) -> None:
    """Add the sensor's noise and write the pixels as bytes."""
    height, width = pixels.shape[2:]
    sheet = _noise_sheet(height, width)
    pixels *= walk.gain[:, None, None]
    for t, (down, right) in enumerate((walk.grain * _NOISE_SPARE).astype(int)):
        grain = sheet[:, down : down + height, right : right + width]
        pixels[:, t] += grain * np.float32(scene.noise)
    np.clip(pixels, 0, 255, out=pixels)
    planes = pixels.astype(np.uint8)
    for channel in range(3):  # plane by plane: four times as fast as a transposed copy
        frames[..., channel] = planes[channel]


_NOISE_SPARE = 61  # rows and columns by which the sheet of noise is larger than a frame


@lru_cache(maxsize=4)
def _noise_sheet(height: int, width: int) -> Floats:
    """Return noise that every frame takes a random piece of: drawing it anew costs too much."""
    random = np.random.Generator(np.random.PCG64(0))
    shape = (3, height + _NOISE_SPARE, width + _NOISE_SPARE)
    grey = random.standard_normal(shape[1:], dtype=np.float32)
    return 0.8 * grey + 0.6 * random.standard_normal(shape, dtype=np.float32)


def _whole(name: str, value: int, least: int, even: bool = False) -> int:
    """Return a whole number after checking it."""
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}")
    if even and value % 2:
        raise ValueError(f"{name} must be even, because this cue makes pairs, got {value}")
    return value


def _frame_range(num_frames: int | tuple[int, int]) -> tuple[int, int]:
    if not isinstance(num_frames, tuple | list):
        num_frames = (num_frames, num_frames)
    if len(num_frames) != 2:
        raise ValueError(f"num_frames must be a number or (least, most), got {num_frames}")
    low, high = (_whole("num_frames", value, 1) for value in num_frames)
    if low > high:
        raise ValueError(f"num_frames must be (least, most), got {(low, high)}")
    return low, high


def _frame_size(frame_size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(frame_size, tuple | list) or len(frame_size) != 2:
        raise ValueError(f"frame_size must be (height, width), got {frame_size!r}")
    height, width = frame_size
    return _whole("frame height", height, 16), _whole("frame width", width, 8)
