import itertools
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data_trees import (
    MARS_TEST,
    g2a_tree,
    mars_tree,
    write_mat,
)
from tests.real_data import real
from tfclip.data import (
    Dataset,
    Protocol,
    read_folder,
    read_g2a_vreid,
    read_mars,
    read_mat,
)
from tfclip.errors import TableError


def told(tracklets):
    return [(t.name, t.person, t.camera, len(t.frames)) for t in tracklets]


# --- MARS ----------------------------------------------------------------------------------------


def test_mars_is_read_as_its_tables_say(tmp_path):
    dataset = read_mars(mars_tree(tmp_path))
    assert told(dataset.train) == [
        ("0001C1T0001", 1, 0, 3),
        ("0001C2T0001", 1, 1, 2),
        ("0007C1T0001", 7, 0, 2),
    ]
    assert told(dataset.test)[0] == ("00-1C1T0001", -1, 0, 2)
    assert (dataset.test[4].first_frame, dataset.test[4].last_frame) == (1, 3)
    assert dataset.test[4].frames[1] == f"{tmp_path}/bbox_test/0002/0002C2T0002F002.jpg"
    official, without = dataset.protocols.values()
    assert official.query == without.query == (2, 3, 5, 6)
    assert official.gallery == (1, 2, 3, 4, 5, 6)  # the junk of row 0 is gone
    assert without.gallery == (1, 4)
    assert official.junk == (-1,)
    assert dataset.valid_queries("official") == [(2, 3, 5, 6)]
    assert dataset.valid_queries("without-queries") == [(2,)]


def test_mars_is_read_without_looking_at_images(tmp_path):
    with_images = read_mars(mars_tree(tmp_path / "a"))
    without = read_mars(mars_tree(tmp_path / "b", images=False))
    assert told(with_images.test) == told(without.test)


def test_a_table_that_lies_on_its_side_is_read_too(tmp_path):
    straight = read_mars(mars_tree(tmp_path))
    path = tmp_path / "info" / "tracks_test_info.mat"
    write_mat(path, {"tracks_test_info": read_mat(path)["track_test_info"].T})
    assert read_mars(tmp_path).test == straight.test


def rewrite(root, part, change):
    path = root / "info" / f"tracks_{part}_info.mat"
    table = read_mat(path)[f"track_{part}_info"].astype(np.int64)
    change(table)
    write_mat(path, {f"track_{part}_info": table})


@pytest.mark.parametrize(
    ("part", "place", "value", "message"),
    [
        ("train", (0, 0), 0, r"train_info\.mat, row 1: its first image must be at least 1"),
        ("train", (1, 1), 2, "row 2: its last image must not come before its first"),
        ("train", (2, 2), -1, r"row 3: its person must be at least 0, got \[6, 7, -1, 1\]"),
        ("test", (1, 2), -2, "row 2: its person must be at least -1"),
        ("test", (0, 3), 0, "row 1: its camera must be at least 1"),
        ("test", (6, 1), 99, r"test_name\.txt has 11 names, and the table asks for name 99"),
        ("test", (3, 0), 5, "rows 3 and 4 share images; no tracklet comes twice"),
        ("test", (2, 2), 9, r"0002C1T0001F001\.jpg is among images 4 to 5, .* begin with 0009C1"),
        ("test", (2, 3), 2, "whose names begin with 0002C2"),
    ],
)
def test_a_table_of_mars_that_is_wrong_is_refused_with_its_row(
    tmp_path, part, place, value, message
):
    mars_tree(tmp_path)

    def change(table):
        table[place] = value

    rewrite(tmp_path, part, change)
    with pytest.raises(TableError, match=message):
        read_mars(tmp_path)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ([], "names no query"),
        ([0, 3], "count from 1 to 7, got 0 to 3"),
        ([3, 8], "count from 1 to 7, got 3 to 8"),
        ([3, 3], "names a query twice"),
        ([1, 3], "row 1 is no query, its person is -1"),
        ([2.5], "whole numbers, got 2.5"),
    ],
)
def test_queries_of_mars_that_are_wrong_are_refused(tmp_path, query, message):
    mars_tree(tmp_path)
    write_mat(tmp_path / "info" / "query_IDX.mat", {"query_IDX": np.array([query], np.float64)})
    with pytest.raises(TableError, match=message):
        read_mars(tmp_path)


def test_half_of_mars_is_refused_and_what_is_missing_named(tmp_path):
    for lost in ("bbox_test", "info/test_name.txt", "info/query_IDX.mat"):
        root = mars_tree(tmp_path / lost.replace("/", "-"))
        path = root / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(TableError, match=re.escape(Path(lost).name)):
            read_mars(root)
    write_mat(root / "info" / "query_IDX.mat", {"something": np.array([[1, 2]])})
    with pytest.raises(TableError, match="no numeric variable query_IDX or query_idx; it has some"):
        read_mars(root)
    (root / "info" / "query_IDX.mat").write_bytes(b"<html>not found</html>")
    with pytest.raises(TableError, match="is not a MATLAB file"):
        read_mars(root)


