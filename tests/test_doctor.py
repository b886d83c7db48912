import json
import re

import pytest

from tests.data_trees import ag_vpreid_tree, draw, ilidsvid_tree, market_tree, mars_tree
from tests.real_data import real
from tfclip.cli import main
from tfclip.data import Counts, DatasetSpec, check_dataset, read_ag_vpreid, read_mars
from tfclip.data.benchmarks.registry import SPECS

SMALL_MARS = DatasetSpec(
    name="small-mars",
    title="Small MARS",
    reader=read_mars,
    expected={
        "train": Counts(tracklets=3, persons=2, frames=7, cameras=2, shortest=2, longest=3),
        "test": Counts(tracklets=7, persons=4, frames=11, cameras=2, shortest=1, longest=3),
        "official/query": Counts(tracklets=4, persons=2),
        "official/gallery": Counts(tracklets=6, persons=3),
    },
    source="this test",
    terms="none",
    layout="\nroot/\n  info/\n",
)


def findings(report):
    return {finding.kind: finding for finding in report.findings}


def test_a_whole_data_set_is_well(tmp_path):
    report = check_dataset(SMALL_MARS, mars_tree(tmp_path), images=True)
    assert report.ok
    assert report.images_checked
    assert set(findings(report)) == {"unmatched"}  # of the protocol without queries, and no problem
    text = str(report)
    assert "all well; every image decodes" in text
    assert re.search(r"train +tracklets +3 +3\n", text)
    assert "handed out by: this test\nterms: none" in text


