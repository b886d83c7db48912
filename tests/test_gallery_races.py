"""A gallery that somebody else writes to at the worst moment is read as it was or as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfclip.errors import GalleryError, SaveError
from tfclip.gallery import Gallery, journal
from tfclip.gallery.journal import Description, Journal, Record, Segment


def replace_first(gallery: Gallery) -> None:
    """Write an entry anew, and with it the file that it is in."""
    gallery.add(np.eye(2)[:1], ids=["a"], replace=True)


def test_a_reader_whose_file_was_replaced_before_it_opened_it_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_segment = Journal._open
    lost: list[str] = []

    def open_late(self: Journal, record: Record) -> Segment:
        if self.read_only and not lost:
            lost.append(record.file)
            replace_first(writer)
            assert not (tmp_path / "g" / record.file).exists()
        return open_segment(self, record)

    monkeypatch.setattr(Journal, "_open", open_late)
    with Gallery.open(tmp_path / "g", dim=2) as writer:
        writer.add(np.eye(2), ids=["a", "b"])
        with Gallery.open(tmp_path / "g", read_only=True) as reader:
            assert lost
            assert sorted(reader.entries().ids) == ["a", "b"]


def test_a_reader_that_is_always_too_late_gives_up_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_segment = Journal._open

    def open_late(self: Journal, record: Record) -> Segment:
        if self.read_only:
            replace_first(writer)
        return open_segment(self, record)

    monkeypatch.setattr(Journal, "_open", open_late)
    monkeypatch.setattr(journal, "_RETRIES", 3)
    with Gallery.open(tmp_path / "g", dim=2) as writer:
        writer.add(np.eye(2), ids=["a", "b"])
        with pytest.raises(GalleryError, match=r"g changes faster than it can be read$"):
            Gallery.open(tmp_path / "g", read_only=True)


def test_two_who_make_a_gallery_at_once_make_one(tmp_path: Path) -> None:
    Journal.create(tmp_path / "g", Description(width=2, model="first"))
    Journal.create(tmp_path / "g", Description(width=3, model="second"))
    assert Journal(tmp_path / "g").snapshot.description.model == "first"


def test_a_folder_that_takes_no_lock_is_said(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "g", dim=2) as gallery:
        (tmp_path / "g" / "lock").unlink()
        (tmp_path / "g" / "lock").mkdir()
        with pytest.raises(SaveError, match=r"cannot write .*g: Is a directory$"):
            gallery.add(np.eye(2))


def test_a_segment_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "g", dim=2) as gallery:
        gallery.add(np.eye(2))
    (segment,) = (tmp_path / "g").glob("segment-*")
    segment.unlink()
    segment.mkdir()
    with pytest.raises(GalleryError, match=r"cannot read .*safetensors: Is a directory$"):
        Gallery.open(tmp_path / "g")


def test_a_folder_that_refuses_to_keep_names_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Gallery.open(tmp_path / "g", dim=2) as gallery:
        with monkeypatch.context() as patch:
            patch.setattr(journal.os, "open", refuse)
            with pytest.raises(SaveError, match=r"cannot write .*g: Input/output error$"):
                journal._sync_folder(tmp_path / "g")
        gallery.add(np.eye(2))
        assert len(gallery) == 2


def refuse(*_: object) -> int:
    raise OSError(5, "Input/output error")
