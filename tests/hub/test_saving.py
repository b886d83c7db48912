"""Saving never leaves half a model, and says why it failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.hub.saved_models import CONFIG, assert_same, content, make_model, message_of
from tests.traps import full_disk
from tfclip import hub
from tfclip.errors import SaveError, WeightsError
from tfclip.model import TFCLIP


def test_saving_over_the_folder_that_a_model_came_from_is_safe(model: TFCLIP, folder: Path):
    loaded = hub.load(TFCLIP, folder)
    hub.save(loaded, folder)
    hub.save(loaded, folder)
    assert_same(model, loaded)
    assert_same(model, hub.load(TFCLIP, folder))


def test_a_folder_that_cannot_be_made_is_one_sentence(model: TFCLIP, tmp_path: Path):
    with pytest.raises(SaveError, match="File name too long") as error:
        model.save_pretrained(tmp_path / ("x" * 300))
    message_of(error)
    assert content(tmp_path) == {}


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
    if name == "model.safetensors":
        monkeypatch.setattr(hub, "save_file", full_disk)
    else:
        write = Path.write_text
        stem = Path(name).stem
        monkeypatch.setattr(
            Path,
            "write_text",
            lambda path, *rest: full_disk() if stem in path.name else write(path, *rest),
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
