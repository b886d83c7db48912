"""The reference's checkpoint to ours: the same features, and no entry lost."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from tests.convert.checkpoint_files import TOLERANCE, features
from tests.recorded import read_golden
from tfclip import TFCLIP, convert
from tfclip.errors import ConfigError

# What nothing in the reference reads.
DEAD = {"classifier_proj_temp2.weight", "SSP.alpha", "SSP.norm.weight", "SSP.norm.bias"}


# --- the reference's checkpoint ----------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("neck", "recorded"), [("before", "feat_neck_before"), ("after", "feat_neck_after")]
)
def test_a_converted_checkpoint_gives_the_features_of_the_reference(
    release, save, prefix, neck, recorded
):
    path = save({prefix + name: tensor for name, tensor in release.items()})
    model = convert.from_reference(path, clip_length=4, neck=neck)
    torch.testing.assert_close(features(model), read_golden("eval_outputs")[recorded], **TOLERANCE)
    assert not model.training


def test_a_checkpoint_may_be_wrapped_with_the_state_of_its_training(shallow, save):
    wrapped = convert.from_reference(save({"state_dict": shallow, "epoch": 7}, "wrapped.pth.tar"))
    plain = convert.from_reference(save(shallow))
    torch.testing.assert_close(wrapped.state_dict(), plain.state_dict(), atol=0, rtol=0)


def test_half_precision_becomes_single(shallow, save):
    path = save({name: x.half() if x.is_floating_point() else x for name, x in shallow.items()})
    assert {p.dtype for p in convert.from_reference(path).parameters()} == {torch.float32}


@pytest.mark.parametrize(("num_identities", "num_cameras"), [(7, 3), (1, 1), (19, 15)])
def test_identities_and_cameras_are_as_many_as_the_rows(shallow, save, num_identities, num_cameras):
    resized = dict(shallow)
    for name, tensor in shallow.items():
        if name.startswith("classifier"):
            resized[name] = torch.randn(num_identities, tensor.shape[1])
    resized["cv_embed"] = torch.randn(num_cameras, 128)
    model, objective = convert.from_reference(save(resized), with_objective=True)
    assert model.config.num_cameras == num_cameras
    assert objective.num_identities == num_identities
    torch.testing.assert_close(model.state_dict()["camera_embedding"], resized["cv_embed"])
    torch.testing.assert_close(
        objective.classifiers["temporal"].weight.data, resized["classifier_proj_temp.weight"]
    )


def test_a_checkpoint_without_camera_table_is_a_model_without_cameras(release, save):
    path = save({name: tensor for name, tensor in release.items() if name != "cv_embed"})
    model = convert.from_reference(path, clip_length=4)
    assert model.config.num_cameras == 0
    projected = features(model, cameras=False)[:, 128 : 128 + 64]
    torch.testing.assert_close(projected, read_golden("eval_outputs")["get_image"], **TOLERANCE)


@pytest.mark.parametrize(
    ("num_patches", "frame_size", "stride"),
    [
        (8, (64, 32), None),
        (10, (64, 32), 12),
        (128, (256, 128), None),
        (210, (256, 128), 12),
        (288, (384, 192), None),
    ],
)
def test_frame_size_and_stride_are_found_from_the_number_of_positions(
    shallow, save, num_patches, frame_size, stride
):
    table = torch.randn(1 + num_patches, 128)
    path = save({**shallow, "image_encoder.positional_embedding": table})
    model = convert.from_reference(path)
    assert (model.config.frame_size, model.config.stride) == (frame_size, stride)
    torch.testing.assert_close(model.backbone.tower.positional_embedding.data, table)
    assert model(torch.zeros(1, 1, 3, *frame_size)).projected_tokens.shape[1] == 1 + num_patches


def test_frame_size_and_stride_are_asked_for_when_several_fit(shallow, save):
    path = save({**shallow, "image_encoder.positional_embedding": torch.randn(51, 128)})
    with pytest.raises(ConfigError, match=r"128 x 64 with stride 12 and 160 x 80 with stride 16"):
        convert.from_reference(path)
    assert convert.from_reference(path, stride=12).config.frame_size == (128, 64)
    assert convert.from_reference(path, frame_size=(160, 80)).config.stride is None
    assert convert.from_reference(path, frame_size=(80, 160)).backbone.grid == (5, 10)


@pytest.mark.parametrize(
    "arguments", [{}, {"frame_size": (256, 128)}, {"stride": 12}, {"frame_size": (8, 8)}]
)
def test_positions_that_no_frame_size_explains_are_refused(shallow, save, arguments):
    path = save({**shallow, "image_encoder.positional_embedding": torch.randn(8, 128)})
    with pytest.raises(ConfigError, match="7 patches fit none of those tried"):
        convert.from_reference(path, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"neck": "sideways"},
        {"clip_length": 0},
        {"stride": 0},
        {"frame_size": (256, 0)},
        {"frame_size": 256},
    ],
)
def test_wrong_arguments_are_refused_before_the_file_is_read(tmp_path, arguments):
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        convert.from_reference(tmp_path / "absent", **arguments)


def test_sizes_of_prompt_and_temporal_head_are_read_from_the_blocks(shallow, save):
    deeper = {name: x for name, x in shallow.items() if not name.startswith("SSP.decoder.1.")}
    deeper |= {
        name.replace("TMD.resblocks.0.", "TMD.resblocks.1."): x
        for name, x in shallow.items()
        if name.startswith("TMD.")
    }
    model, objective = convert.from_reference(save(deeper), with_objective=True)
    assert model.config.temporal_depth == 2
    assert objective.prompt is not None
    assert len(objective.prompt.layers) == 1


# --- nothing is lost ---------------------------------------------------------------------------


def contents(tensors: dict[str, Tensor]) -> Counter[bytes]:
    return Counter(bytes(str(x.shape), "ascii") + x.numpy().tobytes() for x in tensors.values())


@pytest.mark.parametrize("neck", ["before", "after"])
@pytest.mark.parametrize("with_objective", [False, True])
def test_each_of_the_254_entries_is_converted_unchanged_or_listed_as_dropped(
    release, save, neck, with_objective
):
    converted = convert.from_reference(save(release), with_objective=with_objective, neck=neck)
    model, objective = converted if with_objective else (converted, None)
    dropped = model.config.provenance["dropped"].split(", ")
    assert set(dropped) <= set(release)
    kept = {name: x for name, x in release.items() if name not in dropped}
    found = contents(dict(model.state_dict()))
    if objective is not None:
        assert set(dropped) == DEAD
        found += contents(dict(objective.state_dict()))
        if neck == "after":  # these two are in both
            both = ("bottleneck.", "bottleneck_proj.")
            found -= contents({n: x for n, x in kept.items() if n.startswith(both)})
    assert len(release) == 254
    assert found == contents(kept)


def test_each_neck_is_that_of_its_own_feature(release, save):
    _, objective = convert.from_reference(save(release), with_objective=True)
    for ours, theirs in {
        "appearance": "bottleneck",
        "projected": "bottleneck_proj",
        "temporal": "bottleneck_proj_temp2",  # the clip's, by whatever name
        "frame": "bottleneck_proj_temp",
    }.items():
        neck = objective.necks[ours]
        for name, tensor in neck.state_dict().items():
            torch.testing.assert_close(tensor, release[f"{theirs}.{name}"], atol=0, rtol=0)
        assert neck.num_batches_tracked == 11
        assert neck.num_batches_tracked.dtype == torch.int64
        assert not neck.bias.requires_grad


def test_a_saved_conversion_loads_bit_for_bit(release, save, tmp_path):
    model = convert.from_reference(save(release), clip_length=4, neck="after")
    model.save_pretrained(tmp_path / "folder")
    loaded = TFCLIP.from_pretrained(tmp_path / "folder")
    assert loaded.config == model.config
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    torch.testing.assert_close(features(loaded), features(model), atol=0, rtol=0)


def test_provenance_names_the_file_and_its_hash_and_no_folder(shallow, save):
    path = save(shallow)
    provenance = convert.from_reference(path).config.provenance
    assert provenance["source"] == "best_model.pth.tar"
    assert provenance["sha256"] == convert.file_sha256(path)
    assert str(path.parent) not in "".join(provenance.values())
