"""The configuration that travels with the weights: all that is needed to use them rightly."""

from __future__ import annotations

import dataclasses
import json
import reprlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from tfclip.errors import ConfigError
from tfclip.untrusted import parse_json

# A new field does not raise it: old files take its default, and an older tfclip, which would not
# know what the field asks for, refuses it by name. What an old field means must not change under
# one version.
SCHEMA_VERSION = 1

_DEEPEST = 64  # mappings and lists in one another

Activation = Literal["quick_gelu", "gelu"]
DescriptorPart = Literal["appearance", "projected", "temporal"]
Interpolation = Literal["bilinear", "bicubic"]
Neck = Literal["before", "after"]
TemporalHead = Literal["tmd", "tmc", "average", "convolution", "transformer", "transformer_token"]
UnknownCamera = Literal["zero", "mean"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "position_resize": get_args(Interpolation),
    "interpolation": get_args(Interpolation),
    "unknown_camera": get_args(UnknownCamera),
    "temporal_head": get_args(TemporalHead),
    "neck": get_args(Neck),
}
_NUMBER, _LIST = (int, float), (list,)
# Far above any model there is: what a configuration of somebody else may ask for at most.
_MAX_SIDE, _MAX_LENGTH, _MAX_DEPTH, _MAX_SIZE = 2**13, 2**16, 2**10, 2**20
# Of ``tfclip.functional.Calibration.to_dict``, and what the threshold holds for.
_CALIBRATION: dict[str, tuple[type, ...]] = {
    "threshold": _NUMBER,
    "asked_false_match_rate": _NUMBER,
    "false_match_rate": _NUMBER,
    "false_non_match_rate": _NUMBER,
    "num_same": (int,),
    "num_different": (int,),
    "prior": _NUMBER,
    "kind": (str,),
    "distances": _LIST,
    "probabilities": _LIST,
    "slope": _NUMBER,
    "intercept": _NUMBER,
    "fitted_on": (str,),
    "fingerprint": (str,),
    "sampling": (str,),
    "cameras": (bool,),
}


