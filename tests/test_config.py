"""The configuration: valid ones survive JSON, invalid ones name what is wrong."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfclip import TFCLIPConfig
from tfclip.config import SCHEMA_VERSION, Activation, DescriptorPart, Interpolation, TemporalHead
from tfclip.errors import ConfigError, TFCLIPError

CALIBRATION: dict[str, Any] = {
    "threshold": 0.5,
    "asked_false_match_rate": 0.01,
    "false_match_rate": 0.01,
    "false_non_match_rate": 0.2,
    "num_same": 10,
    "num_different": 100,
    "prior": 0.1,
    "kind": "isotonic",
    "distances": [0.1, 0.9],
    "probabilities": [1.0, 0.0],
    "slope": 0,
    "intercept": 0.0,
    "fitted_on": "drawn people",
    "fingerprint": "0123456789abcdef",
    "sampling": "dense",
    "cameras": False,
}
FIELDS = {f.name for f in dataclasses.fields(TFCLIPConfig)}

REALS = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1024, 1024) | REALS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.lists(inner, max_size=3),
    max_leaves=5,
)


@st.composite
def configs(draw: st.DrawFn) -> TFCLIPConfig:
    backbone = draw(st.sampled_from(["ViT-B-16", "RN50", "timm:resnet50_clip"]))
    head = draw(st.sampled_from(get_args(TemporalHead)))
    is_timm = backbone.startswith("timm:")
    count = st.none() | st.integers(1, 64)
    channels = st.tuples(*[st.floats(0.01, 1)] * 3)
    parts = st.lists(st.sampled_from(get_args(DescriptorPart)), min_size=1, unique=True)
    return TFCLIPConfig(
        backbone=backbone,
        backbone_options=draw(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3)),
        activation=None if is_timm else draw(st.sampled_from([None, *get_args(Activation)])),
        frame_size=draw(st.tuples(st.integers(1, 1024), st.integers(1, 1024))),
        stride=draw(count),
        position_resize=draw(st.sampled_from(get_args(Interpolation))),
        mean=draw(channels),
        std=draw(channels),
        interpolation=draw(st.sampled_from(get_args(Interpolation))),
        clip_length=draw(st.integers(1, 64)),
        num_cameras=draw(st.integers(0, 20)),
        camera_coefficient=draw(REALS),
        unknown_camera=draw(st.sampled_from(["zero", "mean"])),
        temporal_head=head,
        temporal_depth=draw(count),
        temporal_heads=draw(count),
        temporal_position=draw(st.booleans()) and head in ("tmd", "tmc"),
        temporal_detach=draw(st.booleans()),
        drop_path=draw(st.floats(0, 1, exclude_max=True)),
        descriptor=tuple(draw(parts)),
        neck=draw(st.sampled_from(["before", "after"])),
        provenance=draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)),
        calibration=draw(st.sampled_from([{}, CALIBRATION])),
    )


@given(configs())
def test_every_valid_config_survives_json(config: TFCLIPConfig) -> None:
    assert TFCLIPConfig.from_json(config.to_json()) == config


@given(configs())
def test_json_holds_every_field_and_the_schema_version(config: TFCLIPConfig) -> None:
    values = json.loads(config.to_json())
    assert set(values) == FIELDS | {"architecture", "schema_version"}
    assert values["schema_version"] == SCHEMA_VERSION


def test_json_restores_tuples() -> None:
    config = TFCLIPConfig.from_json(TFCLIPConfig().to_json())
    for name in ("frame_size", "mean", "std", "descriptor"):
        assert isinstance(getattr(config, name), tuple), name


def test_keys_left_out_take_their_defaults() -> None:
    assert TFCLIPConfig.from_dict({"clip_length": 4}) == TFCLIPConfig(clip_length=4)


def test_a_file_from_before_there_were_calibrations_loads_and_has_none() -> None:
    config = TFCLIPConfig(clip_length=4)
    values = config.to_dict()
    del values["calibration"]
    assert values["schema_version"] == SCHEMA_VERSION == 1  # an added field does not raise it
    assert TFCLIPConfig.from_dict(values) == config
    assert config.calibration == {}


def test_the_defaults_are_those_of_the_released_model() -> None:
    config = TFCLIPConfig()
    assert (config.backbone, config.activation) == ("ViT-B-16", "quick_gelu")
    assert (config.frame_size, config.clip_length) == ((256, 128), 8)
    assert (config.mean, config.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert config.descriptor == ("appearance", "projected", "temporal")
    assert config.temporal_detach
    assert not config.temporal_position


def test_a_config_cannot_be_changed_but_can_be_hashed_copied_and_pickled() -> None:
    config = TFCLIPConfig(backbone_options={"width": 128}, provenance={"weights": "random"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.clip_length = 4  # pyright: ignore[reportAttributeAccessIssue]
    assert hash(config) == hash(TFCLIPConfig.from_json(config.to_json()))
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_config_does_not_share_the_mappings_it_was_given() -> None:
    options: dict[str, Any] = {"width": 128}
    config = TFCLIPConfig(backbone_options=options)
    options["width"] = 256
    assert config.backbone_options == {"width": 128}


# Every field has at least one value that is refused; the message begins with the field's name.
INVALID: dict[str, list[Any]] = {
    "backbone": ["", None, 3],
    "backbone_options": [None, ["width"], {1: 2}, {"dtype": object()}],
    "activation": ["relu", 3],
    "frame_size": [256, "ab", (256,), (256, 128, 3), (0, 128), (256.0, 128), (True, 128)],
    "stride": [0, -1, 12.0, True, "12"],
    "position_resize": ["nearest", None],
    "mean": [0.5, (0.5, 0.5), (0.5, 0.5, "0.5"), (0.5, 0.5, float("nan"))],
    "std": [(0.5, 0.5), (0.5, 0.5, 0), (0.5, -0.5, 0.5), (0.5, 0.5, float("inf"))],
    "interpolation": ["lanczos", 2],
    "clip_length": [0, 8.0, None, True],
    "num_cameras": [-1, 6.0, None],
    "camera_coefficient": ["1", None, True, float("nan")],
    "unknown_camera": ["first", None],
    "temporal_head": ["lstm", None],
    "temporal_depth": [0, 1.0],
    "temporal_heads": [0, 12.0],
    "temporal_position": [1, None],
    "temporal_detach": [0, "no"],
    "drop_path": [1.0, -0.1, None, float("nan")],
    "descriptor": ["temporal", (), ("face",), ("temporal", "temporal"), ([],)],
    "neck": ["both", None],
    "provenance": [None, "MARS", {"epochs": 60}],
    "calibration": [
        None,
        {"threshold": 0.5},
        CALIBRATION | {"colour": 1},
        *(CALIBRATION | {key: None} for key in CALIBRATION),
        CALIBRATION | {"threshold": float("nan")},
        CALIBRATION | {"threshold": True},
        CALIBRATION | {"cameras": 0},
    ],
}


def test_every_field_is_validated() -> None:
    assert set(INVALID) == FIELDS


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in INVALID.items() for value in values]
)
def test_an_invalid_value_is_refused_by_the_name_of_its_field(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} "):
        TFCLIPConfig(**{name: value})


def test_a_timm_name_decides_the_activation() -> None:
    assert TFCLIPConfig(backbone="timm:resnet50_clip").activation is None
    with pytest.raises(ConfigError, match=r"^activation must be None"):
        TFCLIPConfig(backbone="timm:resnet50_clip", activation="gelu")


def test_only_the_heads_that_see_a_set_take_positions() -> None:
    assert TFCLIPConfig(temporal_head="tmc", temporal_position=True).temporal_position
    with pytest.raises(ConfigError, match=r"^temporal_position .*'average'"):
        TFCLIPConfig(temporal_head="average", temporal_position=True)


def test_a_misspelt_field_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="frames_size"):
        TFCLIPConfig(frames_size=(256, 128))  # pyright: ignore[reportCallIssue]


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ConfigError, match=r"\['colour', 'shape'\].*clip_length"):
        TFCLIPConfig.from_dict({"shape": 1, "colour": 2, "clip_length": 8})


def test_a_newer_schema_is_refused_with_the_cure() -> None:
    with pytest.raises(ConfigError, match=r"schema version 99 .* upgrade with: pip install"):
        TFCLIPConfig.from_dict({"schema_version": 99, "a_field_of_the_future": 1})


@pytest.mark.parametrize("version", [0, "1", None, True])
def test_a_schema_version_is_a_whole_number_from_one(version: Any) -> None:
    with pytest.raises(ConfigError, match=r"^schema_version "):
        TFCLIPConfig.from_dict({"schema_version": version})


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^architecture .*'ViTModel'"):
        TFCLIPConfig.from_dict({"architecture": "ViTModel"})


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", '"config"', '{"mean": [NaN, 0, 0]}'])
def test_text_that_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        TFCLIPConfig.from_json(text)


def test_replace_changes_one_field_and_validates_it() -> None:
    config = TFCLIPConfig(num_cameras=6)
    assert config.replace(clip_length=4) == TFCLIPConfig(num_cameras=6, clip_length=4)
    assert config.clip_length == 8
    with pytest.raises(ConfigError, match=r"^clip_length "):
        config.replace(clip_length=0)
    with pytest.raises(ConfigError, match=r"\['length'\]"):
        config.replace(length=4)


def test_a_config_error_is_a_value_error_and_a_tfclip_error() -> None:
    with pytest.raises(ValueError, match="neck") as caught:
        TFCLIPConfig(neck="both")  # pyright: ignore[reportArgumentType]
    assert isinstance(caught.value, TFCLIPError)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"backbone_options": {"width": 1000000000000}}', "width must be at most 1048576"),
        ('{"backbone_options": {"layers": [3, 4, 6, 5000]}}', "layers must be at most 1024"),
        ('{"frame_size": [1000000, 16]}', "frame_size must be at most 8192"),
        ('{"temporal_depth": 100000}', "temporal_depth must be at most 1024"),
        (f'{{"camera_coefficient": 1{"0" * 400}}}', "camera_coefficient must be a finite number"),
        ("[" * 100_000, "config is not JSON: it is nested too deep"),
        (f'{{"backbone_options": {{"a": {"[" * 900}{"]" * 900}}}}}', "must not be nested so deep"),
        (
            json.dumps({"calibration": {**CALIBRATION, "slope": 10**400}}),
            "calibration slope must be a finite number",
        ),
    ],
)
def test_absurd_numbers_and_nesting_are_refused_in_a_short_sentence(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        TFCLIPConfig.from_json(text)
    assert len(str(caught.value)) < 200


@given(JSON_VALUES | st.integers(), st.sampled_from(sorted(FIELDS)))
def test_any_json_value_in_any_field_is_read_or_refused(value: Any, field: str) -> None:
    text = json.dumps({**TFCLIPConfig().to_dict(), field: value})
    try:
        config = TFCLIPConfig.from_json(text)
    except ConfigError:
        return
    assert TFCLIPConfig.from_json(config.to_json()) == config
