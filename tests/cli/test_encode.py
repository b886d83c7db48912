"""``tfclip encode``: every kind of source gives the vectors of ``encode_sequence``."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.commands import LAYOUT, draw_frames, make_model, run, usage_error
from tfclip import TFCLIP, precision
from tfclip.data import EmbeddingTable, read_folder, read_mot
from tfclip.reading import Reading


def test_a_folder_of_tracklets_becomes_a_table(crops, tmp_path, model_folder, capsys):
    out = tmp_path / "out" / "table.safetensors"
    assert run("encode", crops, "--out", out, "--model", model_folder, *LAYOUT) == 0
    table = EmbeddingTable.load(out)
    assert table.names == ("a/0/x", "a/1/x", "b/0/x", "b/1/x", "c/0/x", "c/1/x")
    assert table.persons == ("a", "a", "b", "b", "c", "c")
    assert table.cameras == (0, 1) * 3
    assert table.num_frames == (5, 1, 9, 3, 4, 2)
    assert (table.first_frames[2], table.last_frames[2]) == (1, 9)
    assert table.model == model_folder
    assert table.settings["sampling"] == "dense"
    model = TFCLIP.from_pretrained(model_folder)
    expected = torch.stack([model.encode_sequence(t.open()) for t in read_folder(crops)])
    torch.testing.assert_close(table.embeddings, expected, rtol=0, atol=1e-5)
    assert [path.name for path in out.parent.iterdir()] == ["table.safetensors"]
    said = capsys.readouterr()
    assert "6 tracklets of 24 frames to vectors of 160 numbers" in said.out
    assert "untrained" in said.err


@pytest.mark.parametrize("sampling", ["rrs", "all"])
def test_the_sampling_is_that_of_encode_sequence(crops, tmp_path, model_folder, sampling):
    out = tmp_path / "table.parquet"
    run("encode", crops, "--out", out, "--model", model_folder, "--sampling", sampling)
    model = TFCLIP.from_pretrained(model_folder)
    expected = [model.encode_sequence(t.open(), sampling=sampling) for t in read_folder(crops)]
    embeddings = EmbeddingTable.load(out).embeddings
    torch.testing.assert_close(embeddings, torch.stack(expected), rtol=0, atol=1e-5)


def test_faster_reading_is_asked_for_and_written_down(crops, tmp_path, model_folder):
    out = tmp_path / "o.safetensors"
    common = ("encode", crops, "--out", out, "--model", model_folder)
    faster = ("--max-frames", 4, "--selection", "diverse", "--draft", "--resizer", "tensor")
    assert run(*common, *faster, "--workers", 2) == 0
    table = EmbeddingTable.load(out)
    reading = Reading(max_frames=4, selection="diverse", draft=True, resizer="tensor")
    assert {name: table.settings[name] for name in reading.settings()} == reading.settings()
    model = TFCLIP.from_pretrained(model_folder)
    frames = [tracklet.open() for tracklet in read_folder(crops)]
    expected = model.encode_sequences(frames, reading=reading)
    torch.testing.assert_close(table.embeddings, expected, rtol=0, atol=1e-5)
    assert table.num_frames == (5, 1, 9, 3, 4, 2)
    assert run(*common, "--workers", 0) == 0
    assert EmbeddingTable.load(out).settings.keys() & reading.settings().keys() == set()
    assert usage_error(*common, "--selection", "diverse")  # of nothing
    assert usage_error(*common, "--workers", "-1")
    assert usage_error(*common, "--max-frames", "0")


def test_a_parquet_table_is_encoded_as_the_same_csv(crops, tmp_path, model_folder):
    pyarrow = pytest.importorskip("pyarrow")
    paths = sorted(str(path) for path in crops.rglob("*") if path.is_file())[:3]
    rows = {"tracklet": ["t", "t", "u"], "path": paths}
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.table(rows), tmp_path / "table.parquet"
    )
    lines = ["tracklet,path", *(f"{t},{p}" for t, p in zip(*rows.values(), strict=True))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    found = []
    for source in ("table.csv", "table.parquet"):
        out = tmp_path / f"{source}.safetensors"
        assert run("encode", tmp_path / source, "--out", out, "--model", model_folder) == 0
        found.append(EmbeddingTable.load(out))
    assert found[0].names == found[1].names == ("t", "u")
    assert torch.equal(found[0].embeddings, found[1].embeddings)


def test_a_csv_table_is_encoded(crops, tmp_path, model_folder):
    lines = ["tracklet,path,person,camera,left,top,width,height"]
    lines += [f"t,crops/b/0/x/{number:04d}.png,b,1,1,2,10,20" for number in (3, 4, 5)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    out = tmp_path / "table.safetensors"
    assert run("encode", tmp_path / "table.csv", "--out", out, "--model", model_folder) == 0
    table = EmbeddingTable.load(out)
    assert (table.names, table.persons, table.cameras) == (("t",), ("b",), (1,))
    paths = [crops / "b" / "0" / "x" / f"{number:04d}.png" for number in (3, 4, 5)]
    model = TFCLIP.from_pretrained(model_folder)
    expected = model.encode_sequence(paths, boxes=[(1, 2, 10, 20)] * 3)
    torch.testing.assert_close(table.embeddings[0], expected, rtol=0, atol=1e-5)


BOXES = (
    "".join(f"{frame},1,{frame},2,12,20,1\n" for frame in range(1, 9))
    + "".join(f"{frame},7,20,{frame},10,18,1\n" for frame in range(3, 6))
    + "4,9,0,0,30,30,0\n"  # not counted
    + "2,7,500,2,12,20,1\n"  # outside of the picture
    + "2,8,-50,2,12,20,1\n"  # the same, and all there is
)


@pytest.mark.parametrize("sampling", ["dense", "rrs"])
def test_tracks_of_a_video_are_encoded_like_its_crops(tmp_path, model_folder, sampling, capsys):
    draw_frames(tmp_path / "street" / "img1", 8, seed=1, size=(48, 40))
    (tmp_path / "gt.txt").write_text(BOXES)
    out = tmp_path / "table.safetensors"
    source = tmp_path / "street" / "img1"
    options = ("--boxes", tmp_path / "gt.txt", "--camera", 3, "--sampling", sampling)
    assert run("encode", source, "--out", out, "--model", model_folder, *options) == 0
    table = EmbeddingTable.load(out)
    assert (table.names, table.cameras) == (("street/1", "street/7"), (3, 3))
    assert (table.num_frames, table.persons) == ((8, 3), (None, None))
    model = TFCLIP.from_pretrained(model_folder)
    first, seventh = (t for t in read_mot(source, tmp_path / "gt.txt") if t.name != "street/8")
    paths = sorted(source.iterdir())
    expected = [
        model.encode_sequence(first.open(), sampling=sampling),
        model.encode_sequence(paths[2:5], boxes=seventh.boxes[1:], sampling=sampling),
    ]
    torch.testing.assert_close(table.embeddings, torch.stack(expected), rtol=0, atol=1e-5)
    said = capsys.readouterr().err
    assert "2 of 13 boxes lie outside the picture and are left out, and with them 1 track" in said


def test_tracks_in_json_are_encoded_like_those_in_mot_format(tmp_path, model_folder, capsys):
    draw_frames(tmp_path / "street", 8, seed=1, size=(48, 40))
    rows = [(frame, 1, (frame, 2, 12, 20)) for frame in range(1, 9)]
    rows += [(frame, 7, (20, frame, 10, 18)) for frame in range(3, 6)]
    mot = "".join(f"{frame},{track},{x},{y},{w},{h}\n" for frame, track, (x, y, w, h) in rows)
    (tmp_path / "a.txt").write_text(mot)
    coco = {
        "images": [{"id": frame, "frame_id": frame} for frame in range(1, 9)],
        "annotations": [
            {"image_id": frame, "track_id": track, "bbox": box, "category_id": 1, "score": 0.9}
            for frame, track, box in [*rows, (1, 9, (0, 0, 9, 9))]
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}],
    }
    coco["annotations"][-1].update(category_id=2)
    (tmp_path / "b.json").write_text(json.dumps(coco))
    results = [
        json.dumps(
            [
                {"name": "person", "class": 0, "confidence": 0.9, "track_id": track,
                 "box": {"x1": x, "y1": y, "x2": x + w, "y2": y + h}}
                for number, track, (x, y, w, h) in [*rows, (1, 9, (0, 0, 9, 9))]
                if number == frame
            ]
        )
        for frame in range(1, 9)
    ]  # fmt: skip
    results[0] = results[0].replace("0.9", "0.2").replace("0.2", "0.9", 1)  # of track 9
    (tmp_path / "c.jsonl").write_text("\n".join(results))
    tables = []
    for name, options in (
        ("a.txt", ()),
        ("b.json", ("--classes", "person")),
        ("c.jsonl", ("--min-confidence", 0.5)),
    ):
        out = tmp_path / f"{name}.safetensors"
        source = ("encode", tmp_path / "street", "--boxes", tmp_path / name, *options)
        assert run(*source, "--out", out, "--model", model_folder) == 0
        tables.append(EmbeddingTable.load(out))
    for table in tables:
        assert table.names == ("street/1", "street/7")
        torch.testing.assert_close(table.embeddings, tables[0].embeddings, rtol=0, atol=1e-6)


def test_cameras_reach_the_model_only_when_asked_for(crops, tmp_path, capsys):
    make_model(tmp_path / "with", num_cameras=2)
    common = ("encode", crops, *LAYOUT, "--model", tmp_path / "with")
    run(*common, "--out", tmp_path / "blind.safetensors")
    run(*common, "--out", tmp_path / "seeing.safetensors", "--use-cameras")
    blind, seeing = (
        EmbeddingTable.load(tmp_path / f"{name}.safetensors").embeddings
        for name in ("blind", "seeing")
    )
    model = TFCLIP.from_pretrained(tmp_path / "with")
    frames = read_folder(crops)[2].open()
    torch.testing.assert_close(blind[2], model.encode_sequence(frames), rtol=0, atol=1e-5)
    torch.testing.assert_close(seeing[2], model.encode_sequence(frames, 0), rtol=0, atol=1e-5)
    assert (blind[2] - seeing[2]).abs().max() > 1e-3
    make_model(tmp_path / "one", num_cameras=1)
    options = ("--out", tmp_path / "o.safetensors", "--use-cameras", "--model", tmp_path / "one")
    capsys.readouterr()
    assert run("encode", crops, *LAYOUT, *options) == 1
    assert "'a/1/x' is of camera 1; the model knows cameras 0 to 0" in capsys.readouterr().err


def put(folder, *images):
    """Save images as the frames of one tracklet."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number}.{'tif' if image.mode == 'CMYK' else 'png'}")


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_any_kind_of_picture_is_encoded(tmp_path, model_folder, mode):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (32, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    put(tmp_path / "crops" / "t", image, image.resize((20, 50)))
    out = tmp_path / "o.safetensors"
    assert run("encode", tmp_path / "crops", "--out", out, "--model", model_folder) == 0
    table = EmbeddingTable.load(out)
    assert table.num_frames == (2,)
    expected = TFCLIP.from_pretrained(model_folder).encode_sequence(tmp_path / "crops" / "t")
    torch.testing.assert_close(table.embeddings[0], expected, rtol=0, atol=1e-5)


def test_another_precision_is_no_other_model(crops, tmp_path, model_folder):
    tables = []
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / f"{dtype}.safetensors"
        assert run("encode", crops, "--out", out, "--model", model_folder, "--dtype", dtype) == 0
        tables.append(EmbeddingTable.load(out))
    tables[0].check_comparable(tables[1])
    assert tables[0].fingerprint == tables[1].fingerprint
    assert not torch.equal(tables[0].embeddings, tables[1].embeddings)


def test_precision_and_merging_are_chosen_and_recorded(tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "measure", lambda *_: {"float32": 2.0, "bfloat16": 1.0})
    draw_frames(tmp_path / "crops" / "0001" / "0" / "a", 3, seed=0)
    out = tmp_path / "out.safetensors"
    options = ("--dtype", "auto", "--merge-tokens", "1")
    arguments = ("--out", out, "--model", model_folder, *LAYOUT, *options)
    assert run("encode", tmp_path / "crops", *arguments) == 0
    settings = EmbeddingTable.load(out).settings
    assert (settings["dtype"], settings["merged_tokens"]) == ("bfloat16", 1)
