"""Tracks, shards and snapshots that the fuzzer changes."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np

from tests import data_trees
from tests.fuzzing.target import Samples, Target
from tests.fuzzing.weights import tiny_model
from tfclip.data import read_boxes
from tfclip.data.shards import read_shards
from tfclip.errors import FrameError, SnapshotError, TableError
from tfclip.tracking import QualityGate, TrackletEncoder


def _make_tracks_json(folder: Path) -> Samples:
    images = [
        {"id": number, "file_name": f"street/{number:04d}.png", "frame_id": number, "video_id": 1}
        for number in (1, 2)
    ]
    boxes = [
        {"id": 10 + number, "image_id": number, "track_id": 7, "category_id": 1, "score": 0.5}
        | {"bbox": [1.5, 2, 30, 40], "iscrowd": 0}
        for number in (1, 2)
    ]
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}
    named = {
        "images": [{"id": image["id"], "file_name": image["file_name"]} for image in images],
        "annotations": boxes,
        "videos": [{"id": 1, "name": "street"}],
    }
    result = {"name": "person", "class": 0, "confidence": 0.9, "track_id": 3}
    result["box"] = {"x1": 1.0, "y1": 2.5, "x2": 30.0, "y2": 41.0}
    texts = {
        "coco.json": json.dumps(coco),
        "named.json": json.dumps(named),
        "results.json": json.dumps([box | {"image_id": box["image_id"] - 1} for box in boxes]),
        "frames.jsonl": "\n".join(json.dumps([result] * count) for count in (1, 0, 1)),
    }
    return {name: text.encode() for name, text in texts.items()}


def _read_tracks_json(folder: Path, name: str) -> None:
    for found in read_boxes(folder / name).values():
        assert len(found.boxes) == len(found.track_ids)


def _make_shards(folder: Path) -> Samples:
    data_trees.draw(folder / "a" / "1.png")
    samples = {}
    for name, form in (("gnu.tar", tarfile.GNU_FORMAT), ("pax.tar", tarfile.PAX_FORMAT)):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
            notes = {"person": "ann", "camera": 2, "boxes": [[0, 0, 2, 3]]}
            picture = (folder / "a" / "1.png").read_bytes()
            long = "é" * 120  # takes a header of its own
            for member, content in (
                ("a/1.0.png", picture),
                ("a/1.json", json.dumps(notes).encode()),
                (f"{long}/2.0.png", picture),
                (f"{long}/2.1.png", picture),
            ):
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        samples[name] = stream.getvalue()
    return samples


def _headers_again(rng: random.Random, data: bytes) -> bytes:
    """Give the headers of a damaged tar file the checksums of what is there now, sometimes."""
    if rng.random() < 0.3:
        return data
    changed = bytearray(data)
    for start in range(0, len(changed) - 511, 512):
        block = changed[start : start + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            changed[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    return bytes(changed)


def _read_shard(folder: Path, name: str) -> None:
    for tracklet in read_shards([str(folder / name)]):
        for frame in tracklet.open():
            assert frame.dtype == np.uint8


def _make_snapshot(folder: Path) -> Samples:
    samples = {}
    for name, options in {
        "newest": {"gate": QualityGate(), "max_age": 3.0},
        "diverse": {"policy": "diverse", "max_frames": 2},
    }.items():
        encoder = TrackletEncoder(tiny_model(), **options)
        crops = np.full((5, 32, 16, 3), np.arange(5)[:, None, None, None], np.uint8)
        encoder.update([1, 1, "b", ("c", 2), 1], crops, times=[0, 1, 1, 1, 2])
        encoder.snapshot(folder / name)
        samples[name] = (folder / name).read_bytes()
    return samples


def _read_snapshot(folder: Path, name: str) -> None:
    TrackletEncoder.restore(folder / name, tiny_model())


TARGETS = {
    "tracks-json": Target(_make_tracks_json, _read_tracks_json, (TableError,)),
    "shard": Target(_make_shards, _read_shard, (TableError, FrameError), _headers_again),
    "snapshot": Target(_make_snapshot, _read_snapshot, (SnapshotError,)),
}
