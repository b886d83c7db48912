"""Training a tower: checkpointed gradients, frozen blocks, kept statistics."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.backbones.towers import FAMILIES, TIMM, build, codes, shared
from tfclip import TFCLIPConfig
from tfclip.backbones import build_backbone


@pytest.mark.parametrize("name", ["ViT-B-16", "RN50", *TIMM[:1], "timm:resnet50_clip.openai"])
def test_gradient_checkpointing_changes_no_gradient(name, frames):
    backbone = build(name).train()
    # Statistics of a batch move twice when a block runs twice; they do not reach the gradients.
    code = codes(backbone.width) if backbone.accepts_camera else None
    gradients = []
    for enable in (False, True):
        backbone.set_gradient_checkpointing(enable)
        backbone.zero_grad()
        tokens = backbone(frames, code)
        (backbone.project(tokens).square().mean() + tokens.square().mean()).backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 10
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_runs_blocks_twice_and_only_when_on(frames):
    backbone = build("RN50").train()
    runs: list[int] = []
    backbone.tower.layer2.register_forward_pre_hook(lambda *_: runs.append(1))
    for enable, expected in ((False, 1), (True, 2), (False, 1)):
        runs.clear()
        backbone.set_gradient_checkpointing(enable)
        backbone(frames).sum().backward()
        assert len(runs) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_freezing_everything_leaves_nothing_to_learn(name):
    backbone = copy.deepcopy(shared(name))
    backbone.freeze()
    assert not any(p.requires_grad for p in backbone.parameters())


FIRST_PARTS = {
    "ViT-B-16": ("class_embedding", "positional_embedding", "conv1", "ln_pre"),
    "RN50": ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
    "timm:vit_small_patch14_reg4_dinov2.lvd142m": (
        "cls_token",
        "reg_token",
        "pos_embed",
        "patch_embed",
    ),
    "timm:vit_pe_core_tiny_patch16_384.fb": ("cls_token", "pos_embed", "patch_embed", "norm_pre"),
    "timm:resnet50_clip.openai": ("stem",),
}
BLOCKS = {
    "ViT-B-16": ("transformer.resblocks.0", "transformer.resblocks.1"),
    "RN50": ("layer1", "layer2", "layer3", "layer4"),
    "timm:vit_small_patch14_reg4_dinov2.lvd142m": ("blocks.0", "blocks.1"),
    "timm:vit_pe_core_tiny_patch16_384.fb": ("blocks.0", "blocks.1"),
    "timm:resnet50_clip.openai": ("stages.0", "stages.1", "stages.2", "stages.3"),
}


@pytest.mark.parametrize("num_blocks", [0, 1, 2])
@pytest.mark.parametrize("name", FIRST_PARTS)
def test_freezing_the_first_blocks_leaves_all_others_learning(name, num_blocks):
    backbone = copy.deepcopy(shared(name))
    backbone.freeze(num_blocks)
    frozen = (*FIRST_PARTS[name], *BLOCKS[name][:num_blocks])
    expected = {
        parameter
        for parameter, _ in backbone.tower.named_parameters()
        if any(parameter == part or parameter.startswith(f"{part}.") for part in frozen)
    }
    assert {n for n, p in backbone.tower.named_parameters() if not p.requires_grad} == expected
    assert expected


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("resnet18", "conv1.weight"),
        ("swin_tiny_patch4_window7_224", "patch_embed.proj.weight"),
        ("efficientnet_b0", "conv_stem.weight"),
        ("convnext_atto", "stem.0.weight"),
    ],
)
def test_the_first_layer_of_any_timm_model_is_frozen_first(name, first):
    config = TFCLIPConfig(backbone=f"timm:{name}", frame_size=(64, 32))
    with torch.device("meta"):
        backbone = build_backbone(config)
    backbone.freeze(1)
    learning = {n: p.requires_grad for n, p in backbone.tower.named_parameters()}
    assert not learning[first]
    assert learning[list(learning)[-1]]


@pytest.mark.parametrize("num_blocks", [-1, 3])
def test_more_blocks_than_there_are_cannot_be_frozen(num_blocks):
    with pytest.raises(ValueError, match="num_blocks must be 0 to 2"):
        build("ViT-B-16").freeze(num_blocks)


@pytest.mark.parametrize("name", ["RN50", "timm:resnet50_clip.openai"])
@pytest.mark.parametrize("num_blocks", [1, None])
def test_frozen_batch_norms_keep_their_statistics_and_others_do_not(name, num_blocks, frames):
    backbone = copy.deepcopy(shared(name)).train()
    backbone.freeze(num_blocks)
    before = copy.deepcopy(backbone.state_dict())
    with torch.no_grad():
        backbone.train()(frames)
    moved = {
        n.removesuffix(".running_mean")
        for n, x in backbone.state_dict().items()
        if n.endswith("running_mean") and not torch.equal(x, before[n])
    }
    learning = {
        n.removesuffix(".weight") for n, p in backbone.named_parameters() if p.requires_grad
    }
    norms = {n.removesuffix(".running_mean") for n in before if n.endswith("running_mean")}
    assert moved == norms & learning
    assert bool(moved) == (num_blocks is not None)
    backbone.eval()
    assert not any(module.training for module in backbone.modules())
