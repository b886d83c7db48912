"""The short way through a model in inference gives what the long way gives."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from tfclip import TFCLIP, TemporalMemoryDiffusion, TFCLIPConfig, speed
from tfclip.attention import SelfAttention


@pytest.fixture(scope="module")
def wide() -> TFCLIP:
    """A model wide enough for the products that oneDNN takes, with cameras."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = TFCLIPConfig(
            backbone_options={"width": 256, "layers": 2, "heads": 4, "output_dim": 64},
            frame_size=(64, 32),
            num_cameras=2,
        )
        return TFCLIP(config).eval()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randn(2, 3, 3, 64, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def small_pieces(monkeypatch) -> None:
    """Pieces of two frames, so that there are several and a last one that is not full."""
    monkeypatch.setattr(speed, "rows_at_once", lambda width, dtype: 2 * 10)


@pytest.mark.parametrize("cameras", [None, torch.tensor([1, 0])])
@pytest.mark.usefixtures("small_pieces")
def test_in_inference_a_model_gives_what_it_gives_in_training(wide, frames, cameras):
    mask = torch.tensor([[True, True, True], [True, True, False]])
    long = wide(frames, cameras, mask)  # with gradients, so by torch's usual modules
    with torch.inference_mode():
        short = wide(frames, cameras, mask)
    assert long.embedding.requires_grad
    for x, y in zip(short, long, strict=True):
        torch.testing.assert_close(x, y.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("small_pieces")
def test_in_bfloat16_the_short_way_is_as_near_as_the_long_one(wide, frames):
    model = copy.deepcopy(wide).bfloat16()
    exact = F.normalize(wide(frames).embedding.detach(), dim=1)
    long = F.normalize(model(frames.bfloat16()).embedding.detach().float(), dim=1)
    with torch.inference_mode():
        short = F.normalize(model(frames.bfloat16()).embedding.float(), dim=1)
    assert (short * exact).sum(1).min() > 0.999
    assert (short - exact).norm() < 2 * (long - exact).norm()


def test_frames_given_to_a_model_are_not_written_to(wide, frames):
    before = frames.clone()
    with torch.inference_mode():
        wide(frames)
        tokens = wide.backbone(frames.flatten(0, 1))
        kept = tokens.clone()
        wide.embed(tokens.unflatten(0, (2, 3)))
    assert torch.equal(frames, before)
    assert torch.equal(tokens, kept)


def test_the_class_token_alone_is_the_first_of_all(wide, frames):
    flat, codes = frames.flatten(0, 1), torch.randn(6, 256)
    for mode in (torch.inference_mode(), torch.enable_grad()):
        with mode:
            alone = wide.backbone.encode_class(flat, codes)
            first = wide.backbone(flat, codes)[:, :1]
        torch.testing.assert_close(alone, first, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "num_tokens"),
    [
        ({}, 9),
        ({"descriptor": ("appearance", "projected")}, 1),
        ({"temporal_head": "average"}, 1),
        ({"temporal_head": "tmc"}, 9),
    ],
)
def test_tokens_that_nobody_reads_are_not_computed(tiny_config, frames, changes, num_tokens):
    torch.manual_seed(0)
    model = TFCLIP(tiny_config.replace(**changes)).eval()
    with torch.inference_mode():
        tokens = model.encode_frames(frames.flatten(0, 1))
        assert tokens.shape[1] == num_tokens
        embedding = model.embed(tokens.unflatten(0, frames.shape[:2]))
        expected = model(frames).embedding
    torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_mean_of_diffused_tokens_is_their_mean(depth):
    torch.manual_seed(0)
    diffusion = TemporalMemoryDiffusion(64, 2, depth).eval()
    tokens = torch.randn(2, 3, 5, 64)
    with torch.no_grad():
        mean = diffusion.mean(tokens, torch.tensor([[1, 1, 0], [2, 1, 1]]))
        expected = diffusion(tokens, torch.tensor([[1, 1, 0], [2, 1, 1]])).mean(2)
    torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)


def test_drop_path_still_drops_where_no_gradients_are_recorded():
    torch.manual_seed(0)
    diffusion = TemporalMemoryDiffusion(64, 2, drop_path=0.9).train()
    tokens = torch.randn(1, 8, 5, 64)
    with torch.no_grad():
        first, second = diffusion.mean(tokens), diffusion.mean(tokens)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "find",
    [
        lambda model: model.backbone.tower.transformer.resblocks[1],
        lambda model: model.backbone.tower.transformer.resblocks[0].mlp.c_fc,
        lambda model: model.temporal.diffusion,
        lambda model: model.temporal.diffusion.diffusions[0].mlp,
    ],
)
def test_a_hook_is_called_in_inference_too(wide, frames, find):
    model = copy.deepcopy(wide)
    seen = []
    handle = find(model).register_forward_hook(lambda *_: seen.append(1))
    with torch.inference_mode():
        watched = model(frames).embedding
        assert seen
        handle.remove()
        torch.testing.assert_close(watched, model(frames).embedding, atol=1e-5, rtol=1e-5)


