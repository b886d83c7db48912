"""Weights by their tag in open_clip and timm."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.convert.checkpoint_files import CLIP_MEAN, TINY_CLIP, TINY_TIMM
from tfclip import TFCLIP, TFCLIPConfig, convert
from tfclip.backbones import build_backbone
from tfclip.errors import ConfigError, WeightsError

# --- open_clip's tags --------------------------------------------------------------------------


@pytest.fixture
def served(clip, tmp_path, monkeypatch) -> list[str]:
    """Answer every tag with the golden CLIP, and return the addresses asked for."""
    weights = {n: x for n, x in clip.items() if n.startswith("visual.")}
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    asked: list[str] = []

    def download(known: dict[str, Any]) -> str:
        asked.append(known["hf_hub"])
        return str(tmp_path / "open_clip_model.safetensors")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", download)
    return asked


@pytest.mark.parametrize(
    ("name", "tag", "activation"),
    [
        ("ViT-B-16", "openai", "quick_gelu"),
        ("ViT-B-16-quickgelu", "openai", "quick_gelu"),
        ("ViT-B-16", "laion2b_s34b_b88k", "gelu"),
        ("ViT-B-16", "dfn2b", "quick_gelu"),
        ("ViT-B-32", "laion400m_e32", "quick_gelu"),
        # The tag's record forgets what the name's sizes say.
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", "quick_gelu"),
    ],
)
def test_the_activation_follows_the_tag(served, name, tag, activation):
    options = {**TINY_CLIP, "patch_size": 16}
    model = TFCLIP.from_clip(name, tag, backbone_options=options)
    assert model.config.activation == activation
    assert model.config.provenance["weights"] == f"{name}, {tag}"
    assert len(served) == 1


def test_the_activation_of_every_tag_is_the_one_open_clip_has_a_name_for():
    """open_clip lists a tag of QuickGELU under a name of its own, which ends in -quickgelu."""
    tags = set(open_clip.list_pretrained())
    mistaken = {}
    for name, tag in tags:
        sizes = (open_clip.get_model_config(name) or {}).get("vision_cfg", {})
        if not sizes or "timm_model_name" in sizes:
            continue
        plain = name.removesuffix("-quickgelu")
        quick = (f"{plain}-quickgelu", tag) in tags
        found = convert._tag_settings(name, tag)[1]
        if found != ("quick_gelu" if quick else "gelu"):
            mistaken[name, tag] = found
    # The only name whose own sizes ask for QuickGELU without saying so.
    assert mistaken == {("roberta-ViT-B-32", "laion2b_s12b_b32k"): "quick_gelu"}


@pytest.mark.parametrize(
    ("name", "tag", "mean"),
    [("ViT-B-16", "openai", CLIP_MEAN), ("ViT-L-14", "laion2b_s32b_b82k", (0.5, 0.5, 0.5))],
)
def test_mean_and_interpolation_follow_the_tag(served, name, tag, mean):
    model = TFCLIP.from_clip(name, tag, backbone_options={**TINY_CLIP, "patch_size": 16})
    assert model.config.mean == mean
    assert model.config.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("name", "tag", "changes", "message"),
    [
        ("ViT-B-16", "openai", {"activation": "gelu"}, "activation must be 'quick_gelu'"),
        ("ViT-B-16", "laion2b_s34b_b88k", {"activation": "quick_gelu"}, "must be 'gelu'"),
        ("ViT-B-16", "opnai", {}, "tag of 'ViT-B-16', got 'opnai'; its tags are .*'openai'"),
        ("ViT-B-16", "absent.pt", {}, "must be a file or a tag"),
        ("ViT-B-17", "openai", {}, "'ViT-B-17' is unknown: .*'ViT-B-16'"),
        ("ViT-B-16-SigLIP", "webli", {}, "name it 'timm:vit_base_patch16_siglip_224'"),
        ("ViT-B-16", "openai", {"frame_size": (8, 8)}, "frame_size"),
        ("ViT-B-16", "openai", {"frames": 8}, "unexpected keyword|unknown config keys"),
    ],
)
def test_what_does_not_fit_a_tag_is_refused_before_anything_is_downloaded(
    served, name, tag, changes, message
):
    with pytest.raises((ConfigError, TypeError), match=message):
        TFCLIP.from_clip(name, tag, **{"backbone_options": TINY_CLIP, **changes})
    assert not served


@pytest.mark.parametrize("reason", [OSError("no route\nto host"), RuntimeError("checksum")])
def test_a_failed_download_is_one_sentence(monkeypatch, reason):
    def fail(_: Any) -> None:
        raise reason

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", fail)
    with pytest.raises(WeightsError, match="'openai' of 'ViT-B-16' could not be down") as error:
        TFCLIP.from_clip("ViT-B-16", "openai", backbone_options=TINY_CLIP)
    assert "\n" not in str(error.value)


# --- timm's tags -------------------------------------------------------------------------------


def serve_timm(monkeypatch: pytest.MonkeyPatch, name: str, **options: Any) -> dict[str, Tensor]:
    """Answer timm's next download with random weights of this model, and return them."""
    tower = timm.create_model(name, **{**TINY_TIMM, **options})
    for parameter in tower.parameters():
        nn.init.normal_(parameter)
    weights = dict(tower.state_dict())

    def load(*_: Any, **__: Any) -> dict[str, Tensor]:
        return dict(weights)

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    return weights


