"""A gallery in Milvus, partitioned or on a server, answers as one in a folder does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.milvus_server import LiteServer, RealServer, drop, new_name
from tfclip import Gallery
from tfclip.errors import GalleryError
from tfclip.gallery import Between
from tfclip.gallery.milvus_storage import MilvusStorage
from tfclip.gallery.partitions import DAY

pytest.importorskip("milvus_lite", reason="needs milvus-lite")

WIDTH = 8
START = 20_000 * DAY


class Place(dict[str, Any]):
    """Where a test keeps its gallery: the arguments of ``Gallery.open``."""

    def open(self, **options: Any) -> Gallery:
        return Gallery.open(self["path_or_uri"], **{**self["options"], **options})


@pytest.fixture(params=["lite", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A folder of Milvus Lite, and a server where one is named."""
    if request.param == "lite":
        yield Place(path_or_uri=tmp_path / "m", options={"storage": "milvus"})
        return
    server, name = RealServer(), new_name()
    yield Place(path_or_uri=server.uri, options={"collection": name})
    drop(server.uri, name)


@pytest.fixture(scope="module")
def lite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiteServer]:
    server = LiteServer(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


def drawn(count: int, seed: int) -> dict[str, Any]:
    """Draw entries of some cameras, days and sites, unknown ones among them."""
    random = np.random.default_rng(seed)
    sites = [None, "north", "south", "East Gate", 3, True]
    return {
        "embeddings": random.normal(size=(count, WIDTH)),
        "cameras": [None if c == 4 else c for c in random.integers(0, 5, count).tolist()],
        "times": [
            None if t < 0 else START + t for t in random.uniform(-DAY, 4 * DAY, count).tolist()
        ],
        "persons": [str(p) for p in random.integers(0, 9, count).tolist()],
        "metadata": [
            {"site": sites[s], "lane": s % 2} for s in random.integers(0, 6, count).tolist()
        ],
    }


QUESTIONS: list[dict[str, Any]] = [
    {},
    {"where": {"camera": 1}},
    {"where": {"camera": [0, 3]}},
    {"where": {"camera": None}},
    {"where": {"camera": Between(2)}},
    {"where": {"camera": 9}},
    {"where": {"site": "north"}},
    {"where": {"site": ["south", "East Gate"]}},
    {"where": {"site": "nowhere"}},
    {"where": {"time": Between(START + DAY, START + 2 * DAY)}},
    {"time_window": (START, START + DAY - 1)},
    {"time_window": (None, START + DAY), "where": {"camera": 2}},
    {"where": {"added": Between(0, 2 * DAY)}},
    {"where": {"lane": 1, "site": "north"}},
    {"exclude_cameras": [0, 1]},
    {"exclude_same_camera": True, "query_cameras": [0, 1, 2, 3, 0]},
]


GONE: list[dict[str, Any]] = [
    {"camera": 1},
    {"ids": ["0-1", "1-3", "nobody"]},
    {"before": START + DAY},
    {"added_before": DAY},
    {"where": {"site": ["north", True]}},
    {"where": {"site": "south"}, "person": "3"},
]


def same(ours: Gallery, theirs: Gallery, queries: np.ndarray) -> None:
    for question in QUESTIONS:
        found, expected = (g.search(queries, 4, **question) for g in (ours, theirs))
        assert found == expected, question
    for where in (None, {"camera": 1}, {"site": "south"}):
        assert ours.entries(where).ids == theirs.entries(where).ids
    assert len(ours) == len(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("field", ["camera", "time", "added", "site"])
def test_a_partitioned_gallery_answers_as_one_in_a_folder(
    place: Place, tmp_path: Path, field: str
) -> None:
    now = [0.0]
    options: dict[str, Any] = {"dim": WIDTH, "clock": lambda: now[0]}
    folder = Gallery.open(tmp_path / "folder", **options)
    milvus = place.open(partition=field, **options)
    queries = np.random.default_rng(7).normal(size=(5, WIDTH))
    both = (milvus, folder)
    assert milvus.search(queries).ids == [[]] * 5
    for turn in range(3):
        now[0] = turn * DAY + 5.0
        ids = [f"{turn}-{i}" for i in range(60)]
        for gallery in both:
            gallery.add(**drawn(60, turn), ids=ids)
    same(milvus, folder, queries)
    moved = [f"{turn}-{i}" for turn in range(3) for i in range(0, 60, 7)]
    now[0] = 3 * DAY
    milvus.save()  # what moves is in files, and the new entries in memory
    for gallery in both:  # into other partitions
        gallery.add(**drawn(len(moved), 11), ids=moved, replace=True)
    same(milvus, folder, queries)
    for gone in GONE:
        assert milvus.forget(**gone) == folder.forget(**gone), gone
        same(milvus, folder, queries)
    milvus.close()
    milvus = place.open(clock=lambda: now[0])
    same(milvus, folder, queries)
    assert milvus.info()["partition"] == field
    milvus.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str] | None]:
    """Note down the partitions that Milvus is asked to search, None for all."""
    from pymilvus import MilvusClient

    noted: list[list[str] | None] = []
    search = MilvusClient.search

    def noting(self: Any, *arguments: Any, **options: Any) -> Any:
        noted.append(options.get("partition_names"))
        return search(self, *arguments, **options)

    monkeypatch.setattr(MilvusClient, "search", noting)
    return noted


