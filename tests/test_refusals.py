"""What cannot be done is said in one sentence with the argument, the rule and the value."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tfclip import TFCLIPObjective, cli, functional
from tfclip.data import SyntheticTracklets, Tracklet, read_boxes, read_shards, read_tracklets
from tfclip.data.benchmarks.listing import folder_names, image_names
from tfclip.data.tables import parse_whole
from tfclip.demo import run_demo
from tfclip.errors import FrameError, SaveError, TableError
from tfclip.gallery import Gallery
from tfclip.jobs import check_output
from tfclip.tracking import CropEncoder, TrackletEncoder
from tfclip.video import TimedFrame, write_video

NO_MODEL: Any = None  # it is refused before it is looked at


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (
            lambda _: parse_whole("9" * 30, "frame", "a.csv, line 2"),
            TableError,
            r"^a\.csv, line 2: frame must be less than 2\*\*63, got 9{30}$",
        ),
        (
            lambda _: read_tracklets("s3://bucket/people"),
            TableError,
            r"^s3://bucket/people must end in \.csv, \.parquet or \.tar$",
        ),
        (
            lambda _: read_tracklets([3]),  # type: ignore[list-item]
            TypeError,
            "^source must be a path, an address, several shards, or tracklets$",
        ),
        (
            lambda folder: image_names(folder / "a\0b"),
            TableError,
            "^cannot read .*: embedded null byte$",
        ),
        (image_names, TableError, "has no image in it$"),
        (folder_names, TableError, "has no folder in it$"),
        (lambda folder: folder_names(folder / "x"), TableError, "x: No such file or directory$"),
        (
            lambda folder: check_output(folder / "x.safetensors" / "y.safetensors"),
            SaveError,
            r"x\.safetensors is not a folder$",
        ),
        (
            lambda folder: run_demo(NO_MODEL, folder, num_cameras=1),
            ValueError,
            "^num_cameras must be at least 2 to search across, got 1$",
        ),
        (
            lambda folder: Gallery.open(folder / "g", dim=2).search(
                np.eye(2), k=1, exclude_same_id=True
            ),
            ValueError,
            "^query_ids must be given with exclude_same_id, got None$",
        ),
        (
            lambda _: functional.evaluate_ranking(torch.ones(1, 1), [0], [0], [0], [1], max_rank=0),
            ValueError,
            "^max_rank must be at least 1, got 0$",
        ),
    ],
)
def test_each_is_refused_in_one_sentence(
    tmp_path: Path, call: Callable[[Path], object], kind: type[Exception], sentence: str
) -> None:
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(kind, match=sentence) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_needs_a_model_is_refused_before_it_runs(tiny_model, tiny_config, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"^num_identities must be at least 1, got 0$"):
        TFCLIPObjective(tiny_config, 0, torch.empty(0, 32))
    with pytest.raises(ValueError, match=r"^batch_size must be at least 1, got 0$"):
        CropEncoder(tiny_model).extract_features_from_paths([], batch_size=0)
    encoder, crop = TrackletEncoder(tiny_model), np.zeros((8, 4, 3), dtype=np.uint8)
    with pytest.raises(TypeError, match=r"^track ids must be numbers or texts, got list$"):
        encoder.update([[1]], [crop])
    with pytest.raises(TypeError, match=r"^crops must be a sequence of pictures, got int$"):
        encoder.update([1], 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^channels must be one of \('rgb', 'bgr'\), got 'hsv'$"):
        encoder.update([1], [crop], channels="hsv")  # type: ignore[arg-type]
    with pytest.raises(FrameError, match=r"^boxes must be numbers \(M, 4\), got"):
        encoder.update_frame([1], np.zeros((8, 8, 3), np.uint8), "wide")
    assert len(encoder) == 0


def test_tracklets_are_given_back_as_they_are() -> None:
    tracklets = [Tracklet(name="a", frames=("a.png",))]
    assert read_tracklets(tracklets) == tracklets


def test_a_function_may_ask_for_every_column_of_a_gallery(tmp_path: Path) -> None:
    with Gallery.open(tmp_path / "g", dim=2) as gallery:
        gallery.add(np.eye(2), ["x", "y"], cameras=[3, 4], persons=["ann", None],
                    metadata=[{"coat": "red"}, None])  # fmt: skip
        seen: dict[str, list[Any]] = {}

        def second(columns: Any) -> np.ndarray:
            seen.update({name: list(columns[name]) for name in columns})
            assert len(columns) == len(seen)
            return columns["id"] == "y"

        assert gallery.entries(second).ids == ("y",)
    assert seen.keys() == {"id", "camera", "time", "added", "person", "coat"}
    assert seen["camera"] == [3, 4]
    assert seen["person"] == ["ann", None]
    assert seen["coat"] == ["red", None]


def test_a_model_folder_does_not_take_the_place_of_a_file(tmp_path: Path, capsys) -> None:
    (tmp_path / "out").write_text("mine")
    assert cli.main(["convert", str(tmp_path / "none.pth"), str(tmp_path / "out")]) == 1
    assert "out: it is not a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    av = pytest.importorskip("av", reason="PyAV (extra 'video') is not installed")

    def fail(*_: object, **__: object) -> None:
        raise av.error.OSError(28, "No space left on device")

    monkeypatch.setattr(av, "open", fail)
    frame = np.zeros((16, 16, 3), dtype=np.uint8)
    with pytest.raises(SaveError, match=r"cannot write .*a\.mp4: No space left on device$"):
        write_video(tmp_path / "a.mp4", [TimedFrame(frame, 0.0, 0)])
    assert list(tmp_path.iterdir()) == []


def test_options_without_the_one_they_are_for_are_named(tmp_path: Path, capsys) -> None:
    SyntheticTracklets(1, 1, 1, num_frames=1, frame_size=(32, 16)).write(tmp_path / "people")
    command = ["encode", str(tmp_path / "people"), "--out", str(tmp_path / "x.safetensors")]
    for more, sentence in (
        (["--device", "toaster"], "--device: device 'toaster' cannot be used"),
        (["--actors", "2"], "--actors is for --ray"),
        (["--cpus-per-actor", "1"], "--cpus-per-actor is for --ray"),
        (["--ray", "auto", "--device", "toaster"], "--device: device must be one that torch knows"),
        (["--ray", "auto", "--device", "cuda", "--dtype", "auto"], "--dtype auto is found out on"),
        (["--selection", "diverse"], "--selection is for --max-frames"),
        (["--classes", "1"], "--classes and --min-confidence are for --boxes"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main([*command, *more])
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_a_number_too_long_to_be_read_is_no_number_of_a_frame(tmp_path: Path) -> None:
    images = [{"id": place, "file_name": f"{'9' * 5000}{place}.png"} for place in (1, 2)]
    boxes = [{"image_id": 1, "track_id": 1, "bbox": [0, 0, 2, 3]}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    with pytest.raises(TableError, match="the numbers in their names have gaps"):
        read_boxes(tmp_path / "a.json")


def test_a_shard_whose_header_claims_more_than_a_disk_holds_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("a.1.png"))
        entry = tarfile.TarInfo("a.2.png")
        entry.size = 2**70
        tar.fileobj.write(entry.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]
    with pytest.raises(TableError, match=r"a\.tar is damaged or not a tar file: "):
        read_shards([str(tmp_path / "a.tar")])
