"""Tracks that age, and memory that is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tracking.growing import CLIP, WINDOWS, close, draw
from tfclip import TrackletEncoder


def test_a_track_that_returns_after_max_age_begins_anew(model):
    encoder, crops = TrackletEncoder(model, max_age=5), draw(3)
    encoder.update(["a"], crops[:1], 0)
    encoder.update(["a"], crops[1:2], 5)  # not longer than max_age
    assert encoder.state("a").num_crops == 2
    close(encoder.update(["a"], crops[2:], 10.5)["a"], model.encode_sequence(crops[2:]))
    assert encoder.counts["restarted"] == 1


def test_tracks_are_forgotten_when_they_are_too_old_or_too_many(model):
    encoder = TrackletEncoder(model, max_age=10, max_tracks=3)
    encoder.update(["a", "b", "c"], draw(3), 0)
    encoder.update(["a"], draw(1), 4)
    encoder.update(["d"], draw(1), 5)  # b was updated least recently
    assert encoder.track_ids == ("c", "a", "d")
    encoder.update([], [], 11)  # an empty frame: c is older than 10 now
    assert encoder.track_ids == ("a", "d")
    assert encoder.counts["evicted"] == encoder.counts["aged"] == 1


def test_without_times_the_calls_are_counted(model):
    encoder = TrackletEncoder(model, max_age=2)
    encoder.update(["a"], draw(1))
    encoder.update([], [])
    encoder.update(["b"], draw(1))
    assert "a" in encoder
    encoder.update(["b"], draw(1))
    assert "a" not in encoder
    assert (encoder.state("b").first_time, encoder.state("b").last_time) == (2, 3)


def test_videos_one_after_another_may_each_begin_at_zero(model):
    encoder = TrackletEncoder(model, max_age=5)
    encoder.update([("north", 1)], draw(1), 60)
    encoder.update([("south", 1)], draw(1), 0)
    assert len(encoder) == 2


def test_forgetting_leaves_nothing(model):
    encoder = TrackletEncoder(model)
    encoder.update(["a", "b"], draw(2))
    one = encoder.num_bytes
    assert encoder.forget("a")
    assert not encoder.forget("a")
    assert "a" not in encoder
    assert encoder.num_bytes == one // 2
    with pytest.raises(KeyError, match="there is no track 'a'; it never came, or was forgotten"):
        encoder.embedding("a")
    close(encoder.update(["a"], draw(1, 5))["a"], model.encode_sequence(draw(1, 5)))
    encoder.clear()
    assert (len(encoder), encoder.num_bytes) == (0, 0)
    ids, embeddings = encoder.embeddings()
    assert ids == ()
    assert embeddings.shape == (0, model.embedding_dim)


@pytest.mark.parametrize("window", WINDOWS)
def test_memory_is_bounded_however_long_a_track_gets(model, window):
    encoder = TrackletEncoder(model, **window)
    most = 0
    token, embedding = 3 * 64 * 4, model.embedding_dim * 4  # 2 patches and the class token
    frame = token + 64 * 4 + 32 * 4
    limit = window.get("max_frames")
    frames = min(limit or CLIP, CLIP) if window.get("policy") != "diverse" else limit
    clips = 2 if limit is None else -(-limit // CLIP)
    for call in range(40):
        encoder.update(["a"], draw(1, call))
        most = max(most, encoder.num_bytes)
    assert most <= frames * frame + (clips + 1) * embedding


def test_kept_frames_own_their_memory(model):
    """A view into a batch would keep the whole batch."""
    encoder = TrackletEncoder(model)
    encoder.update(range(20), draw(20))
    for track in encoder._tracks.values():
        for frame in track.window.clips[0].frames:
            for part in frame:
                assert part is not None
                assert part.untyped_storage().nbytes() == part.nbytes


@pytest.mark.slow
def test_thousands_of_tracks(model):
    encoder = TrackletEncoder(model, max_tracks=2000)
    encoder.update(range(2000), np.repeat(draw(20), 100, axis=0))
    encoder.update(range(1000, 3000), np.repeat(draw(20, 1), 100, axis=0))
    assert len(encoder) == 2000
    assert encoder.counts["evicted"] == 1000
    close(encoder.embedding(1500), model.encode_sequence([draw(20)[15], draw(20, 1)[5]]))
