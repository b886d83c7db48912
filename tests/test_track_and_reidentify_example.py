"""The example: what it writes is what it says, and on drawn people it is right."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.real_data import real
from tfclip import TFCLIP
from tfclip.data import SyntheticVideo, read_boxes
from tfclip.video import Video, identity_colour

pytest.importorskip("av", reason="PyAV (extra 'video') is not installed")
pytest.importorskip("matplotlib", reason="Matplotlib (extra 'viz') is not installed")
pytest.importorskip("scipy", reason="SciPy (extra 'cluster') is not installed")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def script(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("track_and_reidentify")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> list[tuple[SyntheticVideo, Path, Path]]:
    """Two drawn videos of the same three people."""
    folder = tmp_path_factory.mktemp("drawn")
    found = []
    for camera, name in enumerate(("door", "yard")):
        video = SyntheticVideo([1, 2, 3], camera, num_frames=24, frame_size=(90, 160), seed=2**32)
        found.append((video, *video.write(folder, name)))
    return found


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def arguments(drawn, out: Path, *more: str) -> list[str]:
    videos = [str(video) for _, video, _ in drawn]
    boxes = [str(boxes) for _, _, boxes in drawn]
    return [*videos, "--boxes", *boxes, "--out", str(out), *more]


@pytest.mark.slow
def test_people_of_two_videos_get_a_table_sheets_and_videos(
    script, drawn, tmp_path, capsys, monkeypatch
):
    pictures = []  # boxes, labels and colours of every frame, in the order of the two videos

    def draw_boxes(pixels, boxes, labels, colours):
        pictures.append([tuple(row) for row in zip(boxes.tolist(), labels, colours, strict=True)])
        return script_draw_boxes(pixels, boxes, labels, colours)

    script_draw_boxes = script.draw_boxes
    monkeypatch.setattr(script, "draw_boxes", draw_boxes)
    out = tmp_path / "out"
    assert script.main(arguments(drawn, out, "--threshold", "0.6")) == 0
    lines = read(out / "tracklets.csv")
    assert len(lines) == sum(len(video.persons) for video, _, _ in drawn)
    assert oct((out / "tracklets.csv").stat().st_mode)[-3:] == "600"
    people = {int(line["person"]) for line in lines}
    assert people == set(range(len(people)))
    sheets = sorted(path.name for path in out.glob("person-*.png"))
    assert sheets == [f"person-{person:03d}.png" for person in sorted(people)]
    assert f"{len(lines)} tracks are {len(people)} people" in capsys.readouterr().out
    for camera, (video, path, table) in enumerate(drawn):
        written = list(Video(out / f"{camera}-{path.stem}.mp4").timed())
        original = list(Video(path).timed())
        assert [f.time for f in written] == pytest.approx([f.time for f in original], abs=1e-3)
        mine = {line["tracklet"]: line for line in lines if line["camera"] == str(camera)}
        boxes = read_boxes(table)
        for number in range(len(video)):
            wanted = []
            found = boxes[number].clip(160, 90) if number in boxes else None
            for row, track in enumerate([] if found is None else found.track_ids.tolist()):
                line = mine[f"{camera}/{path.stem}/{track}"]
                assert int(line["first_frame"]) <= number + 1 <= int(line["last_frame"])
                begin, end = float(line["first_second"]), float(line["last_second"])
                assert begin - 1e-3 <= original[number].time <= end + 1e-3
                person = int(line["person"])
                box = found.boxes[row].tolist() if found is not None else []
                wanted.append((box, f"person {person}", identity_colour(person)))
            assert sorted(pictures[camera * len(video) + number]) == sorted(wanted)


@pytest.mark.slow
def test_two_tracks_of_one_video_at_one_time_are_never_one_person(script, drawn, tmp_path):
    out = tmp_path / "out"
    assert script.main(arguments(drawn, out, "--threshold", "1e9")) == 0  # all that may merge
    lines = read(out / "tracklets.csv")
    for one in lines:
        for other in lines:
            if one is not other and one["camera"] == other["camera"]:
                apart = float(one["last_second"]) < float(other["first_second"])
                apart |= float(other["last_second"]) < float(one["first_second"])
                assert apart or one["person"] != other["person"]
    assert len({line["person"] for line in lines}) < len(lines)


@pytest.mark.slow
def test_an_annotated_frame_is_the_frame_outside_the_boxes(script, drawn, tmp_path):
    out = tmp_path / "out"
    script.main(arguments(drawn[:1], out, "--threshold", "0"))
    video, path, _ = drawn[0]
    number = 12
    plain = Video(path).frame_at(number / 10).pixels.astype(int)
    shown = Video(out / "0-door.mp4").frame_at(number / 10).pixels.astype(int)
    outside = np.ones(plain.shape[:2], dtype=bool)
    for left, top, width, height in video.boxes[number].boxes.round().astype(int).tolist():
        outside[max(0, top - 40) : top + height + 6, max(0, left - 6) : left + width + 50] = False
    assert outside.any()
    assert np.abs(plain - shown)[outside].mean() < 6


@pytest.mark.slow
def test_halves_are_two_cameras_with_the_ids_as_truth(script, drawn, tmp_path, capsys):
    out = tmp_path / "out"
    assert script.main(arguments(drawn[:1], out, "--threshold", "0", "--halves")) == 0
    lines = read(out / "tracklets.csv")
    assert {line["camera"] for line in lines} == {"0", "1"}
    assert all(int(line["last_frame"]) <= 12 for line in lines if line["camera"] == "0")
    assert all(int(line["first_frame"]) > 12 for line in lines if line["camera"] == "1")
    frames = sum(int(line["frames"]) for line in lines)
    assert frames == sum(len(found) for found in drawn[0][0].boxes.values())
    said = capsys.readouterr().out
    assert "against the truth" in said
    assert f"tracklets       {len(lines)} of 3 persons in {len(lines)} groups" in said


@pytest.mark.slow
def test_boxes_of_other_formats_and_folders_of_frames_give_the_same(script, drawn, tmp_path):
    from PIL import Image

    video, path, boxes = drawn[0]
    folder = tmp_path / "door"
    folder.mkdir()
    for number, pixels in enumerate(Video(path)):
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    results = [
        [
            {"name": "person", "class": 0, "track_id": track,
             "box": dict(zip(("x1", "y1", "x2", "y2"), (x, y, x + w, y + h), strict=True))}
            for track, (x, y, w, h) in _rounded(video, number)
        ]
        for number in range(len(video))
    ]  # fmt: skip
    (tmp_path / "door.json").write_text(json.dumps(results))
    tables = []
    for source, table in ((path, boxes), (folder, tmp_path / "door.json")):
        out = tmp_path / f"out-{len(tables)}"
        given = [str(source), "--boxes", str(table), "--threshold", "0.5", "--out", str(out)]
        assert script.main(given) == 0
        tables.append(read(out / "tracklets.csv"))
    columns = ("tracklet", "person", "first_frame", "last_frame", "frames")
    first, second = ([[line[c] for c in columns] for line in table] for table in tables)
    assert first == second


def _rounded(video: SyntheticVideo, number: int):
    if number not in video.boxes:
        return []
    found = video.boxes[number]
    return zip(found.track_ids.tolist(), found.boxes.round(2).tolist(), strict=True)


@pytest.mark.slow
def test_without_arguments_it_draws_people_and_finds_most_of_them(script, tmp_path, capsys):
    model = TFCLIP.from_pretrained("tfclip-tiny")
    result = script.run_drawn(model, tmp_path, people=4, others=8, frames=50)
    assert result.score is not None
    # 4 people twice: 4 of 28 pairs are right, so chance would give an F1 of about 0.14.
    assert result.score.pairwise_f1 > 0.6
    script.say(result, tmp_path)
    assert "pairwise F1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a.mp4"], "--boxes must be one file for each video, got 0 for 1 video"),
        (["--boxes", "a.txt"], "--boxes must be one file for each video, got 1 for 0 videos"),
    ],
)
def test_videos_and_boxes_must_match(script, capsys, given, message):
    with pytest.raises(SystemExit) as stopped:
        script.main(given)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_bad_input_is_one_sentence(script, drawn, tmp_path, capsys):
    _, video, boxes = drawn[0]
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    for source, table, message in (
        (tmp_path / "missing.mp4", boxes, "there is no such video or folder"),
        (video, tmp_path / "missing.txt", "cannot read "),
        (video, bad, "line 1, column 2 is not JSON"),
    ):
        given = [str(source), "--boxes", str(table), "--threshold", "1"]
        assert script.main([*given, "--out", str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_threshold_needs_one(script, drawn, tmp_path):
    with pytest.raises(SystemExit, match="give --threshold: this model holds none"):
        script.main(arguments(drawn, tmp_path / "out"))


def test_boxes_of_a_longer_video_are_refused(script, drawn, tmp_path, capsys):
    _, video, boxes = drawn[0]
    longer = tmp_path / "longer.txt"
    longer.write_text(boxes.read_text() + "40,1,3,3,30,60,1,-1,-1,-1\n")
    given = [str(video), "--boxes", str(longer), "--threshold", "1", "--out", str(tmp_path / "o")]
    assert script.main(given) == 1
    assert "has 24 frames, but " in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_campus_goes_through_the_whole_path(script, tmp_path, capsys):
    folder = real("tud_campus")
    given = [str(folder / "TUD-Campus.mp4"), "--boxes", str(folder / "gt" / "gt.txt"), "--halves"]
    assert script.main([*given, "--threshold", "0.5", "--out", str(tmp_path)]) == 0
    assert "tracklets       13 of 8 persons" in capsys.readouterr().out
    assert len(Video(tmp_path / "0-TUD-Campus.mp4")) == 71
