"""A file of embeddings of any size comes into a gallery once, however often it is tried."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tfclip import Gallery
from tfclip.cli import main
from tfclip.data import EmbeddingTable
from tfclip.data.embedding_reader import EmbeddingReader
from tfclip.errors import GalleryError, TableError
from tfclip.gallery import tables

pytest.importorskip("pyarrow", reason="needs pyarrow")

WIDTH = 8


def table(count: int = 30, start: int = 0, **options: Any) -> EmbeddingTable:
    vectors = np.random.default_rng(0).normal(size=(1000, WIDTH)).astype(np.float32)
    rows = range(start, start + count)
    return EmbeddingTable(
        embeddings=torch.from_numpy(vectors[start : start + count]),
        names=tuple(f"t{i}" for i in rows),
        persons=tuple(None if i % 5 == 0 else str(i // 4) for i in rows),
        cameras=tuple(None if i % 7 == 0 else i % 3 for i in rows),
        first_frames=tuple(None if i % 6 == 0 else 25 * i for i in rows),
        **{"model": "m", "fingerprint": "0123456789abcdef", **options},
    )


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven rows are a step."""
    monkeypatch.setattr(tables, "_BATCH_BYTES", 4 * WIDTH * 7)
    monkeypatch.setattr("tfclip.data.embeddings._BATCH_ROWS", 4)


@pytest.fixture(params=["exact", "faiss", "milvus", "partitioned"])
def gallery(request: pytest.FixtureRequest, tmp_path: Path) -> Gallery:
    """An empty gallery of each storage."""
    options: dict[str, Any] = {"storage": request.param}
    if request.param == "faiss":
        pytest.importorskip("faiss")
    elif request.param != "exact":
        pytest.importorskip("milvus_lite")
        options = {"storage": "milvus"}
    if request.param == "partitioned":
        options["partition"] = "camera"
    return Gallery.open(tmp_path / "g", dim=WIDTH, **options)


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
def test_an_import_is_what_adding_the_whole_table_is(
    gallery: Gallery, tmp_path: Path, suffix: str
) -> None:
    table().save(tmp_path / f"a{suffix}")
    assert gallery.import_file(tmp_path / f"a{suffix}") == (30, 0)
    with Gallery.open(tmp_path / "expected", dim=WIDTH) as expected:
        expected.add_table(table())
        ours, theirs = gallery.entries(), expected.entries()
        assert gallery.search(table(), 5) == expected.search(table(), 5)
    assert (ours.ids, ours.persons.to_list()) == (theirs.ids, theirs.persons.to_list())
    np.testing.assert_array_equal(ours.vectors, theirs.vectors)
    np.testing.assert_array_equal(ours.cameras, theirs.cameras)
    assert gallery.info()["fingerprint"] == "0123456789abcdef"
    gallery.close()


