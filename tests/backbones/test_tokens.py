"""One layout of tokens for every tower."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.backbones.towers import FAMILIES, TIMM, VIT, WITH_CAMERAS, codes, shared
from tfclip import TFCLIPConfig
from tfclip.backbones import build_backbone


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_class_token_then_registers_then_patches(name, frames):
    _, num_registers, has_class_token, projected = FAMILIES[name]
    backbone = shared(name)
    rows, columns = backbone.grid
    with torch.inference_mode():
        tokens = backbone(frames)
        assert tokens.shape == (3, 1 + num_registers + rows * columns, backbone.width)
        assert backbone.project(tokens).shape == (*tokens.shape[:2], projected)
        assert backbone.project_class(tokens).shape == (3, projected)
    assert backbone.num_registers == num_registers
    assert backbone.has_class_token == has_class_token
    assert backbone.projected_width == projected
    assert backbone.accepts_camera == (name in WITH_CAMERAS)
    assert rows == 2 * columns


@pytest.mark.parametrize("name", FAMILIES)
def test_a_frames_tokens_do_not_depend_on_its_batch(name, frames):
    backbone = shared(name)
    code = codes(backbone.width) if backbone.accepts_camera else None
    with torch.inference_mode():
        together = backbone(frames, code)
        alone = torch.cat(
            [
                backbone(frames[i : i + 1], None if code is None else code[i : i + 1])
                for i in (0, 1, 2)
            ]
        )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_patch_token_stands_for_its_place_in_row_major_order(name):
    """A change in one place of a frame moves the token of that place most."""
    backbone = shared(name)
    rows, columns = backbone.grid
    side = 14 if "patch14" in name else 64 // rows
    blank = torch.zeros(1, 3, 64, 32)
    with torch.inference_mode():
        base = backbone(blank)
        for row, column in ((0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)):
            frame = blank.clone()
            frame[..., row * side : (row + 1) * side, column * side : (column + 1) * side] = 3
            moved = (backbone(frame) - base)[0, 1 + backbone.num_registers :].norm(dim=-1)
            assert moved.argmax() == row * columns + column


@pytest.mark.parametrize("name", TIMM)
def test_token_zero_is_what_timm_reads_out(name, frames):
    backbone = shared(name)
    tower = backbone.tower
    with torch.inference_mode():
        features = tower.forward_features(frames)
        tokens = backbone(frames)
        if "dinov3" in name:  # timm averages the patches; the class token is what was trained
            expected = features[:, 0]
        else:
            expected = tower.forward_head(features, pre_logits=True)
            torch.testing.assert_close(backbone.project_class(tokens), tower(frames))
    torch.testing.assert_close(tokens[:, 0], expected)
    if features.ndim == 4:
        features = features.flatten(2).transpose(1, 2)
    own = features if backbone.has_class_token else torch.cat([expected[:, None], features], 1)
    torch.testing.assert_close(tokens, own, atol=0, rtol=0)


OTHERS: dict[str, dict[str, Any]] = {
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)},
    "swin_tiny_patch4_window7_224": {
        "depths": (1, 1, 1, 1),
        "embed_dim": 32,
        "num_heads": (1, 1, 2, 2),
    },
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 16, 32, 64)},
    "vit_tiny_patch16_224": VIT,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_timm_models_give_their_pooled_vector_and_the_places_of_their_map(name, frames):
    config = TFCLIPConfig(
        backbone=f"timm:{name}", backbone_options=OTHERS[name], frame_size=(64, 32)
    )
    torch.manual_seed(0)
    backbone: Any = build_backbone(config).eval()
    with torch.inference_mode():
        tokens = backbone(frames)
        expected = backbone.tower(frames)
    torch.testing.assert_close(tokens[:, 0], expected)
    rows, columns = backbone.grid
    assert tokens.shape == (3, 1 + rows * columns, backbone.width)
    if not backbone.has_class_token and "convnext" not in name:  # which norms after it pools
        torch.testing.assert_close(tokens[:, 1:].mean(1), expected)


@pytest.mark.parametrize(
    ("name", "projected"),
    [
        ("vit_base_patch16_clip_224", 512),  # by default its tag is tuned on labels
        ("vit_base_patch16_clip_224.laion2b_ft_in1k", 64),
        ("vit_tiny_patch16_224", 64),
        ("vit_tiny_patch16_224.augreg_in21k", 64),
    ],
)
def test_a_last_layer_of_labels_is_no_projection(name, projected):
    config = TFCLIPConfig(backbone=f"timm:{name}", backbone_options=VIT, frame_size=(64, 32))
    assert build_backbone(config).projected_width == projected
