"""Snapshots of growing tracklets."""

from __future__ import annotations

import os
import stat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import tfclip
from tests.tracking.growing import WINDOWS, build, draw, grade, graded
from tfclip import TrackletEncoder
from tfclip.errors import SnapshotError
from tfclip.tracking import QualityGate


@settings(max_examples=10, deadline=None)
@given(
    before=st.lists(st.sampled_from([1, "b", ("c", 2)]), max_size=9),
    after=st.lists(st.sampled_from([1, "b", ("c", 2)]), max_size=9),
    window=st.sampled_from(WINDOWS),
    has_times=st.booleans(),
)
def test_a_restored_encoder_goes_on_as_if_nothing_had_happened(
    tmp_path_factory, model, before, after, window, has_times
):
    path = tmp_path_factory.mktemp("snapshot") / "tracks.safetensors"
    encoder = TrackletEncoder(model, max_age=100, gate=QualityGate(min_height=8), **window)
    for call, key in enumerate(before):
        encoder.update([key], draw(1, call), call if has_times else None)
    encoder.snapshot(path)
    other = TrackletEncoder.restore(path, model)
    assert other.gate == encoder.gate
    for one in (encoder, other):
        for call, key in enumerate(after, 50):
            one.update([key], draw(1, call), call if has_times else None)
    assert other.track_ids == encoder.track_ids
    assert other.counts == encoder.counts
    assert other.num_bytes == encoder.num_bytes
    for key in encoder.track_ids:
        assert torch.equal(other.embedding(key), encoder.embedding(key))
        assert other.state(key) == encoder.state(key)


def test_a_stand_in_survives_a_snapshot(model, tmp_path):
    encoder = TrackletEncoder(model, gate=grade, normalize=False)
    encoder.update(["a", "a"], graded(60, 50))
    encoder.snapshot(tmp_path / "tracks")
    with pytest.raises(SnapshotError, match="was taken with a gate that no file can hold"):
        TrackletEncoder.restore(tmp_path / "tracks", model)
    other = TrackletEncoder.restore(tmp_path / "tracks", model, gate=grade)
    for one in (encoder, other):
        one.update(["a"], graded(55))  # no better than 60
    assert torch.equal(other.embedding("a"), encoder.embedding("a"))
    assert other.state("a").kept == (0,)


def test_a_snapshot_is_for_its_owner_and_its_model(model, tmp_path):
    path = tmp_path / "tracks"
    encoder = TrackletEncoder(model)
    encoder.update(["a"], draw(1))
    encoder.snapshot(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [path]
    with pytest.raises(SnapshotError, match="holds tracks of the model with fingerprint"):
        TrackletEncoder.restore(path, build(temporal_head="tmc"))


def test_a_snapshot_that_cannot_be_written_leaves_the_old_one(model, tmp_path):
    path = tmp_path / "tracks"
    encoder = TrackletEncoder(model)
    encoder.update(["a"], draw(1))
    encoder.snapshot(path)
    before = path.read_bytes()
    encoder.update([frozenset({1})], draw(1))
    with pytest.raises(TypeError, match="track ids of a snapshot must be numbers, texts or tuples"):
        encoder.snapshot(path)
    assert path.read_bytes() == before


def test_files_that_are_no_snapshot_are_one_sentence(model, tmp_path):
    path = tmp_path / "tracks"
    with pytest.raises(SnapshotError, match="there is no such file"):
        TrackletEncoder.restore(path, model)
    encoder = TrackletEncoder(model)
    encoder.update(["a"], draw(1))
    encoder.snapshot(path)
    whole = path.read_bytes()
    (tmp_path / "whole").write_bytes(whole)
    for damage in (b"", whole[:-7], b"PK\x03\x04" + whole, whole.replace(b'"score"', b'"sc0re"')):
        path.write_bytes(damage)
        with pytest.raises(SnapshotError, match="tracks"):
            TrackletEncoder.restore(path, model)
    arrays, metadata = load_file(tmp_path / "whole"), {"tfclip_tracks": "1"}
    for name, value in (
        ("description", torch.frombuffer(bytearray(b"[" * 100_000), dtype=torch.uint8)),
        ("0.0.class_token", torch.tensor(0.5)),
    ):
        save_file({**arrays, name: value}, path, metadata=metadata)
        with pytest.raises(SnapshotError, match="tracks is damaged: "):
            TrackletEncoder.restore(path, model)
    other = os.path.join(os.path.dirname(tfclip.__file__), "weights/tfclip-tiny/model.safetensors")  # noqa: PTH118, PTH120
    with pytest.raises(SnapshotError, match="is no snapshot of a TrackletEncoder"):
        TrackletEncoder.restore(other, model)
