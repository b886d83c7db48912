"""Products of 8-bit numbers are those of the rounded numbers, row by row."""

from __future__ import annotations

import copy
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

from tfclip import TFCLIP, TFCLIPConfig, TrackletEncoder, int8, speed
from tfclip.cli import main
from tfclip.data import EmbeddingTable
from tfclip.export import export_model
from tfclip.precision import convert

pytestmark = pytest.mark.skipif(int8.why_not() is not None, reason=str(int8.why_not()))


@pytest.fixture(scope="module")
def wide() -> TFCLIP:
    """A model with products wide enough to be rounded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = TFCLIPConfig(
            backbone_options={"width": 128, "layers": 2, "heads": 2, "output_dim": 64},
            frame_size=(64, 32),
        )
        return TFCLIP(config).eval()


@pytest.fixture
def model(wide) -> TFCLIP:
    return copy.deepcopy(wide)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randn(2, 3, 3, 64, 32, generator=torch.Generator().manual_seed(1))


def literal(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Round each row of both to 127 steps on either side of zero and multiply whole numbers."""
    result = torch.empty(len(x), len(weight), dtype=torch.float64)
    for i, row in enumerate(x):
        step = row.abs().max().item() / 127 or 1.0
        whole_row = torch.tensor([int(np.floor(v / step + 0.5)) for v in row.tolist()])
        for j, channel in enumerate(weight):
            size = channel.abs().max().item() / 127 or 1.0
            whole_channel = (channel / size).round().long()
            result[i, j] = (whole_row * whole_channel).sum().item() * step * size
    return result if bias is None else result + bias.double()


@given(
    rows=st.integers(1, 4),
    inner=st.sampled_from([64, 66, 130]),
    outer=st.sampled_from([64, 70]),
    seed=st.integers(0, 1000),
    with_bias=st.booleans(),
)
@settings(deadline=None, max_examples=10)
def test_a_product_is_that_of_the_rounded_numbers(rows, inner, outer, seed, with_bias):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inner, generator=generator)
    x *= 10.0 ** torch.randint(-6, 6, (rows, 1), generator=generator)
    weight = torch.randn(outer, inner, generator=generator)
    bias = torch.randn(outer, generator=generator) if with_bias else None
    with torch.inference_mode():
        found = int8.linear(x, weight, bias)
    expected = literal(x, weight, bias)
    # A number that lies between two steps may go either way.
    step = x.abs().amax(1, keepdim=True) / 127 * weight.abs().amax()
    assert ((found.double() - expected).abs() <= 2 * step + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_zeros_gives_the_bias(dtype):
    bias = torch.randn(64).to(dtype)
    with torch.inference_mode():
        found = int8.linear(torch.zeros(2, 64, dtype=dtype), torch.ones(64, 64, dtype=dtype), bias)
    assert found.dtype == dtype
    assert torch.equal(found, bias.expand(2, 64))


def test_a_weight_of_zeros_gives_zeros():
    with torch.inference_mode():
        assert not int8.linear(torch.ones(2, 64), torch.zeros(64, 64), None).any()


def test_a_row_does_not_depend_on_the_others():
    x, weight = torch.randn(5, 64), torch.randn(64, 64)
    x[3] *= 1e6
    x[4] = float("nan")
    with torch.inference_mode():
        whole = int8.linear(x, weight, None)
        for i in range(4):
            assert torch.equal(int8.linear(x[i : i + 1], weight, None)[0], whole[i])
    assert whole[4].isnan().all()
    assert whole[:4].isfinite().all()


def test_the_activation_is_applied_to_what_the_layer_gives():
    x, weight, bias = torch.randn(5, 64), torch.randn(64, 64), torch.randn(64)
    with torch.inference_mode():
        plain = int8.linear(x, weight, bias)
        activated = int8.linear(x, weight, bias, quick_gelu=True)
    torch.testing.assert_close(activated, plain * torch.sigmoid(1.702 * plain))


def test_a_weight_that_changes_is_rounded_anew():
    x, weight = torch.randn(3, 64), nn.Parameter(torch.randn(64, 64))
    with torch.inference_mode():
        before = int8.linear(x, weight, None)
    with torch.no_grad():
        weight.mul_(2)
    with torch.inference_mode():
        torch.testing.assert_close(int8.linear(x, weight, None), 2 * before)


def test_without_a_compiler_the_result_is_the_same(monkeypatch, caplog):
    x, weight, bias = torch.randn(5, 64), torch.randn(64, 64), torch.randn(64)
    with torch.inference_mode():
        expected = int8.linear(x, weight, bias, quick_gelu=True)

    def fail(*_arguments, **_options):
        def broken(*_):
            raise RuntimeError("no C++ compiler\nand much more")

        return broken

    monkeypatch.setattr(torch, "compile", fail)
    int8._one_pass.cache_clear()
    try:
        with torch.inference_mode(), caplog.at_level(logging.WARNING, logger="tfclip.int8"):
            found = int8.linear(x, weight, bias, quick_gelu=True)
    finally:
        int8._one_pass.cache_clear()
    torch.testing.assert_close(found, expected)
    assert "slower than bfloat16: no C++ compiler" in caplog.text
    assert "much more" not in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_stay_near_those_of_float32(model, frames, dtype):
    with torch.inference_mode():
        exact = model(frames).embedding
        model.to(dtype).quantize_dynamic()
        found = model(frames.to(dtype)).embedding.float()
    assert F.cosine_similarity(found, exact).min() > 0.999
    assert not torch.equal(found, exact)


def test_an_embedding_depends_on_its_own_frames_alone(model):
    model.quantize_dynamic()
    generator = np.random.default_rng(0)
    tracklets = [
        generator.integers(0, 256, (n, 64, 32, 3), dtype=np.uint8) // (1 + 3 * i)
        for i, n in enumerate((3, 9, 1))
    ]
    together = model.encode_sequences(tracklets)
    for tracklet, embedding in zip(tracklets, together, strict=True):
        alone = model.encode_sequence(tracklet, batch_frames=4)
        # Sums in another order may move a number across the border between two steps.
        assert 1 - float(alone.double() @ embedding.double()) < 1e-6


def test_training_and_what_is_saved_stay_as_they_were(model, wide, frames):
    model.quantize_dynamic()
    model.train()
    expected = copy.deepcopy(wide).train()(frames)
    assert torch.equal(model(frames).embedding, expected.embedding)
    for name, value in wide.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_it_is_turned_off_again(model, frames):
    with torch.inference_mode():
        before = model(frames).embedding
        model.quantize_dynamic()
        assert model.precision == "int8"
        assert not torch.equal(model(frames).embedding, before)
        model.quantize_dynamic(False)
        assert model.precision == "float32"
        assert torch.equal(model(frames).embedding, before)


def test_a_copy_multiplies_as_its_model_does(model, frames):
    model.quantize_dynamic()
    with torch.inference_mode():
        expected = model(frames).embedding
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(frames).embedding, expected)


