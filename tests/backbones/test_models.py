"""A whole model over each tower, and what cannot be built."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch

from tests.backbones.towers import FAMILIES, TIMM, VIT, build, config_of, shared
from tfclip import TFCLIP, TFCLIPConfig, TFCLIPObjective
from tfclip.backbones import build_backbone
from tfclip.errors import ConfigError

# --- a whole model over each -----------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_over_any_tower_embeds_and_learns(name, frames):
    config = config_of(name, temporal_heads=2, clip_length=2)
    torch.manual_seed(0)
    model = TFCLIP(config)
    model.backbone = copy.deepcopy(shared(name))
    model.train()
    clips = torch.randn(4, 2, 3, 64, 32)
    output = model(clips, torch.tensor([0, 1, 2, -1]) if config.num_cameras else None)
    width, projected = model.backbone.width, model.backbone.projected_width
    assert output.embedding.shape == (4, 2 * width + projected) == (4, model.embedding_dim)
    objective = TFCLIPObjective(config, 3, torch.randn(3, projected))
    losses = objective(output, torch.tensor([0, 0, 2, 2]))
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(p.grad is not None for p in model.temporal.parameters())
    patches = next(p for p in model.backbone.tower.parameters() if p.ndim == 4)  # the first layer
    assert patches.grad is not None
    assert patches.grad.abs().max() > 0


@pytest.mark.parametrize("name", [n for n, family in FAMILIES.items() if family[1]])
def test_registers_never_enter_an_embedding(name, frames):
    torch.manual_seed(0)
    model = TFCLIP(config_of(name)).eval()
    registers = slice(1, 1 + model.backbone.num_registers)
    with torch.inference_mode():
        tokens = model.backbone(frames)[None]
        output = model.describe(tokens)
        tokens[:, :, registers] = torch.nan
        changed = model.describe(tokens)
    torch.testing.assert_close(tuple(changed), tuple(output), atol=0, rtol=0)
    places = 1 + model.backbone.grid[0] * model.backbone.grid[1]
    assert output.projected_tokens.shape[1] == places


def test_a_resnet_encodes_tracklets_end_to_end():
    torch.manual_seed(0)
    model = TFCLIP(config_of("RN50", clip_length=4)).eval()
    tracklet = torch.randint(0, 256, (6, 3, 64, 32), dtype=torch.uint8)
    embedding = model.encode_sequence(tracklet)
    assert embedding.shape == (256 + 32 + 256,)
    torch.testing.assert_close(embedding.norm(), torch.tensor(1.0))
    assert not torch.allclose(embedding, model.encode_sequence(255 - tracklet), atol=1e-3)


def test_a_resnet_projects_each_frame_before_it_averages_them(frames):
    """Its attention pool is not linear, so the order matters."""
    model = TFCLIP(config_of("RN50")).eval()
    model.backbone = shared("RN50")
    with torch.inference_mode():
        tokens = model.backbone(frames)
        projected_tokens = model.describe(tokens[None]).projected_tokens
    torch.testing.assert_close(projected_tokens[0], model.backbone.project(tokens).mean(0))


# --- names and sizes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-17", "is unknown: .*'ViT-B-16'"),
        ("timm:vit_base_patch16_clip_225", "is unknown: .*'timm:vit_base_patch16_clip_224'"),
        ("timm:", "is unknown"),
        ("hf-hub:someone/somewhat", "is unknown"),
        ("local-dir:/tmp", "is unknown"),
        ("timm:hf-hub:someone/somewhat", "is unknown"),
        ("ViT-B-16-SigLIP2", "name it 'timm:vit_base_patch16_siglip_224'"),
        ("coca_ViT-B-32", "pools by attention"),
        ("timm:hiera_tiny_224", "neither tokens of a grid of patches nor a map"),
    ],
)
def test_a_backbone_that_cannot_be_built_is_refused_by_name(name, message):
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        build_backbone(TFCLIPConfig(backbone=name, frame_size=(64, 32)))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ViT-B-16", {"backbone_options": {"depth": 2}}, r"\['depth'\] are unknown"),
        ("ViT-B-16", {"backbone_options": {"layers": 0}}, "layers must be a positive whole"),
        ("ViT-B-16", {"backbone_options": {"layers": [2, 2, 2, 2]}}, "layers must be a positive"),
        ("ViT-B-16", {"backbone_options": {"width": "wide"}}, "width must be a positive whole"),
        ("ViT-B-16", {"backbone_options": {"mlp_ratio": -1.0}}, "mlp_ratio must be a positive"),
        ("ViT-B-16", {"backbone_options": {"width": 64, "heads": 3}}, "heads must divide"),
        ("ViT-B-16", {"frame_size": (8, 128)}, "frame_size must be at least one patch"),
        ("ViT-B-16", {"stride": 17}, "stride must be at most the patch size 16, got 17"),
        ("RN50", {"backbone_options": {"layers": 2}}, "layers must be four positive whole"),
        ("RN50", {"backbone_options": {"layers": [1, 1, 1]}}, "layers must be four positive"),
        ("RN50", {"backbone_options": {"patch_size": 16}}, r"\['patch_size'\] are unknown"),
        ("RN50", {"backbone_options": {"heads": 7}}, "heads must divide"),
        ("RN50", {"frame_size": (100, 50)}, "multiples of 16"),
        ("RN50", {"stride": 12}, "stride 16"),
        (TIMM[0], {"backbone_options": {"wings": 2}}, "cannot be built with .*wings"),
        (TIMM[0], {"backbone_options": {**VIT, "num_heads": 3}}, "cannot be built with"),
        (TIMM[0], {"frame_size": (8, 8)}, r"cannot encode frames of \(8, 8\)"),
        ("timm:resnet50_clip.openai", {"backbone_options": {"wings": 2}}, "cannot be built"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_a_sentence(name, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        build(name, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_tower_can_be_built_without_storage_and_saved_and_loaded(name, tmp_path, frames):
    config = config_of(name)
    torch.manual_seed(0)
    model = TFCLIP(config).eval()
    with torch.device("meta"):
        shapes = {n: x.shape for n, x in TFCLIP(config).state_dict().items()}
    assert shapes == {n: x.shape for n, x in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    loaded = TFCLIP.from_pretrained(tmp_path)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(frames[None]).embedding, model(frames[None]).embedding)


def test_every_image_transformer_and_resnet_of_open_clip_can_be_built():
    built = []
    for name in open_clip.list_models():
        sizes = (open_clip.get_model_config(name) or {})["vision_cfg"]
        if "timm_model_name" in sizes or sizes.get("attentional_pool"):
            continue
        options = {"output_dim": 8, "width": 64, "layers": 1, "heads": 1}
        if isinstance(sizes["layers"], list):
            options = {"output_dim": 8, "width": 2, "layers": [1] * 4, "heads": 1}
        config = TFCLIPConfig(backbone=name, backbone_options=options)
        with torch.device("meta"):
            built.append(build_backbone(config))
    assert len(built) > 50
