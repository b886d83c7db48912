"""How a gallery is opened, shared, kept for a time, and refuses what it should not take."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tfclip
from tests.gallery_entries import rows
from tfclip import TFCLIP, Gallery
from tfclip.data import EmbeddingTable, model_fingerprint
from tfclip.errors import GalleryError, MissingExtraError, SaveError, TableError
from tfclip.gallery import Between

ROOT = Path(tfclip.__file__).parents[1]


def table(count: int = 4, **options: Any) -> EmbeddingTable:
    fields = {"model": "m", "fingerprint": "0123456789abcdef", **options}
    return EmbeddingTable(
        embeddings=torch.from_numpy(rows(count)).float(),
        names=tuple(f"name-{i}" for i in range(count)),
        persons=tuple("ab"[i % 2] for i in range(count)),
        cameras=tuple(i % 3 for i in range(count)),
        **fields,
    )


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_gallery_is_made_only_where_its_vectors_are_described(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match=r"no gallery in .*g; dim= or model= makes one"):
        Gallery.open(tmp_path / "g")
    with pytest.raises(GalleryError, match="no gallery"):
        Gallery.open(tmp_path / "g", dim=8, read_only=True)
    assert not (tmp_path / "g").exists()
    assert len(Gallery.open(tmp_path / "g", dim=8)) == 0
    assert Gallery.open(tmp_path / "g").dim == 8


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    before = tmp_path.stat().st_mode
    with pytest.raises(GalleryError, match=r"is not a gallery: it holds holiday\.jpg"):
        Gallery.open(tmp_path, dim=8)
    assert {path.name for path in tmp_path.iterdir()} == {"holiday.jpg"}
    assert tmp_path.stat().st_mode == before


def test_an_empty_gallery_finds_nothing(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", model="m")
    assert gallery.dim is None
    assert gallery.search(rows(2)).ids == [[], []]
    assert gallery.add(rows(0)) == []
    assert gallery.forget("nobody") == gallery.compact() == len(gallery.entries()) == 0
    gallery.add(rows(2))
    assert gallery.dim == 8


def test_the_model_and_the_width_are_those_of_every_vector(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    gallery = Gallery.open(folder, model="m", fingerprint="0123456789abcdef")
    assert gallery.add_table(table()) == ["name-0", "name-1", "name-2", "name-3"]
    other = table(model="n", revision="r", fingerprint="f" * 16)
    sentence = r"holds embeddings of m \(0123456789abcdef\), got those of n at r \(f{16}\)"
    with pytest.raises(GalleryError, match=sentence):
        gallery.search(other)
    with pytest.raises(GalleryError, match=sentence):
        gallery.add_table(other)
    with pytest.raises(GalleryError, match=r"of m \(0123456789abcdef\), not of n"):
        Gallery.open(folder, model="n")
    with pytest.raises(GalleryError, match="not of m"):
        Gallery.open(folder, fingerprint="f" * 16)
    with pytest.raises(GalleryError, match="width 8, not 9"):
        Gallery.open(folder, dim=9)
    for call in (gallery.add, gallery.search):
        with pytest.raises(ValueError, match="must have the gallery's width, 8, got 9"):
            call(rows(1, 9))
    # The same model from another place is the same model.
    assert len(Gallery.open(folder, model="./m", fingerprint="0123456789abcdef")) == 4


def test_without_fingerprints_the_model_has_a_name_and_a_revision(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", model="m", revision="1")
    with pytest.raises(GalleryError, match=r"of m at 1 \(none\), got those of m at 2"):
        gallery.add_table(table(revision="2", fingerprint=""))
    with pytest.raises(GalleryError, match="not of m at 2"):
        Gallery.open(tmp_path / "g", model="m", revision="2")
    assert len(gallery.add_table(table(revision="1", fingerprint=""))) == 4


def test_an_empty_gallery_without_a_model_takes_the_tables(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8)
    gallery.add_table(table())
    assert gallery.info()["fingerprint"] == "0123456789abcdef"
    nameless = Gallery.open(tmp_path / "h", dim=8)
    nameless.add(rows(1))
    with pytest.raises(GalleryError, match="a model without a name"):
        nameless.add_table(table())


def test_a_model_can_be_given_itself(tmp_path: Path, tiny_model: TFCLIP) -> None:
    gallery = Gallery.open(tmp_path / "g", model=tiny_model)
    assert gallery.dim == tiny_model.embedding_dim
    assert gallery.info()["fingerprint"] == model_fingerprint(tiny_model)
    with pytest.raises(GalleryError, match="not of a model without a name"):
        Gallery.open(tmp_path / "g", model=TFCLIP(tiny_model.config))


def test_a_table_comes_back_as_it_went_in(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8)
    gallery.add_table(table())
    again = gallery.to_table()
    assert (again.names, again.persons, again.cameras) == (
        table().names,
        table().persons,
        table().cameras,
    )
    again.check_comparable(table())
    unit = torch.nn.functional.normalize(table().embeddings.double()).float()
    assert torch.equal(again.embeddings, unit)
    assert gallery.to_table(where={"person": "a"}).names == ("name-0", "name-2")
    with pytest.raises(TableError):
        gallery.to_table(where={"person": "nobody"})


def test_a_table_brings_its_cameras_and_names_to_a_search(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8)
    gallery.add_table(table(6))
    found = gallery.search(table(6), k=6, exclude_same_camera=True)
    for own, ids in enumerate(found.ids):
        assert sorted(ids) == [f"name-{i}" for i in range(6) if i % 3 != own % 3]
    found = gallery.search(table(6), k=6, exclude_same_id=True)
    for own, ids in enumerate(found.ids):
        assert sorted(ids) == [f"name-{i}" for i in range(6) if i != own]


def test_entries_older_than_their_time_are_never_found_and_leave_the_disk(tmp_path: Path) -> None:
    now = [1000.0]
    folder = tmp_path / "g"
    gallery = Gallery.open(folder, dim=8, ttl=100, clock=lambda: now[0])
    gallery.add(rows(1), ids=["first"])
    first = gallery.entries().vectors.tobytes()
    now[0] = 1050
    gallery.add(rows(2, seed=1), ids=["second", "third"])

    def on_disk(secret: bytes) -> bool:
        return any(secret in path.read_bytes() for path in folder.iterdir())

    now[0] = 1099.9
    assert len(gallery) == 3
    now[0] = 1100
    assert len(gallery) == 2
    assert "first" not in gallery.search(rows(1), k=3).ids[0]
    assert gallery.entries().ids == ("second", "third")
    assert gallery.forget("first") == 0
    assert not on_disk(first)  # forget takes along what has expired

    now[0] = 1155  # a tenth of the time late: the next change takes it along
    second = gallery._storage.journal.snapshot.segments[0].entries.vectors[0].tobytes()  # type: ignore[attr-defined]
    assert on_disk(second)
    gallery.add(rows(1), ids=["second"])  # the expired one is not in the way
    gallery.add(rows(1, seed=3))
    now[0] = 1160
    gallery.add(rows(1, seed=4))
    assert not on_disk(second)
    now[0] = 1300
    Gallery.open(folder, clock=lambda: now[0])  # so does opening
    assert not on_disk(rows(1).astype(np.float32).tobytes())
    assert gallery.info()["segments"] == 0


def test_compact_removes_and_counts_what_has_expired(tmp_path: Path) -> None:
    now = [0.0]
    gallery = Gallery.open(tmp_path / "g", dim=8, ttl=10, clock=lambda: now[0])
    gallery.add(rows(5))
    now[0] = 10
    assert (len(gallery), gallery.compact(), gallery.compact()) == (0, 5, 0)
    gallery.add(rows(2))
    gallery.set_ttl(None)
    now[0] = 1e9
    assert len(gallery) == 2
    gallery.set_ttl(5)
    assert len(gallery) == 0
    with pytest.raises(GalleryError, match=r"keeps entries 5 seconds, not 7 seconds; set_ttl"):
        Gallery.open(tmp_path / "g", ttl=7)


def test_forgetting_needs_all_that_is_given_to_hold(tmp_path: Path) -> None:
    day = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    gallery = Gallery.open(tmp_path / "g", dim=8)
    ids = gallery.add(
        rows(8),
        cameras=[0, 1] * 4,
        persons=["a"] * 4 + ["b"] * 4,
        times=[None if i == 7 else day + datetime.timedelta(hours=i) for i in range(8)],
    )
    assert gallery.forget(person="a", camera=0) == 2
    assert gallery.entries().ids == tuple(ids[i] for i in (1, 3, 4, 5, 6, 7))
    assert gallery.forget(before=day + datetime.timedelta(hours=3)) == 1
    assert gallery.entries().ids == tuple(ids[i] for i in (3, 4, 5, 6, 7))
    assert gallery.forget(ids[3]) == 1
    assert gallery.forget([ids[4], "nobody"], where={"camera": 0}) == 1
    assert gallery.forget(before=datetime.datetime.now(datetime.UTC)) == 2
    assert gallery.entries().ids == (ids[7],)  # its time is unknown
    assert gallery.forget(added_before=datetime.datetime.now(datetime.UTC)) == 1
    with pytest.raises(ValueError, match="forget must be told what"):
        gallery.forget()


def test_two_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    Gallery.open(tmp_path / "g", dim=4)
    code = """