def test_ids_that_are_not_there_are_told_without_reading_all_that_are(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery.add_table(table(20))
    gallery.forget("t3")
    monkeypatch.setattr(type(gallery._storage), "entries", None)
    assert gallery.lacking(["t19", "t3", "t20", "t0"]) == [1, 2]
    assert gallery.lacking([]) == []
    for wrong in ("t0", 5, None, ["t0", 1], [["t0"]]):
        with pytest.raises(TypeError, match="ids must be"):
            gallery.lacking(wrong)  # pyright: ignore[reportArgumentType]
    assert gallery._storage.find(["t19", "t3"], vectors=False).vectors.shape == (1, 0)
    gallery.close()


def test_a_second_import_adds_nothing_and_an_interrupted_one_goes_on(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    table().save(path)
    add, steps = Gallery.add, []

    def interrupted(self: Gallery, *arguments: Any, **options: Any) -> list[str]:
        if len(steps) == 2:
            raise KeyboardInterrupt
        steps.append(add(self, *arguments, **options))
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gallery.import_file(path)
    held = len(gallery)
    assert held == sum(map(len, steps)) == 14  # two steps of seven rows
    assert gallery.import_file(path) == (16, 14)
    assert gallery.import_file(path) == (0, 30)
    assert gallery.entries().ids == table().names
    gallery.close()


def test_a_name_with_another_vector_stops_an_import_unless_it_is_replaced(
    gallery: Gallery, tmp_path: Path
) -> None:
    gallery.add_table(table(20))
    other = table(30)
    other.embeddings[12] = -other.embeddings[12]
    other.save(tmp_path / "b.parquet")
    with pytest.raises(GalleryError, match="an entry 't12' with another vector; replace=True"):
        gallery.import_file(tmp_path / "b.parquet")
    assert len(gallery) == 20
    assert gallery.import_file(tmp_path / "b.parquet", replace=True) == (11, 19)
    assert len(gallery) == 30
    assert gallery.search(other.embeddings[12], 1).distances == [[0.0]]
    gallery.close()


def test_rows_get_times_and_metadata(gallery: Gallery, tmp_path: Path) -> None:
    table(12).save(tmp_path / "a.parquet")
    started = datetime(2026, 3, 16, 6, tzinfo=UTC)
    gallery.import_file(
        tmp_path / "a.parquet", metadata={"site": "north"}, started=started, frame_rate=25
    )
    times = gallery.entries().times
    for row, time in enumerate(times.tolist()):
        if row % 6 == 0:
            assert np.isnan(time)
        else:
            assert time == started.timestamp() + row
    assert len(gallery.entries({"site": "north"})) == 12
    gallery.close()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"started": 3},
            ValueError,
            "started and frame_rate must be given together, got started=3",
        ),
        ({"frame_rate": 25}, ValueError, "must be given together, got started=None and frame_r"),
        ({"started": 3, "frame_rate": 0}, ValueError, "frame_rate must be above 0 and finite, got"),
        ({"started": 3, "frame_rate": "2"}, TypeError, "frame_rate must be a number, got '2'"),
        ({"started": "x", "frame_rate": 2}, TypeError, "started must be seconds or datetime"),
        ({"metadata": {"id": 3}}, ValueError, "metadata must not have the key 'id'"),
        ({"metadata": "x"}, TypeError, "metadata must be mappings or None, got 'x'"),
    ],
)
def test_bad_arguments_are_said_before_the_file_is_opened(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with (
        Gallery.open(tmp_path / "g", dim=WIDTH) as gallery,
        pytest.raises(error, match=message),
    ):
        gallery.import_file(tmp_path / "nowhere.parquet", **options)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    table(fingerprint="f" * 16, model="n").save(tmp_path / "a.parquet")
    with Gallery.open(tmp_path / "g", dim=WIDTH, model="m") as gallery:
        with pytest.raises(GalleryError, match="holds embeddings of m"):
            gallery.import_file(tmp_path / "a.parquet")
        assert len(gallery) == 0


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
def test_batches_put_together_are_the_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    table(settings={"sampling": "dense"}).save(path)
    with EmbeddingReader(path) as reader:
        assert (reader.num_rows, reader.width, reader.model) == (30, WIDTH, "m")
        parts = list(reader.batches(7))
    assert list(map(len, parts)) == [7, 7, 7, 7, 2]
    whole, expected = EmbeddingTable.concatenate(parts), EmbeddingTable.load(path)
    assert torch.equal(whole.embeddings, expected.embeddings)
    for column in ("names", "persons", "cameras", "first_frames", "thumbnails"):
        assert getattr(whole, column) == getattr(expected, column)


def test_of_a_parquet_file_only_a_batch_is_in_memory(tmp_path: Path) -> None:
    import pyarrow

    count, width, step = 20_000, 256, 500
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(count, width))).float()
    path = tmp_path / "large.parquet"
    EmbeddingTable(embeddings=vectors, names=tuple(map(str, range(count)))).save(path)
    before = pyarrow.total_allocated_bytes()
    rows, most = 0, 0
    with EmbeddingReader(path) as reader:
        for batch in reader.batches(step):
            rows += len(batch)
            most = max(most, pyarrow.total_allocated_bytes() - before)
    assert rows == count
    assert most < path.stat().st_size / 3


def test_what_is_no_file_of_embeddings_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "other.parquet")
    table().save(tmp_path / "cut.parquet")
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    for name, message in (
        ("other.parquet", "other.parquet: this file holds something else than a table of emb"),
        ("cut.parquet", "cut.parquet is damaged or not a parquet file"),
        ("nowhere.parquet", "nowhere.parquet: there is no such file"),
        ("a.csv", r"must end in .safetensors or .parquet, got .*a.csv"),
    ):
        with pytest.raises(TableError, match=message) as raised:
            EmbeddingReader(tmp_path / name)
        assert "\n" not in str(raised.value)


def run(*arguments: object) -> int:
    return main(["gallery", *map(str, arguments)])


def test_the_command_imports_files_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("milvus_lite")
    files = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    table(20).save(files[0])
    table(10, start=20).save(files[1])
    folder, more = tmp_path / "g", ("--storage", "milvus")
    options = (
        "--partition", "site", "--set", "site=north", "--ttl", "7d",
        "--started", "2026-03-16T06:00:00+00:00", "--frame-rate", "25",
    )  # fmt: skip
    assert run("import", folder, files[0], *options, *more) == 0
    assert f"one.parquet: 20 entries added, 0 were there already\n{folder} holds 20\n" in (
        capsys.readouterr().out
    )
    assert run("import", folder, *files, "--set", "site=south", *more) == 0
    out = capsys.readouterr().out
    assert "one.parquet: 0 entries added, 20 were there already\n" in out
    assert f"two.parquet: 10 entries added, 0 were there already\n{folder} holds 30\n" in out
    with Gallery.open(folder, storage="milvus") as gallery:
        assert gallery.info()["partition"] == "site"
        assert gallery.info()["ttl"] == 7 * 86_400
        assert len(gallery.entries({"site": "south"})) == 10
    table(5, start=40, model="n", fingerprint="f" * 16).save(tmp_path / "other.parquet")
    assert run("import", folder, tmp_path / "other.parquet", *more) == 1
    assert "holds embeddings of m" in capsys.readouterr().err


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(3).save(tmp_path / "a.parquet")
    for arguments, message in (
        (("--set", "site"), "must be KEY=TEXT, as in site=north, got 'site'"),
        (("--started", "noon", "--frame-rate", 25), "must be seconds or a time as in 2026"),
        (("--started", "3"), "started and frame_rate must be given together"),
        (("--partition", "camera"), "partition is for storage='milvus'"),
        (("--storage", "milvus", "--num-shards", 2), "num_shards is for a Milvus server"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run("import", tmp_path / "g", tmp_path / "a.parquet", *arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
