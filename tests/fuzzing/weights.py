"""Configurations, weights and checkpoints."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import zlib
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save

from tests.fuzzing.target import Samples, Target, of_file
from tests.recorded import shallow_checkpoint
from tfclip import TFCLIP, TFCLIPConfig, convert
from tfclip.checkpoints import read_checkpoint
from tfclip.errors import ConfigError, WeightsError
from tfclip.tensors import read_safetensors

TINY = TFCLIPConfig(
    backbone_options={"width": 64, "layers": 1, "heads": 1, "patch_size": 16, "output_dim": 8},
    frame_size=(32, 16),
    clip_length=2,
    calibration={
        "threshold": 0.5,
        "asked_false_match_rate": 0.01,
        "false_match_rate": 0.01,
        "false_non_match_rate": 0.1,
        "num_same": 10,
        "num_different": 100,
        "prior": 0.5,
        "kind": "isotonic",
        "distances": [0.1, 0.9],
        "probabilities": [0.9, 0.1],
        "slope": -1.0,
        "intercept": 0.5,
        "fitted_on": "drawn people",
        "fingerprint": "0" * 16,
        "sampling": "dense",
        "cameras": False,
    },
)


@cache
def tiny_model() -> TFCLIP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TFCLIP(TINY).eval()


def _make_config(folder: Path) -> Samples:
    timm = TFCLIPConfig(
        backbone="timm:vit_tiny_patch16_224", backbone_options={"depth": 1}, frame_size=(32, 16)
    )
    resnet = TFCLIPConfig(backbone="RN50", num_cameras=2, provenance={"weights": "random"})
    return {
        f"{number}.json": config.to_json().encode()
        for number, config in enumerate((TINY, timm, resnet))
    }


def _read_config(folder: Path, name: str) -> None:
    text = (folder / name).read_text(encoding="utf-8", errors="replace")
    config = TFCLIPConfig.from_json(text)
    assert TFCLIPConfig.from_json(config.to_json()) == config


def _make_model(folder: Path) -> Samples:
    tiny_model().save_pretrained(folder)
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


def _make_timm_model(folder: Path) -> Samples:
    options = {"depth": 1, "embed_dim": 64, "num_heads": 1}
    config = TFCLIPConfig(
        backbone="timm:vit_tiny_patch16_224",
        backbone_options=options,
        frame_size=(32, 16),
        descriptor=("appearance",),
    )
    TFCLIP(config).eval().save_pretrained(folder)
    return {"config.json": (folder / "config.json").read_bytes()}


def _load_model(folder: Path, name: str) -> None:
    model = TFCLIP.from_pretrained(folder)
    with contextlib.suppress(ConfigError):  # of a calibration that the reader cannot use
        _ = model.calibration


def _make_safetensors(folder: Path) -> Samples:
    tensors = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3), "bias": _halves()}
    return {
        "plain.safetensors": save(tensors, metadata={"format": "pt"}),
        "empty.safetensors": save({}),
    }


def _halves() -> torch.Tensor:
    return torch.tensor([0.5, -1], dtype=torch.bfloat16)


def _make_checkpoints(folder: Path) -> Samples:
    state = {
        "module.a": torch.arange(6.0).view(2, 3),
        "module.b": _halves(),
        "c": torch.ones(3).view(3, 1).expand(3, 2),
    }
    new, old, nested = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(state, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3}, nested)
    return {
        "new.pth.tar": new.getvalue(),
        "old.pth": old.getvalue(),
        "nested.pt": nested.getvalue(),
        "scripted.pt": _scripted(),
    }


def _scripted() -> bytes:
    import warnings

    root = torch.nn.Module()
    root.add_module("visual", torch.nn.Linear(2, 3))
    stream = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(root), stream)
    return stream.getvalue()


def _stored_again(rng: random.Random, data: bytes) -> bytes:
    """Give the entries of a damaged zip archive the checksums of what is there now, sometimes."""
    if rng.random() < 0.3 or data[:4] != b"PK\3\4":
        return data
    changed = bytearray(data)
    place = changed.find(b"PK\1\2")
    while place >= 0 and place + 46 <= len(changed):
        size, length = struct.unpack_from("<I4xH", changed, place + 20)
        (start,) = struct.unpack_from("<I", changed, place + 42)
        if start + 30 <= len(changed):
            head = struct.unpack_from("<HH", changed, start + 26)
            content = bytes(changed[start + 30 + sum(head) :][:size])
            struct.pack_into("<I", changed, place + 16, zlib.crc32(content))
        place = changed.find(b"PK\1\2", place + 46 + length)
    return bytes(changed)


def _make_reference(folder: Path) -> Samples:
    return {"best_model.safetensors": save(shallow_checkpoint())}


def _convert(folder: Path, name: str) -> None:
    convert.from_reference(folder / name, frame_size=(64, 32))


TARGETS = {
    "config": Target(_make_config, _read_config, (ConfigError,)),
    "model": Target(_make_model, _load_model, (ConfigError, WeightsError)),
    "timm-model": Target(_make_timm_model, _load_model, (ConfigError, WeightsError)),
    "safetensors": Target(_make_safetensors, of_file(read_safetensors), (WeightsError,)),
    "checkpoint": Target(
        _make_checkpoints, of_file(read_checkpoint), (WeightsError,), _stored_again
    ),
    "reference": Target(_make_reference, _convert, (WeightsError, ConfigError)),
}
