import dataclasses
import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tfclip import TFCLIP, TFCLIPConfig, jobs, precision
from tfclip.cli import main
from tfclip.data import EmbeddingTable, read_folder, read_mot
from tfclip.errors import TableError
from tfclip.reading import Reading

ROOT = Path(__file__).parents[1]


def real(*parts):
    """Find real data, which is no part of the repository."""
    path = Path(os.environ.get("TFCLIP_TEST_DATA", "unset"), *parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} in the folder that TFCLIP_TEST_DATA names")
    return path


def make_model(folder, seed=0, **changes):
    torch.manual_seed(seed)
    config = TFCLIPConfig(
        backbone_options={"width": 64, "layers": 2, "heads": 1, "output_dim": 32},
        frame_size=(32, 16),
        clip_length=4,
        provenance={"weights": "random"},
    )
    model = TFCLIP(config.replace(**changes)).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return str(folder)


def draw_frames(folder, count, seed, size=(16, 32), suffix=".png"):
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        pixels = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}{suffix}")


@pytest.fixture
def crops(tmp_path):
    """A folder person/camera/tracklet of six small tracklets."""
    for seed, (name, count) in enumerate(
        [("a/0/x", 5), ("a/1/x", 1), ("b/0/x", 9), ("b/1/x", 3), ("c/0/x", 4), ("c/1/x", 2)]
    ):
        draw_frames(tmp_path / "crops" / name, count, seed)
    return tmp_path / "crops"


LAYOUT = ("--layout", "{person}/{camera}/{tracklet}")


def run(*arguments):
    return main([str(argument) for argument in arguments])