def test_a_list_of_names_that_lost_a_line_in_the_middle_is_noticed(tmp_path):
    mars_tree(tmp_path)
    path = tmp_path / "info" / "train_name.txt"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(TableError, match=r"train_name\.txt"):
        read_mars(tmp_path)


def test_one_strange_name_in_the_middle_of_a_tracklet_is_noticed(tmp_path):
    mars_tree(tmp_path)
    path = tmp_path / "info" / "train_name.txt"
    path.write_text(path.read_text().replace("0001C1T0001F002", "0001C2T0001F002", 1))
    with pytest.raises(TableError, match=r"0001C2T0001F002\.jpg is among images 1 to 3"):
        read_mars(tmp_path)


def test_g2a_tells_ground_from_air_by_camera(tmp_path):
    dataset = read_g2a_vreid(g2a_tree(tmp_path))
    assert [t.platform for t in dataset.test] == ["ground", "aerial"] * 2
    assert dataset.protocol("official").query == (0, 2)
    assert dataset.protocol("official").gallery == (1, 3)
    assert dataset.protocol("aerial-to-ground").query == (1, 3)
    assert dataset.protocol("aerial-to-ground").gallery == (0, 2)
    mars_tree(tmp_path / "three", test=[*MARS_TEST[2:], (4, 3, 1, 1)], query=(1,))
    with pytest.raises(TableError, match="is of camera 3, known are 1 to 2"):
        read_g2a_vreid(tmp_path / "three")


# --- real tables ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_mars(tmp_path_factory):
    """MARS without images: the official tables, and names rebuilt from a list of its tracklets."""
    source, root = real("mars_info"), tmp_path_factory.mktemp("MARS")
    (root / "info").mkdir()
    for part in ("train", "test"):
        (root / f"bbox_{part}").mkdir()
        (table,) = read_mat(source / f"tracks_{part}_info.mat").values()
        tracklets = (source / f"list_{part}_seq.txt").read_text().splitlines()
        names = [line.split()[0].rpartition("/")[2] for line in tracklets]
        with (root / "info" / f"{part}_name.txt").open("w") as file:
            for name, (first, last, _, _) in zip(names, table.astype(int), strict=True):
                file.writelines(f"{name}F{i:03d}.jpg\n" for i in range(1, last - first + 2))
        shutil.copy(source / f"tracks_{part}_info.mat", root / "info")
    shutil.copy(source / "query_IDX.mat", root / "info")
    return root


def test_mars_from_its_official_tables_counts_as_published(real_mars):
    start = time.monotonic()
    dataset = read_mars(real_mars)
    print(f"MARS read in {time.monotonic() - start:.2f} s")  # noqa: T201 - a figure, not a bound
    assert (len(dataset.train), len(dataset.test)) == (8298, 12180)
    assert len({t.person for t in dataset.train}) == 625
    assert sum(len(t.frames) for t in dataset.train) == 509914
    assert sum(t.person == -1 for t in dataset.test) == 870
    assert sum(t.person == 0 for t in dataset.test) == 3248
    assert {t.camera for t in dataset.test} == set(range(6))
    official, without = dataset.protocols.values()
    assert (len(official.query), len(official.gallery)) == (1980, 11310)
    assert (len(without.query), len(without.gallery)) == (1980, 9330)
    assert len(dataset.valid_queries("official")[0]) == 1980
    assert len(dataset.valid_queries("without-queries")[0]) == 1840


def test_a_subset_of_mars_has_the_matches_that_its_readme_counts():
    root = real("mini_mars")
    test = tuple(read_folder(root / "bbox_test"))
    rows = {tracklet.name: row for row, tracklet in enumerate(test)}
    parts = {
        part: tuple(
            rows[Path(entry["img_paths"][0]).stem.partition("F")[0]]
            for entry in json.loads((root / "splits" / f"{part}.json").read_text())
        )
        for part in ("query", "gallery")
    }
    everything = tuple(sorted(itertools.chain(*parts.values())))
    protocols = [
        Protocol(name="official", query=parts["query"], gallery=everything, description=""),
        Protocol(
            name="without-queries",
            query=parts["query"],
            gallery=parts["gallery"],
            description="",
        ),
    ]
    dataset = Dataset(
        name="mini",
        root=str(root),
        train=(),
        test=test,
        protocols={protocol.name: protocol for protocol in protocols},
    )
    assert len(dataset.valid_queries("official")[0]) == 20
    assert len(dataset.valid_queries("without-queries")[0]) == 14
