"""The temporal heads: what each computes, and what all have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tfclip import TFCLIPConfig
from tfclip.errors import ConfigError
from tfclip.temporal import build_temporal_head

HEADS = ("tmd", "tmc", "average", "convolution", "transformer", "transformer_token")


def head_of(name, **changes):
    torch.manual_seed(0)
    config = TFCLIPConfig(temporal_head=name, clip_length=4, **changes)
    return build_temporal_head(config, dim=64, projected_dim=32).eval()


@pytest.fixture
def tokens():
    return torch.randn(2, 4, 9, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def projected():
    return torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", HEADS)
def test_every_head_gives_one_feature_of_its_width_per_frame(name, tokens, projected):
    head = head_of(name)
    assert head(tokens, projected).shape == (2, 4, head.width)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "average"])  # it has none
def test_every_parameter_of_a_head_learns(name, tokens, projected):
    head = head_of(name).train()
    head(tokens, projected).square().sum().backward()
    unreached = [n for n, p in head.named_parameters() if p.grad is None]
    assert unreached == []


@pytest.mark.parametrize("name", HEADS)
def test_order_free_heads_and_no_others_see_a_set(name, tokens, projected):
    head = head_of(name)
    with torch.inference_mode():
        straight = head(tokens, projected).mean(1)
        reverse = head(tokens.flip(1), projected.flip(1)).mean(1)
    assert torch.allclose(straight, reverse, atol=1e-5) is head.order_free


@pytest.mark.parametrize("name", ["tmd", "tmc"])
@pytest.mark.parametrize("position", [False, True])
def test_reading_in_pieces_changes_nothing(name, position, tokens, projected):
    head = head_of(name, temporal_position=position)
    weights = torch.tensor([1.0, 2.0, 1.0, 3.0])
    with torch.inference_mode():
        whole = head(tokens[:1], projected[:1], weights[None])[0]
        for size in (1, 3):
            pieces = head.stream(lambda size=size: iter(tokens[0].split(size)), weights)
            torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)


def test_deeper_diffusion_is_read_in_pieces_too(tokens, projected):
    head = head_of("tmd", temporal_depth=3)
    with torch.inference_mode():
        pieces = head.stream(lambda: iter(tokens[0].split(3)), torch.ones(4))
        torch.testing.assert_close(pieces, head(tokens[:1], projected[:1])[0], atol=1e-5, rtol=0)


def test_average_is_the_projected_class_token(tokens, projected):
    torch.testing.assert_close(head_of("average")(tokens, projected), projected)


def test_convolution_starts_as_a_shift_of_two_quarters_of_the_channels(tokens, projected):
    shifted = head_of("convolution")(tokens, projected) - projected
    zero = torch.zeros(2, 1, 8)
    torch.testing.assert_close(shifted[..., :8], torch.cat([projected[:, 1:, :8], zero], 1))
    torch.testing.assert_close(shifted[..., 8:24], projected[..., 8:24])
    torch.testing.assert_close(shifted[..., 24:], torch.cat([zero, projected[:, :-1, 24:]], 1))


def test_transf_adds_frames_to_what_its_blocks_make_of_them_and_their_places(tokens, projected):
    head: Any = head_of("transformer")
    places = head.positions[: projected.shape[1]]
    x = projected + places
    for block in head.blocks:
        attention = nn.MultiheadAttention(32, block.attention.num_heads, batch_first=True)
        attention.in_proj_weight = block.attention.input_projection.weight
        attention.in_proj_bias = block.attention.input_projection.bias
        attention.out_proj = block.attention.output_projection
        normed = block.attention_norm(x)
        x = x + attention(normed, normed, normed)[0]
        x = x + block.mlp(block.mlp_norm(x))
    torch.testing.assert_close(head(tokens, projected), projected + x, atol=1e-5, rtol=0)
    head.blocks = nn.ModuleList()
    torch.testing.assert_close(head(tokens, projected), 2 * projected + places)


class Passing(nn.Module):
    def forward(self, x, src_key_padding_mask=None):
        return x


def test_transf_cls_reads_out_its_extra_token_at_the_first_place(tokens, projected):
    head: Any = head_of("transformer_token")
    head.encoder = Passing()
    expected = (head.token + head.positions[0]).expand_as(projected)
    torch.testing.assert_close(head(tokens, projected), expected)


def test_clips_longer_than_the_position_table_are_refused_when_the_model_is_built():
    config = TFCLIPConfig(temporal_head="transformer", clip_length=78)
    with pytest.raises(ConfigError, match=r"clip_length must be at most 77 .* got 78"):
        build_temporal_head(config, 64, 32)
    build_temporal_head(config.replace(clip_length=77), 64, 32)


@pytest.mark.parametrize(("name", "longest"), [("transformer", 77), ("transformer_token", 4)])
def test_heads_with_a_position_table_refuse_longer_clips(name, longest):
    head = head_of(name)
    with pytest.raises(ValueError, match=f"at most {longest} a clip"):
        head(torch.zeros(1, longest + 1, 9, 64), torch.zeros(1, longest + 1, 32))
