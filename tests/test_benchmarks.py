import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data_trees import (
    ILIDS_PERSONS,
    ag_vpreid_tree,
    draw,
    g2a_tree,
    ilidsvid_tree,
    lsvid_tree,
    market_tree,
    mars_tree,
    msmt17_tree,
    prid_tree,
    write_mat,
)
from tests.real_data import real
from tfclip.data import (
    DatasetSpec,
    ProtocolRule,
    dataset_names,
    load_dataset,
    read_ag_vpreid,
    read_ilidsvid,
    read_lsvid,
    read_market1501,
    read_mars,
    read_msmt17,
    read_parts,
    read_prid2011,
)
from tfclip.data.benchmarks.registry import SPECS, find_spec
from tfclip.errors import TableError

NAMES = tuple(f"person_{number:04d}" for number in range(1, 5))
PRID_SPLITS = json.dumps([{"train": NAMES[:2], "test": NAMES[2:]}] * 10)

TREES = {
    "mars": mars_tree,
    "lsvid": lsvid_tree,
    "ilidsvid": ilidsvid_tree,
    "prid2011": lambda root: prid_tree(root, NAMES, PRID_SPLITS),
    "g2a-vreid": g2a_tree,
    "ag-vpreid": ag_vpreid_tree,
    "market1501": market_tree,
    "msmt17": msmt17_tree,
}


def told(tracklets):
    return [(t.name, t.person, t.camera, len(t.frames)) for t in tracklets]


def listing(root):
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TREES)
def test_a_data_set_is_loaded_by_name_with_the_protocols_its_table_names(tmp_path, name):
    TREES[name](tmp_path)
    dataset = load_dataset(name, str(tmp_path))
    assert dataset.name == name
    assert tuple(dataset.protocols) == find_spec(name).protocols
    for tracklet in (*dataset.train, *dataset.test):
        assert all(Path(path).is_file() for path in tracklet.frames)
        assert tracklet.person is not None
        assert tracklet.camera is not None
    for key in dataset.protocols:
        assert all(rows for rows in dataset.valid_queries(key))


@pytest.mark.parametrize("name", TREES)
def test_no_reader_writes_into_the_data_set(tmp_path, name):
    TREES[name](tmp_path)
    before = listing(tmp_path)
    load_dataset(name, tmp_path)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", TREES)
def test_the_order_in_which_the_disk_lists_files_changes_nothing(tmp_path, monkeypatch, name):
    TREES[name](tmp_path)
    straight = load_dataset(name, tmp_path)
    plain_listdir, plain_walk = os.listdir, os.walk
    mix = random.Random(0)

    def shuffled(entries):
        entries = list(entries)
        mix.shuffle(entries)
        return entries

    def walk(*arguments, **options):
        for folder, folders, files in plain_walk(*arguments, **options):
            folders[:] = shuffled(folders)
            yield folder, folders, shuffled(files)

    monkeypatch.setattr(os, "listdir", lambda *a: shuffled(plain_listdir(*a)))
    monkeypatch.setattr(os, "walk", walk)
    mixed = load_dataset(name, tmp_path)
    assert mixed.train == straight.train
    assert mixed.test == straight.test
    assert mixed.protocols == straight.protocols


