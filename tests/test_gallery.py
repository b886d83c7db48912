"""The gallery against a plain dictionary and a search with loops."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import tfclip
from tfclip import Gallery
from tfclip.errors import GalleryError
from tfclip.gallery import Between, exact
from tfclip.gallery import journal as journal_module

ROOT = Path(tfclip.__file__).parents[1]


def rows(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, width))


def filled(folder: Path, count: int = 60, **options: Any) -> Gallery:
    """Open a gallery with something in every column, in several segments."""
    gallery = Gallery.open(folder, dim=8, **options)
    for start, stop in ((0, count // 2), (count // 2, count - 3), (count - 3, count)):
        numbers = range(start, stop)
        gallery.add(
            rows(count)[start:stop],
            ids=[f"track-{i}" for i in numbers],
            cameras=[i % 3 if i % 7 else None for i in numbers],
            times=[float(i) if i % 5 else None for i in numbers],
            persons=[i % 11 if i % 2 else None for i in numbers],
            metadata=[{"zone": f"z{i % 4}", "score": i / 10} if i % 3 else None for i in numbers],
        )
    return gallery


def slow_search(gallery: Gallery, query: np.ndarray, k: int, allowed: Any) -> list[str]:
    """Read the definition: every distance, sorted, the earlier entry first."""
    entries = gallery.entries()
    unit = (query / np.linalg.norm(query)).astype(np.float32).astype(np.float64)
    found = []
    for row, id_ in enumerate(entries.ids):
        if allowed(row, entries):
            difference = unit - entries.vectors[row].astype(np.float64)
            found.append((float((difference**2).sum()), row, id_))
    return [id_ for _, _, id_ in sorted(found)[:k]]


def camera(row: int, entries: Any) -> int | None:
    return None if entries.cameras[row] < 0 else int(entries.cameras[row])


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({}, lambda row, e: True),
        ({"where": {"camera": 1}}, lambda row, e: camera(row, e) == 1),
        ({"where": {"camera": [0, None]}}, lambda row, e: camera(row, e) in (0, None)),
        ({"where": {"camera": range(1, 3)}}, lambda row, e: camera(row, e) in (1, 2)),
        ({"where": {"camera": None}}, lambda row, e: camera(row, e) is None),
        ({"where": {"camera": Between(1)}}, lambda row, e: camera(row, e) in (1, 2)),
        ({"where": {"person": 3}}, lambda row, e: e.persons[row] == "3"),
        ({"where": {"person": {"1", 5}}}, lambda row, e: e.persons[row] in ("1", "5")),
        ({"where": {"id": ["track-4", "track-50"]}}, lambda row, e: row in (4, 50)),
        (
            {"where": {"zone": "z1", "score": Between(1.0, 4.0)}},
            lambda row, e: row % 3 and row % 4 == 1 and 1.0 <= row / 10 <= 4.0,
        ),
        ({"where": {"zone": None}}, lambda row, e: row % 3 == 0),
        ({"time_window": (10, 20)}, lambda row, e: 10 <= row <= 20 and row % 5),
        ({"time_window": (None, 9.5)}, lambda row, e: row < 9.5 and row % 5),
        ({"exclude_cameras": [0, 2]}, lambda row, e: camera(row, e) in (1, None)),
        (
            {"exclude_same_camera": True, "query_cameras": [2]},
            lambda row, e: camera(row, e) != 2,
        ),
        ({"exclude_same_id": True, "query_ids": ["track-0"]}, lambda row, e: row != 0),
        ({"where": lambda columns: columns["time"] > 40}, lambda row, e: row > 40 and row % 5),
        (
            {"where": lambda columns: columns["zone"] == "z2"},
            lambda row, e: row % 3 and row % 4 == 2,
        ),
    ],
)
def test_a_search_finds_what_a_loop_over_all_entries_finds(
    tmp_path: Path, options: dict[str, Any], allowed: Any
) -> None:
    gallery = filled(tmp_path / "g")
    for query in rows(60)[[0, 17]]:
        expected = slow_search(gallery, query, 7, allowed)
        assert expected, "the case must have something to find"
        assert gallery.search(query, k=7, **options).ids == [expected]


def test_a_result_says_everything_of_an_entry(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    result = gallery.search(torch.from_numpy(rows(60)[[1, 35]]), k=1)
    first, second = result[0][0], result[1][0]
    assert (first.id, first.camera, first.time, first.person) == ("track-1", 1, 1.0, "1")
    assert first.metadata == {"zone": "z1", "score": 0.1}
    assert first.distance == pytest.approx(0, abs=1e-12)
    # 35 is a multiple of 5 and 7, which have neither time nor camera.
    assert (second.id, second.camera, second.time, second.person) == ("track-35", None, None, "2")
    assert result.metric == "squared_euclidean"
    assert result.cameras == [[1], [None]]
    assert result.times == [[1.0], [None]]
    assert result.persons == [["1"], ["2"]]
    assert result.metadata == [[first.metadata], [second.metadata]]
    assert [len(matches) for matches in result] == [1, 1]


def test_distances_are_two_minus_two_cos_whatever_the_lengths(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=2)
    gallery.add(np.array([[1e-200, 0.0], [0.0, 1e200], [-3.0, 0.0]]))
    result = gallery.search(np.array([5.0, 0.0]))
    assert (result.ids, result.distances) == ([["0", "1", "2"]], [[0.0, 2.0, 4.0]])


def test_equal_distances_keep_the_order_in_which_entries_were_added(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8)
    for _ in range(4):
        gallery.add(np.repeat(rows(1), 200, axis=0))
    assert gallery.search(rows(1), k=500).ids == [[str(i) for i in range(500)]]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(0, 2**31),
    st.integers(1, 40),
)
def test_blocks_and_near_ties_do_not_change_the_result(
    count: int, width: int, k: int, seed: int, step: int
) -> None:
    """Vectors that differ in the last bits of float32 are told apart as float64 tells them."""
    random = np.random.default_rng(seed)
    base = random.normal(size=(3, width))
    noise = random.normal(size=(count, width)) * random.choice([0, 1e-7, 1e-3, 1], size=(count, 1))
    vectors = base[random.integers(0, 3, count)] + noise
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    queries = vectors[random.integers(0, count, 5)]
    mask = random.random(count) < 0.8
    cut = int(random.integers(0, count + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_ROWS", step)
        patch.setattr(exact, "_QUERIES", 2)
        patch.setattr(exact, "_EXACT_ROWS", 3)
        parts = [(vectors[:cut], mask[:cut]), (vectors[cut:], mask[cut:])]
        best = exact.search_exact(queries, parts, k)
    for query, found, distances in zip(queries, best.rows, best.distances, strict=True):
        exactly = ((query.astype(np.float64) - vectors) ** 2).sum(1)
        expected = sorted((d, row) for row, d in enumerate(exactly.tolist()) if mask[row])[:k]
        number = len(expected)
        assert found[:number].tolist() == [row for _, row in expected]
        assert distances[:number].tolist() == [d for d, _ in expected]
        assert (found[number:] == -1).all()
        assert np.isinf(distances[number:]).all()


class AgainstADictionary(RuleBasedStateMachine):
    """Whatever is done in whatever order, the gallery is a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.holder = tempfile.TemporaryDirectory()
        self.now = 1000.0
        self.entries: dict[str, tuple[tuple[float, ...], int | None, str | None, float]] = {}
        self.reopen(storage="exact")

    def teardown(self) -> None:
        self.gallery.close()
        self.holder.cleanup()

    @rule(storage=st.sampled_from(["exact", "faiss"]))
    def reopen(self, storage: Any) -> None:
        if hasattr(self, "gallery"):
            self.gallery.close()
        self.gallery = Gallery.open(
            Path(self.holder.name) / "g",
            dim=3,
            ttl=100,
            storage=storage,
            index="flat",
            clock=lambda: self.now,
        )

    @rule(
        new=st.dictionaries(
            st.sampled_from("abcdefghij"),
            st.tuples(
                st.tuples(*[st.integers(-3, 3)] * 2, st.integers(1, 3)),
                st.one_of(st.none(), st.integers(0, 2)),
                st.one_of(st.none(), st.sampled_from(["p", "q"])),
            ),
            min_size=1,
        ),
        replace=st.booleans(),
    )
    def add(self, new: dict[str, Any], replace: bool) -> None:
        vectors, cameras, persons = zip(*new.values(), strict=True)
        alive = self.alive()

        def do() -> None:
            self.gallery.add(np.array(vectors), list(new), cameras, None, persons, replace=replace)

        if not replace and set(new) & set(alive):
            with pytest.raises(GalleryError, match="already has an entry"):
                do()
            return
        do()
        for id_, (vector, seen_by, person) in new.items():
            self.entries.pop(id_, None)  # it moves to the end
            self.entries[id_] = (vector, seen_by, person, self.now)

    @rule(ids=st.sets(st.sampled_from("abcdefghij"), min_size=1))
    def forget_ids(self, ids: set[str]) -> None:
        alive = self.alive()
        assert self.gallery.forget(ids) == len(ids & set(alive))
        for id_ in ids:
            self.entries.pop(id_, None)

    @rule(person=st.sampled_from(["p", "q"]), seen_by=st.one_of(st.none(), st.integers(0, 2)))
    def forget_person(self, person: str, seen_by: int | None) -> None:
        gone = [
            id_
            for id_, entry in self.alive().items()
            if entry[2] == person and seen_by in (None, entry[1])
        ]
        assert self.gallery.forget(person=person, camera=seen_by) == len(gone)
        for id_ in gone:
            del self.entries[id_]

    @rule(seconds=st.integers(1, 60))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def compact(self) -> None:
        expired = len(self.entries) - len(self.alive())
        assert self.gallery.compact() <= expired  # others went when something was added
        self.entries = self.alive()

    @precondition(lambda self: self.alive())
    @rule(k=st.integers(1, 12), own=st.one_of(st.none(), st.integers(0, 2)))
    def search(self, k: int, own: int | None) -> None:
        query = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
        options: dict[str, Any] = {}
        if own is not None:
            options = {"exclude_same_camera": True, "query_cameras": [own]}
        (found,) = self.gallery.search(query, k, **options)
        distances = {
            id_: float(((np.array(vector) / np.linalg.norm(vector) - query) ** 2).sum())
            for id_, (vector, seen_by, _, _) in self.alive().items()
            if own is None or seen_by != own
        }
        # Which of two equally near ones comes first hangs on the last bit here.
        nearest = sorted(distances.values())[:k]
        assert [match.distance for match in found] == pytest.approx(nearest, abs=1e-6)
        assert len({match.id for match in found}) == len(found)
        for match in found:
            assert match.distance == pytest.approx(distances[match.id], abs=1e-6)

    def alive(self) -> dict[str, Any]:
        return {id_: entry for id_, entry in self.entries.items() if entry[3] > self.now - 100}

    @invariant()
    def it_holds_what_the_dictionary_holds(self) -> None:
        alive, found = self.alive(), self.gallery.entries()
        assert found.ids == tuple(alive)
        assert len(self.gallery) == len(alive)
        assert found.persons.to_list() == [entry[2] for entry in alive.values()]
        assert found.cameras.tolist() == [
            -1 if entry[1] is None else entry[1] for entry in alive.values()
        ]


TestAgainstADictionary = AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(
    max_examples=15,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestAgainstADictionary = pytest.mark.slow(TestAgainstADictionary)


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
