"""Building the memory of a training set: what is averaged, and when the disk is trusted."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from tfclip import TFCLIP
from tfclip.data.tracklets import Tracklet
from tfclip.errors import FrameError
from tfclip.frames import sample_dense
from tfclip.memory_building import build_memory, sequence_features
from tfclip.preprocess import Preprocess


@pytest.fixture
def tracklets():
    """Three persons, two tracklets each, of 1 to 11 frames."""
    random = np.random.default_rng(0)
    lengths = [3, 8, 1, 4, 11, 6]
    return [
        Tracklet(
            name=f"t{i}",
            frames=random.integers(0, 256, (n, 64, 32, 3), dtype=np.uint8),
            person=f"p{i % 3}",
            camera=i % 2,
        )
        for i, n in enumerate(lengths)
    ]


@pytest.fixture
def counted(tiny_model):
    """Count the frames that go through the backbone."""
    frames = []
    tiny_model.backbone.register_forward_pre_hook(lambda _, x: frames.append(len(x[0])))
    return frames


def slow_feature(model, tracklet):
    """Return the mean over dense clips of the projected feature, one clip at a time."""
    frames = Preprocess(model.config)(tracklet.open())
    with torch.no_grad():
        clips = [model(frames[None, clip]).projected[0] for clip in sample_dense(len(frames), 4)]
    return torch.stack(clips).mean(0)


def test_a_row_is_the_mean_over_tracklets_of_the_mean_over_dense_clips(tiny_model, tracklets):
    memory = build_memory(tiny_model, tracklets)
    for identity in range(3):
        of_identity = [slow_feature(tiny_model, tracklets[i]) for i in (identity, identity + 3)]
        expected = torch.stack(of_identity).mean(0)
        torch.testing.assert_close(memory()[identity], expected, atol=1e-5, rtol=1e-5)
    assert memory().dtype == torch.float32


@pytest.mark.parametrize("batch_frames", [1, 3, 64])
def test_features_do_not_depend_on_the_batches(tiny_model, tracklets, batch_frames):
    torch.testing.assert_close(
        sequence_features(tiny_model, tracklets, batch_frames=batch_frames),
        sequence_features(tiny_model, tracklets),
        atol=1e-5,
        rtol=1e-5,
    )


def test_cameras_and_mixed_precision_have_no_part_in_the_memory(tiny_model, tracklets):
    memory = build_memory(tiny_model, tracklets)
    without = [dataclasses.replace(tracklet, camera=None) for tracklet in tracklets]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(build_memory(tiny_model, without)(), memory())


def test_the_model_is_left_in_the_mode_it_was_in(tiny_model, tracklets):
    for training in (True, False):
        build_memory(tiny_model.train(training), tracklets)
        assert tiny_model.training == training


def test_identities_of_the_users_own_name_the_rows(tiny_model, tracklets):
    identities = torch.tensor([2, 1, 0, 2, 1, 0])
    turned = build_memory(tiny_model, tracklets, identities)
    torch.testing.assert_close(turned(), build_memory(tiny_model, tracklets)().flip(0))


def test_the_second_time_no_frame_is_encoded(tiny_model, tracklets, counted, tmp_path):
    cache = tmp_path / "memory.safetensors"
    first = build_memory(tiny_model, tracklets, cache=cache)
    assert sum(counted) == 33
    second = build_memory(tiny_model, tracklets, cache=cache)
    assert sum(counted) == 33
    assert torch.equal(first(), second())


def test_in_inference_mode_a_memory_is_built_and_read_that_can_be_trained_with(
    tiny_model, tracklets, tmp_path
):
    cache = tmp_path / "memory.safetensors"
    with torch.inference_mode():
        built, read = (build_memory(tiny_model, tracklets, cache=cache) for _ in range(2))
    assert torch.equal(built(), read())
    assert not built().is_inference()
    assert not read().is_inference()


def change_weights(model, tracklets):
    model.backbone.tower.conv1.weight.data += 1
    return model, tracklets


def change_pixels(model, tracklets):
    frames = tracklets[0].frames.copy()
    frames[0, 0, 0, 0] += 1
    return model, [dataclasses.replace(tracklets[0], frames=frames), *tracklets[1:]]


def change_people(model, tracklets):
    return model, [tracklets[3], *tracklets[1:3], tracklets[0], *tracklets[4:]]


def change_clips(model, tracklets):
    other = TFCLIP(model.config.replace(clip_length=5))
    other.load_state_dict(model.state_dict())
    return other, tracklets


@pytest.mark.parametrize("change", [change_weights, change_pixels, change_people, change_clips])
def test_a_cache_of_something_else_is_built_anew(tiny_model, tracklets, tmp_path, change):
    cache = tmp_path / "memory.safetensors"
    build_memory(tiny_model, tracklets, cache=cache)
    model, others = change(tiny_model, tracklets)
    expected = build_memory(model, others)
    assert torch.equal(build_memory(model, others, cache=cache)(), expected())


def test_a_new_camera_table_or_temporal_head_keeps_the_cache(
    tiny_model, tracklets, counted, tmp_path
):
    cache = tmp_path / "memory.safetensors"
    build_memory(tiny_model, tracklets, cache=cache)
    for parameter in (tiny_model.camera_embedding, *tiny_model.temporal.parameters()):
        parameter.data += 1
    build_memory(tiny_model, tracklets, cache=cache)
    assert sum(counted) == 33


@pytest.mark.parametrize("keep", [0, 7, 150])
def test_a_damaged_cache_is_built_anew_and_said(tiny_model, tracklets, tmp_path, keep, caplog):
    cache = tmp_path / "memory.safetensors"
    expected = build_memory(tiny_model, tracklets, cache=cache)
    whole = cache.read_bytes()
    cache.write_bytes(whole[:keep])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(build_memory(tiny_model, tracklets, cache=cache)(), expected())
    assert "damaged" in caplog.text
    assert cache.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_nothing_but_itself(
    tiny_model, tracklets, tmp_path, caplog
):
    (tmp_path / "file").write_text("")
    memory = build_memory(tiny_model, tracklets, cache=tmp_path / "file" / "memory.safetensors")
    assert len(memory()) == 3
    assert "not kept" in caplog.text


def test_files_that_change_make_the_cache_stale(tiny_model, counted, tmp_path):
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (32, 64), (i * 60, 0, 0)).save(paths[-1])
    tracklets = [Tracklet(name=f"{i}", frames=[paths[i]], person=i) for i in range(4)]
    cache = tmp_path / "memory.safetensors"
    build_memory(tiny_model, tracklets, cache=cache)
    build_memory(tiny_model, tracklets, cache=cache)
    assert sum(counted) == 4
    Image.new("RGB", (32, 64), (0, 250, 9)).save(paths[0])
    build_memory(tiny_model, tracklets, cache=cache)
    assert sum(counted) == 8


def test_wrong_arguments_are_told_before_any_frame_is_encoded(tiny_model, tracklets, counted):
    for identities, message in (
        (torch.tensor([0, 0, 2, 2, 0, 2]), r"missing: \[1\]"),
        (torch.tensor([0, 1, 2]), r"\(M,\) = \(6,\)"),
        (torch.tensor([-1, 0, 1, 2, 0, 1]), "at least once; got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            build_memory(tiny_model, tracklets, identities)
    unknown = [dataclasses.replace(tracklets[0], person=None)]
    with pytest.raises(ValueError, match="known persons"):
        build_memory(tiny_model, unknown)
    with pytest.raises(ValueError, match="batch_frames"):
        build_memory(tiny_model, tracklets, batch_frames=0)
    with pytest.raises(ValueError, match="float32"):
        build_memory(tiny_model.to(torch.bfloat16), tracklets)
    assert counted == []


def test_a_tracklet_that_is_not_there_is_named(tiny_model, tmp_path):
    missing = Tracklet(name="gone", frames=[tmp_path / "no.png"], person=0)
    with pytest.raises(FrameError, match=r"no\.png"):
        build_memory(tiny_model, [missing], cache=tmp_path / "memory.safetensors")


@pytest.mark.parametrize(
    "centroids",
    [torch.zeros(2, 5), torch.full((3, 32), torch.nan), torch.zeros(3)],
    ids=["another shape", "not finite", "no matrix"],
)
def test_a_cache_whose_numbers_cannot_be_a_memory_is_built_anew(
    tiny_model, tracklets, tmp_path, centroids
):
    cache = tmp_path / "memory.safetensors"
    built = build_memory(tiny_model, tracklets, cache=cache).centroids
    with safe_open(cache, framework="pt") as file:
        key = file.metadata()["key"]
    save_file({"centroids": centroids}, cache, metadata={"key": key})
    assert torch.equal(build_memory(tiny_model, tracklets, cache=cache).centroids, built)
