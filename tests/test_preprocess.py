from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from tfclip.config import Interpolation, TFCLIPConfig
from tfclip.errors import FrameError
from tfclip.frames import open_frames
from tfclip.preprocess import Preprocess, normalize, resize_frame

GOLDEN = Path(__file__).parent / "golden" / "preprocess.safetensors"
# Recorded with Pillow 13; where another rounds a pixel differently, one step of 8 bits is allowed.
TOLERANCE = 1e-6 if PIL.__version__.startswith("13.") else 1 / 255 / 0.22

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_preprocessed_tracklet_has_a_frame_axis_and_the_configs_size():
    frames = Preprocess(TFCLIPConfig(frame_size=(64, 32)))([noise(70, 40)] * 3)
    assert frames.shape == (3, 3, 64, 32)
    assert frames.dtype == torch.float32


@pytest.mark.parametrize("case", ["large", "small", "same"])
def test_preprocessing_equals_the_reference(case: str):
    recorded = load_file(GOLDEN)
    frame = recorded[f"{case}.uint8_hwc"].numpy()
    [result] = Preprocess(TFCLIPConfig(frame_size=(64, 32)))([frame])
    torch.testing.assert_close(result, recorded[f"{case}.tensor"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_frame_is_resized_by_pillow(interpolation: Interpolation):
    frame = noise(50, 30)
    resized = resize_frame(frame, (64, 32), interpolation)
    filter_ = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(frame).resize((32, 64), filter_))
    assert np.array_equal(resized.permute(1, 2, 0).numpy(), expected)


def test_interpolation_comes_from_the_config():
    frame = noise(50, 30)
    linear, cubic = (
        Preprocess(TFCLIPConfig(frame_size=(64, 32), interpolation=name)).resize(frame)
        for name in ("bilinear", "bicubic")
    )
    assert not torch.equal(linear, cubic)
    assert torch.equal(cubic, resize_frame(frame, (64, 32), "bicubic"))


def test_a_frame_of_the_right_size_keeps_its_pixels_and_shares_no_memory():
    frame = noise(64, 32)
    frame.flags.writeable = False  # as np.asarray(image) and memory maps are
    resized = resize_frame(frame, (64, 32))
    assert np.array_equal(resized.permute(1, 2, 0).numpy(), frame)
    resized.zero_()
    assert frame.any()


def test_a_frame_that_is_not_contiguous_is_resized_like_its_copy():
    frame = noise(80, 60)[::-2, 5:45, ::-1]
    assert torch.equal(resize_frame(frame, (64, 32)), resize_frame(frame.copy(), (64, 32)))


def test_frames_of_different_sizes_become_one_tensor():
    sizes = [(64, 32), (20, 11), (300, 100)]
    frames = open_frames([noise(*size) for size in sizes])
    assert Preprocess(TFCLIPConfig(frame_size=(64, 32)))(frames).shape == (3, 3, 64, 32)


@given(st.integers(0, 255), st.floats(-1, 1), st.floats(0.1, 2))
@settings(max_examples=50, deadline=None)
def test_normalising_is_scaling_then_mean_then_deviation(pixel: int, mean: float, std: float):
    frames = torch.full((1, 3, 2, 2), pixel, dtype=torch.uint8)
    result = normalize(frames, (mean,) * 3, (std,) * 3)
    assert result[0, 0, 0, 0].item() == pytest.approx((pixel / 255 - mean) / std, abs=2e-6)


def test_each_channel_has_its_own_mean_and_deviation():
    frames = torch.randint(0, 256, (2, 5, 3, 4, 4), dtype=torch.uint8)
    result = normalize(frames, MEAN, STD, dtype=torch.float64)
    for channel in range(3):
        expected = (frames[:, :, channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(result[:, :, channel], expected, rtol=0, atol=1e-12)


def test_normalising_leaves_its_input_alone():
    frames = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    before = frames.clone()
    normalize(frames, MEAN, STD)
    assert torch.equal(frames, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_from_float32(dtype: torch.dtype):
    frames = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = normalize(frames, MEAN, STD).to(dtype)
    assert torch.equal(normalize(frames, MEAN, STD, dtype=dtype), expected)


def test_no_frames_are_refused():
    with pytest.raises(FrameError, match="frames must have at least one frame"):
        Preprocess(TFCLIPConfig())([])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (noise(8, 8).astype(np.float32), "frame must be uint8.*float32.*model\\(frames\\)"),
        (noise(8, 8).transpose(2, 0, 1), r"frame must be \(H, W, 3\).*frame.transpose\(1, 2, 0\)"),
        (noise(8, 8)[..., 0], r"frame must be \(H, W, 3\), got shape \(8, 8\)"),
    ],
)
def test_what_is_no_frame_is_refused(frame: np.ndarray, message: str):
    with pytest.raises(FrameError, match=message):
        resize_frame(frame, (64, 32))


def test_a_path_is_not_taken_for_a_list_of_frames():
    with pytest.raises(TypeError, match="frame must be an ndarray"):
        Preprocess(TFCLIPConfig())("folder")  # pyright: ignore[reportArgumentType]


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(ValueError, match=r"interpolation must be one of .*'nearest'"):
        resize_frame(noise(8, 8), (64, 32), "nearest")  # pyright: ignore[reportArgumentType]


def test_floats_are_not_normalised_twice():
    with pytest.raises(FrameError, match=r"frames must be uint8 .* got torch.float32"):
        normalize(torch.rand(2, 3, 4, 4), MEAN, STD)


def test_channels_last_are_not_normalised():
    with pytest.raises(FrameError, match=r"frames must be \(..., 3, H, W\)"):
        normalize(torch.zeros(2, 4, 4, 3, dtype=torch.uint8), MEAN, STD)
