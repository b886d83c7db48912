"""What the temporal memory reads: a slow reading, the forward's own result, invariances."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tfclip import TFCLIP, TemporalMemoryDiffusion
from tfclip.data import SyntheticTracklets
from tfclip.errors import FrameError
from tfclip.temporal_attention import look_at, spread, temporal_attention


@pytest.fixture
def tokens():
    return torch.randn(2, 4, 9, 64, generator=torch.Generator().manual_seed(1))


def make_diffusion(**options) -> Any:
    torch.manual_seed(0)
    diffusion = TemporalMemoryDiffusion(64, 2, **options).eval()
    for parameter in diffusion.parameters():  # far from even shares
        torch.nn.init.normal_(parameter, std=0.3)
    return diffusion


def slow_shares(attention, x, weights):
    """Return what each token of one sequence reads in the others, head by head, by the formula."""
    num_tokens, dim = x.shape
    query, key, _ = attention.input_projection(x).split(dim, dim=1)
    size = dim // attention.num_heads
    shares = torch.zeros(num_tokens, num_tokens)
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(num_tokens):
            scores = [float(query[i, part] @ key[j, part]) / size**0.5 for j in range(num_tokens)]
            powers = weights * torch.tensor(scores).exp()
            shares[i] += powers / powers.sum() / attention.num_heads
    return shares


@pytest.mark.parametrize("weights", [None, [1, 1, 1, 1], [2, 0, 1, 3]])
def test_shares_are_those_of_the_equations(tokens, weights):
    diffusion = make_diffusion()
    construct, diffuse = diffusion.constructions[0], diffusion.diffusions[0]
    mask = None if weights is None else torch.tensor([weights] * 2, dtype=torch.float32)
    counts = torch.ones(4) if weights is None else torch.tensor(weights)
    found = temporal_attention(diffusion, tokens, mask)
    with torch.inference_mode():
        memory = construct(tokens, mask)
        for clip in range(2):
            messages = construct.summarise(tokens)[clip]
            between = slow_shares(construct.attention, construct.norm(messages), counts)
            torch.testing.assert_close(found.between_frames[clip], between, atol=1e-5, rtol=0)
            mean = sum(counts[t] * between[t] for t in range(4)) / counts.sum()
            torch.testing.assert_close(found.frames[clip], mean, atol=1e-5, rtol=0)
            for t in range(4):
                x = diffuse.attention_norm(torch.cat([tokens[clip, t], memory[clip, t : t + 1]]))
                read = slow_shares(diffuse.attention, x, torch.ones(10))[-1]
                torch.testing.assert_close(found.tokens[clip, t], read[:9], atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{}, {"temporal_position": True}, {"depth": 2}])
def test_values_weighted_by_the_shares_are_what_the_forward_adds(tokens, options):
    """With one head and no output map, attention is its shares times its values."""
    torch.manual_seed(0)
    diffusion: Any = TemporalMemoryDiffusion(64, 1, **options).eval()
    last = diffusion.constructions[-1].attention
    torch.nn.init.eye_(last.output_projection.weight)
    kept = {}
    last.register_forward_hook(lambda _, given, output: kept.update(x=given[0], output=output))
    with torch.inference_mode():
        diffusion(tokens)
    found = temporal_attention(diffusion, tokens)
    values = last.input_projection(kept["x"])[..., 128:]
    expected = torch.einsum("btu,bud->btd", found.between_frames, values)
    torch.testing.assert_close(kept["output"], expected, atol=1e-5, rtol=1e-4)


def test_shares_of_frames_sum_to_one_and_padding_has_none(tokens):
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    found = temporal_attention(make_diffusion(), tokens, mask)
    torch.testing.assert_close(found.frames.sum(1), torch.ones(2))
    assert found.frames[0, 2:].tolist() == [0, 0]
    alone = temporal_attention(make_diffusion(), tokens[:1, :2])
    torch.testing.assert_close(found.frames[0, :2], alone.frames[0])
    torch.testing.assert_close(found.tokens[0, :2], alone.tokens[0])


def test_shares_go_with_their_frames(tokens):
    order = [2, 0, 3, 1]
    diffusion = make_diffusion(depth=2)
    found, moved = (temporal_attention(diffusion, x) for x in (tokens, tokens[:, order]))
    torch.testing.assert_close(moved.frames, found.frames[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(moved.tokens, found.tokens[:, order], atol=1e-5, rtol=1e-4)


def test_a_memory_reads_less_than_all_of_it_in_its_frame(tokens):
    found = temporal_attention(make_diffusion(), tokens)
    assert (found.tokens > 0).all()
    assert (found.tokens.sum(-1) < 1).all()  # the rest in itself


def test_wrong_tokens_are_refused(tokens):
    with pytest.raises(ValueError, match=r"tokens must be \(B, T, N, D\) with D = 64"):
        temporal_attention(make_diffusion(), tokens[0])


def test_a_look_holds_evenly_spread_frames_and_their_shares(tiny_model):
    frames = SyntheticTracklets(1, 1, 1, num_frames=11, frame_size=(40, 20))[0].frames
    look = look_at(tiny_model, frames, camera=1)
    assert look.indices == (0, 3, 7, 10)
    assert all((a == frames[i]).all() for a, i in zip(look.pictures, look.indices, strict=True))
    assert look.patch_shares.shape == (4, 4, 2)  # rows and columns of patches
    assert float(look.frame_shares.sum()) == pytest.approx(1)
    assert look.between_frames.shape == (4, 4)


def test_a_look_is_that_of_the_models_own_clip(tiny_model):
    """The patches of a look are those that the whole path of the model gives to its head."""
    frames = SyntheticTracklets(1, 1, 1, num_frames=4, frame_size=(64, 32))[0].frames
    kept = {}
    tiny_model.temporal.register_forward_pre_hook(lambda _, given: kept.update(tokens=given[0]))
    tiny_model.encode_sequence(frames, camera=2, sampling="all")
    expected = temporal_attention(tiny_model.temporal.diffusion, kept["tokens"])
    look = look_at(tiny_model, frames, camera=2)
    torch.testing.assert_close(look.frame_shares, expected.frames[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        look.patch_shares.flatten(1), expected.tokens[0, :, 1:], atol=1e-5, rtol=0
    )


def test_a_look_leaves_8_bit_products_out_and_merged_tokens_merged(tiny_model, monkeypatch):
    frames = SyntheticTracklets(1, 1, 1, num_frames=4, frame_size=(64, 32))[0].frames
    exact = look_at(tiny_model, frames).patch_shares
    monkeypatch.setattr("tfclip.int8.why_not", lambda: None)  # whatever the processor
    tiny_model.quantize_dynamic()
    assert torch.equal(look_at(tiny_model, frames).patch_shares, exact)
    tiny_model.merge_tokens(2)  # in both of its blocks: the 8 patches of a frame have 4 tokens
    merged = look_at(tiny_model, frames).patch_shares
    assert [num_different(shares) for shares in exact] == [8] * 4
    assert [num_different(shares) for shares in merged] == [4] * 4


def num_different(shares: torch.Tensor) -> int:
    """Return how many shares differ by more than rounding."""
    return len(shares.mul(1e6).round().unique())


def test_looking_changes_nothing(tiny_model):
    frames = SyntheticTracklets(1, 1, 1, num_frames=5, frame_size=(64, 32))[0].frames
    before = tiny_model.encode_sequence(frames)
    tiny_model.train()
    look_at(tiny_model, frames)
    assert tiny_model.training
    assert torch.equal(tiny_model.eval().encode_sequence(frames), before)


def test_what_cannot_be_looked_at_is_refused(tiny_config, tiny_model):
    frames = SyntheticTracklets(1, 1, 1, num_frames=2, frame_size=(64, 32))[0].frames
    average = TFCLIP(tiny_config.replace(temporal_head="average"))
    with pytest.raises(ValueError, match=r"temporal head must be 'tmd' .* got 'average'"):
        look_at(average, frames)
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        look_at(tiny_model, frames, num_frames=0)
    with pytest.raises(FrameError):
        look_at(tiny_model, [])


def test_a_spread_holds_both_ends_and_no_frame_twice():
    for total in range(1, 40):
        for count in range(1, 12):
            places = spread(total, count)
            assert len(set(places)) == len(places) == min(total, count)
            assert places == sorted(places)
            assert places[0] == 0
            assert count == 1 or places[-1] == total - 1