def test_other_models_and_threads_are_not_concerned(model, wide, frames):
    with torch.inference_mode():
        expected = wide(frames).embedding
    x, weight = torch.randn(3, 64), torch.randn(64, 64)
    with torch.inference_mode():
        plain = F.linear(x, weight)
    model.quantize_dynamic()

    def in_another_thread() -> torch.Tensor:
        with torch.inference_mode():
            return speed.linear(x, weight, None)

    with ThreadPoolExecutor(1) as pool, torch.inference_mode(), int8.multiplying(True):
        assert not torch.equal(speed.linear(x, weight, None), plain)
        assert torch.equal(pool.submit(in_another_thread).result(), plain)
    with torch.inference_mode():
        model(frames)
        assert torch.equal(wide(frames).embedding, expected)


def test_narrow_products_are_not_rounded():
    x, weight = torch.randn(3, 32), torch.randn(64, 32)
    with torch.inference_mode(), int8.multiplying(True):
        assert torch.equal(speed.linear(x, weight, None), F.linear(x, weight))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda model: model.half(), "parameters must be float32 or bfloat16, got torch.float16"),
        (lambda model: model.to("meta"), "must be on a CPU, got meta"),
        (lambda model: model.compile_tower(), "its tower is compiled"),
    ],
)
def test_a_model_that_cannot_says_why(model, change, sentence):
    change(model)
    with pytest.raises(ValueError, match=f"cannot multiply 8-bit numbers: .*{sentence}"):
        model.quantize_dynamic()
    assert model.precision != "int8"


def test_other_towers_are_refused():
    config = TFCLIPConfig(backbone="timm:resnet18", frame_size=(64, 32))
    with pytest.raises(ValueError, match="only CLIP's vision transformers do, got backbone 'timm:"):
        TFCLIP(config).quantize_dynamic()


def test_a_tower_of_8_bit_products_is_not_compiled_as_well(model):
    model.quantize_dynamic()
    with pytest.raises(ValueError, match="cannot be compiled as well"):
        model.compile_tower()


def test_the_machine_is_asked_first(model, monkeypatch):
    monkeypatch.setattr(int8, "why_not", lambda: "the processor must have VNNI instructions")
    with pytest.raises(ValueError, match="must have VNNI"):
        convert(model, "int8")


def test_a_pretrained_model_takes_int8_by_name():
    model = TFCLIP.from_pretrained("tfclip-tiny", dtype="int8")
    assert model.precision == "int8"
    assert model.dtype == torch.bfloat16


def test_a_table_says_that_its_embeddings_were_made_of_8_bit_products(tmp_path):
    folder = tmp_path / "crops" / "0001"
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 64), (200, 30, 60)).save(folder / "0.png")
    out = tmp_path / "out.safetensors"
    assert main(["encode", str(folder.parent), "--dtype", "int8", "--out", str(out)]) == 0
    table = EmbeddingTable.load(out)
    assert table.settings["dtype"] == "int8"
    exact = TFCLIP.from_pretrained("tfclip-tiny").encode_sequence(folder)
    assert 0.999 < float(table.embeddings[0] @ exact) <= 1 + 1e-6


def test_growing_tracklets_are_encoded_as_whole_ones_are(model):
    model.quantize_dynamic()
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 32, 3), dtype=np.uint8)
    encoder = TrackletEncoder(model)
    for frame in frames:
        encoder.update([7], [frame])
    whole = model.encode_sequence(frames)
    assert 1 - float(encoder.embedding(7).double() @ whole.double()) < 1e-6
    model.quantize_dynamic(False)
    assert 1 - float(model.encode_sequence(frames).double() @ whole.double()) > 1e-6


def test_a_model_that_moved_where_it_cannot_says_what_it_computes_in(model):
    model.quantize_dynamic()
    assert model.half().precision == "float16"


def test_an_export_is_compared_with_the_exact_model(model, tmp_path):
    model.quantize_dynamic()
    report = export_model(model, tmp_path / "model.pt2")
    assert report.cosine > 1 - 1e-6
    assert model.precision == "int8"
