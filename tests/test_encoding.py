"""Encoding tracklets: the reference's rules for clips, and independence of everything else."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from tfclip import TFCLIP, TFCLIPConfig, encoding
from tfclip.encoding import StreamEncoder
from tfclip.errors import FrameError
from tfclip.frames import sample_dense, sample_restricted
from tfclip.preprocess import Preprocess


@pytest.fixture(scope="module")
def model():
    from tfclip import TFCLIPConfig

    torch.manual_seed(0)
    sizes = {"width": 64, "layers": 2, "heads": 2, "output_dim": 32}
    config = TFCLIPConfig(backbone_options=sizes, frame_size=(64, 32), clip_length=4, num_cameras=3)
    return TFCLIP(config).eval()


def draw(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, 40, 24, 3), dtype=np.uint8)


def slow_mean(model: TFCLIP, frames: np.ndarray, clips: list[list[int]], camera=None):
    """Each clip alone through forward, repeated frames and all; then their mean."""
    pixels = Preprocess(model.config)(frames)
    cameras = None if camera is None else torch.tensor([camera])
    with torch.inference_mode():
        each = [model(pixels[clip][None], cameras).embedding[0] for clip in clips]
    return torch.stack(each).mean(0)


def slow_embedding(model: TFCLIP, frames: np.ndarray, clips: list[list[int]], camera=None):
    return F.normalize(slow_mean(model, frames, clips, camera), dim=0)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 8, 9, 23])
@pytest.mark.parametrize("camera", [None, 2])
def test_dense_is_the_mean_over_the_reference_clips(model, num_frames, camera):
    frames = draw(num_frames)
    expected = slow_embedding(model, frames, sample_dense(num_frames, 4), camera)
    torch.testing.assert_close(model.encode_sequence(frames, camera), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_frames", [3, 9, 23])
def test_without_normalising_it_is_that_mean_and_no_sum(model, num_frames):
    frames = draw(num_frames)
    expected = slow_mean(model, frames, sample_dense(num_frames, 4))
    raw = model.encode_sequence(frames, normalize=False)
    torch.testing.assert_close(raw, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_frames", [1, 3, 4, 9, 23])
def test_rrs_is_one_clip_of_the_reference_frames(model, num_frames):
    frames = draw(num_frames)
    expected = slow_embedding(model, frames, [sample_restricted(num_frames, 4)])
    torch.testing.assert_close(
        model.encode_sequence(frames, sampling="rrs"), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("num_frames", [1, 23])
def test_all_is_one_clip_of_all_frames(model, num_frames):
    frames = draw(num_frames)
    expected = slow_embedding(model, frames, [list(range(num_frames))])
    torch.testing.assert_close(
        model.encode_sequence(frames, sampling="all"), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temporal_depth": 2, "temporal_position": True},
        {"temporal_head": "tmc"},
        {"temporal_head": "transformer"},
        {"descriptor": ("projected",)},
    ],
)
def test_a_clip_too_long_to_keep_its_tokens_gives_the_same(model, changes, monkeypatch):
    torch.manual_seed(0)
    other = TFCLIP(model.config.replace(**changes)).eval()
    frames = draw(23)
    kept = other.encode_sequence(frames, sampling="all", batch_frames=5)
    monkeypatch.setattr(encoding, "_MAX_TOKEN_BYTES", 0)
    read_again = other.encode_sequence(frames, sampling="all", batch_frames=5)
    torch.testing.assert_close(read_again, kept, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["transformer", "convolution"])
def test_heads_that_know_order_get_repeated_frames_as_frames(model, head):
    torch.manual_seed(0)
    ordered = TFCLIP(model.config.replace(temporal_head=head)).eval()
    frames = draw(6)
    expected = slow_embedding(ordered, frames, sample_dense(6, 4))
    torch.testing.assert_close(ordered.encode_sequence(frames), expected, atol=1e-5, rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 11), min_size=1, max_size=6),
    batch_frames=st.integers(1, 30),
    sampling=st.sampled_from(["dense", "rrs", "all"]),
    cameras=st.lists(st.sampled_from([None, -1, 0, 1, 2]), min_size=6, max_size=6),
)
def test_a_tracklet_depends_on_itself_alone(model, lengths, batch_frames, sampling, cameras):
    tracklets = [draw(length, seed) for seed, length in enumerate(lengths)]
    cameras = cameras[: len(lengths)]
    together = model.encode_sequences(
        tracklets, cameras, sampling=sampling, batch_frames=batch_frames
    )
    for embedding, frames, camera in zip(together, tracklets, cameras, strict=True):
        alone = model.encode_sequence(frames, camera, sampling=sampling)
        torch.testing.assert_close(embedding, alone, atol=1e-5, rtol=0)


def test_frames_that_arrive_interleaved_give_the_same(model):
    tracklets = {"a": draw(9, 1), "b": draw(3, 2), 7: draw(4, 3)}
    encoder = StreamEncoder(model, batch_frames=6)
    for t in range(9):
        for key, frames in tracklets.items():
            if t < len(frames):
                encoder.push(key, frames[t], camera=1)
            if t == len(frames) - 1:
                encoder.close(key)
    encoder.flush()
    results = dict(encoder.finished())
    assert encoder.finished() == []
    assert set(results) == set(tracklets)
    for key, frames in tracklets.items():
        torch.testing.assert_close(
            results[key], model.encode_sequence(frames, 1), atol=1e-5, rtol=0
        )


def test_embedding_has_length_one_unless_it_is_asked_for_raw(model):
    frames = draw(9)
    raw = model.encode_sequence(frames, normalize=False)
    assert raw.norm() > 2
    torch.testing.assert_close(model.encode_sequence(frames), F.normalize(raw, dim=0))
    assert raw.shape == (model.embedding_dim,)


def test_mode_of_the_model_is_left_as_it_was_and_does_not_matter(model):
    frames = draw(5)
    expected = model.encode_sequence(frames)
    model.train()
    try:
        torch.testing.assert_close(model.encode_sequence(frames), expected)
        assert model.training
        assert model.backbone.training
    finally:
        model.eval()


def test_half_precision_stays_close(model):
    frames = draw(9)
    half = TFCLIP(model.config).eval()
    half.load_state_dict(model.state_dict())
    embedding = half.bfloat16().encode_sequence(frames)
    assert embedding.dtype == torch.float32
    assert embedding @ model.encode_sequence(frames) > 0.99


def test_boxes_crop_the_frames(model):
    frames = draw(5)
    boxes = np.tile([2, 4, 12, 30], (5, 1))
    torch.testing.assert_close(
        model.encode_sequence(frames, boxes=boxes), model.encode_sequence(frames[:, 4:34, 2:14])
    )


def test_no_tracklets_give_no_rows(model):
    assert model.encode_sequences([]).shape == (0, model.embedding_dim)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tracklets": [draw(0)]}, FrameError, "at least one"),
        ({"tracklets": [draw(2)], "cameras": [3]}, ValueError, "camera must be 0 to 2"),
        ({"tracklets": [draw(2)], "cameras": [0, 1]}, ValueError, "cameras must have one entry"),
        ({"tracklets": [draw(2)], "boxes": []}, ValueError, "boxes must have one entry"),
        ({"tracklets": [draw(2)], "sampling": "some"}, ValueError, "sampling must be one of"),
        ({"tracklets": [draw(2)], "batch_frames": 0}, ValueError, "batch_frames must be at least"),
        ({"tracklets": [draw(2)], "cameras": [1.0]}, TypeError, "whole number or None, got float"),
        ({"tracklets": [draw(2)], "cameras": ["1"]}, TypeError, "whole number or None, got str"),
        ({"tracklets": [draw(2)], "cameras": 1}, TypeError, "cameras must be a sequence, got int"),
        ({"tracklets": [draw(2)], "cameras": torch.tensor([0.5])}, TypeError, "whole number"),
        ({"tracklets": "crops/a"}, TypeError, "got one path, 'crops/a'; put it into a list"),
        ({"tracklets": Path("crops/a")}, TypeError, "got one path, 'crops/a'; put it into a list"),
    ],
)
def test_bad_input_is_one_sentence(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.encode_sequences(**arguments)


@pytest.mark.parametrize("camera", [1, np.int64(1), torch.tensor(1)])
def test_any_whole_number_is_a_camera(model, camera):
    frames = draw(2)
    expected = model.encode_sequences([frames], torch.tensor([1]))[0]
    torch.testing.assert_close(model.encode_sequence(frames, camera), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("head", "longest"), [("transformer", 77), ("transformer_token", 4)])
def test_one_clip_of_all_frames_is_refused_where_the_head_has_no_positions_for_it(head, longest):
    config = TFCLIPConfig(
        backbone_options={"width": 64, "layers": 1, "output_dim": 64},
        frame_size=(32, 16),
        clip_length=4,
        temporal_head=head,
    )
    model = TFCLIP(config).eval()
    frames = np.zeros((longest + 1, 32, 16, 3), dtype=np.uint8)
    with pytest.raises(FrameError, match=f"at most {longest} frames .* got {longest + 1}; use"):
        model.encode_sequence(frames, sampling="all")
    assert model.encode_sequence(frames[1:], sampling="all").isfinite().all()
    assert model.encode_sequence(frames, sampling="dense").isfinite().all()
    blind = TFCLIP(config.replace(descriptor=("appearance",))).eval()
    assert blind.encode_sequence(frames, sampling="all").isfinite().all()


def test_closing_a_tracklet_without_frames_is_refused(model):
    with pytest.raises(FrameError, match="at least one frame"):
        StreamEncoder(model).close("nobody")


# --- reading ahead -------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    batch_frames=st.integers(1, 30),
    sampling=st.sampled_from(["dense", "rrs", "all"]),
    workers=st.integers(1, 4),
)
def test_the_number_of_threads_changes_no_bit(model, lengths, batch_frames, sampling, workers):
    tracklets = [draw(length, seed) for seed, length in enumerate(lengths)]
    options = {"sampling": sampling, "batch_frames": batch_frames}
    expected = model.encode_sequences(tracklets, workers=0, **options)
    assert torch.equal(model.encode_sequences(tracklets, workers=workers, **options), expected)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_damaged_file_is_named_after_what_came_before_it(model, tmp_path, workers, monkeypatch):
    for name, damaged in (("a", None), ("b", 6), ("c", 0)):
        (tmp_path / name).mkdir()
        for number, pixels in enumerate(draw(9)):
            path = tmp_path / name / f"{number}.png"
            Image.fromarray(pixels).save(path)
            if number == damaged:
                path.write_bytes(path.read_bytes()[:99])
    closed = []
    close = StreamEncoder.close
    monkeypatch.setattr(
        StreamEncoder, "close", lambda self, key: (closed.append(key), close(self, key))[1]
    )
    sources = [tmp_path / name for name in "abc"]
    with pytest.raises(FrameError, match=r"b/6.png is not a readable image"):
        model.encode_sequences(sources, workers=workers)
    assert closed == [0]
    assert not [t for t in threading.enumerate() if t.name.startswith("tfclip-read")]


def test_workers_below_zero_are_refused(model):
    with pytest.raises(ValueError, match="workers must be 0 or more, got -2"):
        model.encode_sequences([draw(2)], workers=-2)


def test_a_batch_that_is_waited_for_later_gives_the_same(model, monkeypatch):
    """What a GPU does: the next batch is started before the last one has arrived."""
    tracklets = [draw(length, seed) for seed, length in enumerate([5, 1, 13, 8, 2])]
    expected = model.encode_sequences(tracklets, batch_frames=6)
    start, waits = StreamEncoder._start, []

    class Arrival:
        def __init__(self) -> None:
            self.number = len(waits)
            waits.append(False)

        def synchronize(self) -> None:
            waits[self.number] = True

    def start_only(self, clips):
        assert sum(not waited for waited in waits) <= 1
        return start(self, clips)._replace(arrived=Arrival())

    monkeypatch.setattr(StreamEncoder, "_start", start_only)
    found = model.encode_sequences(tracklets, batch_frames=6)
    assert torch.equal(found, expected)
    assert len(waits) > 3
    assert all(waits)


def test_the_tower_gets_full_batches_of_short_tracklets(model, monkeypatch):
    sizes = []
    tower = type(model.backbone).forward
    monkeypatch.setattr(
        type(model.backbone),
        "forward",
        lambda self, frames, codes: (sizes.append(len(frames)), tower(self, frames, codes))[1],
    )
    lengths = [1 + (7 * i) % 6 for i in range(40)]
    model.encode_sequences([draw(n, n) for n in lengths], batch_frames=16)
    assert sum(sizes) == sum(lengths)
    assert max(sizes) == 16
    assert sum(sizes[:-1]) / len(sizes[:-1]) > 0.85 * 16  # a clip is not cut, so not all are full
