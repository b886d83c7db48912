from __future__ import annotations

import io
import logging
import threading
import time
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from tests.video_server import (
    HTTP_MJPEG,
    Act,
    av,
    camera,
    number,
    pushed_pictures,
    stream,
    wait_until,
)
from tfclip.errors import FrameError
from tfclip.video import LiveVideo
from tfclip.video.live import hide_secrets

FAST = {"timeout": 5.0, "retry_delay": 0.01, "max_retries": 1, "max_waiting": 1000}


def url(served, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{served.port}" + ("/live" if scheme == "http" else "")


def receive(live: LiveVideo) -> tuple[list, FrameError]:
    """Return what a source gives until it is gone for good, and what it says then."""
    frames = []
    with pytest.raises(FrameError) as error, live:
        frames.extend(iter_into(frames, live))
    return frames, error.value


def iter_into(frames: list, live: LiveVideo) -> list:
    for frame in live:
        frames.append(frame)
    return []


@pytest.mark.parametrize("scheme", ["http", "tcp"])
def test_a_source_that_dies_and_comes_back_goes_on(scheme: str):
    whole = stream(40)
    header = {} if scheme == "http" else {"header": b""}
    with camera(Act(whole[: len(whole) // 2]), Act(whole), **header) as served:
        live = LiveVideo(url(served, scheme), **FAST)
        frames, error = receive(live)
    numbers = [number(frame.pixels) for frame in frames]
    before = len(frames) - 40
    assert before > 10
    assert numbers == [i % 25 for i in [*range(before), *range(40)]]
    times = [frame.time for frame in frames]
    assert times[0] == 0
    assert all(early < late for early, late in pairwise(times))
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert (live.num_connections, live.num_received, live.num_dropped) == (2, len(frames), 0)
    assert f"{url(served, scheme)} ended and was opened again once, in vain: " in str(error)


def test_within_a_connection_times_are_those_of_the_stream():
    with camera(Act(stream(20, rate=10))) as served:
        frames, _ = receive(LiveVideo(url(served), **FAST))
    assert [frame.time for frame in frames] == pytest.approx([i / 10 for i in range(20)])


def test_a_slow_consumer_gets_the_newest_frames_and_the_others_are_counted(caplog):
    with camera(Act(stream(40), hang=True)) as served:
        live = LiveVideo(url(served), **{**FAST, "max_waiting": 5})
        with live, caplog.at_level(logging.WARNING):
            first = next(live)  # what began the thread
            wait_until(lambda: live.num_received >= 38)  # the demuxer holds the last one back,
            time.sleep(0.5)  # or two, for a moment
            received = live.num_received
            frames = [next(live) for _ in range(5)]
    assert first.number == 0 or live.num_dropped
    assert [frame.number for frame in frames] == list(range(received - 5, received))
    assert [number(frame.pixels) for frame in frames] == [
        i % 25 for i in range(received - 5, received)
    ]
    assert live.num_dropped == received - 5 - 1
    assert sum("the oldest are dropped" in record.message for record in caplog.records) == 1


def test_frames_that_came_before_the_end_are_given_before_the_error():
    with camera(Act(stream(10))) as served:
        live = LiveVideo(url(served), **{**FAST, "max_retries": 0})
        with live:
            first = next(live)
            wait_until(lambda: live._failure is not None)
            rest = [next(live) for _ in range(9)]
            for _ in range(2):  # it says so however often it is asked
                with pytest.raises(FrameError, match="ended and was opened again 0 times"):
                    next(live)
    assert [number(frame.pixels) for frame in [first, *rest]] == list(range(10))


def test_a_source_that_never_answers_is_given_up_after_its_timeout():
    with camera(Act(b"", hang=True), header=b"") as served:
        live = LiveVideo(url(served), timeout=0.2, retry_delay=0.01, max_retries=1)
        begin = time.monotonic()
        frames, error = receive(live)
    assert frames == []
    assert time.monotonic() - begin < 3
    assert str(error) == (
        f"{url(served)} gave no frame and was opened again once, in vain: nothing came for 0.2 s"
    )


def test_a_stream_that_sends_only_sound_counts_as_dead():
    sound = _sound_and_one_picture()
    with camera(Act(sound, pause=0.02)) as served:
        live = LiveVideo(
            url(served), timeout=0.6, retry_delay=0.01, max_retries=0, max_waiting=1000
        )
        frames, error = receive(live)
    assert len(frames) <= 2
    assert "no frame that decodes in 0.6 s" in str(error)


def _sound_and_one_picture() -> bytes:
    memory = io.BytesIO()
    with av.open(memory, "w", format="mpegts") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        audio = container.add_stream("mp2", rate=44100)
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), format="rgb24")
        picture.pts, picture.time_base = 0, Fraction(1, 25)
        container.mux(video.encode(picture))
        container.mux(video.encode(None))
        for start in range(0, 44100 * 30, 1152):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
            sound.sample_rate, sound.pts, sound.time_base = 44100, start, Fraction(1, 44100)
            container.mux(audio.encode(sound))
    return memory.getvalue()


@pytest.mark.parametrize("content", [b"", b"no video at all " * 500])
def test_a_source_that_sends_no_video_is_one_sentence(content: bytes):
    with camera(Act(content), Act(content)) as served:
        frames, error = receive(LiveVideo(url(served), **FAST))
    assert frames == []
    assert str(error).startswith(f"{url(served)} gave no frame and was opened again once, in vain")
    assert "\n" not in str(error)


def test_the_waits_between_attempts_double_up_to_half_a_minute(monkeypatch):
    live = LiveVideo("tcp://127.0.0.1:9", timeout=1, retry_delay=3, max_retries=6)
    waits = []
    monkeypatch.setattr(live._stopped, "wait", waits.append)
    monkeypatch.setattr(live._source, "open", _refuse)
    frames, error = receive(live)
    assert (frames, waits) == ([], [3, 6, 12, 24, 30, 30])
    assert "opened again 6 times, in vain: no route" in str(error)


def _refuse():
    raise OSError("no route")


def test_a_frame_makes_up_for_all_failures():
    with camera(Act(b"x"), Act(stream(12)), Act(b"x"), Act(stream(12))) as served:
        live = LiveVideo(url(served), **{**FAST, "max_retries": 2})  # there will be four failures
        frames, _ = receive(live)
    assert [number(frame.pixels) for frame in frames] == [*range(12)] * 2


def test_a_fault_of_the_receiver_reaches_the_consumer(monkeypatch):
    live = LiveVideo("tcp://127.0.0.1:9", timeout=1)
    monkeypatch.setattr(live._source, "open", lambda: 1 / 0)
    with live, pytest.raises(ZeroDivisionError):
        next(live)


def test_closing_ends_a_consumer_that_waits_and_one_that_comes_later():
    with camera(Act(b"", hang=True), header=b"") as served:
        live = LiveVideo(url(served), timeout=0.5)
        got = []
        consumer = threading.Thread(target=lambda: got.append(list(live)))
        consumer.start()
        wait_until(lambda: served.connections == 1)
        live.close()
        consumer.join(5)
        assert got == [[]]
        assert list(live) == []
        thread = live._thread
        assert thread is not None
        thread.join(5)
        assert not thread.is_alive()


def test_pictures_pushed_over_http_are_a_source_too():
    with camera(Act(pushed_pictures(12), pause=0.01), header=HTTP_MJPEG) as served:
        begin = time.monotonic()
        frames, _ = receive(LiveVideo(url(served), **FAST, clock="arrival"))
        took = time.monotonic() - begin
    assert [number(frame.pixels) for frame in frames] == list(range(12))
    times = [frame.time for frame in frames]
    assert all(early < late for early, late in pairwise(times))
    assert times[-1] < took


def test_stamps_that_begin_again_within_a_connection_do_not_turn_time_back():
    part = stream(15)
    with camera(Act(part + part)) as served:
        frames, _ = receive(LiveVideo(url(served), **FAST))
    assert len(frames) == 30
    times = [frame.time for frame in frames]
    assert all(early < late for early, late in pairwise(times))
    assert times[-1] < 3


def test_user_password_and_query_are_in_no_message(caplog):
    with camera(Act(stream(5))) as served:
        secret = f"http://me:pa#ss@127.0.0.1:{served.port}/live?token=hidden"
        live = LiveVideo(secret.replace("#", "%23"), **FAST)
        with caplog.at_level(logging.DEBUG):
            _, error = receive(live)
    said = f"{error} {caplog.text} {live.name}"
    assert "127.0.0.1" in said
    for word in ("me:", "pa", "hidden", "token"):
        assert word not in said.replace("opened again", "").replace("vain", "").replace("max", "")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("rtsp://cam/1", "rtsp://cam/1"),
        ("rtsp://me:pa@cam/1", "rtsp://cam/1"),
        ("rtsp://me:p?a#s@s@cam:554/1?x=a@b", "rtsp://cam:554/1"),
        ("http://cam/a@b", "http://cam/a@b"),
    ],
)
def test_a_url_is_shown_without_its_secrets(given: str, shown: str):
    assert hide_secrets(given) == shown


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("street.mp4", {}, "url must begin with one of http, .* got 'street.mp4'"),
        ("file:///etc/passwd", {}, "url must begin with one of"),
        ("http:/x", {}, "url must begin with one of"),
        ("x://me:pa@cam", {}, "got 'x://cam'"),
        ("rtsp://cam", {"timeout": 0}, "timeout must be above 0 and finite, in seconds, got 0"),
        ("rtsp://cam", {"timeout": float("nan")}, "timeout must be above 0"),
        ("rtsp://cam", {"retry_delay": -1}, "retry_delay must be above 0"),
        ("rtsp://cam", {"max_waiting": 0}, "max_waiting must be at least 1, got 0"),
        ("rtsp://cam", {"max_retries": -1}, "max_retries must be at least 0, or None, got -1"),
        ("rtsp://cam", {"clock": "mine"}, "clock must be one of"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_opened(address, options, message):
    with pytest.raises(ValueError, match=message):
        LiveVideo(address, **options)


def test_rtsp_goes_over_tcp_unless_said_otherwise():
    assert LiveVideo("rtsp://cam")._source._options == {"rtsp_transport": "tcp"}
    udp = LiveVideo("rtsp://cam", options={"rtsp_transport": "udp"})
    assert udp._source._options == {"rtsp_transport": "udp"}