@dataclass(frozen=True, kw_only=True)
class TFCLIPConfig:
    """Shape and use of a TF-CLIP model; saved beside its weights as ``config.json``.

    The defaults are those of the released MARS model, without its camera table.

    Args:
        backbone: An ``open_clip`` model name (``"ViT-B-16"``, ``"RN50"``) or ``"timm:NAME"``.
        backbone_options: Sizes that differ from that name's: ``width``, ``layers``, ``heads``,
            ``patch_size``, ``output_dim``, ... for CLIP towers; for timm, arguments of its model.
        activation: MLP activation of a CLIP tower. It belongs to the weights: OpenAI's were trained
            with ``quick_gelu`` (x * sigmoid(1.702 x)), most others with ``gelu``. None means
            ``quick_gelu``, and for timm towers, whose name decides, nothing else is allowed.
        frame_size: Height and width of a frame in pixels.
        stride: Step between patches in pixels; None is the patch size, less makes patches overlap.
        position_resize: How a position table made for another grid is resized. The reference takes
            ``bilinear`` without antialiasing; ``bicubic`` is with it.
        mean: Mean of each RGB channel, for values in [0, 1]. The reference uses ImageNet's.
        std: Standard deviation of each RGB channel, for values in [0, 1].
        interpolation: How a frame is resized to ``frame_size``.
        clip_length: Frames in a clip, ``T``.
        num_cameras: Rows of the camera table; 0 is a model without one.
        camera_coefficient: Factor on the camera vector.
        unknown_camera: What ``cameras=None`` adds: nothing (``zero``) or the table's ``mean``.
        temporal_head: What relates the frames: ``tmd`` (the method), ``tmc`` (memory construction
            alone), or a baseline of the supplement's Table 5.
        temporal_depth: Blocks of the temporal head; None is the published number of that head.
        temporal_heads: Attention heads of the temporal head; None is one for 64 channels.
        temporal_position: Tell the frames' order to ``tmd`` and ``tmc``, which see a set without.
        temporal_detach: Keep the temporal losses from reaching the backbone, as the reference does.
        drop_path: Probability that a diffusion block is skipped for a frame, in training.
        descriptor: The parts of the embedding, in order.
        neck: Take the parts ``before`` their batch normalisation, or ``after`` it.
        provenance: Where the weights come from, for people to read.
        calibration: What a distance between this model's embeddings means: the fields of a
            ``tfclip.functional.Calibration``, the data it was ``fitted_on`` in words, the
            ``fingerprint`` of the weights, and the ``sampling`` and whether ``cameras`` were told,
            as the embeddings were made. Empty is not known. ``TFCLIP.calibration`` reads it.

    Raises:
        ConfigError: A value breaks one of these rules; the message names it.

    Example:
        >>> TFCLIPConfig(frame_size=(384, 192)).clip_length
        8
    """

    backbone: str = "ViT-B-16"
    backbone_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    activation: Activation | None = None
    frame_size: tuple[int, int] = (256, 128)
    stride: int | None = None
    position_resize: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    clip_length: int = 8
    num_cameras: int = 0
    camera_coefficient: float = 1.0
    unknown_camera: UnknownCamera = "zero"
    temporal_head: TemporalHead = "tmd"
    temporal_depth: int | None = None
    temporal_heads: int | None = None
    temporal_position: bool = False
    temporal_detach: bool = True
    drop_path: float = 0.0
    descriptor: tuple[DescriptorPart, ...] = ("appearance", "projected", "temporal")
    neck: Neck = "before"
    provenance: Mapping[str, str] = field(default_factory=dict, hash=False)
    calibration: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("frame_size", "mean", "std", "descriptor"):  # JSON has lists, not tuples
            self._set(name, _as_tuple(name, getattr(self, name)))
        self._set("backbone_options", _as_json("backbone_options", self.backbone_options))
        _check_sizes("backbone_options", self.backbone_options)
        self._set("provenance", _as_json("provenance", self.provenance))
        if not all(isinstance(value, str) for value in self.provenance.values()):
            raise ConfigError(f"provenance must map text to text, got {self.provenance!r}")
        self._set("calibration", _as_json("calibration", self.calibration))
        self._check_calibration()
        self._check_backbone()
        self._check_numbers()
        self._check_pixels()
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        self._check_descriptor()
        if self.temporal_position and self.temporal_head not in ("tmd", "tmc"):
            raise ConfigError(
                "temporal_position is an option of the temporal heads 'tmd' and 'tmc', "
                f"got temporal_head {self.temporal_head!r}"
            )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def _check_backbone(self) -> None:
        if not isinstance(self.backbone, str) or not self.backbone:
            raise ConfigError(f"backbone must be a name, got {self.backbone!r}")
        if self.is_timm:
            if self.activation is not None:
                raise ConfigError(
                    f"activation must be None for {self.backbone!r}, whose name decides it, "
                    f"got {self.activation!r}"
                )
            return
        if self.activation is None:
            self._set("activation", "quick_gelu")
        if self.activation not in get_args(Activation):
            raise ConfigError(
                f"activation must be one of {get_args(Activation)}, got {self.activation!r}"
            )

    def _check_numbers(self) -> None:
        _check_integer("clip_length", self.clip_length, 1, _MAX_LENGTH)
        _check_integer("num_cameras", self.num_cameras, 0, _MAX_SIZE)
        for name, most in (
            ("stride", _MAX_SIDE),
            ("temporal_depth", _MAX_DEPTH),
            ("temporal_heads", _MAX_SIDE),
        ):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), 1, most)
        if len(self.frame_size) != 2:
            raise ConfigError(f"frame_size must be (height, width), got {self.frame_size}")
        for side in self.frame_size:
            _check_integer("frame_size", side, 1, _MAX_SIDE)
        _check_real("camera_coefficient", self.camera_coefficient)
        _check_real("drop_path", self.drop_path)
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"drop_path must be in [0, 1), got {self.drop_path}")
        for name in ("temporal_position", "temporal_detach"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}")

    def _check_pixels(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3:
                raise ConfigError(f"{name} must have one value for each of R, G, B, got {values}")
            for value in values:
                _check_real(name, value)
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive, got {self.std}")

    def _check_descriptor(self) -> None:
        parts = get_args(DescriptorPart)
        unknown = [part for part in self.descriptor if part not in parts]
        if not self.descriptor or unknown or len(set(self.descriptor)) != len(self.descriptor):
            raise ConfigError(
                f"descriptor must name some of {parts}, each once, got {self.descriptor}"
            )

    def _check_calibration(self) -> None:
        """Check keys and types; ``Calibration`` checks the values, and would import torch here."""
        if not self.calibration:
            return
        odd = sorted(set(self.calibration) ^ set(_CALIBRATION))
        if odd:
            raise ConfigError(f"calibration must have its keys and no other, check {odd}")
        for key, types in _CALIBRATION.items():
            value = self.calibration[key]
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                names = " or ".join(kind.__name__ for kind in types)
                raise ConfigError(f"calibration must have a {names} as {key!r}, got {value!r}")
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float) and not isinstance(number, bool):
                    _check_real(f"calibration {key}", number)

    @property
    def is_timm(self) -> bool:
        """Whether timm builds the backbone, and not open_clip."""
        return self.backbone.startswith("timm:")

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated like any other.

        Raises:
            ConfigError: A field is unknown or its new value is invalid.
        """
        _refuse_unknown(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types, with the schema version."""
        fields = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"architecture": "TFCLIP", "schema_version": SCHEMA_VERSION, **fields}

    def to_json(self) -> str:
        """Return the configuration as the text of a ``config.json``."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` wrote.

        Raises:
            ConfigError: Another architecture, a newer schema, an unknown key or an invalid value.
        """
        fields = dict(_as_dict("config", values))
        architecture = fields.pop("architecture", "TFCLIP")
        if architecture != "TFCLIP":
            raise ConfigError(f"architecture must be 'TFCLIP', got {architecture!r}")
        schema = fields.pop("schema_version", SCHEMA_VERSION)
        _check_integer("schema_version", schema, 1)
        if schema > SCHEMA_VERSION:
            raise ConfigError(
                f"this config has schema version {schema} and this tfclip reads up to "
                f"{SCHEMA_VERSION}; upgrade with: pip install --upgrade tfclip"
            )
        _refuse_unknown(fields)
        return cls(**fields)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote.

        Raises:
            ConfigError: The text is not JSON, or ``from_dict`` refuses it.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise ConfigError(f"config is not JSON: {error}") from error
        return cls.from_dict(values)


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    known = {f.name for f in dataclasses.fields(TFCLIPConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"unknown config keys {unknown}; known are {sorted(known)}")


def _as_tuple(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} must be a list or tuple, got {value!r}")
    return tuple(value)


def _as_dict(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping, got {value!r}")
    return dict(value)


def _as_json(name: str, value: object) -> dict[str, Any]:
    """Return a copy of a mapping as JSON will give it back: with lists, not tuples."""
    values = _as_dict(name, value)
    try:
        plain = _plain(values)
        copy: Any = json.loads(json.dumps(plain, allow_nan=False))
        if copy == plain:  # JSON turns other keys into text
            return copy
    except RecursionError as error:
        raise ConfigError(f"{name} must not be nested so deep") from error
    except (TypeError, ValueError):
        pass
    raise ConfigError(f"{name} must hold JSON values under text keys, got {value!r}")


def _check_sizes(name: str, value: object) -> None:
    """Refuse a number, in whatever list or mapping, that no tower has and no memory holds."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_sizes(f"{name} {key}", inner)
    elif isinstance(value, list):
        for inner in value:
            _check_sizes(name, inner)
    elif isinstance(value, int):
        most = _MAX_DEPTH if name.endswith(("layers", "depth", "depths")) else _MAX_SIZE
        if abs(value) > most:
            raise ConfigError(f"{name} must be at most {most}, got {_short(value)}")


def _short(value: object) -> str:
    """Return how a message quotes a value of any length."""
    return reprlib.repr(value)


def _check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if most is not None and value > most:
        raise ConfigError(f"{name} must be at most {most}, got {_short(value)}")


def _check_real(name: str, value: object) -> None:
    # Compared, not asked with math.isfinite, which a whole number of 400 digits is too long for.
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not abs(value) <= sys.float_info.max
    ):
        raise ConfigError(f"{name} must be a finite number, got {_short(value)}")


def _plain(value: object, depth: int = 0) -> object:
    """Return tuples as lists, also inside mappings, as JSON has it."""
    if depth > _DEEPEST:  # Python's own limit is not the same at all times: compilers raise it
        raise RecursionError
    if isinstance(value, Mapping):
        return {key: _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, depth + 1) for inner in value]
    return value