import sys, numpy as np
from tfclip import Gallery
gallery = Gallery.open(sys.argv[1], timeout=60)
for number in range(25):
    gallery.add(np.ones((2, 4)), [f"{sys.argv[2]}-{number}-{i}" for i in "ab"])
    if number % 3 == 2:
        assert gallery.forget(f"{sys.argv[2]}-{number}-a") == 1
"""
    workers = [python(code, tmp_path / "g", name) for name in "xyz"]
    reader = Gallery.open(tmp_path / "g", read_only=True)
    while any(worker.poll() is None for worker in workers):
        seen = set(reader.search(np.ones(4), k=200).ids[0])
        for id_ in seen:  # both of one call, or none; the first of every third may be forgotten
            name, number, _ = id_.split("-")
            assert f"{name}-{number}-b" in seen
            assert f"{name}-{number}-a" in seen or int(number) % 3 == 2
    for worker in workers:
        output, _ = worker.communicate()
        assert worker.returncode == 0, output
    expected = {
        f"{name}-{number}-{i}"
        for name in "xyz"
        for number in range(25)
        for i in "ab"
        if not (number % 3 == 2 and i == "a")
    }
    entries = Gallery.open(tmp_path / "g").entries()
    assert set(entries.ids) == expected
    assert len(set(entries.numbers.tolist())) == len(expected)


def test_a_second_writer_waits_and_then_gets_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "g"
    gallery = Gallery.open(folder, dim=8, timeout=0.05)
    gallery.add(rows(3))
    holder = python(
        "import fcntl, sys, time\n"
        "file = open(sys.argv[1], 'rb+')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "time.sleep(60)",
        folder / "lock",
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(GalleryError, match=r"another process has been writing to .* for 0\.05 sec"):
        gallery.add(rows(1))
    assert len(Gallery.open(folder, read_only=True).search(rows(1), k=9).ids[0]) == 3
    holder.kill()  # the system lets go of a dead process's lock
    holder.communicate()
    gallery.add(rows(1))
    assert len(gallery) == 4


def test_a_reader_sees_what_others_have_done_since(tmp_path: Path) -> None:
    writer = Gallery.open(tmp_path / "g", dim=8)
    reader = Gallery.open(tmp_path / "g", read_only=True)
    writer.add(rows(3))
    before = reader.entries()
    assert len(reader.search(rows(1)).ids[0]) == 3
    writer.forget("1")
    assert reader.entries().ids == ("0", "2")
    assert before.ids == ("0", "1", "2")
    for call in (lambda: reader.add(rows(1)), lambda: reader.forget("0"), reader.compact):
        with pytest.raises(GalleryError, match="opened to read only"):
            call()


def test_threads_may_share_a_gallery(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8, timeout=60)
    failures = []

    def work(name: str) -> None:
        try:
            for number in range(10):
                gallery.add(rows(2), [f"{name}-{number}-{i}" for i in "ab"])
                gallery.search(rows(3), k=5)
                gallery.forget(f"{name}-{number}-a")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "xyz"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(gallery) == 30


def test_ids_that_are_numbers_already_are_not_given_again(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8)
    gallery.add(rows(2), ids=["2", "4"])
    assert gallery.add(rows(3)) == ["5", "6", "7"]
    gallery.forget(["5", "6", "7"])
    assert gallery.add(rows(1)) == ["8"]  # nor is one that was forgotten


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"embeddings": rows(1)[0]}, ValueError, r"must be \(M, F\), got shape \(8,\)"),
        ({"embeddings": np.full((2, 8), np.nan)}, ValueError, "row 0 that is not finite"),
        ({"embeddings": np.zeros((2, 8))}, ValueError, "row 0 that is zero"),
        ({"embeddings": np.full((2, 8), "x")}, TypeError, "must be numbers"),
        ({"ids": ["a"]}, ValueError, "ids must have one entry for each of the 2 rows, got 1"),
        ({"ids": ["a", "a"]}, ValueError, "ids must be unique, got 'a' twice"),
        ({"ids": [1, 2]}, TypeError, "ids must be texts, got 1 in row 0"),
        ({"ids": ["", "a"]}, ValueError, "ids must not be empty"),
        ({"ids": "ab"}, TypeError, "got the text 'ab'"),
        ({"cameras": [0, -1]}, ValueError, "cameras must be 0 or more, or None, got -1 in row 1"),
        ({"cameras": [0.5, 1]}, TypeError, "cameras must be whole numbers"),
        ({"times": [0, float("inf")]}, ValueError, "times must be finite, got inf"),
        ({"times": ["noon", 1]}, TypeError, "times must be seconds or datetime, got 'noon'"),
        ({"persons": [1.5, 2]}, TypeError, "persons must be texts or None, got 1.5 in row 0"),
        ({"metadata": [{"a": []}, None]}, TypeError, "metadata must hold texts"),
        ({"metadata": [{"camera": 1}, None]}, ValueError, "must not have the key 'camera'"),
        ({"metadata": [{"a": float("nan")}, None]}, ValueError, "metadata must be finite"),
        ({"metadata": [1, 2]}, TypeError, "metadata must be mappings"),
        ({"metadata": [{1: 2}, None]}, TypeError, "texts as keys"),
    ],
)
def test_what_cannot_be_added_is_said_before_anything_is(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8)
    with pytest.raises(error, match=message):
        gallery.add(**{"embeddings": rows(2), **options})
    assert len(gallery) == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 1.5}, TypeError, "k must be a whole number"),
        ({"where": {"zoo": 1}}, ValueError, r"fields of the gallery \(id.*zone\), got 'zoo'"),
        ({"where": "camera"}, TypeError, "must be a mapping or callable, got str"),
        ({"where": {"zone": object()}}, TypeError, "a value, a collection or Between"),
        ({"where": lambda columns: [True]}, ValueError, "one bool for each of 2 entries"),
        ({"exclude_same_camera": True}, ValueError, "query_cameras must be given"),
        (
            {"exclude_same_camera": True, "query_cameras": [None]},
            ValueError,
            "query_cameras must be known .* at position 0",
        ),
        ({"exclude_same_id": True}, ValueError, "query_ids must be given"),
        ({"time_window": 5}, TypeError, "time_window must be a start and an end"),
        ({"rerank": "magic"}, ValueError, "rerank must be 'k_reciprocal' or a function"),
        ({"rerank_candidates": 0}, ValueError, "rerank_candidates must be at least 1"),
        ({"rerank": lambda q, c: q}, ValueError, r"must return distances \(1, 2\)"),
    ],
)
def test_what_cannot_be_asked_is_said(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8)
    gallery.add(rows(2), metadata=[{"zone": 1}, None])
    with pytest.raises(error, match=message):
        gallery.search(rows(1), **options)


def test_opening_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    for options, message in (
        ({"storage": "paper"}, "storage must be one of"),
        ({"index": "tree"}, "index must be one of"),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"ttl": -1}, "ttl must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Gallery.open(tmp_path / "g", **{"dim": 8, **options})
    with pytest.raises(ValueError, match="must be a folder for storage='exact'"):
        Gallery.open("http://localhost:19530", storage="exact")
    with pytest.raises(ValueError, match="must not be empty"):
        Gallery.open("", dim=8)


def test_reranking_orders_the_candidates_of_each_query_anew(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8)
    gallery.add(rows(30), cameras=[0, 1, 2] * 10)
    asked = []

    def farthest_first(query: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        asked.append((tuple(query.shape), tuple(candidates.shape)))
        return query @ candidates.T

    plain = gallery.search(rows(2, seed=5), k=12)
    found = gallery.search(rows(2, seed=5), k=4, rerank=farthest_first, rerank_candidates=12)
    assert asked == [((1, 8), (12, 8))] * 2
    assert found.ids == [ids[:-5:-1] for ids in plain.ids]
    assert found.metric == "reranked"
    for row, ids in enumerate(found.distances):
        cosines = [1 - d / 2 for d in plain.distances[row][:-5:-1]]
        assert ids == pytest.approx(cosines, abs=1e-6)
    alone = gallery.search(rows(2, seed=5)[1], k=4, rerank=farthest_first, rerank_candidates=12)
    assert alone[0] == found[1]
    nothing = gallery.search(rows(1), where={"camera": 9}, rerank=farthest_first)
    assert nothing.ids == [[]]


def test_k_reciprocal_reranking_is_that_of_functional(tmp_path: Path) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8)
    ids = gallery.add(rows(80))
    query = torch.from_numpy(rows(1, seed=5)).float()
    unit = torch.nn.functional.normalize(query)
    near = gallery.search(query, k=50).ids[0]
    order = [ids.index(id_) for id_ in near]
    candidates = torch.from_numpy(gallery.entries().vectors[order])
    distances = tfclip.functional.k_reciprocal_rerank(unit, candidates)[0]
    expected = [near[i] for i in distances.argsort(stable=True)[:10].tolist()]
    found = gallery.search(query, k=10, rerank="k_reciprocal", rerank_candidates=50)
    assert (found.ids, found.metric) == ([expected], "k_reciprocal")


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = Gallery.open(tmp_path / "g", dim=8)
    gallery.add(rows(5))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    files = sorted(path.name for path in (tmp_path / "g").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(SaveError, match="No space left on device"):
            gallery.add(rows(3))
    assert sorted(path.name for path in (tmp_path / "g").iterdir()) == files
    assert (len(gallery), gallery.add(rows(1))) == (5, ["5"])


def test_neither_opening_nor_adding_nor_searching_loads_torch(tmp_path: Path) -> None:
    worker = python(
        "import sys, numpy\n"
        "from tfclip import Gallery\n"
        "gallery = Gallery.open(sys.argv[1], dim=4)\n"
        "gallery.add(numpy.eye(4))\n"
        "print(gallery.search(numpy.eye(4), k=1).ids, 'torch' in sys.modules, end='')",
        tmp_path / "g",
    )
    assert worker.communicate()[0] == "[['0'], ['1'], ['2'], ['3']] False"


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, storage, extra in (("faiss", "faiss", "index"), ("pymilvus", "milvus", "milvus")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"pip install 'tfclip\[{extra}\]'"):
            Gallery.open(tmp_path / "g", dim=8, storage=storage)  # type: ignore[arg-type]
    assert not (tmp_path / "g").exists()


def test_between_includes_its_ends_and_compares_like_with_like() -> None:
    assert [Between(1, 2).holds(value) for value in (0.9, 1, 1.5, 2, 2.1, "1")] == [
        False, True, True, True, False, False,
    ]  # fmt: skip
    assert Between("b").holds("c")
