"""TFCLIP.forward: the reference's numbers, and what must hold of any weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfclip import TFCLIP, TFCLIPConfig, convert

TOLERANCE = {"atol": 5e-5, "rtol": 0}


@pytest.fixture(scope="module")
def reference(request):
    path = request.path.parent / "golden" / "state_dict.safetensors"
    return convert.from_reference(path, clip_length=4)


@pytest.fixture(scope="module")
def frames():
    return torch.randn(3, 4, 3, 64, 32, generator=torch.Generator().manual_seed(1))


def model_of(**changes) -> TFCLIP:
    torch.manual_seed(0)
    sizes = {"width": 64, "layers": 2, "heads": 2, "output_dim": 32}
    config = TFCLIPConfig(
        **{"backbone_options": sizes, "frame_size": (64, 32), "clip_length": 4, **changes}
    )
    return TFCLIP(config).eval()


# --- golden ----------------------------------------------------------------------------------


def test_embedding_with_cameras_is_the_reference_test_feature(reference, golden):
    inputs, recorded = golden("inputs"), golden("eval_outputs")
    with torch.inference_mode():
        output = reference(inputs["frames"], inputs["cam_label"])
    torch.testing.assert_close(output.embedding, recorded["feat_neck_before"], **TOLERANCE)
    parts = torch.cat([output.appearance, output.projected, output.temporal], dim=1)
    torch.testing.assert_close(output.embedding, parts)


def test_embedding_after_the_necks_is_the_reference_feature_after_its_necks(request, golden):
    path = request.path.parent / "golden" / "state_dict.safetensors"
    model = convert.from_reference(path, clip_length=4, neck="after")
    inputs, recorded = golden("inputs"), golden("eval_outputs")
    with torch.inference_mode():
        output = model(inputs["frames"], inputs["cam_label"])
    torch.testing.assert_close(output.embedding, recorded["feat_neck_after"], **TOLERANCE)


def test_projected_feature_without_cameras_is_what_the_memory_is_built_from(reference, golden):
    inputs, recorded = golden("inputs"), golden("eval_outputs")
    with torch.inference_mode():
        output = reference(inputs["frames"])
    torch.testing.assert_close(output.projected, recorded["get_image"], **TOLERANCE)


def test_projected_tokens_are_the_projected_tokens_averaged_over_frames(reference, golden):
    inputs, recorded = golden("inputs"), golden("eval_outputs")
    with torch.inference_mode():
        output = reference(inputs["frames"], inputs["cam_label"])
    expected = recorded["encoder_tokens_proj"].unflatten(0, (4, 4)).mean(1)
    torch.testing.assert_close(output.projected_tokens, expected, **TOLERANCE)


# --- properties (method specification, section 17) -------------------------------------------


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(4)))
def test_order_of_frames_does_not_change_the_embedding(order):
    model, frames = model_of(), torch.randn(2, 4, 3, 64, 32)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(frames[:, order]).embedding, model(frames).embedding, atol=1e-5, rtol=0
        )


def test_order_of_frames_matters_when_positions_are_told(frames):
    model = model_of(temporal_position=True)
    with torch.inference_mode():
        forward, backward = model(frames).temporal, model(frames.flip(1)).temporal
    assert (forward - backward).abs().max() > 1e-3


@pytest.mark.parametrize("head", ["tmd", "tmc", "average", "convolution", "transformer"])
def test_a_clip_does_not_depend_on_its_batch_mates(frames, head):
    model = model_of(temporal_head=head)
    with torch.inference_mode():
        together = model(frames).embedding
        alone = torch.cat([model(clip[None]).embedding for clip in frames])
        reversed_batch = model(frames.flip(0)).embedding.flip(0)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together, reversed_batch, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "head", ["tmd", "tmc", "average", "convolution", "transformer", "transformer_token"]
)
@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan")])
def test_padding_does_not_change_an_embedding_whatever_it_holds(frames, head, filler):
    model = model_of(temporal_head=head)
    mask = torch.tensor([[True, True, True, False]]).expand(3, 4)
    padded = frames.clone()
    padded[:, 3] = filler
    with torch.inference_mode():
        torch.testing.assert_close(
            model(padded, frame_mask=mask).embedding,
            model(frames[:, :3]).embedding,
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize("times", [2, 3])
def test_every_frame_given_several_times_leaves_the_embedding(frames, times):
    model = model_of()
    with torch.inference_mode():
        repeated = model(frames.repeat_interleave(times, dim=1)).embedding
        torch.testing.assert_close(repeated, model(frames).embedding, atol=1e-5, rtol=0)


@settings(max_examples=10, deadline=None)
@given(counts=st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_a_frame_of_weight_n_acts_as_n_equal_frames(counts):
    model, frames = model_of(), torch.randn(1, 4, 3, 64, 32)
    counts = torch.tensor(counts)
    with torch.inference_mode():
        weighted = model(frames, frame_mask=counts[None].float()).embedding
        repeated = model(frames[:, torch.arange(4).repeat_interleave(counts)]).embedding
    torch.testing.assert_close(weighted, repeated, atol=1e-5, rtol=0)


def test_one_frame_works_and_its_memory_attends_to_itself_alone(frames):
    model = model_of()
    with torch.inference_mode():
        single = model(frames[:, :1])
    assert single.embedding.isfinite().all()
    torch.testing.assert_close(single.temporal, single.frame_temporal[:, 0])


@pytest.mark.parametrize("length", [1, 2, 5, 11])
def test_any_number_of_frames_works_without_a_new_model(length):
    with torch.inference_mode():
        output = model_of()(torch.randn(2, length, 3, 64, 32))
    assert output.embedding.shape == (2, 160)
    assert output.frame_temporal.shape == (2, length, 64)


def test_descriptor_chooses_and_orders_the_parts(frames):
    whole = model_of()
    some = model_of(descriptor=("temporal", "projected"))
    some.load_state_dict(whole.state_dict())
    with torch.inference_mode():
        output = whole(frames)
        chosen = some(frames).embedding
    torch.testing.assert_close(chosen, torch.cat([output.temporal, output.projected], dim=1))
    assert some.embedding_dim == chosen.shape[1]


def test_embed_is_the_embedding_of_describe(frames):
    model = model_of(neck="after")
    with torch.inference_mode():
        tokens = model.backbone(frames.flatten(0, 1)).unflatten(0, (3, 4))
        torch.testing.assert_close(model.embed(tokens), model.describe(tokens).embedding)


def test_normalised_distance_is_two_minus_two_cosines(frames):
    with torch.inference_mode():
        unit = torch.nn.functional.normalize(model_of()(frames).embedding)
    squared = (unit[0] - unit[1]).square().sum()
    torch.testing.assert_close(squared, 2 - 2 * (unit[0] @ unit[1]), atol=1e-5, rtol=0)


# --- cameras ---------------------------------------------------------------------------------


def test_unknown_camera_adds_nothing_or_the_mean_of_the_table(frames):
    model = model_of(num_cameras=3)
    mean = model_of(num_cameras=3, unknown_camera="mean")
    mean.load_state_dict(model.state_dict())
    plain = model_of()
    plain.load_state_dict(
        {name: x for name, x in model.state_dict().items() if name != "camera_embedding"}
    )
    with torch.inference_mode():
        torch.testing.assert_close(model(frames).embedding, plain(frames).embedding)
        unknown = model(frames, torch.tensor([-1, -1, -1])).embedding
        torch.testing.assert_close(unknown, plain(frames).embedding)
        assert model.camera_embedding is not None
        average = model.camera_embedding.mean(0).expand(3, -1)
        tokens = plain.backbone(frames.flatten(0, 1), average.repeat_interleave(4, 0))
        expected = plain.describe(tokens.unflatten(0, (3, 4))).embedding
        torch.testing.assert_close(mean(frames).embedding, expected)


def test_camera_coefficient_scales_the_camera_vector(frames):
    model, none = model_of(num_cameras=3), model_of(num_cameras=3, camera_coefficient=0.0)
    none.load_state_dict(model.state_dict())
    cameras = torch.tensor([0, 1, 2])
    with torch.inference_mode():
        torch.testing.assert_close(none(frames, cameras).embedding, model(frames).embedding)
        assert (model(frames, cameras).embedding - model(frames).embedding).abs().max() > 1e-4


# --- gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("detach", [True, False])
def test_temporal_loss_reaches_the_tower_only_when_not_detached(frames, detach):
    model = model_of(num_cameras=3, temporal_detach=detach).train()
    model(frames, torch.tensor([0, 1, 2])).temporal.square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    temporal = {name for name, _ in model.named_parameters() if name.startswith("temporal.")}
    assert temporal <= reached
    assert (reached == temporal) is detach
    assert ("camera_embedding" in reached) is not detach


def test_every_parameter_learns_from_the_whole_output(frames):
    model = model_of(num_cameras=3).train()
    output = model(frames, torch.tensor([0, 1, 2]))
    (output.embedding.square().sum() + output.projected_tokens.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "cameras", "mask", "message"),
    [
        (torch.zeros(4, 3, 64, 32), None, None, "add a time axis"),
        (torch.zeros(1, 4, 64, 32, 3), None, None, r"frames must be \(B, T, 3, H, W\)"),
        (torch.zeros(1, 0, 3, 64, 32), None, None, r"frames must be \(B, T, 3, H, W\)"),
        (torch.zeros(1, 4, 3, 64, 64), None, None, r"\(3, 64, 32\)"),
        (torch.zeros(1, 4, 3, 64, 32).byte(), None, None, "normalised floating point"),
        (torch.zeros(2, 4, 3, 64, 32), torch.tensor([0]), None, r"\(B,\) = \(2,\)"),
        (torch.zeros(2, 4, 3, 64, 32), torch.tensor([0.0, 1.0]), None, "whole numbers"),
        (torch.zeros(2, 4, 3, 64, 32), torch.tensor([0, 3]), None, "cameras must be 0 to 2"),
        (torch.zeros(2, 4, 3, 64, 32), torch.tensor([0, -2]), None, "cameras must be 0 to 2"),
        (torch.zeros(1, 4, 3, 64, 32), None, torch.ones(1, 3), r"frame_mask must be \(B, T\)"),
        (torch.zeros(1, 4, 3, 64, 32), None, torch.zeros(1, 4), "at least one frame"),
        (torch.zeros(1, 2, 3, 64, 32), None, torch.tensor([[1.0, -1.0]]), "numbers from 0"),
        (torch.zeros(1, 2, 3, 64, 32), None, torch.tensor([[1.0, torch.nan]]), "finite numbers"),
        (torch.zeros(1, 2, 3, 64, 32), None, torch.tensor([[1.0, torch.inf]]), "finite numbers"),
        (torch.zeros(1, 4, 3, 64, 32).half(), None, None, "float32 .* got torch.float16; change"),
        (torch.zeros(1, 4, 3, 64, 32).double(), None, None, "float32 .* got torch.float64; change"),
        (torch.zeros(1, 4, 3, 64, 32), torch.tensor([True]), None, "whole numbers .* torch.bool"),
    ],
)
def test_bad_input_is_one_sentence(tiny_model, frames, cameras, mask, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny_model(frames, cameras, mask)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((1, 4, 3, 64, 32)),), "frames must be a tensor, got ndarray"),
        ((torch.zeros(1, 2, 3, 64, 32), [0]), "cameras must be a tensor, got list"),
        ((torch.zeros(1, 2, 3, 64, 32), None, [[True, False]]), "frame_mask must be a tensor"),
    ],
)
def test_what_is_no_tensor_is_refused(tiny_model, arguments, message):
    with pytest.raises(TypeError, match=message):
        tiny_model(*arguments)


@pytest.mark.parametrize("config", ["ViT-B-16", {"backbone": "ViT-B-16"}])
def test_a_model_is_made_of_a_config_and_nothing_else(config):
    with pytest.raises(TypeError, match=r"must be a TFCLIPConfig, got .*from_pretrained"):
        TFCLIP(config)


def test_under_autocast_frames_may_be_of_either_type(tiny_model, frames):
    with torch.autocast("cpu", torch.bfloat16):
        whole, half = (tiny_model(x).embedding for x in (frames, frames.bfloat16()))
    torch.testing.assert_close(whole, half, atol=0.1, rtol=0.1, check_dtype=False)


def test_camera_given_to_a_model_without_cameras_is_refused(frames):
    with pytest.raises(ValueError, match="without a camera table"):
        model_of()(frames, torch.tensor([0, 1, 2]))
