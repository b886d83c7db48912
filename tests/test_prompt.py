"""The Sequence-Specific Prompt: recorded numbers and what holds of any weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tfclip import SequenceSpecificPrompt, convert


@pytest.fixture
def prompt():
    torch.manual_seed(0)
    return SequenceSpecificPrompt(64, num_heads=2).eval()


@pytest.fixture
def memory():
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens():
    return torch.randn(3, 9, 64, generator=torch.Generator().manual_seed(2))


def test_output_is_the_reference_output(request, golden):
    path = request.path.parent / "golden" / "state_dict.safetensors"
    _, objective = convert.from_reference(path, clip_length=4, with_objective=True)
    inputs = golden("inputs")
    with torch.inference_mode():
        prompt: Any = objective.eval().prompt
        output = prompt(inputs["ssp_text"], inputs["ssp_visual"])
    torch.testing.assert_close(output, golden("eval_outputs")["ssp_out"], atol=5e-5, rtol=0)


def slow_cross_attention(attention, queries, keys):
    """What each query finds, head by head."""
    size = queries.shape[1] // attention.num_heads
    query, key, value = attention.query(queries), attention.key(keys), attention.value(keys)
    found = torch.zeros_like(queries)
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(queries)):
            shares = torch.stack([torch.exp(query[i, part] @ k / size**0.5) for k in key[:, part]])
            found[i, part] = (shares / shares.sum()) @ value[:, part]
    return attention.output(found)


def test_the_variant_of_the_paper_is_what_its_equations_say_clip_by_clip(memory, tokens):
    torch.manual_seed(0)
    prompt: Any = SequenceSpecificPrompt(64, num_heads=2, variant="paper").eval()
    for parameter in prompt.parameters():
        nn.init.normal_(parameter, std=0.2)
    with torch.inference_mode():
        for clip, output in zip(tokens, prompt(memory, tokens), strict=True):
            context, x = prompt.context_projection(clip), memory
            for layer in prompt.layers:
                x = x + slow_cross_attention(layer.cross_attention, layer.cross_norm(x), context)
                hidden = layer.mlp[0](layer.mlp_norm(x))
                x = x + layer.mlp[3](hidden * torch.sigmoid(1.702 * hidden))
            torch.testing.assert_close(output, prompt.scale * x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("variant", "places"), [("released", 4), ("paper", 3)])
def test_a_new_prompt_has_two_layers_small_weights_and_the_dropout_asked_for(variant, places):
    prompt: Any = SequenceSpecificPrompt(64, variant=variant)
    assert len(prompt.layers) == 2
    for layer in prompt.modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert layer.bias is None or not layer.bias.any()
    if variant == "paper":
        torch.testing.assert_close(prompt.scale.detach(), torch.full((64,), 0.1))
    for dropout in (0.1, 0.3):
        drops = [part.p for part in prompt.modules() if isinstance(part, nn.Dropout)]
        assert drops == [dropout] * places * 2
        prompt = SequenceSpecificPrompt(64, variant=variant, dropout=0.3)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_one_memory_for_all_clips_is_a_copy_for_each(variant, memory, tokens):
    torch.manual_seed(0)
    prompt = SequenceSpecificPrompt(64, variant=variant).eval()
    with torch.inference_mode():
        copies = prompt(memory.expand(3, -1, -1), tokens)
        torch.testing.assert_close(prompt(memory, tokens), copies, atol=1e-5, rtol=1e-5)


def test_rows_of_the_memory_are_a_set(prompt, memory, tokens):
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.inference_mode():
        torch.testing.assert_close(
            prompt(memory[order], tokens), prompt(memory, tokens)[:, order], atol=1e-5, rtol=0
        )


def test_order_of_the_tokens_does_not_matter(prompt, memory, tokens):
    with torch.inference_mode():
        torch.testing.assert_close(
            prompt(memory, tokens.flip(1)), prompt(memory, tokens), atol=1e-5, rtol=0
        )


def test_with_one_token_attention_tells_every_identity_the_same(memory, tokens):
    # The paper's figure gives the clip feature as the only key: nothing is left to select.
    layer: Any = SequenceSpecificPrompt(64, variant="paper").eval().layers[0]
    with torch.inference_mode():
        found = layer.cross_attention(memory.expand(3, -1, -1), tokens[:, :1])
    torch.testing.assert_close(found, found[:, :1].expand_as(found))


def test_one_layer_is_enough(memory, tokens):
    prompt: Any = SequenceSpecificPrompt(64, depth=1).eval()
    with torch.inference_mode():
        queries, context = prompt.memory_projection(memory[None]), prompt.context_projection(tokens)
        expected = prompt.prompt_projection(prompt.layers[0](queries, context))
        torch.testing.assert_close(prompt(memory, tokens), expected)


def test_dropout_is_drawn_for_each_clip_though_attention_is_shared(memory, tokens):
    torch.manual_seed(0)
    prompt: Any = SequenceSpecificPrompt(64, dropout=0.5).train()
    related = prompt.layers[0].relate(prompt.memory_projection(memory[None]), batch_size=2)
    assert not torch.equal(related[0], related[1])


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_gradients_reach_every_parameter(variant, memory, tokens):
    prompt = SequenceSpecificPrompt(64, variant=variant, dropout=0.0)
    prompt(memory, tokens).square().sum().backward()
    assert [name for name, p in prompt.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SequenceSpecificPrompt(64, num_heads=5), "num_heads must divide dim"),
        (lambda: SequenceSpecificPrompt(64, depth=0), "depth must be at least 1"),
        (lambda: SequenceSpecificPrompt(64, variant="x"), "variant must be"),  # type: ignore[arg-type]
        (lambda: SequenceSpecificPrompt(64)(torch.zeros(5, 64), torch.zeros(9, 64)), "tokens must"),
        (lambda: SequenceSpecificPrompt(64)(torch.zeros(5, 32), torch.zeros(3, 9, 64)), "memory"),
        (lambda: SequenceSpecificPrompt(64)(torch.zeros(2, 5, 64), torch.zeros(3, 9, 64)), "B = 3"),
        (lambda: SequenceSpecificPrompt(64)(torch.zeros(0, 64), torch.zeros(3, 9, 64)), "memory"),
        (lambda: SequenceSpecificPrompt(64)(torch.zeros(64), torch.zeros(3, 9, 64)), "memory"),
        (lambda: SequenceSpecificPrompt(64)(torch.zeros(5, 64), torch.zeros(3, 0, 64)), "tokens"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
