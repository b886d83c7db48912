from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tfclip.boxes import FrameBoxes
from tfclip.data import read_boxes, read_tracks
from tfclip.errors import TableError

# The same two people in three frames, in every format. Track 3 is missing in the second frame.
TRUTH = {
    0: {3: (10.0, 20.0, 30.0, 80.0), 8: (50.5, 20.0, 31.0, 80.0)},
    1: {8: (52.5, 20.0, 31.0, 80.0)},
    2: {3: (14.0, 21.0, 30.0, 80.0), 8: (54.5, 20.0, 31.0, 80.0)},
}


def as_mot() -> str:
    return "".join(
        f"{frame + 1},{track},{','.join(map(str, box))},0.9,-1,-1,-1\n"
        for frame, found in TRUTH.items()
        for track, box in found.items()
    )


def as_coco(first: int = 0, key: str = "frame_id", track_key: str = "track_id") -> dict[str, Any]:
    images = [{"id": 100 + frame, key: frame + first, "video_id": 1} for frame in TRUTH]
    annotations = [
        {
            "id": 10 * frame + track,
            "image_id": 100 + frame,
            track_key: track,
            "bbox": list(box),
            "category_id": 1,
            "score": 0.9,
        }
        for frame, found in TRUTH.items()
        for track, box in found.items()
    ]
    return {
        "videos": [{"id": 1, "name": "street"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }


def as_coco_results() -> list[dict[str, Any]]:
    return [
        {"image_id": frame, "track_id": track, "bbox": list(box), "category_id": 1, "score": 0.9}
        for frame, found in TRUTH.items()
        for track, box in found.items()
    ]


def as_ultralytics() -> list[list[dict[str, Any]]]:
    return [
        [
            {"name": "person", "class": 0, "confidence": 0.9, "track_id": track,
             "box": {"x1": box[0], "y1": box[1], "x2": box[0] + box[2], "y2": box[1] + box[3]}}
            for track, box in found.items()
        ]
        for found in TRUTH.values()
    ]  # fmt: skip


FORMATS = {
    "MOT": ("a.txt", as_mot()),
    "COCO": ("a.json", json.dumps(as_coco())),
    "COCO from 1": ("a.json", json.dumps(as_coco(1))),
    "COCO of MOT": ("a.json", json.dumps(as_coco(1, "mot_frame_id", "instance_id"))),
    "COCO of TAO": ("a.json", json.dumps(as_coco(0, "frame_index"))),
    "COCO results": ("a.json", json.dumps(as_coco_results())),
    "Ultralytics": ("a.json", json.dumps(as_ultralytics())),
    "Ultralytics lines": ("a.jsonl", "\n".join(json.dumps(f) for f in as_ultralytics())),
    "Ultralytics pretty": ("a.json", "\n".join(json.dumps(f, indent=2) for f in as_ultralytics())),
    "Ultralytics texts": ("a.json", json.dumps([json.dumps(f) for f in as_ultralytics()])),
}


def boxes_of(frames: dict[int, FrameBoxes]) -> dict[int, dict[int, tuple[float, ...]]]:
    return {
        frame: {
            track: tuple(box)
            for track, box in zip(found.track_ids.tolist(), found.boxes.tolist(), strict=True)
        }
        for frame, found in frames.items()
    }


@pytest.fixture
def write(tmp_path):
    def write(content: Any, name: str = "boxes.json") -> Path:
        path = tmp_path / name
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(write, name: str):
    file, text = FORMATS[name]
    frames = read_boxes(write(text, file))
    assert boxes_of(frames) == TRUTH
    assert all(found.confidences is not None for found in frames.values())
    assert all((found.confidences == 0.9).all() for found in frames.values())


@pytest.mark.parametrize("name", FORMATS)
def test_tracks_of_every_format_are_the_same_tracklets(write, tmp_path, name: str):
    source = tmp_path / "street.mp4"
    source.touch()
    file, text = FORMATS[name]
    third, eighth = read_tracks(source, write(text, file), camera=2)
    assert (third.name, eighth.name) == ("street/3", "street/8")
    assert third.frame_indices == (0, 2)
    assert third.boxes == (TRUTH[0][3], TRUTH[2][3])
    assert (eighth.first_frame, eighth.last_frame, eighth.camera, eighth.person) == (1, 3, 2, None)


# --- which boxes are taken -----------------------------------------------------------------------


def test_classes_are_chosen_by_name_or_number_in_every_format(write, caplog):
    coco = as_coco()
    coco["categories"].append({"id": 7, "name": "car"})
    coco["annotations"][0]["category_id"] = 7
    results = as_ultralytics()
    results[0][0].update(name="car", **{"class": 7})
    mot = as_mot().replace("0.9,-1,-1,-1", "1,1,0.8").replace("1,1,0.8", "1,7,0.8", 1)
    without = {**TRUTH, 0: {8: TRUTH[0][8]}}
    for path in (write(coco, "c.json"), write(results, "u.json"), write(mot, "m.txt")):
        number = 0 if path.name == "u.json" else 1
        for chosen in (number, str(number)) if path.name == "m.txt" else (number, "person"):
            assert boxes_of(read_boxes(path, classes=[chosen])) == without
        assert boxes_of(read_boxes(path, classes=str(number))) == without
        assert boxes_of(read_boxes(path, classes=[7])) == {0: {3: TRUTH[0][3]}}
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert boxes_of(read_boxes(path)) == TRUTH
        assert "boxes of all its classes are taken, which are " in caplog.text
        if path.name != "m.txt":
            assert boxes_of(read_boxes(path, classes="person")) == without  # not its letters
        with pytest.raises(TableError, match=r"has no box of the classes dog; its classes are "):
            read_boxes(path, classes=["dog"])


def test_what_is_less_sure_or_more_hidden_is_left_out(write):
    path = write("1,1,0,0,9,9,0.5,1,0.2\n1,2,0,0,9,9,0.7,1,0.9\n2,2,0,0,9,9,0.4,1,-1\n", "a.txt")
    assert set(boxes_of(read_boxes(path))) == {0, 1}
    assert boxes_of(read_boxes(path, min_confidence=0.5)).keys() == {0}
    assert list(boxes_of(read_boxes(path, min_visibility=0.5))[0]) == [2]
    assert 1 in read_boxes(path, min_visibility=0.5)  # -1 is not known, and stays


def test_ten_columns_end_in_a_place_and_not_in_a_class(write, caplog):
    path = write("1,1,0,0,9,9,1,-4.15,7,0.3\n1,2,0,0,9,9,1,3,8,0\n", "a.txt")
    with caplog.at_level(logging.WARNING):
        assert set(boxes_of(read_boxes(path, min_visibility=0.9))[0]) == {1, 2}
    assert caplog.text == ""


def test_a_confidence_of_minus_one_is_unknown_and_not_low(write):
    path = write("1,1,0,0,9,9,-1,-1,-1,-1\n", "a.txt")
    (found,) = read_boxes(path, min_confidence=0.5).values()
    assert found.confidences is None


def test_boxes_without_an_area_are_left_out_counted_and_logged(write, caplog):
    path = write("1,1,0,0,9,0\n1,2,0,0,9,9\n2,1,0,0,-4,9\n3,1,0,0,5,5\n", "a.txt")
    with caplog.at_level(logging.WARNING):
        frames = read_boxes(path)
    assert {frame: (len(f), f.num_dropped) for frame, f in frames.items()} == {
        0: (1, 1),
        1: (0, 1),
        2: (1, 0),
    }
    assert f"2 boxes without an area are left out, the first in {path}, line 1" in caplog.text


def test_crowds_and_what_is_to_be_ignored_are_left_out(write):
    coco = as_coco()
    coco["annotations"][0]["iscrowd"] = 1
    coco["annotations"][1]["ignore"] = True
    coco["annotations"][2]["iscrowd"] = 0
    assert set(boxes_of(read_boxes(write(coco)))) == {1, 2}


def test_boxes_that_the_tracker_gave_no_id_are_left_out_and_counted(write, caplog):
    results = as_ultralytics()
    del results[0][0]["track_id"]
    results[1][0]["track_id"] = None
    with caplog.at_level(logging.WARNING):
        frames = read_boxes(write(results))
    assert set(boxes_of(frames)) == {0, 2}
    assert "2 boxes without a track_id are left out" in caplog.text


# --- which frame ---------------------------------------------------------------------------------


def test_the_frames_of_one_video_among_several_are_taken_by_its_name(write, tmp_path):
    coco = as_coco()
    coco["videos"].append({"id": 2, "name": "other.mp4"})
    coco["images"].append({"id": 7, "frame_id": 0, "video_id": 2})
    coco["annotations"].append({"image_id": 7, "track_id": 1, "bbox": [0, 0, 5, 6]})
    path = write(coco)
    assert boxes_of(read_boxes(path, video="street.mkv")) == TRUTH
    assert boxes_of(read_boxes(path, video=tmp_path / "street" / "img1")) == TRUTH
    assert boxes_of(read_boxes(path, video="other.mp4")) == {0: {1: (0, 0, 5, 6)}}
    for video, asked in ((None, "needs the name of one"), ("b.mp4", "must have one called b")):
        with pytest.raises(TableError, match=f"several videos and {asked}, got other.mp4, street"):
            read_boxes(path, video=video)


def named(names: list[str]) -> dict[str, Any]:
    coco = as_coco()
    for image, name in zip(coco["images"], names, strict=True):
        del image["frame_id"]
        image["file_name"] = name
    return coco


def test_names_of_frames_are_matched_with_the_files_of_a_folder(write, tmp_path):
    folder = tmp_path / "street"
    folder.mkdir()
    for number in (4, 5, 9, 10):
        Image.new("RGB", (8, 8)).save(folder / f"f{number}.png")
    path = write(named(["street/f5.png", "street/f9.png", "street/f10.png"]))
    assert boxes_of(read_boxes(path, video=folder)) == {k + 1: v for k, v in TRUTH.items()}
    path = write(named(["street/f5.png", "street/f9.png", "street/f11.png"]))
    with pytest.raises(TableError, match=r"image 'street/f11.png' is not in .*street"):
        read_boxes(path, video=folder)


def test_names_that_count_without_a_gap_are_the_frames_of_a_video(write):
    assert boxes_of(read_boxes(write(named(["8.jpg", "9.jpg", "10.jpg"])))) == TRUTH
    with pytest.raises(TableError, match="the numbers in their names have gaps"):
        read_boxes(write(named(["8.jpg", "9.jpg", "11.jpg"])))


@pytest.mark.parametrize("first", [0, 1])
def test_the_first_frame_can_be_said(write, first: int):
    path = write(as_coco(5))
    with pytest.raises(TableError, match="the smallest frame_id is 5, so it is not known"):
        read_boxes(path)
    frames = read_boxes(path, first_frame=first)
    assert boxes_of(frames) == {k + 5 - first: v for k, v in TRUTH.items()}
    mot = write("0,1,0,0,9,9\n" if first == 0 else "1,1,0,0,9,9\n", "a.txt")
    assert list(read_boxes(mot, first_frame=first)) == [0]


def test_a_first_frame_of_another_number_is_refused(write):
    with pytest.raises(ValueError, match="first_frame must be 0, 1 or None, got 2"):
        read_boxes(write("", "a.txt"), first_frame=2)
    with pytest.raises(TableError, match="frame_id must be at least 1, got 0"):
        read_boxes(write(as_coco()), first_frame=1)


# --- bad input -----------------------------------------------------------------------------------


def changed(**values: Any) -> dict[str, Any]:
    """Return the COCO file with one annotation changed."""
    coco = as_coco()
    coco["annotations"][1].update(values)
    return coco


def result(**values: Any) -> list[list[dict[str, Any]]]:
    results = as_ultralytics()
    results[1][0].update(values)
    return results


BAD = {
    "nothing": ("", "has no box"),
    "no JSON": ('{"images": [', r"line 1, column 13 is not JSON"),
    "half a line": ('[{"a": 1}]\n[{"b', r"line 2, column 3 is not JSON"),
    "nested": ("[" * 100_000, "is not JSON that can be read"),
    "long number": ("1" * 5000, "is not JSON that can be read"),
    "a number": ("7", "frame 0 must be a list of boxes"),
    "no list": ({"annotations": 1, "images": []}, "must have a list 'images'|'annotations'"),
    "no images": ({"annotations": []}, "must have a list 'images', as COCO files do"),
    "image": ({"annotations": [], "images": [1]}, r"images\[0\] must be an object, got 1"),
    "no boxes": ({"annotations": [], "images": []}, "has no box"),
    "empty list": ([], "has no box"),
    "image id": (changed(image_id=9), "annotation 8: image_id must be that of an image, got 9"),
    "no track": (changed(track_id=None), "annotation 8 has neither track_id nor instance_id"),
    "track": (changed(track_id=1.5), "annotation 8: id must be a whole number, got '1.5'"),
    "track -1": (changed(track_id=-1), "annotation 8: id is -1, so these are detections"),
    "bool": (changed(track_id=True), "annotation 8: id must be a number, got 'True'"),
    "corners": (changed(bbox=[1, 2, 3]), r"annotation 8: bbox must be \[left, top, width"),
    "no box": (changed(bbox=None), "annotation 8: bbox must be"),
    "text": (changed(bbox=[1, 2, 3, "x"]), "annotation 8: height must be a number, got 'x'"),
    "NaN": (changed(bbox=[1, float("nan"), 3, 4]), "annotation 8: top must be a number"),
    "score": (changed(score="high"), "annotation 8: score must be a number, got 'high'"),
    "twice": (changed(track_id=3), "annotation 8: id 3 has two boxes in one frame"),
    "detections": ([[{"box": {"x1": 1}}]], "has no track_id, so these are detections"),
    "result": ([[1]], "frame 0, entry 0 must be an object with a box, as Ultralytics"),
    "result box": (result(box={"x1": 1}), "frame 1, entry 0: y1 must be a number, got 'None'"),
    "result list": (result(box=[1, 2, 3, 4]), "frame 1, entry 0 must be an object with a box"),
    "normalised": (
        result(box={"x1": 0.1, "y1": 0.2, "x2": 0.3, "y2": 1.0}),
        "frame 1, entry 0: the box must be in pixels",
    ),
    "mixed": ([as_ultralytics()[0], 5], "frame 1 must be a list of boxes"),
    "text in a list": (["{"], "frame 0: line 1, column 2 is not JSON"),
    "same image": (
        {**as_coco(), "images": [{"id": 1, "frame_id": 0}] * 2},
        "every image must have an id of its own",
    ),
    "no frame": (
        {**as_coco(), "images": [{"id": 100}]},
        "images must have a frame_id, frame_index or file_name",
    ),
    "frame": (
        {**as_coco(), "images": [{"id": 100, "frame_id": "one"}]},
        "image 100: frame_id must be a number, got 'one'",
    ),
    "result image": ([{"image_id": 0, "bbox": []}, {}], "entry 1 must have image_id and bbox"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_fault_of_a_json_file_is_one_sentence_that_names_the_place(write, name: str):
    content, message = BAD[name]
    with pytest.raises(TableError, match=message) as error:
        read_boxes(write(content))
    assert "boxes.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_one_of_no_text_are_errors(tmp_path, write):
    for name in ("missing.json", "missing.txt"):
        with pytest.raises(TableError, match=f"cannot read .*{name}"):
            read_boxes(tmp_path / name)
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe[")
    with pytest.raises(TableError, match="it is not a text in UTF-8"):
        read_boxes(path)
    with pytest.raises(TableError, match="there is no such video or folder"):
        read_tracks(tmp_path / "missing.mp4", write(as_coco()))


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["id", "x1"]), inner)
    ),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value within a value."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    return [path, *(place for key in keys for place in places(value[key], (*path, key)))]


def put(value: Any, place: tuple[Any, ...], junk: Any) -> Any:
    if not place:
        return junk
    value = dict(value) if isinstance(value, dict) else list(value)
    value[place[0]] = put(value[place[0]], place[1:], junk)
    return value


@pytest.mark.parametrize("content", [as_coco(), as_coco_results(), as_ultralytics()])
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_value_in_any_place_breaks_the_reader(tmp_path_factory, content, data):
    place = data.draw(st.sampled_from(places(content)))
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(put(content, place, data.draw(JUNK))))
    try:
        frames = read_boxes(path)
    except TableError:
        return
    assert all(isinstance(found, FrameBoxes) for found in frames.values())


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, unique=True))
def test_frames_ascend_and_hold_what_the_lines_say_in_any_order(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text("".join(f"{frame},{track},{track},{frame},5,6\n" for frame, track in lines))
    frames = read_boxes(path)
    assert list(frames) == sorted({frame - 1 for frame, _ in lines})
    for number, found in frames.items():
        wanted = {track for frame, track in lines if frame == number + 1}
        assert set(found.track_ids.tolist()) == wanted
        assert np.array_equal(found.boxes[:, 0], found.track_ids)
