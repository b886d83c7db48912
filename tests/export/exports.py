"""Small models, pixels, and what the model itself makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion

from tfclip import TFCLIP, TFCLIPConfig
from tfclip.export.exporting import ONNX_TORCH
from tfclip.preprocess import Preprocess

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]

SMALL: dict[str, Any] = {
    "backbone_options": {"width": 64, "layers": 2, "heads": 2, "output_dim": 32},
    "frame_size": (64, 32),
    "clip_length": 4,
}
SHAPES = ((1, 1), (1, 7), (2, 8), (3, 16), (4, 2))


def need_onnx() -> None:
    if TorchVersion(torch.__version__) < ONNX_TORCH:
        pytest.skip(f"ONNX files need torch {ONNX_TORCH}; docs/compatibility.md")


def seeded(**changes: Any) -> TFCLIP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TFCLIP(TFCLIPConfig(**{**SMALL, **changes})).eval()


def pixels(batch: int, frames: int, size: tuple[int, int] = (64, 32), seed: int = 0) -> np.ndarray:
    random = np.random.default_rng([seed, batch, frames])
    return random.integers(0, 256, (batch, frames, 3, *size), dtype=np.uint8)


def embed(model: TFCLIP, frames: np.ndarray, cameras: np.ndarray | None = None) -> np.ndarray:
    """Return the embeddings of pixels by the model's own forward."""
    with torch.inference_mode():
        normalised = Preprocess(model.config).normalize(torch.from_numpy(frames))
        numbers = None if cameras is None else torch.from_numpy(cameras)
        return model(normalised, numbers).embedding.numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def damage_onnx(path: Path) -> None:
    """Add noise of a tenth of its spread to one matrix."""
    model = onnx.load_model(path)
    matrices = [t for t in model.graph.initializer if len(t.dims) == 2 and min(t.dims) >= 32]
    tensor = max(matrices, key=lambda tensor: tensor.dims[0] * tensor.dims[1])
    values = onnx.numpy_helper.to_array(tensor)
    noise = np.random.default_rng(0).normal(0, values.std() / 2, values.shape)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values + noise.astype(np.float32), tensor.name))
    onnx.save_model(model, path)
