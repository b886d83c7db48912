"""What a growing tracklet refuses leaves it as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tracking.growing import close, draw
from tfclip import TrackletEncoder
from tfclip.errors import FrameError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "best"}, "policy must be one of"),
        ({"policy": "diverse"}, "max_frames must be given with policy='diverse', such as 4"),
        ({"max_frames": 6}, "max_frames must be 1 to 4, the model's clip_length, or a multiple"),
        ({"max_frames": 0}, "max_frames must be 1 to 4"),
        ({"max_age": -1}, "max_age must be at least 0, or None, got -1"),
        ({"max_age": float("nan")}, "max_age must be at least 0, or None, got nan"),
        ({"max_tracks": 0}, "max_tracks must be at least 1, got 0"),
        ({"batch_frames": 0}, "batch_frames must be at least 1, got 0"),
        ({"token_dtype": torch.int8}, "token_dtype must be a floating type, or None"),
    ],
)
def test_options_that_cannot_be_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        TrackletEncoder(model, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"crops": draw(1)}, ValueError, "crops must have one entry for each of 2 track_ids"),
        ({"times": [1.0]}, ValueError, "times must have one entry for each of 2 track_ids, got 1"),
        ({"times": float("inf")}, ValueError, "times must be finite, got inf"),
        ({"times": "noon"}, TypeError, "times must be numbers"),
        ({"times": [6, 4]}, ValueError, "times must not go backwards within a track, got 4 for"),
        ({"times": [4, 4]}, ValueError, "got 4 for track 'a' after 5; forget"),
        ({"times": None}, ValueError, "times must be given in every call or in none"),
        ({"cameras": 1}, ValueError, "cameras must not change within a track, got 1 for track 'a'"),
        ({"cameras": 3}, ValueError, "camera must be 0 to 2, or None, got 3"),
        ({"cameras": [0]}, ValueError, "cameras must have one entry for each of 2 track_ids"),
        ({"channels": "gbr"}, ValueError, r"channels must be one of \('rgb', 'bgr'\), got 'gbr'"),
        ({"track_ids": "aa"}, TypeError, "track_ids must be a sequence of ids, got str"),
        ({"track_ids": [["a"], "a"]}, TypeError, "track ids must be numbers or texts, got list"),
        ({"track_ids": ["b", "c"]}, ValueError, "track_ids must name at most max_tracks = 1"),
        ({"crops": [np.zeros((4, 4), np.uint8)] * 2}, FrameError, r"crops\[0\] must be"),
        ({"crops": [np.zeros((4, 4, 3))] * 2}, FrameError, r"crops\[0\] must be uint8"),
        (
            {"crops": [np.zeros((0, 4, 3), np.uint8)] * 2},
            FrameError,
            "at least one frame and pixel",
        ),
        ({"boxes": [[0, 0, 1, 1]]}, ValueError, "boxes must have one entry for each of 2"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(model, arguments, error, message):
    encoder = TrackletEncoder(model, max_tracks=1)
    encoder.update(["a"], draw(1), 5, cameras=0)
    before = encoder.embedding("a"), encoder.state("a"), dict(encoder.counts)
    given = {"track_ids": ["a", "a"], "crops": draw(2), "times": [6, 7], **arguments}
    with pytest.raises(error, match=message):
        encoder.update(**given)
    assert torch.equal(before[0], encoder.embedding("a"))
    assert before[1:] == (encoder.state("a"), dict(encoder.counts))


@pytest.mark.parametrize(
    ("frame", "boxes", "message"),
    [
        (np.zeros((9, 9, 3), np.uint8), [[0, 0, 1]], r"boxes must be \(M, 4\)"),
        (np.zeros((9, 9, 3), np.uint8), [[0, 0, 1, np.nan]], r"boxes must be finite, got boxes\[0"),
        (np.zeros((9, 9, 3), np.uint8), [[0, 0, 1, 1]] * 2, "boxes must have one row for each"),
        (np.zeros((9, 9)), [[0, 0, 1, 1]], "frame must be uint8"),
    ],
)
def test_bad_frames_and_boxes_are_one_sentence(model, frame, boxes, message):
    with pytest.raises(FrameError, match=message):
        TrackletEncoder(model).update_frame(["a"], frame, boxes)


def test_a_tower_that_fails_leaves_no_track_without_an_embedding(model, monkeypatch):
    encoder = TrackletEncoder(model)
    encoder.update(["a"], draw(1))

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(model.backbone, "forward", fail)
        with pytest.raises(MemoryError):
            encoder.update(["a", "b"], draw(2))
    assert encoder.track_ids == ("a",)
    close(encoder.embedding("a"), model.encode_sequence(draw(1)))
    close(
        encoder.update(["a"], draw(1, 7))["a"], model.encode_sequence([draw(1)[0], draw(1, 7)[0]])
    )
