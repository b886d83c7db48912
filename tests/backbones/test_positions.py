"""Position tables, grids and strides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.backbones.towers import TIMM, build, read_single
from tfclip.backbones import patch_grid, resize_position_table
from tfclip.errors import ConfigError, WeightsError


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


@pytest.mark.parametrize("source", [14, 7])
@pytest.mark.parametrize("grid", [(16, 8), (21, 10), (4, 2), (14, 14)])
def test_position_tables_are_resized_as_the_reference_resizes_them(source, grid):
    recorded = read_single("pos_embed")
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
