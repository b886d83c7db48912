"""What a consumer must know about an exported model, as JSON inside the file itself."""

from __future__ import annotations

from typing import Any

from tfclip import __version__
from tfclip.export.graph import Pixels, Precision, longest_clip
from tfclip.model import TFCLIP

KEY = "tfclip"
"""Where the JSON stands: in ONNX's metadata and OpenVINO's ``rt_info``; ``.json`` in a .pt2."""

FORMAT_VERSION = 1


def describe(
    model: TFCLIP,
    *,
    model_name: str,
    fingerprint: str,
    pixels: Pixels,
    camera_input: bool,
    precision: Precision,
    quantize: str | None,
    properties: dict[str, str],
) -> dict[str, Any]:
    """Say how to make clips of a tracklet, what goes in, and what comes out.

    Args:
        model: The model.
        model_name: What it is called.
        fingerprint: ``tfclip.data.model_fingerprint`` of it, as galleries and tables keep it.
        pixels: What the input holds.
        camera_input: Whether there is an input for cameras.
        precision: What the weights and the arithmetic are.
        quantize: ``"int8"`` or None.
        properties: With which properties OpenVINO must compile the file.

    Returns:
        Plain JSON values; docs/export.md explains each key.
    """
    config = model.config
    height, width = config.frame_size
    return {
        "format_version": FORMAT_VERSION,
        "tfclip_version": __version__,
        "model": model_name,
        "fingerprint": fingerprint,
        "backbone": config.backbone,
        "temporal_head": config.temporal_head,
        "frames": {
            "axes": ["batch", "frames", "channel", "height", "width"],
            "dtype": "uint8" if pixels == "uint8" else "float32",
            "height": height,
            "width": width,
            "colors": "RGB",
            "resize": config.interpolation,
            "antialias": True,
            "crop": False,
            "value_range": [0, 255] if pixels == "uint8" else [0, 1],
            "normalize": pixels == "normalized",
            "mean": list(config.mean),
            "std": list(config.std),
            "max_frames": longest_clip(model),
        },
        "cameras": {
            "input": camera_input,
            "count": config.num_cameras,
            "unknown": config.unknown_camera,
        },
        "embedding": {
            "width": model.embedding_dim,
            "parts": {part: model.part_widths[part] for part in config.descriptor},
            "normalized": False,
        },
        "tracklet": {
            "sampling": "dense",
            "clip_length": config.clip_length,
            "last_clip": "repeats its frames in order",
            "clips": "averaged, then divided by the length of the mean",
        },
        "precision": precision,
        "quantize": quantize,
        "openvino_properties": properties,
    }
