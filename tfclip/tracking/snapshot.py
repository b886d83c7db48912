"""A ``TrackletEncoder`` as one safetensors file, and back."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tfclip.data.embeddings import model_fingerprint
from tfclip.errors import SnapshotError
from tfclip.files import replace_when_done
from tfclip.tracking.clips import Clip, FrameFeatures
from tfclip.tracking.quality import Gate, QualityGate
from tfclip.tracking.tracks import Track
from tfclip.tracking.windows import make_window
from tfclip.untrusted import one_line, parse_json

if TYPE_CHECKING:
    from tfclip.model import TFCLIP
    from tfclip.tracking.encoder import TrackletEncoder

    Encoder = TypeVar("Encoder", bound=TrackletEncoder)

FORMAT_VERSION = 1

_KEY = "tfclip_tracks"  # of the metadata that makes a file ours
_OPTIONS = ("max_frames", "policy", "max_age", "max_tracks", "normalize", "batch_frames")


def write_snapshot(encoder: TrackletEncoder, path: str | Path) -> None:
    """Write an encoder; see ``TrackletEncoder.snapshot``."""
    arrays: dict[str, Tensor] = {}
    tracks = [
        _track_to_json(key, track, str(place), arrays)
        for place, (key, track) in enumerate(encoder._tracks.items())
    ]
    gate = encoder.gate
    dtype = encoder.token_dtype
    description = {
        "version": FORMAT_VERSION,
        "fingerprint": model_fingerprint(encoder.model),
        "options": {name: getattr(encoder, name) for name in _OPTIONS},
        "token_dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "gate": dataclasses.asdict(gate) if isinstance(gate, QualityGate) else gate and repr(gate),
        "counts": dict(encoder.counts),
        "num_calls": encoder._num_calls,
        "has_times": encoder._has_times,
        "tracks": tracks,
    }
    # An array, for the header, where metadata goes, may not exceed 100 MB.
    encoded = bytearray(json.dumps(description, ensure_ascii=False).encode())
    arrays["description"] = torch.frombuffer(encoded, dtype=torch.uint8)
    with replace_when_done(path) as temporary:
        temporary.chmod(0o600)  # what a person looks like is personal data
        temporary.write_bytes(save(arrays, metadata={_KEY: str(FORMAT_VERSION)}))


def read_snapshot(
    kind: type[Encoder], path: str | Path, model: TFCLIP, gate: Gate | None
) -> Encoder:
    """Read an encoder; see ``TrackletEncoder.restore``."""
    path = Path(path)
    arrays = _read_arrays(path)
    try:
        description = parse_json(arrays["description"].numpy().tobytes())
        fingerprint, found = description["fingerprint"], model_fingerprint(model)
        if fingerprint != found:
            raise SnapshotError(
                f"{path} holds tracks of the model with fingerprint {fingerprint}, and cannot go "
                f"on with that of {found}; restore it with the model it was taken with"
            )
        dtype = description["token_dtype"]
        encoder = kind(
            model,
            gate=_gate_of(path, description["gate"]) if gate is None else gate,
            token_dtype=None if dtype is None else getattr(torch, dtype),
            **description["options"],
        )
        encoder.counts = Counter(description["counts"])
        encoder._num_calls = description["num_calls"]
        encoder._has_times = description["has_times"]
        for place, known in enumerate(description["tracks"]):
            key, track = _track_from_json(known, str(place), arrays, encoder)
            encoder._tracks[key] = track
    except SnapshotError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise SnapshotError(f"{path} is damaged: {reason}") from error
    return encoder


def _read_arrays(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise SnapshotError(f"cannot read {path}: there is no such file")
    try:
        with safe_open(path, "pt") as file:
            version = (file.metadata() or {}).get(_KEY)
            if version is None:
                raise SnapshotError(f"{path} is no snapshot of a TrackletEncoder")
            if version != str(FORMAT_VERSION):
                raise SnapshotError(
                    f"{path} has format version {version} and this tfclip reads up to "
                    f"{FORMAT_VERSION}; upgrade with: pip install --upgrade tfclip"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SnapshotError(f"cannot read {path}: {one_line(error)}") from error


def _gate_of(path: Path, described: dict[str, Any] | str | None) -> Gate | None:
    if isinstance(described, str):
        raise SnapshotError(
            f"{path} was taken with a gate that no file can hold, {described}; give it as gate="
        )
    return None if described is None else QualityGate(**described)


def _track_to_json(
    key: Hashable, track: Track, prefix: str, arrays: dict[str, Tensor]
) -> dict[str, Any]:
    window = track.window
    if window.total is not None:
        arrays[f"{prefix}.total"] = window.total
    assert track.embedding is not None  # each track that is kept has one
    arrays[f"{prefix}.embedding"] = track.embedding
    return {
        "id": _id_to_json(key),
        "camera": track.camera,
        "first_time": track.first_time,
        "last_time": track.last_time,
        "num_crops": track.num_crops,
        "num_used": track.num_used,
        "gated": dict(track.gated),
        "score": None if track.num_used else track.stand_in_score,
        "stand_in": track.stand_in and _clip_to_json(track.stand_in, f"{prefix}.s", arrays),
        "num_summed": window.num_summed,
        "clips": [
            _clip_to_json(clip, f"{prefix}.{place}", arrays)
            for place, clip in enumerate(window.clips)
        ],
    }


def _track_from_json(
    known: Mapping[str, Any], prefix: str, arrays: Mapping[str, Tensor], encoder: TrackletEncoder
) -> tuple[Hashable, Track]:
    device = encoder.model.device
    window = make_window(encoder.policy, encoder.model.config.clip_length, encoder.max_frames)
    window.total = arrays.get(f"{prefix}.total")
    window.num_summed = known["num_summed"]
    window.clips = [
        _clip_from_json(numbers, f"{prefix}.{place}", arrays, device)
        for place, numbers in enumerate(known["clips"])
    ]
    stand_in = known["stand_in"]
    track = Track(
        window,
        known["camera"],
        known["first_time"],
        known["last_time"],
        num_crops=known["num_crops"],
        num_used=known["num_used"],
        gated=Counter(known["gated"]),
        stand_in=stand_in and _clip_from_json(stand_in, f"{prefix}.s", arrays, device),
        stand_in_score=float("inf") if known["score"] is None else known["score"],
        embedding=arrays[f"{prefix}.embedding"],
    )
    return _id_from_json(known["id"]), track


def _clip_to_json(clip: Clip, prefix: str, arrays: dict[str, Tensor]) -> list[int]:
    if clip.embedding is not None:
        arrays[f"{prefix}.embedding"] = clip.embedding
    for name in FrameFeatures._fields if clip.frames else ():
        parts = [getattr(frame, name) for frame in clip.frames]
        if parts[0] is not None:
            arrays[f"{prefix}.{name}"] = torch.stack(parts).cpu()
    return clip.numbers


def _clip_from_json(
    numbers: list[int], prefix: str, arrays: Mapping[str, Tensor], device: torch.device
) -> Clip:
    frames: list[FrameFeatures] = []
    if f"{prefix}.class_token" in arrays:
        parts = [arrays.get(f"{prefix}.{name}") for name in FrameFeatures._fields]
        frames = [
            FrameFeatures(*(None if p is None else p[place].clone().to(device) for p in parts))  # type: ignore[arg-type]
            for place in range(len(numbers))
        ]
    return Clip(list(numbers), frames, arrays.get(f"{prefix}.embedding"))


def _id_to_json(key: Hashable) -> Any:
    if isinstance(key, tuple):
        return [_id_to_json(part) for part in key]
    if key is None or isinstance(key, (str, int, float)):
        return key
    raise TypeError(
        "track ids of a snapshot must be numbers, texts or tuples of these, "
        f"got {type(key).__name__}"
    )


def _id_from_json(value: Any) -> Hashable:
    return tuple(_id_from_json(part) for part in value) if isinstance(value, list) else value
