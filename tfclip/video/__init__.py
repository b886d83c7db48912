"""Video in and out: files, live sources, times, and pictures with boxes (PyAV, extra ``video``)."""

from __future__ import annotations

from tfclip.video.decoding import TimedFrame as TimedFrame
from tfclip.video.drawing import draw_boxes as draw_boxes
from tfclip.video.drawing import identity_colour as identity_colour
from tfclip.video.file import VIDEO_SUFFIXES as VIDEO_SUFFIXES
from tfclip.video.file import Video as Video
from tfclip.video.live import LiveVideo as LiveVideo
from tfclip.video.writing import write_video as write_video

__all__ = [
    "VIDEO_SUFFIXES",
    "LiveVideo",
    "TimedFrame",
    "Video",
    "draw_boxes",
    "identity_colour",
    "write_video",
]
