"""A saved folder loads bit for bit, strictly, or is refused in a sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.hub.saved_models import CONFIG, assert_same, make_model, message_of
from tfclip import hub
from tfclip.config import TFCLIPConfig
from tfclip.errors import ConfigError, WeightsError
from tfclip.model import TFCLIP
from tfclip.tensors import load_weights

# A folder on disk


def test_a_saved_model_loads_bit_for_bit_and_in_eval_mode(model: TFCLIP, saved: Path):
    loaded = hub.load(TFCLIP, saved)
    assert_same(model, loaded)
    assert loaded.config == model.config
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    frames = torch.rand(2, 3, 3, 32, 16)
    cameras = torch.tensor([0, 1])
    assert torch.equal(loaded(frames, cameras).embedding, model(frames, cameras).embedding)


def test_the_methods_of_the_model_are_these_functions(model: TFCLIP, tmp_path: Path):
    model.save_pretrained(tmp_path)
    assert_same(model, TFCLIP.from_pretrained(str(tmp_path), None, "cpu", torch.float32))


def test_a_saved_folder_has_the_three_files_that_hub_tools_look_for(saved: Path):
    names = {constants.CONFIG_NAME, constants.SAFETENSORS_SINGLE_FILE, "README.md"}
    assert {path.name for path in saved.iterdir()} == names
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    modes = {path.stat().st_mode for path in saved.iterdir()}
    assert len(modes) == 1, "whoever may read the config may read the weights"


def test_loading_leaves_the_random_state_alone(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = torch.random.get_rng_state()
    hub.load(TFCLIP, saved)
    assert torch.equal(before, torch.random.get_rng_state())
    # The same when the model can only be built in full.
    monkeypatch.setattr(TFCLIP, "to_empty", _no_storage_trick)
    hub.load(TFCLIP, saved)
    assert torch.equal(before, torch.random.get_rng_state())


def _no_storage_trick(*args: object, **options: object) -> None:
    raise RuntimeError("this tower needs values while it is built")


def test_a_model_with_buffers_that_no_file_holds_loads_too(tmp_path: Path):
    class Rotating(nn.Module):
        def __init__(self, config: TFCLIPConfig) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("angles", torch.arange(3.0), persistent=False)

    rotating = Rotating(CONFIG)
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    save_file(rotating.state_dict(), tmp_path / "model.safetensors")
    loaded = hub.load(Rotating, tmp_path)
    assert_same(rotating, loaded)
    assert torch.equal(loaded.get_buffer("angles"), torch.arange(3.0))


def test_dtype_is_that_of_the_file_unless_asked_for(tmp_path: Path):
    half = make_model().to(torch.bfloat16)
    hub.save(half, tmp_path)
    assert_same(half, hub.load(TFCLIP, tmp_path))
    assert_same(half.float(), hub.load(TFCLIP, tmp_path, dtype=torch.float32))


@pytest.mark.parametrize("others", [torch.float32, torch.bfloat16])
def test_a_file_of_mixed_precision_loads_in_the_type_that_holds_all(
    model: TFCLIP, folder: Path, others: torch.dtype
):
    mixed = {
        name: value.half() if value.ndim > 1 else value.to(others)
        for name, value in model.state_dict().items()
    }
    save_file(mixed, folder / "model.safetensors")
    loaded = hub.load(TFCLIP, folder)
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, mixed[name].float())


def test_a_dtype_that_is_not_floating_point_is_refused(saved: Path):
    with pytest.raises(ValueError, match=r"floating-point type, got torch\.int8"):
        hub.load(TFCLIP, saved, dtype=torch.int8)


@pytest.mark.parametrize("device", ["warp:0", "meta"])  # not there, and without numbers
def test_a_device_that_computes_nothing_is_refused_before_anything_is_read(device: str):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used") as error:
        hub.load(TFCLIP, "no/such", device=device)
    message_of(error)


def test_a_saved_camera_table_and_necks_come_back(tmp_path: Path):
    config = CONFIG.replace(neck="after")
    necked = make_model(config=config)
    necked.necks["temporal"].get_buffer("running_mean").uniform_()
    hub.save(necked, tmp_path)
    assert_same(necked, hub.load(TFCLIP, tmp_path))


def test_a_bundled_model_is_found_by_its_name(
    model: TFCLIP, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hub, "_BUNDLED", folder.parent)
    assert_same(model, hub.load(TFCLIP, "folder"))
    with pytest.raises(WeightsError, match=r"nor a bundled model \['folder'\]"):
        hub.load(TFCLIP, "fodler")


@pytest.mark.parametrize(
    "name",
    [
        *("nowhere", "./no", "a/b/c", "org/a--b", Path("org/name")),
        *("x" * 5000, "org/" + "x" * 5000, "a\0b", "a\nb", ""),  # no file can be called so
    ],
)
def test_a_name_that_can_be_nothing_is_said_to_be_nothing(name: str | Path):
    with pytest.raises(WeightsError, match="neither a folder, nor a bundled model") as error:
        hub.load(TFCLIP, name)
    message_of(error)


def test_a_revision_of_a_folder_is_refused(saved: Path):
    with pytest.raises(ValueError, match="revision is for models on the Hub"):
        hub.load(TFCLIP, saved, revision="main")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_one_of_the_files_is_not_a_model(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"is not a tfclip model: it has no {re.escape(name)}"):
        hub.load(TFCLIP, folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema_version": 99}, "schema version 99 .* pip install --upgrade tfclip"),
        ({"colour": "red"}, "unknown config keys .*colour"),
        ({"architecture": "ResNet"}, "architecture must be 'TFCLIP', got 'ResNet'"),
    ],
)
def test_a_configuration_that_cannot_be_understood_is_refused(
    folder: Path, change: dict[str, Any], reason: str
):
    (folder / "config.json").write_text(json.dumps({**CONFIG.to_dict(), **change}))
    with pytest.raises(ConfigError, match=f"{re.escape(str(folder))}: .*{reason}") as error:
        hub.load(TFCLIP, folder)
    message_of(error)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe\x00", b"[]"])
def test_a_configuration_that_is_no_json_object_is_refused(folder: Path, text: bytes):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ConfigError):
        hub.load(TFCLIP, folder)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone_options": {**CONFIG.backbone_options, "width": 2**20, "heads": 2**14}},
        {"backbone_options": {**CONFIG.backbone_options, "output_dim": 2**20}},
        {"num_cameras": 2**20},
    ],
)
def test_a_configuration_of_a_giant_is_refused_before_memory_is_taken_for_it(
    folder: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    def take_memory(*_: object, **__: object) -> None:
        raise AssertionError("memory was taken")

    monkeypatch.setattr(nn.Module, "to_empty", take_memory)
    (folder / "config.json").write_text(json.dumps({**CONFIG.to_dict(), **change}))
    with pytest.raises(WeightsError, match=r"does not fit TFCLIP: .* of another shape"):
        hub.load(TFCLIP, folder)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"embed_dim": 2**20, "num_heads": 2**14}, "asks for far more memory"),
        ({"embed_dim": 64, "num_heads": 0}, "modulo by zero|division by zero"),
    ],
)
def test_a_tower_that_must_be_built_in_full_is_bounded_by_its_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int], reason: str
):
    config = TFCLIPConfig(
        backbone="timm:vit_tiny_patch16_224",
        backbone_options={"depth": 1, **options},
        frame_size=(32, 16),
    )
    (folder / "config.json").write_text(config.to_json())
    monkeypatch.setattr(torch, "device", _no_meta)  # as for a tower that needs values
    with pytest.raises(ConfigError, match=f"no model can be built .*({reason})"):
        hub.load(TFCLIP, folder)


_device = torch.device


def _no_meta(name: Any) -> Any:
    if name == "meta":
        raise RuntimeError("this tower needs values")
    return _device(name)


# Strict loading


def test_the_report_names_what_is_missing_unexpected_or_of_another_shape():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tensors: dict[str, Tensor] = {name: value + 1 for name, value in before.items()}
    del tensors["1.bias"]
    tensors["0.weight"] = torch.zeros(3, 4)
    tensors["1.num_batches_tracked"] = torch.zeros(())
    tensors |= {f"head.{i}": torch.zeros(1) for i in range(5)}
    with pytest.raises(WeightsError) as error:
        load_weights(module, tensors, "the file")
    assert message_of(error) == (
        "the file does not fit Sequential: 1 missing (1.bias); "
        "5 unexpected (head.0, head.1, head.2, ...); "
        "2 of another shape (0.weight float32 (3, 4), not float32 (3, 2), "
        "1.num_batches_tracked float32 (), not int64 ())"
    )
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), "nothing is loaded when anything is wrong"


def test_weights_of_another_architecture_are_refused(saved: Path, folder: Path):
    deeper = CONFIG.replace(backbone_options={**CONFIG.backbone_options, "layers": 3})
    (folder / "config.json").write_text(deeper.to_json())
    with pytest.raises(WeightsError, match="does not fit TFCLIP: 12 missing"):
        hub.load(TFCLIP, folder)