def test_the_doctor_writes_nothing(tmp_path):
    mars_tree(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    check_dataset(SMALL_MARS, tmp_path, images=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_missing_and_surplus_files_are_named_each(tmp_path):
    mars_tree(tmp_path)
    lost = tmp_path / "bbox_test" / "0002" / "0002C2T0002F002.jpg"
    lost.unlink()
    stranger = draw(tmp_path / "bbox_train" / "0001" / "copy of 0001C1T0001F001.jpg")
    report = check_dataset(SMALL_MARS, tmp_path)
    assert not report.ok
    found = findings(report)
    assert found["missing"].items == (str(lost),)
    assert found["surplus"].items == (str(stranger),)
    assert not found["surplus"].problem
    assert f"- 1 images are not there, of 1 folders\n    {lost}\n" in str(report)
    assert "expected layout:\nroot/\n  info/\n" in str(report)


def test_the_text_shows_the_first_few_and_the_dictionary_all(tmp_path):
    mars_tree(tmp_path, images=False)
    report = check_dataset(SMALL_MARS, tmp_path)
    assert "... and 15 more" in str(report)
    told = json.loads(json.dumps(report.to_dict()))
    (missing,) = [finding for finding in told["findings"] if finding["kind"] == "missing"]
    assert len(missing["items"]) == 18
    assert told["ok"] is False
    assert {"part": "test", "what": "frames", "expected": 11, "found": 11} in told["counts"]


def test_a_count_that_is_off_is_a_problem(tmp_path):
    mars_tree(tmp_path, train=((1, 1, 1, 3), (1, 2, 1, 2)))
    report = check_dataset(SMALL_MARS, tmp_path)
    summaries = [f.summary for f in report.findings if f.kind == "count"]
    assert "train should have 3 tracklets, and has 2" in summaries
    assert "train should have 2 persons, and has 1" in summaries
    assert re.search(r"train +tracklets +3 +2  <-", str(report))
    assert not report.ok


def test_a_truncated_image_is_found_only_where_images_are_decoded(tmp_path):
    mars_tree(tmp_path)
    path = tmp_path / "bbox_train" / "0007" / "0007C1T0001F002.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    empty = tmp_path / "bbox_test" / "0000" / "0000C2T0001F001.jpg"
    empty.write_bytes(b"")
    assert check_dataset(SMALL_MARS, tmp_path).ok
    report = check_dataset(SMALL_MARS, tmp_path, images=True)
    assert findings(report)["damaged"].items == (str(path), str(empty))
    assert not report.ok


def test_a_lost_frame_in_the_middle_shows_in_the_numbers(tmp_path):
    ilidsvid_tree(tmp_path)
    folder = tmp_path / "i-LIDS-VID" / "sequences" / "cam2" / "person010"
    (folder / "cam2_person010_00011.png").unlink()
    report = check_dataset("ilidsvid", tmp_path)
    assert findings(report)["gap"].items == ("cam2/person010",)


def test_an_image_in_two_tracklets_is_a_problem(tmp_path):
    mars_tree(tmp_path)
    path = tmp_path / "info" / "test_name.txt"
    lines = path.read_text().splitlines(keepends=True)
    lines[6] = lines[5].replace("C2T0001F001", "C2T0002F001")
    lines[7] = lines[6]
    path.write_text("".join(lines))
    report = check_dataset(SMALL_MARS, tmp_path)
    assert findings(report)["shared"].problem
    assert findings(report)["shared"].items[0].endswith("0002C2T0002F001.jpg")


def test_queries_without_a_match_are_told_with_their_names(tmp_path):
    report = check_dataset(SMALL_MARS, mars_tree(tmp_path))
    finding = findings(report)["unmatched"]
    assert finding.items == ("0002C2T0001", "0004C1T0001", "0004C2T0001")
    assert finding.summary.startswith("3 of 4 queries of protocol 'without-queries' have no match")


def test_a_data_set_that_cannot_be_read_is_a_finding_too(tmp_path):
    report = check_dataset("mars", tmp_path)
    assert [finding.kind for finding in report.findings] == ["unreadable"]
    assert f"- {tmp_path} has no folder info" in str(report)
    assert "expected layout:\nMARS/" in str(report)


def test_a_table_without_counts_checks_what_it_can(tmp_path):
    spec = DatasetSpec(name="ag", title="AG", reader=read_ag_vpreid)
    report = check_dataset(spec, ag_vpreid_tree(tmp_path), images=True)
    assert report.ok
    assert all(row.expected is None for row in report.counts)


def test_an_unknown_name_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ValueError, match="data set must be one of"):
        check_dataset("mras", tmp_path)


# --- the command ---------------------------------------------------------------------------------


def test_the_list_names_every_data_set_and_who_hands_it_out(capsys):
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [spec.name for spec in SPECS]
    assert "8,298" in lines[1]
    assert all(spec.source in line for spec, line in zip(SPECS, lines[1:], strict=True))


def test_check_exits_with_1_and_writes_the_report(tmp_path, capsys):
    root = market_tree(tmp_path / "market")
    out = tmp_path / "report.json"
    assert main(["data", "check", "market1501", "--root", str(root), "--json", str(out)]) == 1
    assert "train should have 12,936 tracklets, and has 3" in capsys.readouterr().out
    assert json.loads(out.read_text())["ok"] is False


def test_check_exits_with_0_where_all_is_well(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tfclip.data.benchmarks.registry.SPECS", (SMALL_MARS,))
    arguments = ["data", "check", "small-mars", "--root", str(mars_tree(tmp_path)), "--images"]
    assert main(arguments) == 0
    assert "all well; every image decodes" in capsys.readouterr().out


def test_check_refuses_a_withdrawn_name_in_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", "dukemtmc", "--root", "."])
    assert stopped.value.code == 2
    assert "taken down by its authors in 2019" in capsys.readouterr().err


def test_the_official_tables_of_mars_without_an_image_lack_every_image(tmp_path):
    bbox_train = real("mini_mars", "bbox_train")
    names = sorted(bbox_train.rglob("*.jpg"))
    people = sorted({path.parent.name for path in names})
    rows = {}
    for path in names:
        person, camera = int(path.stem[:4]), int(path.stem[5])
        number = int(path.stem.partition("T")[2].partition("F")[0])
        rows[person, camera, number] = rows.get((person, camera, number), 0) + 1
    train = [(*key, count) for key, count in sorted(rows.items())]
    root = mars_tree(tmp_path, train=train, images=False)
    (root / "bbox_train").rmdir()
    (root / "bbox_train").symlink_to(bbox_train)
    report = check_dataset("mars", root)
    assert {f"{r.what} {r.found}" for r in report.counts if r.part == "train"} >= {
        "tracklets 32",
        f"persons {len(people)}",
        "frames 1719",
    }
    missing = findings(report)["missing"].items
    assert len(missing) == 11  # all of the drawn test half, none of the real training half
    assert all("bbox_test" in path for path in missing)
