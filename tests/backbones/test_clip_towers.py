"""CLIP's transformer and ResNet: the reference's numbers, and open_clip's own."""

from __future__ import annotations

import copy

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from tests.backbones.towers import TINY_CLIP, TINY_RESNET, TOLERANCE, VIT, build, codes, read_single
from tfclip import TFCLIPConfig
from tfclip.attention import QuickGELU
from tfclip.backbones import CLIPResNet, CLIPVisionTransformer, build_backbone

# --- the reference's transformer -------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> CLIPVisionTransformer:
    """The recorded encoder, its entries loaded as they are."""
    config = TFCLIPConfig(
        backbone_options={"width": 128, "output_dim": 64, "heads": 2}, frame_size=(64, 32)
    )
    backbone = build_backbone(config)
    weights = read_single("state_dict")
    prefix = "image_encoder."
    tower = {n.removeprefix(prefix): x for n, x in weights.items() if n.startswith(prefix)}
    backbone.tower.load_state_dict(tower, strict=True)
    assert isinstance(backbone, CLIPVisionTransformer)
    return backbone.eval()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cameras", [True, False])
def test_tokens_and_projected_tokens_are_the_references(reference, cameras, training):
    inputs, recorded = read_single("inputs"), read_single("eval_outputs")
    code = read_single("state_dict")["cv_embed"][inputs["cam_label"]].repeat_interleave(4, 0)
    reference.train(training)  # torch's fast path is for inference only
    with torch.set_grad_enabled(training):
        tokens = reference(inputs["frames"].flatten(0, 1), code if cameras else None)
    suffix = "" if cameras else "_nocam"
    torch.testing.assert_close(tokens, recorded[f"encoder_tokens{suffix}"], **TOLERANCE)
    projected = reference.project(tokens)
    torch.testing.assert_close(projected, recorded[f"encoder_tokens_proj{suffix}"], **TOLERANCE)
    torch.testing.assert_close(reference.project_class(tokens), projected[:, 0])


@pytest.mark.parametrize(("activation", "layer"), [("quick_gelu", QuickGELU), ("gelu", nn.GELU)])
def test_the_activation_of_the_config_is_in_every_block(activation, layer):
    backbone = build("ViT-B-16", activation=activation)
    used = [type(m) for m in backbone.modules() if isinstance(m, (QuickGELU, nn.GELU))]
    assert used == [layer] * 2


def test_a_square_clip_without_camera_is_open_clips_own(frames):
    backbone = build("ViT-B-16", frame_size=(64, 64), activation="gelu")
    square = F.pad(frames, (0, 32))
    own = copy.deepcopy(backbone.tower)
    torch.testing.assert_close(backbone.project_class(backbone(square)), own(square))


@pytest.mark.parametrize("final_norm_after_pool", [False, True])
def test_a_clip_without_class_token_pools_as_open_clip_does(frames, final_norm_after_pool):
    backbone = build("ViT-L-14-CLIPA")
    backbone.tower.final_ln_after_pool = final_norm_after_pool
    tokens = backbone(frames)
    torch.testing.assert_close(backbone.project_class(tokens), backbone.tower(frames))


@pytest.mark.parametrize("stride", [12, 5])
def test_overlapping_patches_are_each_patch_cut_out_by_hand(frames, stride):
    backbone = build("ViT-B-16", stride=stride)
    tower = backbone.tower
    rows, columns = (64 - 16) // stride + 1, (32 - 16) // stride + 1
    assert backbone.grid == (rows, columns)
    patches = [
        frames[:, :, y : y + 16, x : x + 16].flatten(1) @ tower.conv1.weight.flatten(1).T
        for y in range(0, stride * rows, stride)
        for x in range(0, stride * columns, stride)
    ]
    class_token = tower.class_embedding.expand(len(frames), -1)
    tokens = torch.stack([class_token, *patches], dim=1) + tower.positional_embedding
    expected = tower.ln_post(tower.transformer(tower.ln_pre(tokens)))
    torch.testing.assert_close(backbone(frames), expected, atol=1e-5, rtol=1e-5)


def test_overlapping_patches_of_a_timm_tower_are_those_of_the_same_clip(frames):
    """timm's transformer with CLIP's weights is CLIP's."""
    options = {**TINY_CLIP, "heads": 2}
    clip = build("ViT-B-16", stride=12, backbone_options=options)
    name = "timm:vit_base_patch16_clip_quickgelu_224.openai"
    timm = build(name, stride=12, backbone_options={**VIT, "num_classes": 32})
    assert timm.grid == clip.grid == (5, 2)
    theirs = clip.tower
    timm.tower.load_state_dict(
        {
            "cls_token": theirs.class_embedding[None, None],
            "pos_embed": theirs.positional_embedding[None],
            "patch_embed.proj.weight": theirs.conv1.weight,
            "head.weight": theirs.proj.T,
            "head.bias": torch.zeros(32),
            **{f"norm_pre.{n}": x for n, x in theirs.ln_pre.state_dict().items()},
            **{f"norm.{n}": x for n, x in theirs.ln_post.state_dict().items()},
            **{
                f"blocks.{n}".replace("attn.in_proj_", "attn.qkv.")
                .replace("attn.out_proj", "attn.proj")
                .replace("ln_", "norm")
                .replace("c_fc", "fc1")
                .replace("c_proj", "fc2"): x
                for n, x in theirs.transformer.resblocks.state_dict().items()
            },
        }
    )
    code = codes(64)
    tokens = clip(frames, code)
    torch.testing.assert_close(timm(frames, code), tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(timm.project(tokens), clip.project(tokens), atol=1e-5, rtol=1e-5)


# --- the reference's ResNet ------------------------------------------------------------------


@pytest.fixture
def resnet() -> CLIPResNet:
    config = TFCLIPConfig(backbone="RN50", backbone_options=TINY_RESNET, frame_size=(64, 32))
    backbone = build_backbone(config)
    weights = read_single("rn50_state_dict")
    tower = {n.removeprefix("image_encoder."): x for n, x in weights.items()}
    backbone.tower.load_state_dict(tower, strict=True)
    assert isinstance(backbone, CLIPResNet)
    return backbone


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_resnet_gives_the_references_map_and_projected_tokens(resnet, mode):
    recorded = read_single("rn50_io")
    tokens = resnet.train(mode == "train")(recorded["images"])
    features = rearrange(tokens[:, 1:], "m (h w) d -> m d h w", h=4)
    torch.testing.assert_close(features, recorded[f"{mode}.x4"], **TOLERANCE)
    torch.testing.assert_close(tokens[:, 0], features.mean((2, 3)), **TOLERANCE)
    projected = rearrange(recorded[f"{mode}.xproj"], "n m e -> m n e")
    torch.testing.assert_close(resnet.project(tokens), projected, **TOLERANCE)
    torch.testing.assert_close(resnet.project_class(tokens), projected[:, 0], **TOLERANCE)


def test_the_resnets_running_statistics_move_as_the_references(resnet):
    recorded = read_single("rn50_io")
    resnet.train()(recorded["images"])
    state = resnet.tower.state_dict()
    prefix = "train.after.image_encoder."
    after = {n.removeprefix(prefix): x for n, x in recorded.items() if n.startswith(prefix)}
    assert after
    for name, expected in after.items():
        torch.testing.assert_close(state[name], expected, atol=1e-6, rtol=0)


def test_the_resnets_projection_takes_any_leading_dimensions(resnet):
    tokens = torch.randn(2, 3, 9, 256)
    each = torch.stack([resnet.project(clip) for clip in tokens])
    torch.testing.assert_close(resnet.project(tokens), each)