@pytest.mark.slow
def test_the_hash_seed_of_the_interpreter_changes_no_label(tmp_path):
    ilidsvid_tree(tmp_path)
    program = (
        "import sys; from tfclip.data import load_dataset; from tfclip.data.clips import "
        "number_people; d = load_dataset('ilidsvid', sys.argv[1], split=4); "
        "print([t.name for t in d.train], number_people(d.train), d.protocol())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


@pytest.mark.parametrize("name", TREES)
def test_a_wrong_root_is_said_to_lack_something(tmp_path, name):
    draw(tmp_path / "holiday" / "1.jpg")
    with pytest.raises(TableError, match=rf"^{re.escape(str(tmp_path))} has no "):
        load_dataset(name, tmp_path)
    with pytest.raises(TableError):
        load_dataset(name, tmp_path / "nowhere")


def test_names_of_withdrawn_data_sets_are_refused_with_the_reason():
    for name in ("dukemtmc", "DukeMTMC-VideoReID"):
        with pytest.raises(ValueError, match="taken down by its authors in 2019"):
            load_dataset(name, ".")
    with pytest.raises(ValueError, match="will not accept one"):
        DatasetSpec(name="mine", title="Duke, renamed", reader=read_mars)


def test_an_unknown_name_lists_those_that_are_known():
    with pytest.raises(ValueError, match=r"must be one of mars, lsvid, .*, got 'mras'"):
        load_dataset("mras", ".")
    assert dataset_names() == tuple(TREES)
    assert all(spec.citation and spec.layout and spec.terms and spec.url for spec in SPECS)


# --- LS-VID --------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
def test_lsvid_is_read_whole_from_its_lists(tmp_path, old):
    dataset = read_lsvid(lsvid_tree(tmp_path, old=old))
    assert told(dataset.train) == [
        ("tracklet_train/0000/0000_0001_03_", 0, 2, 3),
        ("tracklet_train/0000/0000_0002_15_", 0, 14, 2),
        ("tracklet_train/0001/0001_0001_01_", 1, 0, 2),
    ]
    assert dataset.protocol("official").query == (0, 3)
    assert dataset.protocol("official").gallery == (0, 1, 2, 3, 4)
    assert dataset.protocol("without-queries").gallery == (1, 2, 4)


def test_the_released_codes_cut_of_lsvid_drops_the_short_and_lets_the_last_take_the_rest(tmp_path):
    lengths = {"0000_0001_03": 47, "0000_0002_04": 48, "0001_0001_01": 100}
    dataset = read_lsvid(lsvid_tree(tmp_path, lengths), legacy_split=True)
    assert [(t.name, len(t.frames)) for t in dataset.train] == [
        ("tracklet_train/0000/0000_0002_04_/0", 48),
        ("tracklet_train/0001/0001_0001_01_/0", 48),
        ("tracklet_train/0001/0001_0001_01_/1", 52),
    ]
    assert {t.person for t in dataset.train} == {0, 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tracklet_train/0000/0000_0009_03_ 0", r"line 4: there is no image .*0000_0009_03_\*"),
        ("tracklet_train/0000/0000_0001_03_ 0", r"line 4: .* is of line 1 already"),
        ("tracklet_train/0000/0000_0001_03_", "line 4: there must be a path and a person, got 1"),
        ("tracklet_train/0000/0000_0001_03_ -1", "line 4: person must be at least 0, got -1"),
        ("tracklet_train/0009/0009_0001_03_ 0", "0009: No such file"),
        (
            "tracklet_train/0000/cover 0",
            "the third number of cover.jpg must be its camera, 1 to 15",
        ),
    ],
)
def test_a_line_of_a_list_of_lsvid_that_is_wrong_is_named(tmp_path, line, message):
    lsvid_tree(tmp_path)
    draw(tmp_path / "tracklet_train" / "0000" / "cover.jpg")
    with (tmp_path / "info" / "list_sequence" / "list_seq_train.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(TableError, match=message):
        read_lsvid(tmp_path)


@pytest.mark.parametrize("query", [[0, 1], [6], [], [2, 2]])
def test_queries_of_lsvid_that_are_no_lines_are_refused(tmp_path, query):
    lsvid_tree(tmp_path)
    write_mat(
        tmp_path / "info" / "data" / "info_test.mat", {"query": np.array([query], np.float64)}
    )
    with pytest.raises(TableError, match=r"info_test\.mat"):
        read_lsvid(tmp_path)


# --- iLIDS-VID and PRID2011 ----------------------------------------------------------------------


def test_ilidsvid_splits_count_folders_in_order_from_one(tmp_path):
    dataset = read_ilidsvid(ilidsvid_tree(tmp_path))  # split 0 is 4 1 | 2 3
    assert told(dataset.train) == [
        ("cam1/person001", "person001", 0, 2),
        ("cam2/person001", "person001", 1, 2),
        ("cam1/person010", "person010", 0, 5),
        ("cam2/person010", "person010", 1, 5),
    ]
    protocol = dataset.protocol()
    assert [dataset.test[row].name for row in protocol.query] == [
        "cam1/person002",
        "cam1/person005",
    ]
    assert [dataset.test[row].name for row in protocol.gallery] == [
        "cam2/person002",
        "cam2/person005",
    ]
    assert set(dataset.protocol("union-gallery").gallery) == {*protocol.query, *protocol.gallery}
    assert (dataset.test[0].first_frame, dataset.test[0].last_frame) == (9, 10)


def test_the_other_reading_of_the_halves_swaps_them(tmp_path):
    ilidsvid_tree(tmp_path)
    for split in range(10):
        one = read_ilidsvid(tmp_path, split=split)
        other = read_ilidsvid(tmp_path, split=split, first_half="test")
        trained = {t.person for t in one.train}
        tested = {one.test[row].person for row in one.protocol().query}
        assert {other.test[row].person for row in other.protocol().query} == trained
        assert {t.person for t in other.train} == tested == set(ILIDS_PERSONS) - trained


def test_ten_splits_are_the_ten_protocols_one_after_another(tmp_path):
    ilidsvid_tree(tmp_path)
    together = read_ilidsvid(tmp_path).protocol("ten-splits").splits
    alone = [read_ilidsvid(tmp_path, split=split).protocol() for split in range(10)]
    assert [protocol.name for protocol in alone] == [f"split-{split}" for split in range(10)]
    assert [(s.query, s.gallery) for s in together] == [(p.query, p.gallery) for p in alone]


def test_splits_of_other_libraries_are_read_where_the_official_file_is_missing(tmp_path):
    ilidsvid_tree(tmp_path)
    official = read_ilidsvid(tmp_path, split=0)
    shutil.rmtree(tmp_path / "train-test people splits")
    by_name = [{"train": ["person001", "person010"], "test": ["person002", "person005"]}]
    by_place = [{"trainval": [0, 3], "query": [1, 2], "gallery": [1, 2]}]
    for splits in (by_name, by_place):
        (tmp_path / "splits.json").write_text(json.dumps(splits))
        dataset = read_ilidsvid(tmp_path)
        assert dataset.train == official.train
        assert dataset.protocol() == official.protocol()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (np.ones((10, 3)), r"must be \(splits, persons\) = \(10, 4\).*got \(10, 3\)"),
        (np.ones((10, 4)), "split 0 must hold each number from 1 to 4 once"),
        (np.full((10, 4), 0.5), "whole numbers"),
    ],
)
def test_a_file_of_splits_that_does_not_fit_the_folders_is_refused(tmp_path, splits, message):
    ilidsvid_tree(tmp_path)
    write_mat(
        tmp_path / "train-test people splits" / "train_test_splits_ilidsvid.mat", {"ls_set": splits}
    )
    with pytest.raises(TableError, match=message):
        read_ilidsvid(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file"),
        ("{}", "must be a list of splits"),
        ('[{"train": 3}]', "split 0: there must be lists 'train' and 'test', got train"),
        ("[7]", "split 0: there must be lists 'train' and 'test', got int"),
        ('[{"train": [], "test": []}]', "each half must have persons"),
        ('[{"train": ["person_0001"], "test": ["person_0001"]}]', "person_0001 is in both halves"),
        ('[{"train": ["person_0001"], "test": ["person_0009"]}]', "no folder person_0009"),
        ('[{"train": [0], "test": [4]}]', "there are persons 0 to 3, got 4"),
        ('[{"train": [0], "test": [null]}]', "a name or a number, got None"),
    ],
)
def test_a_json_of_splits_that_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(TableError, match=message):
        read_prid2011(prid_tree(tmp_path, NAMES, text))


