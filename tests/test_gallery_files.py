"""What a gallery leaves on disk: whole after any crash, checked, and without what was forgotten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfclip
from tests.gallery_entries import filled, rows
from tfclip import Gallery
from tfclip.errors import GalleryError
from tfclip.gallery import journal as journal_module

ROOT = Path(tfclip.__file__).parents[1]


@pytest.mark.slow
def test_killing_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            str(Path(__file__).parent / "gallery_crashes.py"),
            str(tmp_path / "g"),
            *("--kills", os.environ.get("TFCLIP_TEST_KILLS", "200")),
            *("--longest", "0.1"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "nothing lost" in result.stdout


class Crash(BaseException):
    """What no code catches."""


def stop_after(number: int, patch: pytest.MonkeyPatch) -> None:
    """Let some calls that change the disk through, then no more."""
    done = []

    def stopping(original: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if len(done) >= number:
                raise Crash
            done.append(original)
            return original(*arguments, **options)

        return call

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
        patch.setattr(owner, name, stopping(getattr(owner, name)))


@pytest.mark.slow
@pytest.mark.parametrize("action", ["add", "replace", "forget", "compact"])
def test_stopping_before_any_call_of_the_system_leaves_the_old_or_the_new_gallery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    def act(gallery: Gallery) -> None:
        if action == "forget":
            gallery.forget(["track-2", "track-40"])
        elif action == "compact":
            gallery.compact()
        else:
            name = "track-2" if action == "replace" else "new"
            gallery.add(rows(1, seed=9), ids=[name], replace=True)

    filled(tmp_path / "done")
    with Gallery.open(tmp_path / "done") as finished:
        before = finished.entries().ids
        act(finished)
        after = finished.entries().ids
    stopped = 0
    seen = set()
    done = False
    while not done:
        folder = tmp_path / f"stopped-{stopped}"
        gallery = filled(folder)
        with monkeypatch.context() as patch:
            stop_after(stopped, patch)
            try:
                act(gallery)
            except Crash:
                stopped += 1
            else:
                done = True
        with Gallery.open(folder) as opened:
            ids = opened.entries().ids
            files = opened.info()["segments"] + 2
        assert ids in (before, after)
        assert len(list(folder.iterdir())) == files  # no more than the index, the lock and those
        seen.add(ids)
    assert stopped > 5
    assert seen == {before, after}


@pytest.mark.parametrize("index", ["exact", "flat", "hnsw", "ivf"])
def test_a_forgotten_vector_and_its_names_are_in_no_file_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Any
) -> None:
    folder = tmp_path / "g"
    options: dict[str, Any] = {"storage": "faiss", "index": index} if index != "exact" else {}
    if options:
        pytest.importorskip("faiss")
        monkeypatch.setattr("tfclip.gallery.faiss_storage._FEW", 0)
    gallery = Gallery.open(folder, dim=8, **options)
    gallery.add(rows(300), persons=[f"person-{i}" for i in range(300)])
    gallery.search(rows(1), k=3)
    gallery.save()
    stored = gallery.entries(where={"person": "person-7"})
    secrets = [stored.vectors.tobytes(), b'"person-7"']
    assert all(any(secret in data for data in contents(folder)) for secret in secrets)
    assert len(contents(folder)) == (4 if options else 3)
    assert gallery.forget(person="person-7") == 1
    assert not any(secret in data for secret in secrets for data in contents(folder))
    gallery.search(rows(1), k=3)
    gallery.close()
    assert len(contents(folder)) == (4 if options else 3)
    assert not any(secret in data for secret in secrets for data in contents(folder))


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.iterdir()]


def test_a_gallery_that_grows_by_single_entries_has_few_files(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8)
    for number in range(50):
        gallery.add(rows(1, seed=number))
    assert gallery.info()["segments"] <= 6  # 50 has six binary digits
    assert gallery.entries().ids == tuple(map(str, range(50)))
    gallery.forget([str(number) for number in range(0, 50, 2)])
    gallery.compact()
    assert gallery.info()["segments"] == 1
    assert gallery.entries().ids == tuple(map(str, range(1, 50, 2)))


def test_large_additions_are_cut_into_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_SEGMENT_BYTES", 4 * 8 * 10)
    gallery = filled(tmp_path / "g")
    assert gallery.info()["segments"] >= 6
    gallery.compact()
    assert gallery.entries().ids == tuple(f"track-{i}" for i in range(60))
    np.testing.assert_allclose(
        gallery.entries().vectors,
        rows(60) / np.linalg.norm(rows(60), axis=1, keepdims=True),
        atol=1e-7,
    )


@pytest.mark.slow
def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    gallery = Gallery.open(folder, dim=2, model="m", ttl=1e9)
    gallery.add(rows(1, 2), persons=["p"])
    gallery.add(rows(3, 2), metadata=[{"zone": "z"}] * 3)
    checked = 0
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << (place % 8)
            path.write_bytes(damaged)
            with pytest.raises(GalleryError, match=r"damaged|format version|lacks"):
                Gallery.open(folder, read_only=True)
            checked += 1
        path.write_bytes(whole)
    assert checked > 1000
    assert len(Gallery.open(folder)) == 4


def test_a_truncated_or_missing_file_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    filled(folder)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        if not whole:
            continue  # the lock
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(GalleryError, match="is damaged"):
                Gallery.open(folder)
        path.unlink()
        with pytest.raises(GalleryError, match=r"lacks segment|no gallery|no gallery\.json"):
            Gallery.open(folder)
        path.write_bytes(whole)
    (folder / "gallery.json").unlink()
    with pytest.raises(GalleryError, match="has entries but no"):
        Gallery.open(folder, dim=8)


def test_only_without_verify_a_damaged_vector_is_opened(tmp_path: Path) -> None:
    vector = filled(tmp_path / "g").entries().vectors[0].tobytes()
    path = min((tmp_path / "g").glob("segment-*"))
    data = bytearray(path.read_bytes())
    data[data.index(vector)] ^= 1
    path.write_bytes(data)
    with pytest.raises(GalleryError, match="checksum"):
        Gallery.open(tmp_path / "g", read_only=True)
    assert len(Gallery.open(tmp_path / "g", read_only=True, verify=False)) == 60


def test_a_gallery_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "g")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "FORMAT_VERSION", 2)
        Gallery.open(tmp_path / "newer", dim=2)
    with pytest.raises(GalleryError, match=r"version 2 .* upgrade with"):
        Gallery.open(tmp_path / "newer")


def test_files_are_for_their_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr("tfclip.gallery.faiss_storage._FEW", 0)
    folder = tmp_path / "a" / "g"
    before = os.umask(0)
    try:
        with Gallery.open(folder, storage="faiss", index="flat", dim=8) as gallery:
            gallery.add(rows(100))
            gallery.search(rows(1))
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert "faiss-flat.index" in modes
    assert set(modes.values()) == {0o600}
