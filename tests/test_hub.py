from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants, file_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tfclip import __version__, hub
from tfclip.card import model_card
from tfclip.config import TFCLIPConfig
from tfclip.errors import ConfigError, SaveError, WeightsError
from tfclip.model import TFCLIP
from tfclip.tensors import load_weights, read_safetensors

CONFIG = TFCLIPConfig(
    backbone="ViT-B-16",
    backbone_options={"width": 64, "layers": 2, "heads": 1, "output_dim": 32},
    frame_size=(32, 16),
    num_cameras=2,
    provenance={"weights": "random", "seed": "0"},
)


def _hub_server() -> ModuleType:
    """Load the module beside this one, which importlib mode keeps off the path."""
    name = "tfclip_tests_hub_server"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("hub_server.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


hub_server = _hub_server()


def make_model(seed: int = 0, config: TFCLIPConfig = CONFIG) -> TFCLIP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TFCLIP(config).eval()


@pytest.fixture(scope="module")
def model() -> TFCLIP:
    return make_model()


@pytest.fixture(scope="module")
def saved(model: TFCLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``save`` leaves it; not to be written to."""
    folder = tmp_path_factory.mktemp("saved")
    hub.save(model, folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the same for one test's own use."""
    return Path(shutil.copytree(saved, tmp_path / "folder"))


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        assert address[0] in {"127.0.0.1", "::1"}, f"a test wants to connect to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A local Hub that huggingface_hub takes for the real one, with an empty cache and no token."""
    with hub_server.LocalHub() as local:
        set_endpoint(monkeypatch, local.url)
        set_offline(monkeypatch, False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield local


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Do what HF_ENDPOINT does when huggingface_hub is imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    for module in (constants, file_download):  # versions before 1 have a copy
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


def set_offline(monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    """Do what HF_HUB_OFFLINE does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    reset = getattr(huggingface_hub.utils, "reset_sessions", None)  # versions before 1
    if reset is not None:
        reset()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client's pauses between attempts take no time."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(model: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    assert list(model.state_dict()) == list(theirs)
    for name, value in model.state_dict().items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def message_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message, "an error is one sentence"
    return message


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


def test_a_device_that_is_not_there_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="device 'warp:0' cannot be used") as error:
        hub.load(TFCLIP, "no/such", device="warp:0")
    message_of(error)


def test_a_device_without_numbers_is_refused():
    with pytest.raises(ValueError, match="device 'meta' cannot be used"):
        hub.load(TFCLIP, "no/such", device="meta")


@pytest.mark.parametrize("name", ["x" * 5000, "org/" + "x" * 5000, "a\0b", "a\nb", ""])
def test_a_name_that_no_file_can_have_is_no_model(name: str):
    with pytest.raises(WeightsError, match="is neither a folder") as error:
        TFCLIP.from_pretrained(name)
    message_of(error)


def test_a_folder_that_cannot_be_made_is_one_sentence(model: TFCLIP, tmp_path: Path):
    with pytest.raises(SaveError, match="File name too long") as error:
        model.save_pretrained(tmp_path / ("x" * 300))
    message_of(error)
    assert content(tmp_path) == {}


def test_a_saved_camera_table_and_necks_come_back(tmp_path: Path):
    config = CONFIG.replace(neck="after")
    necked = make_model(config=config)
    necked.necks["temporal"].get_buffer("running_mean").uniform_()
    hub.save(necked, tmp_path)
    assert_same(necked, hub.load(TFCLIP, tmp_path))


def test_saving_over_the_folder_that_a_model_came_from_is_safe(model: TFCLIP, folder: Path):
    loaded = hub.load(TFCLIP, folder)
    hub.save(loaded, folder)
    hub.save(loaded, folder)
    assert_same(model, loaded)
    assert_same(model, hub.load(TFCLIP, folder))


def test_a_bundled_model_is_found_by_its_name(
    model: TFCLIP, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hub, "_BUNDLED", folder.parent)
    assert_same(model, hub.load(TFCLIP, "folder"))
    with pytest.raises(WeightsError, match=r"nor a bundled model \['folder'\]"):
        hub.load(TFCLIP, "fodler")


@pytest.mark.parametrize("name", ["nowhere", "./no", "a/b/c", "org/a--b", Path("org/name")])
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


def _no_meta(name: str) -> Any:
    if name == "meta":
        raise RuntimeError("this tower needs values")
    return contextlib.nullcontext()


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


# Damaged and dangerous files


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 5_000, -1])
def test_a_truncated_file_is_named(folder: Path, kept: int):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"model\.safetensors is truncated, damaged") as error:
        hub.load(TFCLIP, folder)
    assert str(folder) in message_of(error)


def test_a_file_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"cannot read .*none\.safetensors: No such file"):
        read_safetensors(tmp_path / "none.safetensors")


class Explosive:
    """Runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "best_model.pth.tar"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_refused_and_its_code_does_not_run(tmp_path: Path, name: str, zipped: bool):
    path, trace = tmp_path / name, tmp_path / "it ran"
    if zipped:
        torch.save({"weight": Explosive(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Explosive(trace)}))
    with pytest.raises(WeightsError, match=r"is a pickle, .* only `tfclip convert` reads") as error:
        read_safetensors(path)
    assert str(path) in message_of(error)
    assert not trace.exists()
    with path.open("rb") as file:
        read = torch.load(file, weights_only=False) if zipped else pickle.load(file)
    assert read == {"weight": None}
    assert trace.exists(), "the trap is a real one"


def test_a_git_lfs_pointer_is_told_from_the_weights(folder: Path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(WeightsError, match="git lfs pull"):
        hub.load(TFCLIP, folder)


# Saving that goes wrong


def test_no_write_permission_is_one_sentence(model: TFCLIP, tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SaveError, match="cannot write") as error:
        hub.save(model, tmp_path / "file" / "model")
    message_of(error)
    assert content(tmp_path) == {"file": b"not a folder"}


def test_a_disk_that_fills_up_leaves_the_old_model_whole(model: TFCLIP, folder: Path):
    resource = pytest.importorskip("resource")
    before = content(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(SaveError, match=r"cannot write .*model\.safetensors: .*") as error:
            hub.save(make_model(1, CONFIG.replace(clip_length=4)), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message_of(error)
    assert content(folder) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_a_full_disk_leaves_nothing_in_a_new_folder(
    model: TFCLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if name == "model.safetensors":
        monkeypatch.setattr(hub, "save_file", full)
    else:
        write = Path.write_text
        stem = Path(name).stem
        monkeypatch.setattr(
            Path,
            "write_text",
            lambda path, *rest: full() if stem in path.name else write(path, *rest),
        )
    with pytest.raises(SaveError, match="No space left on device"):
        hub.save(model, tmp_path / "new")
    assert content(tmp_path / "new") == {}


class PowerFailure(BaseException):
    """Something that nobody catches."""


@pytest.mark.parametrize("renamed", [0, 1, 2])
@pytest.mark.parametrize("changes", [{}, {"clip_length": 4}])
def test_an_interrupted_save_never_mixes_two_models(
    model: TFCLIP,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    renamed: int,
    changes: dict[str, Any],
):
    """What is left after some of the renames loads whole or not at all."""
    other = make_model(1, CONFIG.replace(**changes))
    rename = Path.replace
    left = [renamed]

    def fail_later(path: Path, target: Path) -> Path:
        if not left[0]:
            raise PowerFailure
        left[0] -= 1
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", fail_later)
    if renamed < 2:  # the README is there, so there are two
        with pytest.raises(PowerFailure):
            hub.save(other, folder)
    else:
        hub.save(other, folder)
    if renamed < 2 and changes:  # the old configuration goes before the new weights come
        with pytest.raises(WeightsError, match=r"it has no config\.json"):
            hub.load(TFCLIP, folder)
    else:
        expected = model if renamed == 0 else other
        loaded = hub.load(TFCLIP, folder)
        assert_same(expected, loaded)
        assert loaded.config == expected.config


# The model card


def test_the_card_is_valid_and_says_what_the_hub_needs(saved: Path):
    metadata = ModelCard.load(saved / "README.md").data.to_dict()
    assert {"person-re-identification", "arxiv:2312.09627"} <= set(metadata.pop("tags"))
    assert metadata == {
        "library_name": "tfclip",
        "pipeline_tag": "image-feature-extraction",
        "license": "mit",
    }


def test_the_slices_of_the_card_are_those_of_the_embedding(saved: Path):
    model = make_model()
    output = model(torch.rand(1, 2, 3, 32, 16))
    rows = re.findall(r"`\[(\d+):(\d+)\]` \| (\w+)", (saved / "README.md").read_text())
    assert [part for *_, part in rows] == list(CONFIG.descriptor)
    for start, stop, part in rows:
        expected = getattr(output, part)
        assert torch.equal(output.embedding[:, int(start) : int(stop)], expected)


def test_the_card_calls_random_weights_untrained_and_no_others():
    widths = {"appearance": 64, "projected": 32, "temporal": 64}
    trained = CONFIG.replace(provenance={"converted from": "best_model.pth.tar", "sha256": "abc"})
    assert "**Untrained.**" in model_card(CONFIG, widths, "x")
    card = model_card(trained, widths, "x")
    assert "ntrained" not in card
    assert "- converted from: best_model.pth.tar\n- sha256: abc\n" in card
    assert "Not stated." in model_card(CONFIG.replace(provenance={}), widths, "x")


def test_provenance_cannot_break_the_card():
    base = CONFIG.replace(provenance={"base_model": "org/base", "note": "a\n---\n# b: [c"})
    card = ModelCard(model_card(base, {"appearance": 1, "projected": 1, "temporal": 1}, "x"))
    assert card.data.to_dict()["base_model"] == "org/base"
    assert "- note: a --- # b: [c\n" in card.text


def test_a_readme_that_is_there_stays(model: TFCLIP, tmp_path: Path):
    (tmp_path / "README.md").write_text("mine")
    hub.save(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    hub.load(TFCLIP, tmp_path)


# The Hub: reading


def test_a_model_on_the_hub_loads_bit_for_bit(server: Any, model: TFCLIP, saved: Path):
    server.repository("org/reid").commit(content(saved))
    assert_same(model, hub.load(TFCLIP, "org/reid"))
    assert_same(model, TFCLIP.from_pretrained("org/reid"))


def test_the_config_is_asked_for_first_and_in_the_name_of_the_library(server: Any, saved: Path):
    server.repository("org/reid").commit(content(saved))
    hub.load(TFCLIP, "org/reid")
    asked = [request for request in server.requests if request.path.startswith("/org/reid/")]
    assert asked[0].path == "/org/reid/resolve/main/config.json"
    for request in asked:
        assert request.headers["user-agent"].startswith(f"tfclip/{__version__};")
    hub.load(TFCLIP, "org/reid")
    counted = [path for path in server.asked("HEAD") if path.endswith("main/config.json")]
    assert len(counted) == 2, "the Hub counts a load from the cache too"
    contents = [path for path in server.asked("GET") if path.startswith(("/org/", "/large/"))]
    assert len(contents) == 2, "and each file comes once"


def test_a_revision_pins_the_weights(server: Any, tmp_path: Path):
    repository = server.repository("org/reid")
    commits, models = [], [make_model(1), make_model(2), make_model(3)]
    for number, each in enumerate(models):
        hub.save(each, tmp_path / str(number))
        commits.append(repository.commit(content(tmp_path / str(number)), tag=f"v{number}"))
    for number, each in enumerate(models):
        assert_same(each, hub.load(TFCLIP, "org/reid", revision=commits[number]))
        assert_same(each, hub.load(TFCLIP, "org/reid", revision=f"v{number}"))
        found = hub.find("org/reid", revision=f"v{number}")
        assert found.source == f"org/reid@{commits[number]}"
    assert_same(models[-1], hub.load(TFCLIP, "org/reid"))


def test_config_and_weights_come_from_one_commit_even_while_somebody_pushes(
    server: Any, model: TFCLIP, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    server.repository("org/reid").commit(content(saved))
    hub.save(make_model(1), tmp_path / "newer")
    download = hub.hf_hub_download

    def download_then_push(*args: Any, **options: Any) -> str:
        path = download(*args, **options)
        server.repository("org/reid").commit(content(tmp_path / "newer"))
        return path

    monkeypatch.setattr(hub, "hf_hub_download", download_then_push)
    assert_same(model, hub.load(TFCLIP, "org/reid"))


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.usefixtures("impatient")
def test_a_cached_model_loads_without_a_hub(
    server: Any, model: TFCLIP, saved: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
):
    commit = server.repository("org/reid").commit(content(saved), tag="v1")
    for revision in (None, "v1"):
        hub.load(TFCLIP, "org/reid", revision=revision)
    server.requests.clear()
    if offline:
        set_offline(monkeypatch, True)
    else:
        server.down = True
    for revision in (None, "main", "v1", commit):
        assert_same(model, hub.load(TFCLIP, "org/reid", revision=revision))
    assert not offline or not server.requests


def test_an_uncached_model_offline_says_what_to_do(server: Any, monkeypatch: pytest.MonkeyPatch):
    set_offline(monkeypatch, True)
    with pytest.raises(WeightsError) as error:
        hub.load(TFCLIP, "org/reid", revision="v1")
    assert message_of(error) == (
        "cannot load org/reid: config.json is not in the cache and HF_HUB_OFFLINE is set; "
        "when online, run: hf download org/reid --revision v1"
    )
    assert not server.requests


@pytest.mark.usefixtures("impatient")
def test_a_hub_that_cannot_be_reached_is_said(server: Any, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    set_endpoint(monkeypatch, nobody)
    with pytest.raises(WeightsError, match="check the connection, or set HF_ENDPOINT") as error:
        hub.load(TFCLIP, "org/reid")
    assert nobody in message_of(error)


@pytest.mark.usefixtures("impatient")
def test_a_hub_that_is_down_is_said(server: Any):
    server.down = True
    with pytest.raises(WeightsError, match="does not answer as a Hub") as error:
        hub.load(TFCLIP, "org/reid")
    message_of(error)


def test_a_hub_that_lacks_the_file_says_it_is_no_tfclip_model(server: Any, saved: Path):
    files = content(saved)
    server.repository("org/bert").commit({"pytorch_model.bin": b"x"})
    server.repository("org/half").commit({"config.json": files["config.json"]})
    for repo, name in (("org/bert", "config.json"), ("org/half", "model.safetensors")):
        with pytest.raises(WeightsError) as error:
            hub.load(TFCLIP, repo)
        assert message_of(error) == (
            f"cannot load {repo}: it has no {name}, so it is not a tfclip model"
        )


@pytest.mark.parametrize(
    ("repo", "options", "token", "reason"),
    [
        ("org/none", {}, None, "there is no http://.*/org/none, or it is private"),
        ("org/none", {}, "hf_reader", "there is no http://.*/org/none, or it is private"),
        ("org/private", {}, None, "is private; in that case log in with `hf auth login`, or"),
        ("org/gated", {}, None, "it is gated; accept its terms on http://.*/org/gated, then log"),
        ("org/reid", {}, "hf_wrong", "the Hub refuses the access token; log in"),
        ("org/reid", {"revision": "v9"}, None, "it has no revision 'v9'"),
    ],
)
def test_each_refusal_of_the_hub_has_its_sentence(
    server: Any,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    repo: str,
    options: dict[str, Any],
    token: str | None,
    reason: str,
):
    for name in ("reid", "private", "gated"):
        flags = {flag: flag == name for flag in ("private", "gated")}
        server.repository(f"org/{name}", **flags).commit(content(saved))
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(WeightsError, match=f"cannot load {repo}: .*{reason}") as error:
        hub.load(TFCLIP, repo, **options)
    message_of(error)


@pytest.mark.parametrize("kind", ["private", "gated"])
def test_a_token_opens_private_and_gated_models(
    server: Any, model: TFCLIP, saved: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    server.repository("org/reid", **{kind: True}).commit(content(saved))
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert_same(model, hub.load(TFCLIP, "org/reid"))


@pytest.mark.usefixtures("impatient")
def test_a_download_that_breaks_off_is_not_taken_for_the_file(
    server: Any, model: TFCLIP, saved: Path, monkeypatch: pytest.MonkeyPatch
):
    server.repository("org/reid").commit(content(saved))
    server.cuts = {"/large": [1_000]}
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1_000)
    with contextlib.suppress(WeightsError):  # huggingface_hub 1.0 does not try again by itself
        hub.load(TFCLIP, "org/reid")
    assert server.cuts == {"/large": []}
    assert_same(model, hub.load(TFCLIP, "org/reid"))


@pytest.mark.usefixtures("impatient")
def test_a_download_that_never_gets_through_is_one_sentence(server: Any, saved: Path):
    server.repository("org/reid").commit(content(saved))
    server.cuts = {"config.json": [0] * 100}
    with pytest.raises(WeightsError, match=r"config\.json could not be downloaded \(") as error:
        hub.load(TFCLIP, "org/reid")
    message_of(error)
    snapshots = Path(constants.HF_HUB_CACHE, "models--org--reid", "snapshots")
    assert not list(snapshots.glob("*/*")), "no part of a file is taken for the file"
    server.cuts.clear()
    hub.load(TFCLIP, "org/reid")


# The Hub: writing


@pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub 2.4 about its own upload
@pytest.mark.parametrize("large", [True, False])
def test_a_pushed_model_loads_back_bit_for_bit(
    server: Any, model: TFCLIP, monkeypatch: pytest.MonkeyPatch, large: bool
):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a store that this Hub has not
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    server.large = large
    commit = hub.push(model, "org/new")
    assert set(server.repositories["org/new"].commits[commit]) == {
        ".gitattributes",
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert bool(server.asked("PUT")) == large
    assert_same(model, hub.load(TFCLIP, "org/new"))
    assert_same(model, hub.load(TFCLIP, "org/new", revision=commit))


def test_each_push_is_one_commit_that_pins_its_weights(server: Any):
    models = [make_model(1), make_model(2)]
    commits = [each.push_to_hub("org/new", token="hf_writer") for each in models]
    assert list(server.repositories["org/new"].commits)[1:] == commits
    for commit, each in zip(commits, models, strict=True):
        assert_same(each, hub.load(TFCLIP, "org/new", revision=commit))


def test_a_readme_on_the_hub_stays_and_a_new_one_names_the_repository(server: Any, model: TFCLIP):
    server.repository("org/mine").commit({"README.md": b"mine"})
    for repo in ("org/mine", "org/new"):
        hub.push(model, repo, token="hf_writer")
    pushed = {
        repo: repository.commits[repository.names["main"]]["README.md"]
        for repo, repository in server.repositories.items()
    }
    assert pushed["org/mine"] == b"mine"
    assert b'TFCLIP.from_pretrained("org/new")' in pushed["org/new"]


def test_a_push_can_make_a_private_repository_and_a_branch(server: Any, model: TFCLIP):
    commit = hub.push(model, "org/new", private=True, revision="trial", token="hf_writer")
    repository = server.repositories["org/new"]
    assert repository.private
    assert repository.names["trial"] == commit != repository.names["main"]


@pytest.mark.parametrize("token", [None, "hf_reader", "hf_wrong"])
def test_a_push_without_the_right_token_says_so(server: Any, model: TFCLIP, token: str | None):
    with pytest.raises(SaveError, match="the access token may not write there") as error:
        hub.push(model, "org/new", token=token)
    assert message_of(error).startswith("cannot push to org/new: ")
    assert not server.repositories


@pytest.mark.usefixtures("impatient")
def test_a_push_to_a_hub_that_is_down_says_so(server: Any, model: TFCLIP):
    server.down = True
    with pytest.raises(SaveError, match=r"answers with status 503 \(the hub is having a rest\)"):
        hub.push(model, "org/new", token="hf_writer")


@pytest.mark.parametrize("repo", ["new", "a/b/c", "", "org/new model", "org/a--b"])
def test_a_push_to_something_that_is_no_hub_id_is_refused(model: TFCLIP, repo: str):
    with pytest.raises(ValueError, match="repo_id must be of the form 'org/name'"):
        hub.push(model, repo)


# As a user meets it


@pytest.mark.slow
def test_a_user_sets_a_mirror_a_token_and_then_goes_offline(
    server: Any, saved: Path, tmp_path: Path
):
    """In processes of their own, since huggingface_hub reads these variables when imported."""
    server.repository("org/reid", private=True).commit(content(saved))
    program = """if True:
        import tfclip
        model = tfclip.TFCLIP.from_pretrained("org/reid")
        for action in tfclip.TFCLIP.from_pretrained, model.push_to_hub:
            try:
                action("org/other")
            except tfclip.errors.TFCLIPError as error:
                print(error)
    """
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_CACHE", None)

    def run(**changes: str) -> tuple[list[str], str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env={**environment, **changes},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr

    log_in = "log in with `hf auth login`, or set HF_TOKEN to an access token of yours"
    said, _ = run(HF_TOKEN="hf_reader")  # stderr has progress bars
    assert said == [
        f"cannot load org/other: there is no {server.url}/org/other, or it is private; "
        f"in that case {log_in}",
        f"cannot push to org/other: the access token may not write there (status 403); {log_in}",
    ]
    server.requests.clear()
    (load_error, push_error), stderr = run(HF_HUB_OFFLINE="1")
    assert load_error == (
        "cannot load org/other: config.json is not in the cache and HF_HUB_OFFLINE is set; "
        "when online, run: hf download org/other"
    )
    assert push_error.startswith(f"cannot push to org/other: {server.url} cannot be reached")
    assert "offline mode is enabled" in push_error
    assert stderr == ""
    assert not server.requests