def test_a_person_who_lacks_a_camera_is_named(tmp_path):
    prid_tree(tmp_path, NAMES, PRID_SPLITS)
    shutil.rmtree(tmp_path / "prid_2011" / "multi_shot" / "cam_b" / "person_0003")
    with pytest.raises(TableError, match="cam_b has no folder person_0003; every person is in bo"):
        read_prid2011(tmp_path)


def test_a_split_that_is_not_there_is_refused(tmp_path):
    prid_tree(tmp_path, NAMES, PRID_SPLITS)
    with pytest.raises(ValueError, match="split must be from 0 to 9, got 10"):
        read_prid2011(tmp_path, split=10)
    with pytest.raises(ValueError, match="first_half must be 'train' or 'test', got 'both'"):
        read_ilidsvid(tmp_path, first_half="both")  # type: ignore[arg-type]


# --- images --------------------------------------------------------------------------------------


def test_market_keeps_distractors_and_leaves_junk_out(tmp_path):
    dataset = read_market1501(market_tree(tmp_path / "Market-1501-v15.09.15").parent)
    assert [(t.person, t.camera, t.session) for t in dataset.train] == [
        (2, 0, "s1"),
        (2, 1, "s1"),
        (10, 5, "s3"),
    ]
    gallery = [dataset.test[row].person for row in dataset.protocol().gallery]
    assert gallery == [0, 1, 3, 3]
    assert [dataset.test[row].person for row in dataset.protocol().query] == [1, 3]
    assert len(dataset.test) == 7
    draw(tmp_path / "Market-1501-v15.09.15" / "query" / "holiday.jpg")
    with pytest.raises(TableError, match=r"holiday\.jpg is not named like an image of Market-1501"):
        read_market1501(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_msmt17_is_read_from_its_lists(tmp_path, version):
    msmt17_tree(tmp_path / f"MSMT17_V{version}", version)
    dataset = read_msmt17(tmp_path)
    assert [(t.person, t.camera, t.session) for t in dataset.train] == [(0, 0, "0303morning")]
    assert [(t.person, t.camera) for t in dataset.test] == [(1, 6), (1, 14), (2, 14)]
    assert dataset.protocol().gallery == (1, 2)
    assert len(read_msmt17(tmp_path, with_val=True).train) == 2
    with (tmp_path / f"MSMT17_V{version}" / "list_query.txt").open("a") as file:
        file.write("0001/0001_019_16_0303morning_0020_1.jpg 1\n")
    with pytest.raises(
        TableError, match=r"list_query\.txt, line 2: the third number of .* 1 to 15"
    ):
        read_msmt17(tmp_path)


# --- folders -------------------------------------------------------------------------------------


def test_ag_vpreid_has_a_protocol_for_each_direction(tmp_path):
    dataset = read_ag_vpreid(ag_vpreid_tree(tmp_path))
    assert [(t.name, t.person, t.camera, t.platform) for t in dataset.train] == [
        ("train/12/0001", "12", 0, "cctv"),
        ("train/12/0002", "12", 4, "aerial"),
        ("train/30/0001", "30", 2, "wearable"),
    ]
    down, up = dataset.protocols.values()
    assert {dataset.test[row].platform for row in down.query} == {"aerial"}
    assert {dataset.test[row].platform for row in up.gallery} == {"aerial"}
    assert (len(down.query), len(down.gallery), len(up.query), len(up.gallery)) == (2, 2, 1, 2)


def test_images_that_tell_another_camera_or_none_are_named(tmp_path):
    ag_vpreid_tree(tmp_path)
    draw(tmp_path / "train" / "12" / "0001" / "0012T0001C3E1F009.jpg")
    with pytest.raises(TableError, match=r"C3E1F009\.jpg and .* are of one tracklet and differ"):
        read_ag_vpreid(tmp_path)
    (tmp_path / "train" / "12" / "0001" / "0012T0001C3E1F009.jpg").unlink()
    draw(tmp_path / "train" / "12" / "0001" / "zz.jpg")
    with pytest.raises(TableError, match=r"zz\.jpg does not fit"):
        read_ag_vpreid(tmp_path)


def test_a_benchmark_can_be_a_table(tmp_path):
    for part, person, camera in (
        ("a", "ann", 1),
        ("a", "bob", 2),
        ("b", "ann", 2),
        ("b", "eve", 1),
    ):
        draw(tmp_path / part / person / f"cam{camera}" / "1.png")
    rule = ProtocolRule(name="a-to-b", query={"part": "a"}, gallery={"part": "b"}, description="")
    spec = DatasetSpec(
        name="campus",
        title="Campus",
        reader=read_parts,
        options={
            "name": "campus",
            "train": (),
            "test": ("a", "b"),
            "layout": "{person}/{camera}",
            "first_camera": 1,
            "protocols": (rule,),
        },
    )
    dataset = load_dataset(spec, tmp_path)
    assert [(t.name, t.camera) for t in dataset.test] == [
        ("a/ann/cam1", 0),
        ("a/bob/cam2", 1),
        ("b/ann/cam2", 1),
        ("b/eve/cam1", 0),
    ]
    assert dataset.valid_queries() == [(0,)]
    with pytest.raises(TableError, match="cameras count from 2, got 1"):
        load_dataset(spec, tmp_path, first_camera=2)
    with pytest.raises(TableError, match="no platform is known for camera 0"):
        load_dataset(spec, tmp_path, platforms={1: "ground"})
    with pytest.raises(ValueError, match=r"a protocol chooses by part, person, .*, got 'colour'"):
        dataclasses.replace(rule, query={"colour": ("red",)})


# --- real lists ----------------------------------------------------------------------------------


def test_the_usual_splits_of_prid2011_are_178_persons_in_ten_halves(tmp_path):
    text = (real("reid_lists") / "prid2011" / "splits_prid2011.json").read_text()
    persons = [f"person_{number:04d}" for number in range(1, 201)]
    dataset = read_prid2011(prid_tree(tmp_path, persons, text), split=9)
    assert (len(dataset.train), len(dataset.test)) == (178, 356)
    assert len(dataset.protocol("ten-splits").splits) == 10
    assert all(len(s.query) == 89 for s in dataset.protocol("ten-splits").splits)
    trained = {t.person for t in dataset.train}
    assert not trained & {dataset.test[row].person for row in dataset.protocol("split-9").query}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"0001/0001_000_{'9' * 5000}_0303morning_0015_0.jpg 1", "must be its camera, 1 to 15"),
        ("0303_0_1_morning 1", "is not the name of an image"),
    ],
)
def test_a_line_of_msmt17_that_names_no_image_is_refused(tmp_path, line, reason):
    (msmt17_tree(tmp_path) / "list_query.txt").write_text(f"{line}\n")
    with pytest.raises(TableError, match=f"line 1: .*{reason}"):
        read_msmt17(tmp_path)


