import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from tests.traps import full_disk
from tfclip.data import (
    EmbeddingTable,
    Thumbnail,
    Tracklet,
    model_fingerprint,
    search_table,
)
from tfclip.errors import MissingExtraError, SaveError, TableError

SUFFIXES = (".safetensors", ".parquet")


def make_table(folder=Path("/data"), **changes):
    fields = {
        "embeddings": torch.eye(3, 4),
        "names": ("a/1", "b/1", "c/$1"),
        "persons": ("a", None, "ç"),
        "cameras": (0, 5, None),
        "first_frames": (1, None, 0),
        "last_frames": (9, None, 0),
        "num_frames": (9, 4, 1),
        "thumbnails": (
            Thumbnail(path=str(folder / "a" / "1.png")),
            None,
            Thumbnail(path=str(folder / "v.mp4"), frame=3, box=(0.5, 1.0, 2.0, 3.0)),
        ),
        "model": "m",
        "revision": "abc",
        "fingerprint": "0123",
        "settings": {"sampling": "dense", "cameras": False},
    }
    return EmbeddingTable(**{**fields, **changes})


COLUMNS = (
    *("names", "persons", "cameras", "first_frames", "last_frames", "num_frames", "thumbnails"),
    *("model", "revision", "fingerprint", "settings"),
)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_comes_back_as_it_was_saved(tmp_path, suffix):
    table = make_table(tmp_path)
    path = tmp_path / "sub" / f"table{suffix}"
    table.save(path)
    again = EmbeddingTable.load(path)
    assert torch.equal(again.embeddings, table.embeddings)
    for column in COLUMNS:
        assert getattr(again, column) == getattr(table, column), column


optional_numbers = st.none() | st.integers(0, 2**40)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(texts, optional_numbers, st.none() | texts, optional_numbers, st.floats(-1, 1)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(SUFFIXES),
)
def test_any_texts_and_numbers_survive(tmp_path_factory, rows, suffix):
    path = tmp_path_factory.mktemp("tables") / f"t{suffix}"
    table = EmbeddingTable(
        embeddings=torch.tensor([[row[4], 1.0] for row in rows]),
        names=tuple(f"{number}{row[0]}" for number, row in enumerate(rows)),
        cameras=tuple(row[1] for row in rows),
        persons=tuple(row[2] for row in rows),
        first_frames=tuple(row[3] for row in rows),
    )
    table.save(path)
    again = EmbeddingTable.load(path)
    assert torch.equal(again.embeddings, table.embeddings)
    for column in COLUMNS:
        assert getattr(again, column) == getattr(table, column), column


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_tables_are_equal_files_that_only_their_owner_reads(tmp_path, suffix):
    paths = [tmp_path / f"{name}{suffix}" for name in "xy"]
    for path in paths:
        make_table(tmp_path).save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_with_the_file_and_the_pictures_may_move(tmp_path, suffix):
    make_table(tmp_path / "old").save(tmp_path / "old" / f"t{suffix}")
    (tmp_path / "old").rename(tmp_path / "new")
    thumbnails = EmbeddingTable.load(tmp_path / "new" / f"t{suffix}").thumbnails
    assert thumbnails[0] == Thumbnail(path=str(tmp_path / "new" / "a" / "1.png"))


def test_rows_can_be_picked_and_joined_again():
    table = make_table()
    joined = EmbeddingTable.concatenate([table.select([2]), table.select([0, 1])])
    assert joined.names == ("c/$1", "a/1", "b/1")
    assert joined.cameras == (None, 0, 5)
    assert torch.equal(joined.embeddings, table.embeddings[[2, 0, 1]])


