from __future__ import annotations

import builtins
import gc
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.real_data import real
from tfclip.errors import FrameError, MissingExtraError
from tfclip.frames import open_frames
from tfclip.video import Video

av = pytest.importorskip("av", reason="PyAV (extra 'video') is not installed")

LENGTH = 12
HEIGHT, WIDTH = 32, 48
RED, GREEN = (255, 0, 0), (0, 255, 0)


def draw(index: int) -> np.ndarray:
    """Return a picture that tells its number by its grey and its sides by their colours."""
    picture = np.full((HEIGHT, WIDTH, 3), 20 * index, dtype=np.uint8)
    picture[:8] = GREEN
    picture[:, -16:] = RED
    return picture


def number(frame: np.ndarray) -> int:
    return round(float(frame[16:, :24].mean()) / 20)


def encode(path: Path, length: int = LENGTH, codec: str = "mpeg4", **display: int | bool) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if display:
            stream.set_display_rotation(**display)
        for index in range(length):
            frame = av.VideoFrame.from_ndarray(draw(index), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def packets(path: Path) -> list[slice]:
    """Return where the packets lie in the file."""
    with av.open(path) as container:
        found = [(packet.pos, packet.size) for packet in container.demux(video=0)]
    return [slice(start, start + size) for start, size in found if start is not None]


def damage(path: Path, where: slice) -> None:
    content = bytearray(path.read_bytes())
    content[where] = bytes(where.stop - where.start)
    path.write_bytes(content)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return encode(tmp_path / "video.mp4")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list with one entry for each time a video is decoded from its start."""
    begun = []
    decode = Video._decode
    monkeypatch.setattr(Video, "_decode", lambda self: begun.append(1) or decode(self))
    return begun


@pytest.mark.parametrize("name", ["a.mp4", "a.MKV", "a.avi", "a.mov"])
def test_a_video_gives_its_frames_in_order(tmp_path: Path, name: str):
    frames = open_frames(encode(tmp_path / name))
    for _ in range(2):
        assert [number(frame) for frame in frames] == list(range(LENGTH))
    assert len(frames) == LENGTH
    for index, frame in enumerate(frames):
        assert frame.dtype == np.uint8
        assert frame.shape == (HEIGHT, WIDTH, 3)
        # yuv420p shares a colour between four pixels, mpeg4 loses a little more
        assert np.abs(frame.astype(int) - draw(index)).mean() < 8


def test_a_colon_in_the_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encode(tmp_path / "plain.mp4").rename(tmp_path / "cam:1.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(open_frames("cam:1.mp4")) == LENGTH


def test_frames_that_are_stored_out_of_order_are_given_in_order(tmp_path: Path):
    path = tmp_path / "b_frames.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.max_b_frames = 2
        for index in range(LENGTH):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(index), format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(path) as container:
        stored = [p.pts for p in container.demux(video=0) if p.pts is not None]
    assert stored != sorted(stored)
    assert [number(frame) for frame in open_frames(path)] == list(range(LENGTH))


def test_iterating_takes_one_pass_and_counting_only_what_is_unknown(video: Path, passes: list[int]):
    frames = open_frames(video)
    assert (frames.known_length, len(passes)) == (None, 0)
    for _ in frames:
        pass
    assert (frames.known_length, len(frames), len(passes)) == (LENGTH, LENGTH, 1)
    fresh = open_frames(video)
    assert (len(fresh), len(fresh), len(passes)) == (LENGTH, LENGTH, 2)


def test_an_unfinished_pass_counts_nothing(video: Path):
    frames = open_frames(video)
    next(iter(frames))
    assert frames.known_length is None
    assert len(frames) == LENGTH


@given(st.lists(st.integers(0, LENGTH - 1)).map(sorted), st.booleans())
@settings(max_examples=20, deadline=None)
def test_selecting_equals_indexing(tmp_path_factory, indices: list[int], boxed: bool):
    path = tmp_path_factory.getbasetemp() / "select.mp4"
    if not path.exists():
        encode(path)
    boxes = [[index, 1, 20, 20] for index in range(LENGTH)] if boxed else None
    frames = open_frames(path, boxes=boxes)
    everything = list(frames)
    selected = [*frames.select(indices)]
    assert len(selected) == len(indices)
    for frame, index in zip(selected, indices, strict=True):
        assert np.array_equal(frame, everything[index])


def test_no_decoded_frame_waits_for_garbage_collection(video: Path):
    frames = open_frames(video)
    gc.collect()
    gc.disable()
    try:
        for _ in frames:
            pass
        alive = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
        assert alive < 4  # the first, and what it was converted to
    finally:
        gc.enable()


def test_selecting_beyond_the_end_is_refused(video: Path):
    frames = open_frames(video)
    selected = frames.select([3, LENGTH])  # its length is not known yet
    assert number(next(selected)) == 3
    with pytest.raises(
        ValueError, match=f"indices must be below the {LENGTH} frames of .*{LENGTH}"
    ):
        next(selected)
    with pytest.raises(
        ValueError, match=f"indices must be below the {LENGTH} frames of .*{LENGTH}"
    ):
        frames.select([3, LENGTH])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_frames_are_turned_as_a_player_shows_them(tmp_path: Path, degrees: int, mirrored: bool):
    path = encode(tmp_path / "a.mp4", 2, degrees=degrees, hflip=mirrored)
    expected = np.rot90(draw(1), degrees // 90)  # counter-clockwise, as PyAV counts
    if mirrored:
        expected = expected[:, ::-1]
    _, frame = open_frames(path)
    assert frame.shape == expected.shape
    assert frame.flags.c_contiguous
    assert np.abs(frame.astype(int) - expected).mean() < 8


def test_the_rotation_of_a_phone_is_clockwise(tmp_path: Path):
    """The matrix that phones held upright write: right becomes down, down becomes left."""
    path = encode(tmp_path / "a.mp4", 1)
    content = path.read_bytes()
    matrix = content.index(b"tkhd") + 4 + 40
    phone = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    path.write_bytes(content[:matrix] + phone + content[matrix + 36 :])
    [frame] = open_frames(path)
    assert frame.shape == (WIDTH, HEIGHT, 3)
    assert frame[-4, 4].argmax() == 0  # red was at the right and is below
    assert frame[4, -4].argmax() == 1  # green was above and is at the right


def test_boxes_crop_the_frames_of_a_video(video: Path):
    boxes = [[index, 2, 10, 20] for index in range(LENGTH)]
    whole, crops = list(open_frames(video)), list(open_frames(video, boxes=boxes))
    for index, (frame, crop) in enumerate(zip(whole, crops, strict=True)):
        assert np.array_equal(crop, frame[2:22, index : index + 10])


@pytest.mark.parametrize("rows", [LENGTH - 1, LENGTH + 1])
def test_too_few_or_many_boxes_for_a_video_are_refused_in_any_use(video: Path, rows: int):
    message = f"boxes must have one row for each frame, got {rows} rows and {LENGTH} frames"
    frames = open_frames(video, boxes=[[0, 0, 9, 9]] * rows)
    with pytest.raises(FrameError, match=message):
        for _ in frames:
            pass
    with pytest.raises(FrameError, match=message):
        len(open_frames(video, boxes=[[0, 0, 9, 9]] * rows))
    with pytest.raises(FrameError, match=message):
        next(open_frames(video, boxes=[[0, 0, 9, 9]] * rows).select([0]))


def test_a_corrupt_packet_is_skipped_and_logged(video: Path, caplog: pytest.LogCaptureFixture):
    damage(video, packets(video)[5])
    with caplog.at_level(logging.WARNING):
        frames = open_frames(video)
        given_numbers = [number(frame) for frame in frames]
    assert len(given_numbers) == len(frames) == LENGTH - 1
    assert given_numbers[:5] == [0, 1, 2, 3, 4]
    ours = [record.getMessage() for record in caplog.records if record.name == "tfclip.video.file"]
    assert ours == [f"{video}: skipped 1 corrupt packets"]


def test_a_video_that_is_cut_gives_what_is_there(tmp_path: Path):
    path = encode(tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes()[: packets(path)[7].start])
    assert [number(frame) for frame in open_frames(path)] == list(range(7))


def test_a_video_whose_packets_are_all_corrupt_is_refused(video: Path):
    for where in packets(video):
        damage(video, where)
    frames = open_frames(video)
    for use in (lambda: list(iter(frames)), lambda: len(frames)):
        with pytest.raises(
            FrameError, match=r"video.mp4 must have at least one frame that decodes"
        ):
            use()


def test_a_video_without_frames_is_refused(tmp_path: Path):
    path = tmp_path / "empty.avi"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()
    with pytest.raises(FrameError, match=r"empty.avi must have at least one frame that decodes"):
        len(open_frames(path))


def test_sound_alone_is_refused_at_once(tmp_path: Path):
    path = tmp_path / "sound.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(FrameError, match=r"sound.mp4 must have a video stream, got none"):
        open_frames(path)


@pytest.mark.parametrize("content", [b"", b"not a video" * 100, None], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_video_is_refused_at_once(video: Path, content: bytes | None):
    video.write_bytes(video.read_bytes()[:400] if content is None else content)
    with pytest.raises(FrameError, match=r"video.mp4 is not a readable video: "):
        open_frames(video)


def test_without_pyav_the_message_names_the_extra(video: Path, monkeypatch: pytest.MonkeyPatch):
    load = builtins.__import__

    def refuse(name: str, *arguments, **options):
        if name == "av":
            raise ImportError(name)
        return load(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install 'tfclip\[video\]'"):
        open_frames(video)


def test_a_public_sequence_has_the_frames_its_table_counts():
    path = real("tud_campus", "TUD-Campus.mp4")
    numbers = {frame_number for frame_number, _ in enumerate(open_frames(path), start=1)}
    assert numbers == set(range(1, 72))
    table = np.loadtxt(path.parent / "gt" / "gt.txt", delimiter=",", usecols=0)
    assert set(table.astype(int)) <= numbers