def test_a_replaced_layer_is_used(wide, frames):
    model = copy.deepcopy(wide)

    class Double(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.layer(x)

    mlp = model.backbone.tower.transformer.resblocks[0].mlp
    mlp.c_proj = Double(mlp.c_proj)
    expected = model(frames).embedding.detach()
    with torch.inference_mode():
        found = model(frames).embedding
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, wide(frames).embedding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 256, 256), (7, 300, 260), (129, 256, 1024)])
def test_a_product_is_that_of_double_precision(dtype, shape):
    rows, inner, outer = shape
    torch.manual_seed(0)
    x, weight = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
    for bias in (torch.randn(outer).to(dtype), None):
        expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        with torch.inference_mode():
            found = speed.linear(x, weight, bias)
        assert found.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < tolerance


def change_in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.mul_(2)


def change_data(weight: nn.Parameter) -> None:
    weight.data = 2 * weight.data


@pytest.mark.parametrize("change", [change_in_place, change_data])
def test_a_weight_that_changes_is_laid_out_anew(change):
    torch.manual_seed(0)
    x = torch.randn(8, 256).bfloat16()
    weight = nn.Parameter(torch.randn(256, 256).bfloat16())
    with torch.inference_mode():
        before = speed.linear(x, weight, None)
    change(weight)
    with torch.inference_mode():
        after = speed.linear(x, weight, None)
    torch.testing.assert_close(after, 2 * before)


def test_a_laid_out_weight_goes_with_its_weight():
    weight = nn.Parameter(torch.randn(256, 256).bfloat16())
    number = len(speed._packed)
    with torch.inference_mode():
        speed.linear(torch.randn(8, 256).bfloat16(), weight, None)
    del weight
    gc.collect()
    assert len(speed._packed) == number


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_attention_is_softmax_of_scores_times_values(dtype, weighted):
    torch.manual_seed(0)
    attention = SelfAttention(64, 2).to(dtype).eval()
    x = torch.randn(3, 5, 64).to(dtype)
    weights = torch.tensor([1.0, 2.0, 1.0, 0.0, 3.0]).expand(3, 5) if weighted else None
    with torch.inference_mode():
        found = attention(x, weights).float()
    precise = copy.deepcopy(attention).double()
    query, key, value = precise.input_projection(x.double()).unflatten(-1, (3, 2, 32)).unbind(2)
    rows = []
    for m in range(3):
        for i in range(5):
            heads = []
            for h in range(2):
                shares = (key[m, :, h] @ query[m, i, h] / 32**0.5).exp()
                if weights is not None:
                    shares = shares * weights[m]
                heads.append((shares / shares.sum()) @ value[m, :, h])
            rows.append(precise.output_projection(torch.cat(heads)))
    expected = torch.stack(rows).unflatten(0, (3, 5)).float()
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected.detach(), atol=tolerance, rtol=tolerance)


@given(number=st.integers(1, 9), size=st.integers(1, 10), padded=st.booleans())
@settings(deadline=None)
def test_pieces_put_together_are_the_whole(number, size, padded):
    x, y = torch.arange(number * 2.0).view(number, 2), torch.arange(float(number))
    seen = []

    def run(a: torch.Tensor, b: torch.Tensor, c: None) -> torch.Tensor:
        seen.append(len(a))
        return a.sum(1) + b

    cut = speed.in_padded_pieces if padded else speed.in_pieces
    assert torch.equal(cut(run, size, x, y, None), x.sum(1) + y)
    assert max(seen) <= size
    if padded:
        assert set(seen) == {size}


def test_under_autocast_and_in_training_the_usual_way_is_taken():
    x = torch.zeros(1)
    assert not speed.is_inference(x)
    with torch.no_grad():
        assert speed.is_inference(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not speed.is_inference(x)


def test_an_exported_tower_has_only_operators_that_others_know(wide, frames):
    with torch.no_grad():
        program = torch.export.export(wide.backbone, (frames.flatten(0, 1),))
        names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert not any("mkldnn" in name for name in names)
        found = program.module()(frames.flatten(0, 1))
        expected = wide.backbone(frames.flatten(0, 1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_compiled_tower_is_compiled_once_for_tracklets_of_any_length(tiny_model):
    tracklets = [
        torch.randint(0, 256, (n, 3, 64, 32), dtype=torch.uint8) for n in (1, 3, 4, 11, 8, 2)
    ]
    expected = tiny_model.encode_sequences(tracklets)
    torch._dynamo.reset()
    counters.clear()
    tiny_model.compile_tower(frames=4)
    found = tiny_model.encode_sequences(tracklets)
    tiny_model.encode_sequences(tracklets, batch_frames=7)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_piece_of_no_frames_is_refused(tiny_model):
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        tiny_model.compile_tower(frames=0)
