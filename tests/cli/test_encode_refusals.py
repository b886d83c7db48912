"""``tfclip encode``: what cannot be encoded is one sentence and leaves nothing behind."""

import dataclasses
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.cli.commands import LAYOUT, draw_frames, make_model, run, usage_error
from tests.traps import full_disk
from tfclip import jobs
from tfclip.data import read_folder
from tfclip.errors import TableError


def test_a_box_beyond_the_end_of_the_video_is_one_sentence(tmp_path, model_folder, capsys):
    draw_frames(tmp_path / "img1", 3, seed=1)
    (tmp_path / "gt.txt").write_text("1,1,0,0,9,9\n8,1,0,0,9,9\n")
    arguments = ("encode", tmp_path / "img1", "--boxes", tmp_path / "gt.txt")
    assert run(*arguments, "--out", tmp_path / "o.safetensors", "--model", model_folder) == 1
    assert "img1 has 3 frames, but frame 8 is asked for" in capsys.readouterr().err


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
    monkeypatch.setattr("tfclip.files.os.access", lambda path, mode: False)
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
