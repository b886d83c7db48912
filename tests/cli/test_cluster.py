"""``tfclip cluster``: files of embeddings in, a table of people out."""

import csv
import dataclasses
import sys
from typing import Any

import pytest
import torch

from tests.cli.commands import run
from tfclip.data import EmbeddingTable

pytest.importorskip("scipy", reason="SciPy (extra 'cluster') is not installed")


def usage_error(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def table(people, camera, *, seed, noise=0.05, **columns):
    """Draw one tracklet of each person in a camera, one after another."""
    directions = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    rows = directions[list(people)] + noise * torch.randn(len(people), 16, generator=generator)
    known = {
        "persons": tuple(f"p{person}" for person in people),
        "cameras": (camera,) * len(people),
        "first_frames": tuple(range(0, 10 * len(people), 10)),
        "last_frames": tuple(range(9, 10 * len(people), 10)),
        "fingerprint": "one",
    }
    return EmbeddingTable(
        embeddings=torch.nn.functional.normalize(rows, dim=1),
        names=tuple(str(number) for number in range(len(people))),
        **{**known, **columns},
    )


@pytest.fixture
def files(tmp_path):
    """Three cameras, seen by persons 0 to 5, of which the last misses the first camera."""
    paths = []
    for camera, people in enumerate([range(5), range(6), range(6)]):
        paths.append(tmp_path / f"cam{camera}.safetensors")
        table(people, camera, seed=camera).save(paths[-1])
    return paths


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files_of_cameras_become_people(files, tmp_path, capsys):
    out = tmp_path / "people.csv"
    assert run("cluster", *files, "--threshold", "0.5", "--out", out) == 0
    rows = read(out)
    assert list(rows[0]) == ["name", "file", "label", "camera", "first_frame", "last_frame"]
    assert [row["file"] for row in rows] == [str(files[0])] * 5 + [
        str(file) for file in files[1:] for _ in range(6)
    ]
    assert [int(row["label"]) for row in rows] == [*range(5), *range(6), *range(6)]
    assert rows[7] == {
        "name": "2",  # the same name in each file is no clash
        "file": str(files[1]),
        "label": "2",
        "camera": "1",
        "first_frame": "20",
        "last_frame": "29",
    }
    assert out.stat().st_mode & 0o777 == 0o600
    printed = capsys.readouterr().out
    assert printed.startswith(
        "17 tracklets of 3 files are 6 people: 0 with one tracklet, at most 3\n"
    )
    assert "pairwise F1      100.00%" in printed
    assert "threshold 0.5, average linkage" in printed
    assert printed.endswith(f"people: {out}\n")


def test_a_threshold_is_fitted_on_other_people(files, tmp_path, capsys):
    known = []
    for camera in range(2):
        known.append(tmp_path / f"known{camera}.safetensors")
        table(range(100, 140), camera, seed=10 + camera).save(known[-1])
    out = tmp_path / "people.csv"
    arguments = ("--false-match-rate", "0.01", "--fit-on", *known, "--out", out)
    assert run("cluster", *files, *arguments) == 0
    printed = capsys.readouterr().out
    # 80 rows, of each 1 of its person in the other camera and 78 of others
    assert "fitted on 80 pairs of one person and 6240 of two: false match rate 0.0" in printed
    assert "identity F1      100.00%" in printed
    assert len({row["label"] for row in read(out)}) == 6


def test_without_cameras_a_threshold_is_fitted_on_all_pairs(files, tmp_path, capsys):
    known = tmp_path / "known.safetensors"
    people = [person for person in range(100, 120) for _ in range(2)]
    table(people, None, seed=9).save(known)
    out = tmp_path / "people.csv"
    fit = ("--false-match-rate", "0.01", "--fit-on", known, "--out", out)
    assert run("cluster", *files, *fit) == 0
    assert "fitted on 40 pairs of one person and 1520 of two" in capsys.readouterr().out


def test_overlap_keeps_two_who_look_alike_apart(tmp_path, capsys):
    # The same person twice in one camera: at once in the first, one after the other in the second.
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    unknown: dict[str, Any] = {"cameras": (), "persons": ()}
    at_once: dict[str, Any] = {"first_frames": (0, 9), "last_frames": (9, 20)}
    for path, frames in zip(paths, (at_once, {}), strict=True):
        table([0, 0], None, seed=1, **frames, **unknown).save(path)
    out = tmp_path / "people.csv"
    cluster = ("cluster", *paths, "--threshold", "1", "--out", out)
    assert run(*cluster) == 0
    assert [row["label"] for row in read(out)] == ["0"] * 4
    capsys.readouterr()
    assert run(*cluster, "--camera-per-file", "--same-camera-overlap") == 0
    labels = [row["label"] for row in read(out)]
    assert labels[0] != labels[1]
    assert {row["camera"] for row in read(out)} == {"0", "1"}
    printed = capsys.readouterr().out
    assert "pairs forbidden by overlap: 1, of which 1 within the threshold" in printed
    assert "pairwise" not in printed  # nobody is known
    assert "no tracklet has a known camera and known frames" in usage_error(
        capsys, *cluster, "--same-camera-overlap"
    )


def test_unknown_persons_are_left_out_of_the_figures_and_said(files, tmp_path, capsys):
    whole = EmbeddingTable.load(files[0])
    partly = (*whole.persons[:2], None, None, None)
    dataclasses.replace(whole, persons=partly, last_frames=(9, 19, 29, 39, None)).save(files[0])
    out = tmp_path / "people.csv"
    assert run("cluster", *files, "--threshold", "0.5", "--same-camera-overlap", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "tracklets without a known camera or frames, which no rule holds: 1" in printed
    assert "against the persons that 14 of 17 tracklets are known as:" in printed


def test_what_cannot_be_done_is_one_line(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "people.csv"
    other = tmp_path / "other.safetensors"
    table([0], 0, seed=0, fingerprint="two").save(other)
    assert run("cluster", files[0], other, "--threshold", "1", "--out", out) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"tfclip: {other}: embeddings of different models cannot be compared")
    assert error.count("\n") == 1
    fit = ("--false-match-rate", "0.1", "--fit-on")
    assert run("cluster", files[0], *fit, other, "--out", out) == 1
    assert f"tfclip: {other}: embeddings of different models" in capsys.readouterr().err
    assert run("cluster", tmp_path / "none.safetensors", "--threshold", "1", "--out", out) == 1
    assert "there is no such file" in capsys.readouterr().err

    end = ("--out", out)
    assert "given together" in usage_error(
        capsys, "cluster", files[0], "--false-match-rate", "0.1", *end
    )
    assert "given together" in usage_error(
        capsys, "cluster", files[0], "--threshold", "1", "--fit-on", files[1], *end
    )
    assert "cannot be measured with" in usage_error(
        capsys, "cluster", files[0], "--false-match-rate", "1e-6", "--fit-on", *files[1:], *end
    )
    assert "a file is given twice" in usage_error(
        capsys, "cluster", files[0], files[0], "--threshold", "1", *end
    )
    assert "more than --max-part 3" in usage_error(
        capsys, "cluster", files[0], "--threshold", "9", "--max-part", "3", *end
    )
    assert "must be at least 0, got '-1'" in usage_error(
        capsys, "cluster", files[0], "--threshold=-1", *end
    )
    assert "must be a number, got 'x'" in usage_error(
        capsys, "cluster", files[0], "--threshold", "x", *end
    )
    assert "must be above 0 and at most 1" in usage_error(
        capsys, "cluster", files[0], "--false-match-rate", "2", *end
    )
    assert "must end in .csv" in usage_error(
        capsys, "cluster", files[0], "--threshold", "1", "--out", files[0]
    )
    assert not out.exists()
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    assert run("cluster", files[0], "--threshold", "1", *end) == 1
    assert "pip install 'tfclip[cluster]'" in capsys.readouterr().err


def test_a_gallery_is_grouped_as_the_files_it_was_made_of(files, tmp_path, capsys):
    for camera, file in enumerate(files):  # in a gallery a name can stand once only
        seen = EmbeddingTable.load(file)
        names = tuple(f"{camera}/{name}" for name in seen.names)
        dataclasses.replace(seen, names=names, model="one").save(file)
        assert run("gallery", "add", tmp_path / "gallery", file) == 0
    ours, expected = tmp_path / "ours.csv", tmp_path / "expected.csv"
    assert run("gallery", "cluster", tmp_path / "gallery", "--threshold", 0.5, "--out", ours) == 0
    assert "17 tracklets" in capsys.readouterr().out
    assert run("cluster", *files, "--threshold", 0.5, "--out", expected) == 0
    labels = [{row["name"]: row["label"] for row in read(path)} for path in (ours, expected)]
    assert labels[0] == labels[1]
    assert len(labels[0]) == 17


def test_a_gallery_that_is_not_there_is_one_line(tmp_path, capsys):
    arguments = ("--threshold", 0.5, "--out", tmp_path / "people.csv")
    assert run("gallery", "cluster", tmp_path / "nothing", *arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothing" in line
    assert not (tmp_path / "people.csv").exists()
