from __future__ import annotations

import gc
import logging
import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.video_server import SIZE, av, draw, number, stream
from tfclip.errors import FrameError
from tfclip.video import Video
from tfclip.video.decoding import Clock, Upright

LENGTH = 24
# In milliseconds, as a phone in bad light: of no constant rate.
UNEVEN = [0, 33, 67, 100, 170, 300, 310, 344, 377, 500, 900, 933, 967, 1000, 1033, 1500, 1533]
UNEVEN += [1567, 2600, 2633, 2667, 2700, 2733, 4000]


def encode(
    path: Path, times: list[int], codec: str = "mpeg4", *, gop: int = 8, b_frames: int = 0
) -> Path:
    """Write pictures that are shown at times in milliseconds."""
    with av.open(path, "w") as container:
        video = container.add_stream(codec, rate=30)
        video.width, video.height, video.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.gop_size = gop
        video.codec_context.max_b_frames = b_frames
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(draw(index), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


FILES = {
    "uneven.mp4": {"times": UNEVEN},
    "uneven.mkv": {"times": UNEVEN, "codec": "libx264", "gop": 6, "b_frames": 2},
    "b_frames.mp4": {"times": UNEVEN, "codec": "libx264", "gop": 10, "b_frames": 3},
    "even.ts": {"times": [40 * i for i in range(LENGTH)], "codec": "libx264", "b_frames": 2},
    "one_key.mp4": {"times": UNEVEN, "gop": 1000},
    "late.mkv": {"times": [5000 + time for time in UNEVEN]},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {name: encode(folder / name, **options) for name, options in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_times_are_those_at_which_the_frames_were_taken(videos, name: str):
    frames = list(Video(videos[name]).timed())
    first = FILES[name]["times"][0]
    wanted = [(time - first) / 1000 for time in FILES[name]["times"]]
    assert [frame.time for frame in frames] == pytest.approx(wanted, abs=1e-4)
    assert frames[0].time == 0
    assert [frame.number for frame in frames] == list(range(LENGTH))
    assert [number(frame.pixels) for frame in frames] == list(range(LENGTH))
    assert Video(videos[name]).times() == [frame.time for frame in frames]


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_a_later_start_gives_what_a_pass_from_the_beginning_gives(videos, name: str, data):
    video = Video(videos[name])
    everything = list(video.timed())
    times = [frame.time for frame in everything]
    start = data.draw(st.one_of(st.sampled_from(times), st.floats(0, times[-1] + 1)))
    stop = data.draw(st.one_of(st.just(math.inf), st.sampled_from(times)))
    step = data.draw(st.integers(1, 5))
    if stop <= start:
        stop = math.inf
    found = list(video.timed(start, stop, step=step))
    wanted = [frame for frame in everything if start <= frame.time < stop][::step]
    assert [frame.time for frame in found] == [frame.time for frame in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert np.array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_the_frame_on_show_is_the_last_that_is_not_later(videos, name: str, data):
    video = Video(videos[name])
    everything = list(video.timed())
    times = [frame.time for frame in everything]
    time = data.draw(st.one_of(st.sampled_from(times), st.floats(0, times[-1] + 5)))
    (wanted,) = [frame for frame in everything if frame.time <= time][-1:]
    found = video.frame_at(time)
    assert found.time == wanted.time
    assert np.array_equal(found.pixels, wanted.pixels)


def test_a_jump_decodes_from_the_key_frame_and_not_from_the_beginning(videos, monkeypatch):
    video = Video(videos["uneven.mp4"])
    list(video.timed())
    decoded = []
    frames = Video._frames
    monkeypatch.setattr(
        Video,
        "_frames",
        lambda self, source: (decoded.append(f) or f for f in frames(self, source)),
    )
    first = next(iter(video.timed(UNEVEN[18] / 1000)))
    assert number(first.pixels) == 18
    assert len(decoded) <= 4  # the key frame 16, 17, 18


def test_an_index_that_jumps_too_far_is_not_believed(videos, monkeypatch):
    video = Video(videos["uneven.mp4"])
    everything = [frame.time for frame in video.timed()]
    jump = Video._jump
    monkeypatch.setattr(Video, "_jump", lambda self, start, time: jump(self, start, time + 3))
    for time in (0.4, 1.2, 2.65, 3.9):
        found = [frame.time for frame in video.timed(time)]
        assert found == [at for at in everything if at >= time]


def test_a_file_that_cannot_be_jumped_in_is_read_from_the_beginning(videos, monkeypatch):
    video = Video(videos["uneven.mp4"])
    everything = [frame.time for frame in video.timed()]
    monkeypatch.setattr(Video, "_jump", lambda self, start, time: (x for x in ()))
    assert [f.time for f in video.timed(0.95)] == [at for at in everything if at >= 0.95]


def test_frames_that_are_stepped_over_are_not_turned_into_pixels(videos, monkeypatch):
    turned = []
    monkeypatch.setattr(Upright, "__call__", lambda self, frame: turned.append(1) or draw(0))
    assert len(list(Video(videos["uneven.mp4"]).timed(step=10))) == 3
    assert len(turned) == 3


def test_turning_and_jumping_go_together(tmp_path):
    path = tmp_path / "phone.mp4"
    with av.open(path, "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        video.set_display_rotation(degrees=90)
        video.codec_context.gop_size = 2
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(draw(index), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    frame = next(Video(path).timed(0.5))
    assert frame.pixels.shape == (SIZE[1], SIZE[0], 3)
    assert number(frame.pixels) == 5


def test_stamps_that_go_back_are_continued_and_logged_once(tmp_path, caplog):
    path = tmp_path / "joined.ts"
    path.write_bytes(stream(10) + stream(10, first=10))
    video = Video(path)
    with caplog.at_level(logging.WARNING):
        frames = list(video.timed())
        assert list(video.timed())[-1].time == frames[-1].time
    assert [number(frame.pixels) for frame in frames] == list(range(20))
    assert [frame.time for frame in frames] == pytest.approx([i / 25 for i in range(20)])
    said = [record.message for record in caplog.records]
    assert said == [f"{path}: times go back at 1 frames and are continued"]


def test_no_decoded_frame_of_a_span_waits_for_garbage_collection(videos):
    gc.collect()
    gc.disable()
    try:
        for _ in Video(videos["uneven.mkv"]).timed(0.3):
            pass
        alive = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
        assert alive < 4
    finally:
        gc.enable()


def test_a_start_beyond_the_end_gives_no_frame(videos):
    assert list(Video(videos["uneven.mp4"]).timed(100)) == []


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((-1,), {}, "start must be at least 0 and finite, in seconds, got -1"),
        ((math.nan,), {}, "start must be at least 0"),
        ((math.inf,), {}, "start must be at least 0"),
        ((2, 2), {}, "stop must be above start 2, got 2"),
        ((0, math.nan), {}, "stop must be above start 0, got nan"),
        ((), {"step": 0}, "step must be at least 1, got 0"),
    ],
)
def test_a_wrong_span_is_refused_at_once(videos, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        Video(videos["uneven.mp4"]).timed(*arguments, **options)


def test_a_wrong_time_is_refused(videos):
    with pytest.raises(ValueError, match="time must be at least 0 and finite"):
        Video(videos["uneven.mp4"]).frame_at(-0.5)


def test_a_video_none_of_whose_packets_decode_is_refused_in_every_use(tmp_path):
    path = encode(tmp_path / "a.mp4", UNEVEN)
    with av.open(path) as container:
        found = [(packet.pos, packet.size) for packet in container.demux(video=0)]
    content = bytearray(path.read_bytes())
    for start, size in found:
        if start is not None:
            content[start : start + size] = bytes(size)
    path.write_bytes(content)
    for use in (
        lambda video: list(video.timed()),
        lambda video: list(video.timed(1)),
        lambda video: video.frame_at(1),
    ):
        with pytest.raises(FrameError, match=r"a.mp4 must have at least one frame that decodes"):
            use(Video(path))


@given(st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=40)), max_size=6),
       st.integers(0, 10**6), st.sampled_from(["uneven.mp4", "uneven.mkv", "even.ts"]))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_whatever_is_damaged_gives_frames_or_one_sentence(videos, damage, cut, name):
    content = bytearray(videos[name].read_bytes())
    for place, junk in damage:
        place %= len(content)
        content[place : place + len(junk)] = junk
    path = videos[name].with_name(f"damaged-{name}")
    path.write_bytes(content[: cut or None])
    said = None
    try:
        video = Video(path)
        spans = [[frame.time for frame in video.timed(start)] for start in (0.0, 1.0)]
    except FrameError as error:
        said, spans = str(error), []
    assert said is None or (path.name in said and "\n" not in said)
    for times in spans:
        assert all(early < late for early, late in pairwise(times))


@given(st.lists(st.floats(0, 1e4, width=32), min_size=1, unique=True).map(sorted))
def test_a_clock_leaves_stamps_that_rise_as_they_are(stamps):
    clock = Clock(0.04)
    assert [clock.read(stamp) for stamp in stamps] == stamps
    assert clock.corrections == 0


@given(st.lists(st.one_of(st.none(), st.floats(-1e4, 1e4)), min_size=1))
def test_a_clock_never_goes_back_whatever_the_stamps_do(stamps):
    clock = Clock(0.04)
    times = [clock.read(stamp) for stamp in stamps]
    assert all(early < late for early, late in pairwise(times))


def test_a_clock_goes_on_one_frame_after_a_stamp_that_is_missing_or_earlier():
    clock = Clock(0.5)
    given_stamps = [10.0, 10.5, None, 11.5, 3.0, 3.5, 4.25]
    assert [clock.read(stamp) for stamp in given_stamps] == [10, 10.5, 11, 11.5, 12, 12.5, 13.25]
    assert clock.corrections == 1