def test_a_search_touches_only_the_partitions_it_asks_for(
    place: Place, asked: list[list[str] | None]
) -> None:
    with place.open(dim=WIDTH, partition="time") as gallery:
        columns = drawn(30, 0)
        columns["times"] = [START + DAY * (i % 3) for i in range(30)]
        gallery.add(**columns)
        query = columns["embeddings"][:2]
        gallery.search(query)
        found = gallery.search(query, where={"time": START + DAY})
        gallery.search(query, time_window=(START, START + DAY))
        gallery.search(query, time_window=(0, 1), where={"camera": 1})
    days = [f"day_{20_000 + day}" for day in range(3)]
    assert asked == [None, ["_default", days[1]], ["_default", *days[:2]], ["_default"]]
    assert {match.id for row in found for match in row} == {str(i) for i in range(1, 30, 3)}


@pytest.fixture
def deleted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note down the ids that are deleted one by one."""
    from pymilvus import MilvusClient

    noted: list[str] = []
    delete = MilvusClient.delete

    def noting(self: Any, *arguments: Any, **options: Any) -> Any:
        noted.extend(options["ids"])
        return delete(self, *arguments, **options)

    monkeypatch.setattr(MilvusClient, "delete", noting)
    return noted


def test_forgetting_a_day_drops_its_partition(place: Place, deleted: list[str]) -> None:
    with place.open(dim=WIDTH, partition="time") as gallery:
        columns = drawn(30, 0)
        columns["times"] = [START + DAY * (i % 3) + 1 for i in range(30)]
        gallery.add(**columns)
        assert gallery.info()["partitions"] == 4
        assert gallery.forget(before=START + DAY) == 10
        assert gallery.info()["partitions"] == 3
        assert deleted == []
        assert gallery.forget(before=START + DAY + 2, where={"camera": [0, 1, 2, 3, None]}) == 10
        assert len(deleted) == 10  # every camera is named, but a fifth one might come
        assert gallery.info()["partitions"] == 3
        assert gallery.entries().ids == tuple(str(i) for i in range(2, 30, 3))
        gallery.add(**{name: column[:1] for name, column in columns.items()}, ids=["again"])
        assert gallery.search(columns["embeddings"][:1], 1).ids == [["again"]]


def test_expired_days_are_dropped_as_a_whole(place: Place, deleted: list[str]) -> None:
    now = [0.0]
    options: dict[str, Any] = {"dim": WIDTH, "ttl": 2 * DAY, "partition": "added"}
    with place.open(**options, clock=lambda: now[0]) as gallery:
        for day in range(4):
            now[0] = (day + 0.5) * DAY
            gallery.add(drawn(5, day)["embeddings"], ids=[f"{day}-{i}" for i in range(5)])
        assert len(gallery) == 10
        assert gallery.info()["partitions"] == 5
        assert gallery.compact() == 10
        assert gallery.info()["partitions"] == 4  # half of the second day's moments are alive
        assert sorted(deleted) == [f"1-{i}" for i in range(5)]
        assert gallery.compact() == 0
        now[0] = 9 * DAY
        assert len(gallery) == 0
        assert gallery.compact() == 10
        assert gallery.info()["partitions"] == 1


def test_an_id_that_expired_in_one_partition_may_live_in_another(place: Place) -> None:
    now = [0.0]
    options: dict[str, Any] = {"dim": WIDTH, "ttl": 10, "partition": "camera"}
    with place.open(**options, clock=lambda: now[0]) as gallery:
        vectors = drawn(2, 0)["embeddings"]
        gallery.add(vectors, ["a", "b"], [1, 1])
        now[0] = 11
        gallery.add(vectors[:1], ["a"], [2])
        assert gallery.compact() == 1
        assert gallery.entries().ids == ("a",)
        assert gallery.search(vectors[:1], where={"camera": [1, 2]}).ids == [["a"]]
        assert gallery.search(vectors[:1], where={"camera": 1}).ids == [[]]
        with pytest.raises(GalleryError, match="already has an entry 'a'"):
            gallery.add(vectors[:1], ["a"], [3])


def test_how_a_gallery_is_partitioned_stays(place: Place) -> None:
    with place.open(dim=WIDTH, partition="site") as gallery:
        gallery.add(**drawn(6, 0))
    for partition in (None, "site"):
        with place.open(partition=partition) as gallery:
            assert gallery.info()["partition"] == "site"
    with pytest.raises(GalleryError, match="is partitioned by site, not by camera"):
        place.open(partition="camera")


def test_a_gallery_without_partitions_is_not_given_them_later(place: Place) -> None:
    with place.open(dim=WIDTH) as gallery:
        assert "partition" not in gallery.info()
    with pytest.raises(GalleryError, match="is partitioned by nothing, not by camera"):
        place.open(partition="camera")


def test_milvus_lite_has_no_shards_and_replicas(tmp_path: Path) -> None:
    for name in ("num_shards", "replica_number"):
        options: dict[str, Any] = {name: 2}
        with pytest.raises(
            ValueError, match=f"{name} is for a Milvus server; Milvus Lite in .*/m h"
        ):
            Gallery.open(tmp_path / "m", storage="milvus", dim=2, **options)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("version", "refused"), [("v2.3.5", True), ("2.4-dev", True), ("v2.5.0", False), ("?", False)]
)
def test_an_old_server_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    from pymilvus import MilvusClient

    monkeypatch.setattr(MilvusClient, "get_server_version", lambda self: version)
    if not refused:
        Gallery.open(tmp_path / "m", storage="milvus", dim=2).close()
        return
    with pytest.raises(GalleryError, match=f"needs Milvus 2.5 or newer, and .* is {version}"):
        Gallery.open(tmp_path / "m", storage="milvus", dim=2)


@pytest.mark.slow
def test_a_server_that_does_not_do_what_it_is_told_is_said(lite_server: LiteServer) -> None:
    name = new_name()  # Milvus Lite takes the option as every Milvus does, and ignores it
    with pytest.raises(GalleryError, match=f"{name} in {lite_server.uri} has num_shards=1, not 4"):
        Gallery.open(lite_server.uri, dim=WIDTH, collection=name, num_shards=4)
    Gallery.open(lite_server.uri, collection=name, num_shards=1).close()
    with pytest.raises(GalleryError, match=f"Milvus at {lite_server.uri} failed") as raised:
        Gallery.open(lite_server.uri, collection=name, replica_number=2)
    assert "\n" not in str(raised.value)


def test_shards_and_replicas_are_passed_to_a_server() -> None:
    server, name = RealServer(), new_name()
    options: dict[str, Any] = {"collection": name, "num_shards": 2, "replica_number": 1}
    with Gallery.open(server.uri, dim=WIDTH, **options) as gallery:
        gallery.add(**drawn(5, 0))
        assert len(gallery) == 5
    with pytest.raises(GalleryError, match="has num_shards=2, not 3"):
        Gallery.open(server.uri, collection=name, num_shards=3)
    with pytest.raises(GalleryError, match="failed") as raised:
        Gallery.open(server.uri, collection=name, replica_number=64)
    assert "\n" not in str(raised.value)
    drop(server.uri, name)


def test_writers_that_start_from_the_same_state_undo_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 30, WIDTH))
    ids = [[f"{name}{i}" for i in range(count)] for name, count in (("a", 30), ("b", 7))]
    with place.open(dim=WIDTH) as one, place.open() as other:
        before = other._storage.description
        one.add(first, ids[0], [i % 3 for i in range(30)], metadata=[{"site": "x"}] * 30)
        one.set_ttl(10**9)
        with monkeypatch.context() as patch:  # what the other has read before that
            patch.setattr(MilvusStorage, "description", before)
            other.add(second[:7], ids[1], [i % 3 for i in range(7)], metadata=[{"lane": 1}] * 7)
        for gallery in (one, other):
            assert set(gallery.entries().ids) == {*ids[0], *ids[1]}
            assert gallery.info()["fields"] == ["lane", "site"]
            assert gallery.info()["ttl"] == 10**9
            assert gallery.search(first, 1).ids == [[id_] for id_ in ids[0]]
            assert gallery.search(second[:7], 1).ids == [[id_] for id_ in ids[1]]
        assert one.forget(camera=0) == 10 + 3
        assert len(other) == 20 + 4


@pytest.mark.slow
def test_two_clients_of_one_server_see_each_other(lite_server: LiteServer) -> None:
    name = new_name()
    options: dict[str, Any] = {"collection": name, "partition": "camera"}
    with (
        Gallery.open(lite_server.uri, dim=WIDTH, **options) as one,
        Gallery.open(lite_server.uri, **options) as other,
    ):
        columns = drawn(20, 0)
        one.add(columns["embeddings"], [f"a{i}" for i in range(20)], [i % 2 for i in range(20)])
        other.add(columns["embeddings"], [f"b{i}" for i in range(20)], [i % 3 for i in range(20)])
        assert len(one) == len(other) == 40
        assert one.forget(camera=2) == 6
        assert len(other) == 34
        assert one.search(columns["embeddings"][:1], 2).ids == [["a0", "b0"]]
