"""Temporal Memory Diffusion and its halves: recorded numbers, a slow reading, invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tfclip import MemoryDiffusion, TemporalMemoryConstruction, TemporalMemoryDiffusion, convert
from tfclip.diffusion import _position_code, mean_over_frames


@pytest.fixture
def diffusion():
    torch.manual_seed(0)
    return TemporalMemoryDiffusion(64, 2, depth=2).eval()


@pytest.fixture
def tokens():
    return torch.randn(2, 4, 9, 64, generator=torch.Generator().manual_seed(1))


def test_output_is_the_reference_output(request, golden):
    path = request.path.parent / "golden" / "state_dict.safetensors"
    head: Any = convert.from_reference(path, clip_length=4).temporal
    diffusion = head.diffusion
    for recorded, given_tokens in (
        (golden("eval_outputs")["tmd_out"], golden("inputs")["tmd_tokens"].transpose(0, 1)),
        (
            golden("eval_outputs")["tmd_out_of_encoder_tokens"],
            golden("eval_outputs")["encoder_tokens"],
        ),
    ):
        with torch.inference_mode():
            output = diffusion(given_tokens.unflatten(0, (4, 4)))
        expected = recorded.transpose(0, 1).unflatten(0, (4, 4))
        torch.testing.assert_close(output, expected, atol=5e-5, rtol=0)


def slow_attention(attention, x):
    """Multi-head attention of one sequence, head by head and token by token."""
    num_tokens, dim = x.shape
    query, key, value = attention.input_projection(x).split(dim, dim=1)
    size = dim // attention.num_heads
    result = torch.zeros_like(x)
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(num_tokens):
            scores = torch.stack([query[i, part] @ key[j, part] for j in range(num_tokens)])
            shares = torch.exp(scores / size**0.5)
            result[i, part] = (shares / shares.sum()) @ value[:, part]
    return attention.output_projection(result)


def test_output_is_what_the_equations_say_frame_by_frame(tokens):
    torch.manual_seed(2)
    diffusion: Any = TemporalMemoryDiffusion(64, 2).eval()
    construct, diffuse = diffusion.constructions[0], diffusion.diffusions[0]
    with torch.inference_mode():
        for clip, output in zip(tokens, diffusion(tokens), strict=True):
            messages = torch.stack([construct.message(frame.mean(0)) for frame in clip])
            memory = messages + slow_attention(construct.attention, construct.norm(messages))
            for t, frame in enumerate(clip):
                x = torch.cat([frame, memory[t : t + 1]])
                x = x + slow_attention(diffuse.attention, diffuse.attention_norm(x))
                hidden = diffuse.mlp[0](diffuse.mlp_norm(x))
                x = x + diffuse.mlp[2](hidden * torch.sigmoid(1.702 * hidden))
                torch.testing.assert_close(output[t], x, atol=1e-5, rtol=1e-5)


def test_halves_make_the_whole(diffusion, tokens):
    with torch.inference_mode():
        x = tokens
        for construct, diffuse in zip(diffusion.constructions, diffusion.diffusions, strict=True):
            x = diffuse(x, construct(x))
        torch.testing.assert_close(x, diffusion(tokens))
    assert x.shape == (2, 4, 9 + 2, 64)


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(4)))
def test_frames_are_a_set(order):
    torch.manual_seed(0)
    diffusion, tokens = TemporalMemoryDiffusion(64, 2).eval(), torch.randn(2, 4, 9, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            diffusion(tokens[:, order]), diffusion(tokens)[:, order], atol=1e-5, rtol=0
        )


def test_order_of_tokens_within_a_frame_does_not_matter(diffusion, tokens):
    order = torch.randperm(9)
    with torch.inference_mode():
        shuffled = diffusion(tokens[:, :, order])[:, :, :9]
        torch.testing.assert_close(shuffled, diffusion(tokens)[:, :, order], atol=1e-5, rtol=0)


def test_a_frame_hears_of_other_frames_of_its_clip_and_of_no_other_clip(diffusion, tokens):
    changed = tokens.clone()
    changed[0, 3] += 1
    with torch.inference_mode():
        before, after = diffusion(tokens), diffusion(changed)
    assert (before[0, 0] - after[0, 0]).abs().max() > 1e-4
    torch.testing.assert_close(before[1], after[1], atol=0, rtol=0)


def test_masked_frames_are_not_heard(diffusion, tokens):
    mask = torch.tensor([[True, True, False, True], [True, True, False, True]])
    with torch.inference_mode():
        masked = diffusion(tokens, mask)[:, [0, 1, 3]]
        torch.testing.assert_close(masked, diffusion(tokens[:, [0, 1, 3]]), atol=1e-5, rtol=0)


def test_one_memory_alone_is_itself_plus_its_own_value(tokens):
    construction = TemporalMemoryConstruction(64, 2).eval()
    with torch.inference_mode():
        message = construction.summarise(tokens[:, :1])
        normed = construction.norm(message)
        value = construction.attention.input_projection(normed)[..., 128:]
        expected = message + construction.attention.output_projection(value)
        torch.testing.assert_close(construction(tokens[:, :1]), expected)


def test_gradients_reach_every_parameter(tokens):
    diffusion = TemporalMemoryDiffusion(64, 2, depth=2, temporal_position=True)
    diffusion(tokens).square().sum().backward()
    assert [name for name, p in diffusion.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("training", [True, False])
def test_gradient_is_that_of_finite_differences(training):
    torch.manual_seed(0)
    diffusion = TemporalMemoryDiffusion(4, 2).double().train(training)
    tokens = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1.0, 2.0]])
    assert torch.autograd.gradcheck(lambda x: diffusion(x, mask), tokens)
    assert torch.autograd.gradcheck(lambda x: diffusion.mean(x, mask), tokens)


@pytest.mark.parametrize("gradients", [True, False])
def test_drop_path_drops_whole_frames_in_training_only(gradients, tokens):
    torch.manual_seed(0)
    diffuse = MemoryDiffusion(64, 2, drop_path=0.5)
    assert "DropPath(probability=0.5)" in repr(diffuse)
    memory = torch.zeros(2, 4, 64)
    kept = torch.cat([tokens, memory[:, :, None]], dim=2)
    with torch.set_grad_enabled(gradients):
        output = diffuse(tokens, memory)
        torch.manual_seed(1)
        mean = diffuse.mean(tokens, memory)
        torch.manual_seed(1)
        torch.testing.assert_close(mean, diffuse(tokens, memory).mean(2))
    untouched = (output == kept).flatten(2).all(2)
    assert untouched.any()
    assert not untouched.all()
    diffuse.eval()
    torch.testing.assert_close(diffuse(tokens, memory), diffuse(tokens, memory), atol=0, rtol=0)


def test_half_precision_stays_close(diffusion, tokens):
    with torch.inference_mode():
        exact = diffusion(tokens)
        half = diffusion.bfloat16()(tokens.bfloat16(), torch.ones(2, 4, dtype=torch.bool))
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(half.float().flatten(), exact.flatten(), dim=0) > 0.999


def test_mean_over_frames_is_that_of_each_clip_and_weighs():
    clips = torch.tensor([[[1.0], [4.0], [7.0]], [[0.0], [1.0], [5.0]]])
    assert mean_over_frames(clips).tolist() == [[4.0], [2.0]]
    x = torch.tensor([[[1.0], [4.0]]])
    assert mean_over_frames(x, torch.tensor([[1.0, 2.0]])).item() == pytest.approx(3.0)


@pytest.mark.parametrize("dim", [6, 7])
def test_the_code_of_a_place_is_a_sine_and_its_cosine_from_channel_to_channel(dim):
    code = _position_code(torch.zeros(1, 40, dim, dtype=torch.float64))
    assert code.dtype == torch.float64
    for place in range(40):
        for channel in range(dim):
            # Wave lengths of 2 pi to 2 pi 1000 frames, each for two channels.
            angle = place / 1000 ** (channel // 2 * 2 / dim)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert code[place, channel].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("position", [False, True])
def test_order_of_the_frames_matters_where_their_place_is_told(position, tokens):
    torch.manual_seed(0)
    diffusion = TemporalMemoryDiffusion(64, 2, temporal_position=position).eval()
    with torch.inference_mode():
        backwards = diffusion(tokens.flip(1)).flip(1)
        assert torch.allclose(diffusion(tokens), backwards, atol=1e-5) != position


def test_a_learned_scale_that_starts_at_one_weighs_the_code_of_the_place(tokens):
    torch.manual_seed(0)
    construction: Any = TemporalMemoryConstruction(64, 2, temporal_position=True).eval()
    messages = tokens.mean(2)
    with torch.no_grad():
        for scale in (1.0, 3.0):
            coded = messages + scale * _position_code(messages)
            expected = coded + construction.attention(construction.norm(coded))
            torch.testing.assert_close(construction.exchange(messages), expected)
            construction.position_scale.fill_(3.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TemporalMemoryDiffusion(64, 3), "num_heads must divide dim"),
        (lambda: TemporalMemoryConstruction(-64, 2), "num_heads must divide dim, got .* dim -64"),
        (lambda: MemoryDiffusion(-64, 2), "num_heads must divide dim, got .* dim -64"),
        (lambda: TemporalMemoryDiffusion(64, 2, depth=0), "depth must be at least 1"),
        (lambda: TemporalMemoryDiffusion(64, 2, drop_path=1.0), r"drop_path must be in \[0, 1\)"),
        (lambda: MemoryDiffusion(64, 2, drop_path=-0.1), r"drop_path must be in .* got -0.1"),
        (lambda: TemporalMemoryDiffusion(64, 2)(torch.zeros(2, 9, 64)), r"\(B, T, N, D\)"),
        (lambda: TemporalMemoryDiffusion(64, 2)(torch.zeros(2, 4, 9, 32)), "D = 64"),
        (lambda: TemporalMemoryDiffusion(64, 2)(torch.zeros(1, 0, 9, 64)), r"\(B, T, N, D\)"),
        (
            lambda: TemporalMemoryDiffusion(64, 2)(torch.zeros(2, 4, 9, 64), torch.ones(2, 3)),
            r"frame_mask must be \(B, T\)",
        ),
        (
            lambda: MemoryDiffusion(64, 2)(torch.zeros(2, 4, 9, 64), torch.zeros(2, 3, 64)),
            r"memory must be \(B, T, D\)",
        ),
    ],
)
def test_bad_input_is_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()