@pytest.mark.parametrize(
    ("name", "tag", "projected"),
    [
        ("vit_base_patch16_clip_quickgelu_224", "openai", 512),
        # The default tag of this name is tuned on labels, this one is not.
        ("vit_base_patch16_clip_224", "laion2b", 512),
        ("vit_base_patch16_clip_224", "laion2b_ft_in1k", 64),
        ("vit_small_patch14_reg4_dinov2", "lvd142m", 64),
        ("vit_tiny_patch16_224", "augreg_in21k", 64),
    ],
)
def test_a_timm_tag_gives_the_tower_of_its_weights(monkeypatch, tmp_path, name, tag, projected):
    weights = serve_timm(monkeypatch, f"{name}.{tag}", img_size=(64, 32))
    model = TFCLIP.from_clip(f"timm:{name}", tag, backbone_options=TINY_TIMM, frame_size=(64, 32))
    assert model.backbone.projected_width == projected
    known = timm.get_pretrained_cfg(f"{name}.{tag}")
    assert known is not None
    assert (model.config.mean, model.config.std) == (known.mean, known.std)
    state = model.backbone.tower.state_dict()
    if projected == 64:  # no projection, so a classifier of labels is dropped
        weights = {n: x for n, x in weights.items() if not n.startswith("head.")}
    torch.testing.assert_close(dict(state), weights, atol=0, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = TFCLIP.from_pretrained(tmp_path)
    frames = torch.randn(1, 2, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(frames), model(frames))


def test_timm_weights_that_lack_a_tensor_are_refused(monkeypatch):
    weights = serve_timm(monkeypatch, "vit_tiny_patch16_224.augreg_in21k", img_size=(64, 32))
    del weights["blocks.0.attn.qkv.weight"]
    with pytest.raises(WeightsError, match="could not be"):
        TFCLIP.from_clip(
            "timm:vit_tiny_patch16_224",
            "augreg_in21k",
            backbone_options=TINY_TIMM,
            frame_size=(64, 32),
        )


@pytest.mark.parametrize(
    ("name", "tag", "changes", "message"),
    [
        (
            "vit_base_patch16_clip_224",
            "openai",
            {},
            "trained with QuickGELU; name it 'timm:vit_base_patch16_clip_quickgelu_224'",
        ),
        ("vit_tiny_patch16_dinov2", "openai", {}, "is unknown.*'timm:vit_"),
        ("vit_small_patch14_reg4_dinov2", "openai", {}, r"its tags are \['lvd142m'\]"),
        ("vit_base_patch16_clip_224.laion2b", "openai", {}, "pretrained must be a tag of"),
        ("vit_small_patch14_reg4_dinov2", "lvd142m", {"activation": "gelu"}, "activation must"),
        (
            "vit_small_patch14_reg4_dinov2",
            "lvd142m",
            {"backbone_options": {"wings": 2}},
            "wings",
        ),
    ],
)
def test_what_does_not_fit_timm_is_refused_before_anything_is_downloaded(
    name, tag, changes, message
):
    with pytest.raises(ConfigError, match=message):
        TFCLIP.from_clip(f"timm:{name}", tag, **changes)


def test_a_tag_in_the_name_of_a_random_backbone_must_exist():
    with pytest.raises(ConfigError, match=r"its tags are \['lvd142m'\]"):
        build_backbone(TFCLIPConfig(backbone="timm:vit_small_patch14_reg4_dinov2.openai"))