def test_a_frame_number_of_thousands_of_digits_is_not_known(tmp_path):
    names = mars_tree(tmp_path) / "info" / "train_name.txt"
    names.write_text(names.read_text().replace("F001", "F" + "9" * 5000))
    assert read_mars(tmp_path).train[0].first_frame is None


def test_a_line_of_lsvid_with_a_zero_byte_is_refused(tmp_path):
    path = lsvid_tree(tmp_path) / "info" / "list_sequence" / "list_seq_test.txt"
    path.write_bytes(b"tracklet\0test/a_b_01_ 5\n")
    with pytest.raises(TableError, match=r"cannot read|there is no image"):
        read_lsvid(tmp_path)
    path.write_bytes(b"track\0let/a_b_01_ 5\n")
    with pytest.raises(TableError, match=r"cannot read .*null byte"):
        read_lsvid(tmp_path)


def test_the_lists_of_msmt17_are_read(tmp_path):
    source = real("reid_lists") / "msmt17"
    for name in ("query", "val"):
        shutil.copy(source / f"list_{name}.txt", tmp_path)
    # The lists of training and gallery are not at hand: those of validation and queries stand in.
    shutil.copy(source / "list_val.txt", tmp_path / "list_train.txt")
    lines = (source / "list_query.txt").read_text().splitlines()
    other = [re.sub(r"_(\d\d)_(\d{4}\w)", lambda m: f"_{int(m[1]) % 15 + 1:02d}_{m[2]}", line)
             for line in lines]  # fmt: skip
    (tmp_path / "list_gallery.txt").write_text("\n".join(other))
    (tmp_path / "train").mkdir()
    dataset = read_msmt17(tmp_path)
    assert len(dataset.train) == 2373
    assert len({t.person for t in dataset.train}) == 1041
    assert len(dataset.protocol().query) == 11659
    assert len({dataset.test[row].person for row in dataset.protocol().query}) == 3060
    assert {t.camera for t in dataset.test} == set(range(15))
