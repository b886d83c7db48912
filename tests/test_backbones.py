"""Image towers: the reference's numbers, each library's own, and one layout of tokens for all."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from tfclip import TFCLIP, TFCLIPConfig, TFCLIPObjective
from tfclip.attention import QuickGELU
from tfclip.backbones import (
    Backbone,
    CLIPResNet,
    CLIPVisionTransformer,
    TimmBackbone,
    build_backbone,
    patch_grid,
    resize_position_table,
)
from tfclip.errors import ConfigError, WeightsError

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"atol": 5e-5, "rtol": 0}

VIT = {"embed_dim": 64, "depth": 2, "num_heads": 2}
TINY_RESNET = {"layers": [1, 2, 1, 1], "width": 8, "heads": 4, "output_dim": 32}
TINY_CLIP = {"width": 64, "layers": 2, "output_dim": 32}

# One of each family, small: options, prefix tokens that are no class token, whether a class token
# goes through the tower, and width of the projection.
FAMILIES: dict[str, tuple[dict[str, Any], int, bool, int]] = {
    "ViT-B-16": (TINY_CLIP, 0, True, 32),
    "ViT-L-14-CLIPA": ({**TINY_CLIP, "patch_size": 16}, 0, False, 32),
    "RN50": (TINY_RESNET, 0, False, 32),
    "timm:vit_base_patch16_clip_quickgelu_224.openai": (VIT, 0, True, 512),
    "timm:vit_base_patch16_siglip_256.v2_webli": (VIT, 0, False, 64),
    "timm:vit_small_patch14_reg4_dinov2.lvd142m": (VIT, 4, True, 64),
    "timm:vit_small_patch16_dinov3.lvd1689m": (VIT, 4, True, 64),
    "timm:eva02_base_patch16_clip_224.merged2b": (VIT, 0, True, 512),
    "timm:vit_pe_core_tiny_patch16_384.fb": (VIT, 1, False, 512),
    "timm:resnet50_clip.openai": ({"width_factor": 0.125}, 0, False, 1024),
}
WITH_CAMERAS = [name for name in FAMILIES if name not in ("RN50", "timm:resnet50_clip.openai")]
TIMM = [name for name in FAMILIES if name.startswith("timm:")]


def read_golden(name: str) -> dict[str, Tensor]:
    return {
        key: x.float() if x.is_floating_point() else x.squeeze()
        for key, x in load_file(GOLDEN / f"{name}.safetensors").items()
    }


def config_of(name: str, **changes: Any) -> TFCLIPConfig:
    return TFCLIPConfig(
        **{
            "backbone": name,
            "backbone_options": FAMILIES[name][0],
            "frame_size": (64, 32),
            "num_cameras": 3 if name in WITH_CAMERAS else 0,
            **changes,
        }
    )


def build(name: str, **changes: Any) -> Any:
    """A tower whose every parameter is random, so that none hides behind a zero."""
    torch.manual_seed(0)
    backbone = build_backbone(config_of(name, **changes)).eval()
    for parameter in backbone.parameters():
        if parameter.ndim < 2 or parameter.abs().sum() == 0:
            nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.2)
    return backbone


@cache
def shared(name: str) -> Any:
    """The same, built once; not to be changed."""
    return build(name)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(1))


def codes(width: int, count: int = 3) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(2))


# --- the reference's transformer -------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> CLIPVisionTransformer:
    """The recorded encoder, its entries loaded as they are."""
    config = TFCLIPConfig(
        backbone_options={"width": 128, "output_dim": 64, "heads": 2}, frame_size=(64, 32)
    )
    backbone = build_backbone(config)
    weights = read_golden("state_dict")
    prefix = "image_encoder."
    tower = {n.removeprefix(prefix): x for n, x in weights.items() if n.startswith(prefix)}
    backbone.tower.load_state_dict(tower, strict=True)
    assert isinstance(backbone, CLIPVisionTransformer)
    return backbone.eval()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cameras", [True, False])
def test_tokens_and_projected_tokens_are_the_references(reference, cameras, training):
    inputs, recorded = read_golden("inputs"), read_golden("eval_outputs")
    code = read_golden("state_dict")["cv_embed"][inputs["cam_label"]].repeat_interleave(4, 0)
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


@pytest.mark.parametrize("name", TIMM)
def test_timm_towers_with_a_plain_position_table_take_a_stride_and_others_refuse(name, frames):
    if "_clip_quickgelu_" not in name and "siglip" not in name and "dinov2" not in name:
        with pytest.raises(ConfigError, match="stride must be None"):
            build(name, stride=10)
        return
    backbone = build(name, stride=10)
    patch = 14 if "patch14" in name else 16
    assert backbone.grid == ((64 - patch) // 10 + 1, (32 - patch) // 10 + 1)
    rows, columns = backbone.grid
    assert backbone(frames).shape[1] == 1 + backbone.num_registers + rows * columns


# --- the position table ----------------------------------------------------------------------


@pytest.mark.parametrize("source", [14, 7])
@pytest.mark.parametrize("grid", [(16, 8), (21, 10), (4, 2), (14, 14)])
def test_position_tables_are_resized_as_the_reference_resizes_them(source, grid):
    recorded = read_golden("pos_embed")
    resized = resize_position_table(recorded[f"clip_{source}x{source}"], grid)
    expected = recorded[f"from{source}_to_{grid[0]}x{grid[1]}"]
    torch.testing.assert_close(resized, expected, atol=1e-6, rtol=0)


def test_a_table_of_the_right_grid_is_left_as_it_is():
    for table, grid in ((torch.randn(129, 8), (16, 8)), (torch.randn(197, 8), (14, 14))):
        for method in ("bilinear", "bicubic"):
            assert resize_position_table(table, grid, method) is table


def test_a_square_table_is_resized_even_to_a_grid_with_as_many_patches():
    table = torch.randn(145, 8)  # 12 x 12, and 18 x 8 as well
    resized = resize_position_table(table, (18, 8))
    assert resized.shape == table.shape
    assert not torch.equal(resized, table)


@pytest.mark.parametrize("grid", [(16, 8), (21, 10), (4, 2)])
def test_bicubic_resizing_is_open_clips(grid):
    from open_clip.model import resize_pos_embed

    table = torch.randn(197, 8)
    theirs = {"visual.positional_embedding": table.clone()}
    model = nn.Module()
    model.visual = nn.Module()
    model.visual.grid_size = grid  # type: ignore[assignment]
    resize_pos_embed(theirs, model)
    ours = resize_position_table(table, grid, "bicubic")
    torch.testing.assert_close(ours, theirs["visual.positional_embedding"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [0, 1, 8])
def test_a_table_of_no_known_grid_is_refused(rows):
    with pytest.raises(WeightsError, match=f"position table has {rows} rows"):
        resize_position_table(torch.zeros(rows, 4), (16, 8))


@pytest.mark.parametrize(
    ("frame_size", "patch", "stride", "grid"),
    [((256, 128), 16, 16, (16, 8)), ((256, 128), 16, 12, (21, 10)), ((224, 224), 14, 14, (16, 16))],
)
def test_the_grid_counts_the_patches_that_fit(frame_size, patch, stride, grid):
    assert patch_grid(frame_size, patch, stride) == grid


# --- the reference's ResNet ------------------------------------------------------------------


@pytest.fixture
def resnet() -> CLIPResNet:
    config = TFCLIPConfig(backbone="RN50", backbone_options=TINY_RESNET, frame_size=(64, 32))
    backbone = build_backbone(config)
    weights = read_golden("rn50_state_dict")
    tower = {n.removeprefix("image_encoder."): x for n, x in weights.items()}
    backbone.tower.load_state_dict(tower, strict=True)
    assert isinstance(backbone, CLIPResNet)
    return backbone


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_resnet_gives_the_references_map_and_projected_tokens(resnet, mode):
    recorded = read_golden("rn50_io")
    tokens = resnet.train(mode == "train")(recorded["images"])
    features = rearrange(tokens[:, 1:], "m (h w) d -> m d h w", h=4)
    torch.testing.assert_close(features, recorded[f"{mode}.x4"], **TOLERANCE)
    torch.testing.assert_close(tokens[:, 0], features.mean((2, 3)), **TOLERANCE)
    projected = rearrange(recorded[f"{mode}.xproj"], "n m e -> m n e")
    torch.testing.assert_close(resnet.project(tokens), projected, **TOLERANCE)
    torch.testing.assert_close(resnet.project_class(tokens), projected[:, 0], **TOLERANCE)


def test_the_resnets_running_statistics_move_as_the_references(resnet):
    recorded = read_golden("rn50_io")
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


# --- one layout for all ----------------------------------------------------------------------


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


# --- cameras ---------------------------------------------------------------------------------


def first_input(backbone: Any, run: Callable[[], Any]) -> Tensor:
    """Return the tokens that enter the first block."""
    tower = backbone.tower
    block = tower.transformer.resblocks[0] if hasattr(tower, "transformer") else tower.blocks[0]
    seen: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        run()
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", WITH_CAMERAS)
def test_the_camera_enters_by_the_class_token_alone_where_there_is_one(name, frames):
    backbone = shared(name)
    code = codes(backbone.width)
    without = first_input(backbone, lambda: backbone(frames))
    changed = (first_input(backbone, lambda: backbone(frames, code)) - without).abs().amax(-1) > 0
    if backbone.has_class_token:
        assert changed[:, 0].all()
        assert not changed[:, 1:].any()
    else:
        own_class_token = hasattr(backbone.tower, "class_embedding")
        assert changed[:, int(own_class_token) :].all()
    with torch.inference_mode():
        difference = backbone(frames, code) - backbone(frames)
    assert (difference.abs().amax(-1) > 1e-6).all()  # it reaches every token of the output


@pytest.mark.parametrize("name", [n for n in WITH_CAMERAS if FAMILIES[n][2]])
def test_a_camera_is_a_shift_of_the_class_embedding(name, frames):
    backbone = build(name)
    code = codes(backbone.width, 1)
    with torch.inference_mode():
        expected = backbone(frames, code.expand(3, -1))
        tower = backbone.tower
        embedding = tower.class_embedding if hasattr(tower, "class_embedding") else tower.cls_token
        embedding += code.reshape(-1).view_as(embedding)
        torch.testing.assert_close(backbone(frames), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in WITH_CAMERAS if not FAMILIES[n][2]])
def test_without_class_token_a_camera_is_a_shift_of_every_place(name, frames):
    backbone = build(name)
    code = codes(backbone.width, 1)
    with torch.inference_mode():
        expected = backbone(frames, code.expand(3, -1))
        tower = backbone.tower
        clip = hasattr(tower, "positional_embedding")
        table = tower.positional_embedding[1:] if clip else tower.pos_embed
        table += code
        torch.testing.assert_close(backbone(frames), expected, atol=1e-5, rtol=1e-5)


def wait(barrier: threading.Barrier) -> None:
    barrier.wait()


@pytest.mark.parametrize("name", [n for n in WITH_CAMERAS if n in TIMM][:1])
def test_cameras_of_two_threads_do_not_mix(name, frames):
    backbone = build(name)
    code = codes(backbone.width)
    with torch.inference_mode():
        expected = [backbone(frames, code), backbone(frames), backbone(frames, -code)]
    together = threading.Barrier(3, timeout=60)  # all are inside of the tower at once
    backbone.tower.patch_embed.register_forward_hook(lambda *_: wait(together))

    def run(code: Tensor | None) -> Tensor:
        with torch.inference_mode():
            return backbone(frames, code)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, [code, None, -code]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", WITH_CAMERAS)
def test_the_camera_vector_learns(name, frames):
    backbone = shared(name)
    code = codes(backbone.width).requires_grad_()
    backbone(frames, code)[:, 1 + backbone.num_registers :].square().sum().backward()
    assert code.grad is not None
    assert (code.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(WITH_CAMERAS)))
def test_cameras_are_refused_where_no_token_can_take_them(name):
    with pytest.raises(ConfigError, match="num_cameras must be 0"):
        build(name, num_cameras=2)


# --- training --------------------------------------------------------------------------------


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


def test_a_backbone_is_what_its_base_class_says():
    for name in FAMILIES:
        assert isinstance(shared(name), Backbone)
    assert isinstance(shared(TIMM[0]), TimmBackbone)