def usage_error(*arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    return caught.value.code == 2


# --- start ---------------------------------------------------------------------------------------


def tfclip(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "tfclip", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        **options,
    )


def test_help_answers_in_half_a_second():
    times = []
    for _ in range(3):  # the best of three: the machine may be busy with something else
        start = time.perf_counter()
        done = tfclip("--help")
        times.append(time.perf_counter() - start)
        assert done.returncode == 0
        assert all(command in done.stdout for command in ("encode", "search", "convert", "demo"))
    assert min(times) < 0.5


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from tfclip.cli import main\n"
        "try: main(['encode', '--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["encode", "search", "evaluate", "convert", "demo"])
def test_each_command_explains_itself_on_a_screen_with_an_example(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        run(command, "--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"example:\n  tfclip {command} " in text
    assert len(text.splitlines()) <= 60


def test_a_wrong_usage_exits_with_two(capsys):
    assert usage_error()
    assert usage_error("fly")
    assert usage_error("encode", "x")
    assert usage_error("search", "a.safetensors", "b.safetensors", "--top", "0")
    assert usage_error("search", "a.safetensors", "b.safetensors", "--picture", "x.docx")
    assert usage_error("encode", "x", "--out", "o.safetensors", "--layout", "{persn}")
    assert "layout must be" in capsys.readouterr().err


# --- encode --------------------------------------------------------------------------------------


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


def test_a_box_beyond_the_end_of_the_video_is_one_sentence(tmp_path, model_folder, capsys):
    draw_frames(tmp_path / "img1", 3, seed=1)
    (tmp_path / "gt.txt").write_text("1,1,0,0,9,9\n8,1,0,0,9,9\n")
    arguments = ("encode", tmp_path / "img1", "--boxes", tmp_path / "gt.txt")
    assert run(*arguments, "--out", tmp_path / "o.safetensors", "--model", model_folder) == 1
    assert "img1 has 3 frames, but frame 8 is asked for" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", "--out", "o.safetensors"), "cannot read nowhere: there is no such folder"),
        (("crops", "--out", "o.npz"), "must end in .safetensors or .parquet, got o.npz"),
        (("crops", "--out", "crops"), "must end in .safetensors or .parquet"),
        (("crops", "--out", "file/o.safetensors"), "file is not a folder"),
        (
            ("crops", "--out", "o.safetensors", "--model", "no-such"),
            "'no-such' is neither a folder",
        ),
    ],
)
def test_a_mistake_is_one_line_before_any_work(
    crops, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    assert run("encode", *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tfclip: ")
    assert message in line
    assert sorted(tmp_path.iterdir()) == before


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


def spoil(kind, folder, model_folder):
    """Make a source that cannot be encoded; return it, with options, and part of the message."""
    crops = folder / "crops"
    draw_frames(crops / "t", 3, 0)
    one = crops / "t" / "0001.png"
    source = [crops, "--model", model_folder]
    boxes = ["--boxes", folder / "boxes.txt"]
    if kind == "truncated":
        one.write_bytes(one.read_bytes()[:600])
        return source, "1.png is not a readable image"
    if kind == "empty file":
        one.write_bytes(b"")
        return source, "1.png is not a readable image"
    if kind == "32 bits":
        Image.new("F", (16, 32)).save(crops / "t" / "3.tif")
        return source, "3.tif must have 8 or 16 bits"
    if kind == "no images":
        shutil.rmtree(crops / "t")
        (crops / "t").mkdir()
        return source, "has no image in it or below it"
    if kind == "no video":
        (folder / "v.mp4").write_bytes(b"no video" * 50)
        (folder / "boxes.txt").write_text("1,1,0,0,8,8")
        return [folder / "v.mp4", *boxes, *source[1:]], "v.mp4 is not a readable video"
    if kind in BAD_BOXES:
        text, message = BAD_BOXES[kind]
        (folder / "boxes.txt").write_text(text)
        return [crops / "t", *boxes, *source[1:]], message
    model = folder / "model"
    shutil.copytree(model_folder, model)
    weights = model / "model.safetensors"
    if kind == "camera":
        return [crops, "--camera", 3, "--use-cameras", "--model", model], "has no camera table"
    if kind == "unknown backbone":
        config = (model / "config.json").read_text()
        (model / "config.json").write_text(config.replace("ViT-B-16", "ViT-B-17"))
        return [crops, "--model", model], "backbone 'ViT-B-17' is unknown"
    if kind == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
        return [crops, "--model", model], "is truncated, damaged or no safetensors file"
    if kind == "pickle":
        weights.write_bytes(pickle.dumps(threading.Barrier))
        return [crops, "--model", model], "is a pickle, which can run code"
    if kind == "other architecture":
        make_model(folder / "other", temporal_head="average")
        shutil.copy(folder / "other" / "model.safetensors", weights)
        return [crops, "--model", model], "does not fit TFCLIP: "
    assert kind == "NaN"
    broken = load_file(weights)
    broken["backbone.tower.proj"][0, 0] = torch.nan
    save_file(broken, weights)
    return [crops, "--model", model], "the embedding of 't' is not finite"


BAD_BOXES = {
    "empty table": ("", "boxes.txt has no box"),
    "zero area": ("1,1,0,0,0,8", "boxes.txt has no box"),
    "outside": ("1,1,900,0,8,8", "no box lies inside the picture"),
    "no number": ("1,1,nan,0,8,8", "left must be a number, got 'nan'"),
    "beyond the end": ("9,1,0,0,8,8", "has 3 frames, but frame 9 is asked for"),
}
SPOILT = [
    *("truncated", "empty file", "32 bits", "no images", "no video", "camera", "unknown backbone"),
    *("truncated weights", "pickle", "other architecture", "NaN"),
    *BAD_BOXES,
]


@pytest.mark.parametrize("kind", SPOILT)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, model_folder, capsys, kind):
    source, message = spoil(kind, tmp_path, model_folder)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert run("encode", *source, "--out", tmp_path / "out" / "o.safetensors") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("tfclip: ")
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_another_precision_is_no_other_model(crops, tmp_path, model_folder):
    tables = []
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / f"{dtype}.safetensors"
        assert run("encode", crops, "--out", out, "--model", model_folder, "--dtype", dtype) == 0
        tables.append(EmbeddingTable.load(out))
    tables[0].check_comparable(tables[1])
    assert tables[0].fingerprint == tables[1].fingerprint
    assert not torch.equal(tables[0].embeddings, tables[1].embeddings)


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(crops, tmp_path, model_folder, capsys):
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "o.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        assert run("encode", crops, "--out", out, "--model", model_folder) == 1
    _untrained, line = capsys.readouterr().err.splitlines()
    assert line.startswith("tfclip: cannot write ")
    assert line.endswith("No space left on device")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fills_up_keeps_what_is_finished(
    crops, tmp_path, model_folder, capsys, small_groups
):
    out = tmp_path / "o.safetensors"
    common = ("encode", crops, "--out", out, "--model", model_folder)
    with pytest.MonkeyPatch.context() as patch:
        write, written = Path.write_bytes, []

        def fill(path, content):
            if len(written) == 2:
                full_disk()
            written.append(path)
            return write(path, content)

        patch.setattr(Path, "write_bytes", fill)
        assert run(*common) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not out.exists()
    assert len(list((tmp_path / "o.safetensors.parts").iterdir())) == 2
    assert run(*common) == 0
    assert "going on: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops", "o.safetensors"]


def test_a_name_that_no_file_can_have_is_one_sentence(crops, tmp_path, model_folder, capsys):
    out = tmp_path / ("x" * 300 + ".safetensors")
    assert run("encode", crops, "--out", out, "--model", model_folder) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("File name too long")
    assert usage_error("encode", "", "--out", tmp_path / "o.safetensors")  # not the whole folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops"]


def test_one_clip_of_too_many_frames_is_one_sentence(crops, tmp_path, capsys):
    make_model(tmp_path / "model", temporal_head="transformer_token")
    out = ("--out", tmp_path / "o.safetensors", "--model", tmp_path / "model")
    assert run("encode", crops, *out, "--sampling", "all") == 1
    assert "must have at most 4 frames with sampling='all'" in capsys.readouterr().err
    assert run("encode", crops, *out) == 0


def test_options_that_contradict_each_other_are_a_wrong_usage(crops, tmp_path, model_folder):
    out = ("--out", tmp_path / "o.safetensors", "--model", model_folder)
    assert usage_error("encode", tmp_path / "a.mp4", *out)  # a video without boxes
    assert usage_error("encode", tmp_path, *out, "--classes", "person")  # without boxes as well
    assert usage_error("encode", crops, *out, *LAYOUT, "--camera", "1")  # told twice
    assert usage_error("encode", tmp_path / "a.csv", *out, "--layout", "mars")
    assert usage_error("encode", crops, *out, "--device", "abacus")
    assert usage_error("encode", crops, *out, "--device", "meta")  # it computes nothing
    assert usage_error("encode", crops, *out, "--revision", "main")  # of a folder


def test_without_permission_to_write_nothing_is_begun(crops, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tfclip.jobs.os.access", lambda path, mode: False)
    assert run("encode", crops, "--out", tmp_path / "o.safetensors", "--model", "any") == 1
    assert "no permission to write" in capsys.readouterr().err


def test_a_job_refuses_what_it_could_not_write_or_take_up_again(tiny_model, crops, tmp_path):
    tracklet = read_folder(crops)[0]
    out = tmp_path / "o.safetensors"
    with pytest.raises(TableError, match="must be unique, got 'a/0/x' twice"):
        jobs.encode_to_file(tiny_model, [tracklet, tracklet], out)
    in_memory = dataclasses.replace(tracklet, frames=np.zeros((2, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(TypeError, match="must be in files, got ndarray"):
        jobs.encode_to_file(tiny_model, [in_memory], out)
    with pytest.raises(TableError, match="there is no tracklet"):
        jobs.encode_to_file(tiny_model, [], out)
    assert [path.name for path in tmp_path.iterdir()] == ["crops"]


# --- interruption --------------------------------------------------------------------------------


@pytest.fixture
def small_groups(monkeypatch):
    """Put finished work on disk after every few frames."""
    monkeypatch.setattr("tfclip.groups.GROUP_FRAMES", 6)


STOPS_ITSELF = """
import os, sys
from tfclip import encoding, groups
from tfclip.cli import main

groups.GROUP_FRAMES = 6
signal, batches = int(sys.argv[1]), int(sys.argv[2])
run, runs = encoding.StreamEncoder._run_batch, []

def run_or_stop(self):
    runs.append(self)
    if len(runs) > batches:
        os.kill(os.getpid(), signal)
    run(self)

encoding.StreamEncoder._run_batch = run_or_stop
sys.exit(main(sys.argv[3:]))
"""


def stopped_by(number, batches, *arguments):
    """Run the command in a process of its own that a signal hits after some batches."""
    words = [sys.executable, "-c", STOPS_ITSELF, str(int(number)), str(batches)]
    return subprocess.run(
        [*words, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, check=False
    )


@pytest.fixture
def sources(crops, tmp_path):
    """The same kinds of source that users have, each of some groups."""
    draw_frames(tmp_path / "img1", 12, 0, size=(64, 64))
    boxes = [f"{first + k},{first},{k},{k},16,32" for first in range(1, 9) for k in range(4)]
    (tmp_path / "boxes.txt").write_text("\n".join(boxes))
    return {
        "folders": [crops],
        "video": [tmp_path / "img1", "--boxes", tmp_path / "boxes.txt"],
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folders", "video"])
@pytest.mark.usefixtures("small_groups")
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    sources, tmp_path, model_folder, kind, capsys
):
    common = ["encode", *sources[kind], "--model", model_folder, "--batch-frames", 3]
    killed, whole = tmp_path / "killed" / "o.safetensors", tmp_path / "whole" / "o.safetensors"
    done = stopped_by(signal.SIGKILL, 6, *common, "--out", killed)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = list((killed.parent / "o.safetensors.parts").iterdir())
    assert kept
    assert not killed.exists()
    assert run(*common, "--out", killed) == 0
    assert "going on: " in capsys.readouterr().err
    assert [path.name for path in killed.parent.iterdir()] == ["o.safetensors"]
    assert run(*common, "--out", whole) == 0
    assert "going on: " not in capsys.readouterr().err
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(crops, tmp_path, model_folder):
    out = tmp_path / "o.safetensors"
    arguments = ("encode", crops, "--out", out, "--model", model_folder, "--batch-frames", 3)
    done = stopped_by(signal.SIGINT, 6, *arguments)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith("tfclip: interrupted; the same command goes on")
    parts = tmp_path / "o.safetensors.parts"
    assert list(parts.glob("*.safetensors"))
    assert parts.stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("small_groups")
def test_parts_of_another_job_are_not_taken(crops, tmp_path, model_folder, monkeypatch, capsys):
    out = tmp_path / "o.safetensors"
    common = ("encode", crops, *LAYOUT, "--out", out, "--model", model_folder)
    stop_after(monkeypatch, groups=2)
    with pytest.raises(RuntimeError, match="stopped"):
        run(*common)
    stop_after(monkeypatch, groups=99)
    assert len(list((tmp_path / "o.safetensors.parts").iterdir())) == 2
    capsys.readouterr()
    assert run(*common, "--sampling", "rrs") == 0
    assert "going on" not in capsys.readouterr().err
    assert EmbeddingTable.load(out).settings["sampling"] == "rrs"


@pytest.mark.usefixtures("small_groups")
def test_a_changed_frame_is_encoded_again(crops, tmp_path, model_folder, monkeypatch, capsys):
    out = tmp_path / "o.safetensors"
    common = ("encode", crops, "--out", out, "--model", model_folder)
    stop_after(monkeypatch, groups=2)
    with pytest.raises(RuntimeError, match="stopped"):
        run(*common)
    stop_after(monkeypatch, groups=99)
    Image.new("RGB", (16, 32)).save(crops / "a" / "0" / "x" / "0001.png")
    assert run(*common) == 0
    assert "going on" not in capsys.readouterr().err
    model = TFCLIP.from_pretrained(model_folder)
    expected = model.encode_sequence(crops / "a" / "0" / "x")
    embedding = EmbeddingTable.load(out).embeddings[0]
    torch.testing.assert_close(embedding, expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("small_groups")
def test_a_damaged_part_is_encoded_again(crops, tmp_path, model_folder, monkeypatch, capsys):
    whole = tmp_path / "whole.safetensors"
    run("encode", crops, "--out", whole, "--model", model_folder)
    out = tmp_path / "o.safetensors"
    stop_after(monkeypatch, groups=2)
    with pytest.raises(RuntimeError, match="stopped"):
        run("encode", crops, "--out", out, "--model", model_folder)
    stop_after(monkeypatch, groups=99)
    part = next((tmp_path / "o.safetensors.parts").iterdir())
    part.write_bytes(part.read_bytes()[:100])
    assert run("encode", crops, "--out", out, "--model", model_folder) == 0
    said = capsys.readouterr().err
    assert "encoding a damaged part again" in said
    assert "going on" in said
    assert out.read_bytes() == whole.read_bytes()


SAVE_PART = jobs._Parts.save


def stop_after(monkeypatch, groups):
    """Let a run fail after it has saved some groups."""
    saved = []

    def save_some(self, group, table):
        if len(saved) == groups:
            raise RuntimeError("stopped")
        saved.append(group)
        SAVE_PART(self, group, table)

    monkeypatch.setattr(jobs._Parts, "save", save_some)


# --- search --------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "gallery.safetensors"
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [1, 0.1], [1, 1], [0, 1]]))
    EmbeddingTable(
        embeddings=vectors,
        names=("a0", "a1", "b0", "b1"),
        persons=("a", "a", "b", None),
        cameras=(0, 1, 0, 1),
        model="m",
        fingerprint="f",
    ).save(path)
    return path


def test_search_prints_the_nearest_first(table, capsys):
    assert run("search", table, table, "--top", 2, "--query", "a0") == 0
    assert capsys.readouterr().out.splitlines() == [
        "query a0 (person a, camera 0)",
        "  rank  distance  name  person  camera",
        "     1    0.0099  a1    a       1",
        "     2    0.5858  b0    b       0",
        "",
        "distance: squared Euclidean, 2 - 2 cos for vectors of length 1; smaller is nearer",
    ]


def test_search_leaves_out_what_it_is_told_to(table, capsys):
    run("search", table, table, "--query", "b1", "--exclude-same-camera")
    assert "a1" not in capsys.readouterr().out
    run("search", table, table, "--query", "b1", "--no-exclude-same-name", "--top", 1)
    assert "     1    0.0000  b1    ?       1" in capsys.readouterr().out


def width_of(picture):
    with Image.open(picture) as image:
        return image.width


def test_search_draws_a_picture(table, tmp_path, capsys):
    picture = tmp_path / "ranked.png"
    assert run("search", table, table, "--picture", picture) == 0
    assert width_of(picture) > 500
    assert f"picture of 4 of 4 queries: {picture}" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_a_picture_that_cannot_be_written_is_one_line(table, tmp_path, monkeypatch, capsys, suffix):
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    assert run("search", table, table, "--picture", tmp_path / f"p{suffix}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("No space left on device")
    assert sorted(tmp_path.iterdir()) == before


def test_search_writes_a_page_of_what_it_found(table, tmp_path, capsys):
    page = tmp_path / "found.html"
    assert run("search", table, table, "--top", 2, "--report", page) == 0
    count = len(EmbeddingTable.load(table))
    assert f"page of {count} of {count} queries: {page}" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.count("tf-row") >= count
    assert text.count("no picture") == 3 * count  # the query and two results; none has a thumbnail
    assert "://" not in text
    assert run("search", table, table, "--report", tmp_path) == 1
    assert "it is a folder" in capsys.readouterr().err


def test_search_refuses_what_cannot_be_compared(table, tmp_path, capsys):
    other = tmp_path / "other.safetensors"
    EmbeddingTable(embeddings=torch.eye(2), names=("x", "y"), model="n", fingerprint="g").save(
        other
    )
    assert run("search", table, other) == 1
    assert "different models cannot be compared: m (f) and n (g)" in capsys.readouterr().err
    assert run("search", tmp_path / "gone.safetensors", table) == 1
    assert "there is no such file" in capsys.readouterr().err
    assert usage_error("search", table, table, "--query", "nobody")


def test_a_reader_that_leaves_early_is_no_error(table):
    command = f"{sys.executable} -m tfclip search {table} {table} | head -n 1"
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.startswith("query a0")
    assert done.stderr == ""


# --- real data -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_mini_mars_is_encoded_and_searched(tmp_path, model_folder, capsys):
    folder = tmp_path / "mars"  # two persons, linked and not copied
    for person in ("0004", "0016"):
        (folder / person).mkdir(parents=True)
        for image in real("mini_mars", "bbox_test", person).iterdir():
            if int(image.stem[-3:]) <= 6:
                (folder / person / image.name).symlink_to(image)
    out = tmp_path / "mars.safetensors"
    assert run("encode", folder, "--out", out, "--model", model_folder) == 0
    table = EmbeddingTable.load(out)
    assert set(table.persons) == {"0004", "0016"}
    assert set(table.num_frames) == {6}
    assert run("search", out, out, "--exclude-same-camera", "--top", 3) == 0
    assert capsys.readouterr().out.count("query ") == len(table)


@pytest.mark.slow
def test_a_converted_checkpoint_encodes_and_searches_the_tracklets_of_pets(
    tmp_path, golden, capsys
):
    checkpoint, model = tmp_path / "best_model.pth.tar", tmp_path / "model"
    torch.save(golden("state_dict"), checkpoint)
    sizes = ("--clip-length", 4, "--frame-size", 64, 32)
    assert run("convert", checkpoint, model, *sizes) == 0
    out, crops = tmp_path / "pets.safetensors", real("pets09_s2l1", "crops")
    layout = ("--layout", "{person}/{tracklet}")
    sampling = ("--sampling", "rrs", "--model", model)
    assert run("encode", crops, *layout, "--out", out, *sampling) == 0
    table = EmbeddingTable.load(out)
    assert len(table) == 29
    assert len(set(table.persons)) == 10
    row = table.names.index("0001/03")
    loaded = TFCLIP.from_pretrained(model)
    expected = loaded.encode_sequence(crops / "0001" / "03", sampling="rrs")
    torch.testing.assert_close(table.embeddings[row], expected, rtol=0, atol=1e-5)
    picture = tmp_path / "pets.png"
    capsys.readouterr()
    assert run("search", out, out, "--top", 3, "--picture", picture) == 0
    assert capsys.readouterr().out.count("query ") == 29
    assert width_of(picture) > 500


@pytest.mark.slow
def test_the_video_of_tud_campus_is_encoded_and_searched(tmp_path, model_folder):
    folder = real("tud_campus")
    out = tmp_path / "tud.safetensors"
    boxes = folder / "gt" / "gt.txt"
    source = folder / "TUD-Campus.mp4"
    assert run("encode", source, "--boxes", boxes, "--out", out, "--model", model_folder) == 0
    table = EmbeddingTable.load(out)
    assert table.num_frames == (24, 48, 63, 71, 71, 9, 48, 25)
    sixth = read_mot(source, boxes)[5]
    expected = TFCLIP.from_pretrained(model_folder).encode_sequence(sixth.open())
    torch.testing.assert_close(table.embeddings[5], expected, rtol=0, atol=1e-5)
    picture = tmp_path / "tud.png"
    assert run("search", out, out, "--picture", picture, "--top", 3) == 0
    assert picture.exists()


# --- convert and demo ----------------------------------------------------------------------------


def test_a_checkpoint_of_the_reference_becomes_a_model_folder(tmp_path, golden, capsys):
    checkpoint, out = tmp_path / "best_model.pth.tar", tmp_path / "out"
    torch.save(golden("state_dict"), checkpoint)
    sizes = ("--clip-length", 4, "--frame-size", 64, 32)
    assert run("convert", checkpoint, out, *sizes, "--with-objective") == 0
    said = capsys.readouterr()
    assert "ViT-B-16, frames of 64 x 32, 3 cameras, vectors of 320" in said.out
    assert "heads of 7 identities" in said.out
    assert "dropped 4 entries" in said.err
    assert "SSP.alpha" in said.err
    assert (out / "objective.safetensors").exists()
    model = TFCLIP.from_pretrained(out)
    recorded = golden("inputs")
    embedding = model(recorded["frames"], recorded["cam_label"]).embedding
    expected = golden("eval_outputs")["feat_neck_before"]
    torch.testing.assert_close(embedding, expected, rtol=0, atol=5e-5)


def test_a_full_disk_leaves_no_converted_model(tmp_path, golden, monkeypatch, capsys):
    checkpoint, out = tmp_path / "best_model.pth.tar", tmp_path / "out"
    torch.save(golden("state_dict"), checkpoint)
    sizes = ("--clip-length", 4, "--frame-size", 64, 32)
    monkeypatch.setattr("tfclip.hub.save_file", full_disk)
    assert run("convert", checkpoint, out, *sizes) == 1
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert list(out.iterdir()) == []


def test_a_checkpoint_that_is_none_is_one_line(tmp_path, capsys):
    (tmp_path / "best_model.pth.tar").write_bytes(b"no checkpoint")
    assert run("convert", tmp_path / "best_model.pth.tar", tmp_path / "out") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "best_model.pth.tar" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_demo_shows_the_whole_path(tmp_path, model_folder, capsys):
    out = tmp_path / "demo"
    arguments = ("demo", "--out", out, "--model", model_folder, "--identities", 3, "--seed", 5)
    assert run(*arguments) == 0
    text = capsys.readouterr().out
    assert "(untrained)" in text
    assert "untrained weights" in text
    assert "colour histogram" in text
    assert "rank-5" in text
    assert "protocol: 9 of 9 queries have a match in a gallery of 9" in text
    assert len(EmbeddingTable.load(out / "embeddings.safetensors")) == 9
    assert width_of(out / "ranked.png") > 500
    assert width_of(out / "cmc.png") > 500


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
