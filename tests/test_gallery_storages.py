"""FAISS and Milvus find what the exact search finds, and forget what it forgets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tfclip import Gallery
from tfclip.cli import main
from tfclip.data import EmbeddingTable
from tfclip.errors import GalleryError
from tfclip.gallery import Between

COUNT = 400


def clustered(count: int = COUNT, width: int = 16, seed: int = 0) -> np.ndarray:
    """Draw people around whom their vectors scatter."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(count // 8 + 1, width))
    return centres[np.arange(count) // 8] + 0.3 * random.normal(size=(count, width))


def columns(count: int = COUNT) -> dict[str, Any]:
    return {
        "ids": [f"track-{i}" for i in range(count)],
        "cameras": [i % 3 if i % 7 else None for i in range(count)],
        "times": [float(i) if i % 5 else None for i in range(count)],
        "persons": [str(i // 8) if i % 2 else None for i in range(count)],
        "metadata": [
            {"zone": f"z{i % 4}", "inside": i % 2 == 0} if i % 3 else None for i in range(count)
        ],
    }


OPTIONS: list[dict[str, Any]] = [
    {},
    {"where": {"camera": 1}},
    {"where": {"camera": [0, None]}},
    {"where": {"camera": None}},
    {"where": {"person": ["3", 17]}},
    {"where": {"id": "track-9"}},
    {"where": {"zone": "z1", "inside": False}},
    {"where": {"zone": ["z1", "z2"]}},
    {"where": {"zone": Between("z2")}},
    {"where": {"zone": Between()}},
    {"where": {"person": []}},
    {"where": {"added": Between(2e9)}},
    {"time_window": (50, 300)},
    {"exclude_cameras": [0, 1]},
    {"exclude_same_camera": True, "query_cameras": [i % 3 for i in range(30)]},
    {"exclude_same_id": True, "query_ids": [f"track-{13 * i}" for i in range(30)]},
    {"where": {"camera": [1, 2]}, "exclude_same_camera": True, "query_cameras": [1] * 30},
]


@pytest.fixture
def always_indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the index even where there are few entries."""
    pytest.importorskip("faiss")
    monkeypatch.setattr("tfclip.gallery.faiss_storage._FEW", 0)
    monkeypatch.setattr("tfclip.gallery.faiss_storage._SPARSE", 0)


def recall(found: list[list[str]], expected: list[list[str]]) -> float:
    shares = [
        len(set(ours) & set(theirs)) / len(theirs)
        for ours, theirs in zip(found, expected, strict=True)
        if theirs
    ]
    return float(np.mean(shares)) if shares else 1.0


@pytest.mark.usefixtures("always_indexed")
@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf"])
def test_faiss_finds_what_the_exact_search_finds(tmp_path: Path, index: Any) -> None:
    exact = Gallery.open(tmp_path / "g", dim=16)
    exact.add(clustered(), **columns())
    faiss = Gallery.open(tmp_path / "g", storage="faiss", index=index)
    queries = clustered(seed=1)[::13][:30]
    for options in OPTIONS:
        expected, found = exact.search(queries, **options), faiss.search(queries, **options)
        least = 1.0 if index == "flat" else 0.95
        assert recall(found.ids, expected.ids) >= least, options
        if index == "flat":
            assert found == expected
        # What was found has its exact distance, and nothing that is not allowed is among it.
        known = {m.id: m for m in exact.search(queries[:1], k=COUNT)[0]}
        for match in found[0]:
            assert match.distance == known[match.id].distance
            if "where" in options or "time_window" in options or "exclude_cameras" in options:
                everything = exact.search(queries[:1], k=COUNT, **{**options, **one(options)})
                assert match.id in everything.ids[0]
    assert faiss.info()["indexed"] == COUNT
    faiss.close()


def one(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name][:1] for name in ("query_cameras", "query_ids") if name in options}


@pytest.mark.usefixtures("always_indexed")
@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf"])
def test_faiss_follows_every_change_by_whomever(tmp_path: Path, index: Any) -> None:
    random = np.random.default_rng(0)
    exact = Gallery.open(tmp_path / "g", dim=16)
    faiss = Gallery.open(tmp_path / "g", storage="faiss", index=index)
    vectors = clustered(800)
    for turn in range(12):
        part = vectors[turn * 60 : (turn + 1) * 60]
        writer = exact if turn % 2 else faiss
        writer.add(part, ids=[f"{turn}-{i}" for i in range(60)])
        if turn > 1:
            gone = [f"{random.integers(turn)}-{i}" for i in random.integers(0, 60, 30)]
            assert set(gone).isdisjoint(exact.entries().ids) or writer.forget(gone)
        if turn == 6:
            exact.compact()
        if turn == 8:
            faiss.close()
            faiss = Gallery.open(tmp_path / "g", storage="faiss", index=index)
        found, expected = (g.search(vectors[:40], k=5).ids for g in (faiss, exact))
        assert recall(found, expected) >= (1.0 if index == "flat" else 0.95)
        assert {id_ for ids in found for id_ in ids} <= set(exact.entries().ids)


@pytest.mark.usefixtures("always_indexed")
@pytest.mark.parametrize("index", ["flat", "hnsw", "ivf"])
def test_a_saved_index_is_read_and_a_damaged_one_is_made_anew(
    tmp_path: Path, index: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tfclip.gallery.faiss_storage import FaissStorage

    options: dict[str, Any] = {"storage": "faiss", "index": index}
    with Gallery.open(tmp_path / "g", dim=16, **options) as gallery:
        gallery.add(clustered())
        expected = gallery.search(clustered(seed=1)[:20]).ids
    path = tmp_path / "g" / f"faiss-{index}.index"
    with monkeypatch.context() as patch:
        patch.setattr(FaissStorage, "_build", None)  # it must not be called
        assert (
            Gallery.open(tmp_path / "g", **options).search(clustered(seed=1)[:20]).ids == expected
        )
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:99] + b"?" + whole[100:]):
        path.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            gallery = Gallery.open(tmp_path / "g", **options)
            assert gallery.search(clustered(seed=1)[:20]).ids == expected
        assert "the index is made anew" in caplog.text


def test_few_entries_are_compared_one_by_one_even_with_faiss(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    with Gallery.open(tmp_path / "g", dim=16, storage="faiss") as gallery:
        gallery.add(clustered())
        gallery.search(clustered()[:2])
        assert gallery.info()["indexed"] == 0
    assert not list((tmp_path / "g").glob("faiss-*"))


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[Gallery]:
    """Open an empty gallery in Milvus Lite."""
    pytest.importorskip("pymilvus", reason="needs pymilvus")
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    gallery = Gallery.open(tmp_path / "m", storage="milvus", dim=16, model="m")
    yield gallery
    gallery.close()


def test_milvus_finds_what_the_exact_search_finds(tmp_path: Path, milvus: Gallery) -> None:
    exact = Gallery.open(tmp_path / "g", dim=16, model="m")
    queries = clustered(seed=1)[::13][:30]
    assert milvus.search(queries).ids == [[]] * 30
    assert milvus.add(clustered(), **columns()) == exact.add(clustered(), **columns())
    for options in OPTIONS:
        assert milvus.search(queries, **options) == exact.search(queries, **options), options
    ours, theirs = milvus.entries({"camera": 1}), exact.entries({"camera": 1})
    assert (ours.ids, ours.persons.to_list()) == (theirs.ids, theirs.persons.to_list())
    np.testing.assert_array_equal(ours.vectors, theirs.vectors)
    np.testing.assert_array_equal(ours.times, theirs.times)
    for row in range(len(ours)):
        assert ours.metadata_of(row) == theirs.metadata_of(row)
    same = ("entries", "dim", "model", "ttl", "persons", "cameras", "times", "fields")
    assert [milvus.info()[name] for name in same] == [exact.info()[name] for name in same]


def test_milvus_keeps_replaces_and_forgets(tmp_path: Path, milvus: Gallery) -> None:
    milvus.add(clustered(40), **columns(40))
    with pytest.raises(GalleryError, match="already has an entry 'track-3'"):
        milvus.add(clustered(2), ids=["new", "track-3"])
    assert len(milvus) == 40
    milvus.add(clustered(1, seed=5), ids=["track-3"], persons=["x"], replace=True)
    assert len(milvus) == 40
    assert milvus.search(clustered(1, seed=5), k=1)[0][0].person == "x"
    assert milvus.forget(person="x") == 1
    assert milvus.forget(["track-4", "nobody"]) == 1
    assert milvus.forget(camera=1, before=20) == len(
        [i for i in range(20) if i % 3 == 1 and i % 7 and i % 5 and i != 4]
    )
    left = len(milvus)
    assert milvus.add(clustered(2, seed=6)) == ["41", "42"]
    milvus.close()
    with Gallery.open(tmp_path / "m", storage="milvus") as again:
        assert len(again) == left + 2
        assert again.search(clustered(2, seed=6), k=1).ids == [["41"], ["42"]]
        with pytest.raises(GalleryError, match="holds embeddings of m"):
            again.add_table(table(model="n"))
        with pytest.raises(ValueError, match="cannot call a function"):
            again.search(clustered(1), where=lambda columns: columns["camera"] == 1)
    with pytest.raises(GalleryError, match="not of n"):
        Gallery.open(tmp_path / "m", storage="milvus", model="n")
    with Gallery.open(tmp_path / "m", storage="milvus", read_only=True) as reader:
        for call in (lambda: reader.add(clustered(1)), lambda: reader.forget("41"), reader.compact):
            with pytest.raises(GalleryError, match="read only"):
                call()
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o700


def test_milvus_returns_more_than_one_batch(
    milvus: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfclip.gallery.milvus_collection._LARGEST_BATCH", 7)
    milvus.add(clustered(100), **columns(100))
    assert milvus.entries().ids == tuple(f"track-{i}" for i in range(100))
    inside = milvus.entries({"camera": [0, 1]})
    assert inside.ids == tuple(f"track-{i}" for i in range(100) if i % 3 < 2 and i % 7)
    assert milvus.forget(where={"camera": [0, 1]}) == len(inside)
    assert len(milvus) == 100 - len(inside)
    with pytest.raises(ValueError, match="k must be at most 16368 in Milvus"):
        milvus.search(clustered(1), k=20_000)


def test_in_milvus_too_entries_expire(tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    now = [0.0]
    options: dict[str, Any] = {"storage": "milvus", "clock": lambda: now[0]}
    with Gallery.open(tmp_path / "m", dim=16, ttl=10, **options) as gallery:
        gallery.add(clustered(3))
        now[0] = 9.5
        gallery.add(clustered(2, seed=1))
        assert len(gallery) == 5
        now[0] = 10
        assert len(gallery) == 2
        assert set(gallery.search(clustered(1), k=5).ids[0]) == {"3", "4"}
        assert (gallery.compact(), gallery.compact()) == (3, 0)


def test_a_server_that_does_not_answer_is_said() -> None:
    pytest.importorskip("pymilvus", reason="needs pymilvus")
    with socket.socket() as held:  # bound, and nobody listens
        held.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(GalleryError, match=f"Milvus at {uri} failed"):
            Gallery.open(uri, dim=16, timeout=0.2)


def table(count: int = 6, start: int = 0, **options: Any) -> EmbeddingTable:
    return EmbeddingTable(
        embeddings=torch.from_numpy(clustered(count + start)[start:]).float(),
        names=tuple(f"track-{i}" for i in range(start, start + count)),
        persons=tuple("ab"[i % 2] for i in range(start, start + count)),
        cameras=tuple(i % 3 for i in range(start, start + count)),
        **{"model": "m", "fingerprint": "0123456789abcdef", **options},
    )


def run(*arguments: object) -> int:
    return main(["gallery", *map(str, arguments)])


@pytest.mark.parametrize("storage", ["exact", "flat", "milvus"])
def test_the_command_adds_searches_and_forgets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], storage: str
) -> None:
    if storage != "exact":
        pytest.importorskip({"flat": "faiss", "milvus": "milvus_lite"}[storage])
    folder, more = tmp_path / "g", ("--storage", storage)
    for name, start in (("one", 0), ("two", 6)):
        table(start=start).save(tmp_path / f"{name}.safetensors")
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    assert run("add", folder, *files, *more) == 0
    assert capsys.readouterr().out == f"12 entries added; {folder} holds 12\n"
    assert run("add", folder, files[0], *more) == 1
    assert "already has an entry 'track-0'" in capsys.readouterr().err
    assert run("add", folder, files[0], "--replace", *more) == 0
    assert run("search", folder, files[0], "--top", 3, "--exclude-same-camera", *more) == 0
    out = capsys.readouterr().out
    with Gallery.open(tmp_path / "other", dim=16) as expected:
        expected.add_table(table(start=6))
        expected.add_table(table())
        found = expected.search(table(), 3, exclude_same_camera=True, exclude_same_id=True)
    lines = [line.split() for line in out.splitlines() if line.startswith("     ")]
    assert [line[2] for line in lines] == [match.id for ids in found for match in ids]
    assert "smaller is nearer" in out
    assert run("forget", folder, "--person", "a", *more) == 0
    assert f"6 entries forgotten; {folder} holds 6" in capsys.readouterr().out
    assert run("forget", folder, "--name", "track-1", "--name", "track-3", *more) == 0
    assert run("info", folder, *more) == 0
    assert "entries:     4\n" in capsys.readouterr().out


def test_the_command_reranks_as_the_gallery_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries, folder = tmp_path / "queries.safetensors", tmp_path / "g"
    table(40).save(tmp_path / "all.safetensors")
    table(5, start=40).save(queries)
    assert run("add", folder, tmp_path / "all.safetensors") == 0
    capsys.readouterr()
    assert run("search", folder, queries, "--top", 6, "--rerank", "k_reciprocal") == 0
    out = capsys.readouterr().out
    with Gallery.open(folder, read_only=True) as gallery:
        found = gallery.search(table(5, start=40), 6, rerank="k_reciprocal")
        plain = gallery.search(table(5, start=40), 6)
    lines = [line.split() for line in out.splitlines() if line.startswith("     ")]
    matches = [match for ids in found for match in ids]
    assert [line[2] for line in lines] == [match.id for match in matches]
    assert [line[1] for line in lines] == [f"{match.distance:.4f}" for match in matches]
    assert [match.distance for match in matches] != [m.distance for ids in plain for m in ids]
    assert out.endswith("distance: k_reciprocal; smaller is nearer\n")


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table().save(tmp_path / "one.safetensors")
    table(fingerprint="f" * 16, model="n").save(tmp_path / "other.safetensors")
    folder = tmp_path / "g"
    assert run("add", folder, tmp_path / "one.safetensors", "--ttl", "7d") == 0
    assert Gallery.open(folder).info()["ttl"] == 7 * 86_400
    for arguments, message in (
        (("info", tmp_path / "nowhere"), "there is no gallery"),
        (("add", folder, tmp_path / "other.safetensors"), "holds embeddings of m"),
        (("search", folder, tmp_path / "other.safetensors"), "holds embeddings of m"),
        (("add", folder, tmp_path / "nothing.safetensors"), "there is no such file"),
    ):
        assert run(*arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    for arguments, message in (
        (("forget", folder), "say what to forget"),
        (("forget", folder, "--older", "7"), "must be a number with one of"),
        (("search", "http://x:1", tmp_path / "one.safetensors", "--storage", "exact"), "must be a"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
