"""Token merging, against a slow reading of the paper that moves one token at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tfclip import TFCLIP, TFCLIPConfig
from tfclip.merging import Merged


def merge_slowly(groups: list[list[int]], keys: Tensor, number: int) -> list[list[int]]:
    """Merge once: groups of first tokens, in the order of their tokens, before and after."""
    number = min(number, (len(groups) - 1) // 2)
    if not number:
        return groups
    even, odd = list(range(0, len(groups), 2)), list(range(1, len(groups), 2))
    found = []
    for i in even[1:]:  # the class token stays
        alike = [F.cosine_similarity(keys[i], keys[j], dim=0).item() for j in odd]
        found.append((max(alike), i, odd[alike.index(max(alike))]))
    found.sort(key=lambda pair: -pair[0])
    partner = {i: j for _, i, j in found[:number]}
    joined = {j: list(groups[j]) for j in odd}
    for i, j in partner.items():
        joined[j] += groups[i]
    return [groups[i] for i in even if i not in partner] + [joined[j] for j in odd]


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(1, 11),
    numbers=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_every_token_is_the_mean_of_the_first_tokens_it_stands_for(tokens, numbers, seed):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(2, tokens, 5, generator=generator)
    merged = Merged(first)
    groups = [[[i] for i in range(tokens)] for _ in range(2)]
    for number in numbers:
        keys = torch.randn(2, merged.values.shape[1], 3, generator=generator)
        merged = merged.merge(keys, number)
        groups = [merge_slowly(groups[m], keys[m], number) for m in range(2)]
    for m in range(2):
        expected = torch.stack([first[m, group].mean(0) for group in groups[m]])
        torch.testing.assert_close(merged.values[m], expected, atol=1e-5, rtol=1e-5)
        if merged.sizes is not None:
            assert merged.sizes[m].tolist() == [len(group) for group in groups[m]]
        holder = {i: expected[k] for k, group in enumerate(groups[m]) for i in group}
        unmerged = torch.stack([holder[i] for i in range(tokens)])
        torch.testing.assert_close(merged.unmerge()[m], unmerged, atol=1e-5, rtol=1e-5)


def encode_slowly(model: TFCLIP, frame: Tensor, number: int) -> Tensor:
    """Encode one frame, (3, H, W), with attention in which a token of size n is n equal keys."""
    tower = model.backbone.tower
    x = tower.conv1(frame[None]).flatten(2)[0].T
    x = tower.ln_pre(torch.cat([tower.class_embedding[None], x]) + tower.positional_embedding)
    groups = [[i] for i in range(len(x))]
    for block in tower.transformer.resblocks:
        heads = block.attn.num_heads
        joint = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
        query, key, value = joint.unflatten(1, (3, heads, -1)).unbind(1)
        repeated = [i for i, group in enumerate(groups) for _ in group]
        attended = torch.zeros_like(query)
        for h in range(heads):
            scores = query[:, h] @ key[repeated, h].T / query.shape[-1] ** 0.5
            attended[:, h] = scores.softmax(-1) @ value[repeated, h]
        x = x + block.attn.out_proj(attended.flatten(1))
        after = merge_slowly(groups, key.mean(1), number)
        holder = {i: k for k, group in enumerate(groups) for i in group}
        weights = {k: len(group) for k, group in enumerate(groups)}
        means = []
        for group in after:
            parts = sorted({holder[i] for i in group})
            total = sum(weights[k] for k in parts)
            means.append(sum(x[k] * weights[k] for k in parts) / total)
        x, groups = torch.stack(means), after
        x = x + block.mlp(block.ln_2(x))
    held = {i: k for k, group in enumerate(groups) for i in group}
    return tower.ln_post(x)[[held[i] for i in range(len(held))]]


@pytest.mark.parametrize("number", [1, 2, 100])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_tower_merges_as_a_slow_reading_of_the_paper_does(number, gradients):
    config = TFCLIPConfig(
        backbone_options={"width": 64, "layers": 3, "heads": 2, "output_dim": 32},
        frame_size=(96, 64),
    )
    torch.manual_seed(0)
    model = TFCLIP(config).eval()
    frames = torch.randn(3, 3, *config.frame_size)
    model.merge_tokens(number)
    with torch.set_grad_enabled(gradients):
        tokens = model.backbone(frames)
        expected = torch.stack([encode_slowly(model, frame, number) for frame in frames])
    torch.testing.assert_close(tokens, expected, atol=2e-5, rtol=1e-4)


def test_merging_no_tokens_is_exactly_the_model(tiny_model):
    frames = torch.randn(2, 4, 3, 64, 32)
    with torch.inference_mode():
        before = tiny_model(frames)
        tiny_model.merge_tokens(3)
        assert not torch.equal(tiny_model(frames).embedding, before.embedding)
        tiny_model.merge_tokens(0)
        after = tiny_model(frames)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_equal_patches_merge_without_changing_anything(tiny_model):
    # Blank frames whose patches stand nowhere: a token of size n is then exactly n equal tokens.
    with torch.no_grad():
        tiny_model.backbone.tower.positional_embedding[1:] = 0
    frames = torch.full((1, 4, 3, 64, 32), 0.5)
    with torch.inference_mode():
        exact = tiny_model(frames).embedding
        tiny_model.merge_tokens(2)
        merged = tiny_model(frames).embedding
    torch.testing.assert_close(merged, exact, atol=1e-5, rtol=1e-5)


def test_merging_learns_through_every_block(tiny_model):
    tiny_model.merge_tokens(2)
    tiny_model.backbone(torch.randn(2, 3, 64, 32)).square().sum().backward()
    for name, parameter in tiny_model.backbone.tower.transformer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("backbone", "number", "error", "message"),
    [
        ("ViT-B-16", -1, ValueError, "number must be at least 0, got -1"),
        ("ViT-B-16", 1.5, TypeError, "interpreted as an integer"),
        ("timm:vit_tiny_patch16_224", 4, ValueError, "only CLIP's vision transformers merge"),
    ],
)
def test_a_number_that_cannot_be_merged_is_refused(backbone, number, error, message):
    config = TFCLIPConfig(
        backbone=backbone,
        backbone_options={} if ":" in backbone else {"width": 64, "layers": 1, "heads": 2},
        frame_size=(64, 32),
    )
    model = TFCLIP(config)
    with pytest.raises(error, match=message):
        model.merge_tokens(number)
    assert model.backbone.merged_tokens == 0
