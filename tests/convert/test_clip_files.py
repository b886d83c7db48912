"""CLIP's own files to towers of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.convert.checkpoint_files import CLIP_MEAN, CLIP_STD, TINY_CLIP, save_scripted, scripting
from tests.recorded import read_golden
from tfclip import TFCLIP, convert
from tfclip.backbones import CLIPResNet
from tfclip.errors import ConfigError, WeightsError


def write_clip(tensors: dict[str, Tensor], folder: Path, kind: str) -> Path:
    if kind == "safetensors":
        save_file(tensors, folder / "clip.safetensors")
        return folder / "clip.safetensors"
    if kind == "scripted":
        return save_scripted(tensors, folder / "ViT-B-16.pt")
    torch.save(tensors, folder / "clip.bin")
    return folder / "clip.bin"


@pytest.mark.parametrize("kind", ["scripted", "pickle", "safetensors"])
def test_a_clip_file_gives_its_image_tower_with_the_table_of_this_grid(clip, tmp_path, kind):
    path = write_clip(clip, tmp_path, kind)
    model = TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP)
    expected = {
        name.removeprefix("visual."): tensor.float()
        for name, tensor in clip.items()
        if name.startswith("visual.")
    }
    loaded = read_golden("clip_tiny_loaded")["image_encoder.positional_embedding"]
    tower = dict(model.backbone.tower.state_dict())
    torch.testing.assert_close(tower.pop("positional_embedding"), loaded, atol=1e-6, rtol=0)
    expected.pop("positional_embedding")
    torch.testing.assert_close(tower, expected, atol=0, rtol=0)
    assert model.backbone.grid == (16, 8)
    assert not model.training


def test_a_scripted_archive_reads_as_torch_reads_it(clip, tmp_path):
    path = save_scripted(clip, tmp_path / "clip.pt")
    with scripting():
        expected = torch.jit.load(str(path)).state_dict()
    torch.testing.assert_close(convert.read_checkpoint(path), dict(expected), atol=0, rtol=0)


def test_a_clip_as_an_encoder_says_what_is_untrained_and_leaves_it_out(clip, tmp_path):
    path = write_clip(clip, tmp_path, "scripted")
    model = TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP)
    assert model.config.descriptor == ("appearance", "projected")
    assert model.config.provenance["weights"] == "ViT-B-16, ViT-B-16.pt"
    assert "random" in model.config.provenance["temporal"]
    assert (model.config.mean, model.config.std) == (CLIP_MEAN, CLIP_STD)
    assert model.config.interpolation == "bicubic"
    pixels = {"mean": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
    model = TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP, **pixels)
    assert (model.config.mean, model.config.interpolation) == ((0.5, 0.5, 0.5), "bilinear")


def test_openais_files_tell_their_activation(clip, tmp_path):
    path = write_clip(clip, tmp_path, "pickle")
    model = TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP)
    assert model.config.activation == "quick_gelu"
    with pytest.raises(ConfigError, match="activation must be 'quick_gelu'"):
        TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP, activation="gelu")


def test_other_files_have_to_be_told_their_activation(clip, tmp_path):
    marks = ("input_resolution", "context_length", "vocab_size")
    path = write_clip({n: x for n, x in clip.items() if n not in marks}, tmp_path, "pickle")
    with pytest.raises(ConfigError, match="activation must be given"):
        TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP)
    for activation in ("gelu", "quick_gelu"):
        model = TFCLIP.from_clip(
            "ViT-B-16", path, backbone_options=TINY_CLIP, activation=activation
        )
        assert model.config.activation == activation


def test_a_tower_alone_is_a_clip_file_too(clip, tmp_path):
    visual = {n.removeprefix("visual."): x for n, x in clip.items() if n.startswith("visual.")}
    torch.save(visual, tmp_path / "tower.pt")
    assert convert.read_clip(tmp_path / "tower.pt").tensors.keys() == visual.keys()
    assert convert.read_clip(tmp_path / "tower.pt").activation is None


@pytest.mark.parametrize("content", [{"weight": torch.zeros(1)}, {"visual.proj": torch.zeros(1)}])
def test_a_file_without_image_tower_is_refused(save, content):
    with pytest.raises(WeightsError, match="has no image tower"):
        TFCLIP.from_clip("ViT-B-16", save(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"visual.proj": None}, "1 missing .*proj"),
        ({"visual.gate": torch.zeros(1)}, "1 unexpected .*gate"),
        ({"visual.proj": torch.zeros(64, 32)}, "1 of another shape .*proj"),
        ({"visual.positional_embedding": torch.zeros(8, 64)}, "position table has 8 rows"),
        ({"visual.positional_embedding": torch.zeros(1, 197, 64)}, "1 of another shape"),
    ],
)
def test_a_clip_that_does_not_fit_says_where(clip, save, changes, message):
    path = save({k: v for k, v in {**clip, **changes}.items() if v is not None})
    with pytest.raises(WeightsError, match=message):
        TFCLIP.from_clip("ViT-B-16", path, backbone_options=TINY_CLIP)


def test_the_clip_of_another_name_is_refused(clip, save):
    with pytest.raises(WeightsError, match="does not fit ModifiedResNet"):
        TFCLIP.from_clip("RN50", save(clip), backbone_options={"width": 2, "layers": [1, 1, 1, 1]})


def test_a_clip_resnet_loads_with_the_counters_of_its_batch_norms(save):
    options = {"layers": [1, 2, 1, 1], "width": 8, "heads": 4, "output_dim": 32}
    tensors = {
        # The fixture stores the counters with a dimension, which OpenAI does not.
        name.replace("image_encoder.", "visual."): tensor[0] if "num_b" in name else tensor
        for name, tensor in read_golden("rn50_state_dict").items()
    }
    model = TFCLIP.from_clip(
        "RN50",
        save({**tensors, "vocab_size": torch.tensor(49408)}),
        frame_size=(64, 32),
        backbone_options=options,
    )
    assert isinstance(model.backbone, CLIPResNet)
    counters = {n: x for n, x in tensors.items() if n.endswith("num_batches_tracked")}
    state = model.backbone.tower.state_dict()
    assert counters
    assert all(state[name.removeprefix("visual.")] == x for name, x in counters.items())
