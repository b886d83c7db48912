"""Files that are there whole or not at all."""

import os
from pathlib import Path

import pytest

from tfclip.errors import SaveError
from tfclip.files import replace_when_done


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.txt"
    order = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), sync(handle)))
    monkeypatch.setattr(Path, "replace", lambda *paths: (order.append("name"), rename(*paths)))
    with replace_when_done(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent  # a rename is one step within a file system only
        assert temporary.suffix == ".txt"
        assert not path.exists()
    assert order == ["sync", "name"]
    assert path.read_text() == "whole"


def test_a_new_file_has_the_mode_of_any_other(tmp_path):
    (tmp_path / "other").write_text("")
    with replace_when_done(tmp_path / "a") as temporary:
        temporary.write_text("")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_goes_wrong_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    expected = SaveError if isinstance(error, OSError) else KeyboardInterrupt

    def write():
        with replace_when_done(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(expected):
        write()
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["old"]


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(SaveError, match="it is a folder"), replace_when_done(tmp_path):
        pass