def test_tracklets_describe_their_rows():
    tracklets = [Tracklet(name="x", frames=[], person=7, camera=2, first_frame=3, last_frame=8)]
    table = EmbeddingTable.from_tracklets(tracklets, torch.ones(1, 2), [6], model="m")
    assert (table.persons, table.cameras, table.first_frames) == (("7",), (2,), (3,))
    assert (table.last_frames, table.num_frames, table.model) == ((8,), (6,), "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": torch.zeros(3)}, r"must be \(M, F\) float32"),
        ({"embeddings": torch.zeros(0, 4), "names": ()}, "at least one row"),
        ({"embeddings": torch.zeros(3, 4, dtype=torch.float64)}, "got torch.float64"),
        ({"embeddings": torch.full((3, 4), torch.nan)}, "embedding of 'a/1' is not finite"),
        ({"names": ("a", "b")}, "names must have 3 entries.*got 2"),
        ({"names": ("a", "b", "a")}, "names must be unique, got 'a' twice"),
        ({"names": ("a", "", "b")}, "got '' in row 1"),
        ({"cameras": (0,)}, "cameras must have 3 entries"),
        ({"cameras": (0, -1, 2)}, "cameras must be 0 or more"),
    ],
)
def test_columns_that_do_not_fit_are_named(changes, message):
    with pytest.raises(TableError, match=message):
        make_table(**changes)


def test_a_file_name_must_tell_its_format(tmp_path):
    with pytest.raises(TableError, match=r"end in \.safetensors or \.parquet, got .*x\.npz"):
        make_table().save(tmp_path / "x.npz")
    with pytest.raises(TableError, match="there is no such file"):
        EmbeddingTable.load(tmp_path / "x.safetensors")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tfclip\[table\]'"):
        make_table().save(tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_cut_off_or_garbage_is_an_error(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    make_table().save(path)
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:-1], b"", b"garbage" * 20):
        path.write_bytes(part)
        with pytest.raises(TableError, match=r"t\.(safetensors|parquet) is damaged or not a"):
            EmbeddingTable.load(path)


def test_a_file_of_something_else_is_an_error(tmp_path):
    import pyarrow
    import pyarrow.parquet

    save_file({"weight": torch.zeros(2)}, tmp_path / "t.safetensors")
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "t.parquet")
    for suffix in SUFFIXES:
        with pytest.raises(TableError, match="something else than a table of embeddings"):
            EmbeddingTable.load(tmp_path / f"t{suffix}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("cameras"), "lacks cameras"),
        (lambda arrays: arrays.update(cameras=torch.zeros(2)), "cameras must have 3 entries"),
        (lambda arrays: arrays.update(texts=torch.zeros(2, dtype=torch.uint8)), "is damaged"),
        (lambda arrays: arrays.update(embeddings=torch.zeros(3, 4, 5)), r"must be \(M, F\)"),
    ],
)
def test_a_table_that_lost_a_part_is_named(tmp_path, change, message):
    path = tmp_path / "t.safetensors"
    make_table().save(path)
    arrays = load_file(path)
    change(arrays)
    description = make_table()._description()
    save_file(arrays, path, metadata={"tfclip_embeddings": description})
    with pytest.raises(TableError, match=message):
        EmbeddingTable.load(path)


def test_a_table_from_the_future_is_refused_with_the_cure(tmp_path):
    path = tmp_path / "t.safetensors"
    make_table().save(path)
    description = make_table()._description().replace('"version": 1', '"version": 2')
    save_file(load_file(path), path, metadata={"tfclip_embeddings": description})
    with pytest.raises(TableError, match=r"version 2 .* pip install --upgrade tfclip"):
        EmbeddingTable.load(path)


def test_a_name_that_no_file_can_have_is_no_table(tmp_path):
    path = tmp_path / ("x" * 300 + ".safetensors")
    with pytest.raises(TableError, match="there is no such file"):
        EmbeddingTable.load(path)
    with pytest.raises(SaveError, match="File name too long"):
        make_table().save(path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    make_table().save(path)
    before = path.read_bytes()

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(SaveError, match="No space left on device"):
        make_table(model="other").save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.safetensors"]


# --- fingerprints --------------------------------------------------------------------------------


class Config:
    def __init__(self, **fields):
        self.fields = fields

    def to_dict(self):
        return self.fields


def make_model(seed=0, **fields):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    model.config = Config(**fields)  # type: ignore[assignment]
    return model


def test_a_fingerprint_tells_weights_and_config_but_neither_provenance_nor_calibration():
    fingerprint = model_fingerprint(make_model(size=1, provenance="here"))
    assert len(fingerprint) == 16
    assert fingerprint == model_fingerprint(make_model(size=1, provenance="there"))
    assert fingerprint == model_fingerprint(make_model(size=1, calibration={"threshold": 1}))
    assert fingerprint == model_fingerprint(make_model(size=1))  # from before there were any
    assert fingerprint != model_fingerprint(make_model(size=2))
    assert fingerprint != model_fingerprint(make_model(size=1, seed=1))
    assert fingerprint != model_fingerprint(make_model(size=1).double())


# --- search --------------------------------------------------------------------------------------


def rows_of(results):
    return [[found.row for found in row] for row in results]


def test_the_nearest_come_first_and_the_query_never_finds_itself():
    table = EmbeddingTable(
        embeddings=torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]), names=("x", "y", "z")
    )
    found = search_table(table, table, top=5)
    assert rows_of(found) == [[1, 2], [0, 2], [1, 0]]
    assert found[0][0].distance == pytest.approx(2 - 2 * 0.8)
    itself = search_table(table, table, top=1, exclude_same_name=False)
    assert [results[0].row for results in itself] == [0, 1, 2]


def test_the_querys_camera_can_be_left_out_where_it_is_known():
    table = make_table(cameras=(0, 0, 1))
    found = search_table(table, table, exclude_same_camera=True)
    assert rows_of(found) == [[2], [2], [0, 1]]
    with pytest.raises(TableError, match=r"camera of the query tracklet 'c/\$1' is unknown"):
        search_table(make_table(), table, exclude_same_camera=True)


def test_searching_in_blocks_changes_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(30, 4, generator=generator)
    table = EmbeddingTable(embeddings=rows, names=tuple(map(str, range(30))))
    whole = search_table(table, table, top=4)
    monkeypatch.setattr("tfclip.data.search._BLOCK_ENTRIES", 100)
    blocks = search_table(table, table, top=4)
    assert [[f.row for f in found] for found in blocks] == [
        [f.row for f in found] for found in whole
    ]


def test_embeddings_of_different_models_are_not_compared():
    with pytest.raises(TableError, match=r"different models .* abc \(0123\) and m at abc \(9\)"):
        search_table(make_table(), make_table(fingerprint="9"))
    with pytest.raises(TableError, match="different widths cannot be compared: 4 and 2"):
        search_table(make_table(), make_table(embeddings=torch.ones(3, 2)))
    with pytest.raises(ValueError, match="top must be at least 1"):
        search_table(make_table(), make_table(), top=0)


def test_a_parquet_file_is_hardly_larger_than_its_vectors(tmp_path):
    pytest.importorskip("pyarrow")
    vectors = torch.randn(300, 352, generator=torch.Generator().manual_seed(0))
    table = EmbeddingTable(embeddings=vectors, names=tuple(f"t{i}" for i in range(300)))
    table.save(tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 1.03 * vectors.nbytes
    assert torch.equal(EmbeddingTable.load(tmp_path / "t.parquet").embeddings, vectors)


def test_a_parquet_file_that_unpacks_to_gigabytes_is_refused_early(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path, rows = tmp_path / "bomb.parquet", 1_000
    make_table().save(path)
    schema = pyarrow.parquet.read_schema(path)
    columns = pyarrow.parquet.read_table(path).slice(0, 1).to_pydict()
    columns["name"] = ["x" * 2**20]  # stored once for all rows
    repeated = {name: values * rows for name, values in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table(repeated, schema), path)
    assert path.stat().st_size < 2**22
    with pytest.raises(TableError, match="unpacks to far more than a table of embeddings does"):
        EmbeddingTable.load(path)


def test_a_parquet_file_whose_description_is_no_text_is_damaged(tmp_path):
    import pyarrow.parquet

    path = tmp_path / "table.parquet"
    make_table().save(path)
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.replace_schema_metadata({"tfclip_embeddings": b"\xff"}), path)
    with pytest.raises(TableError, match="is damaged: UnicodeDecodeError"):
        EmbeddingTable.load(path)
