"""``tfclip search``: what it prints, draws and refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.commands import ROOT, run, usage_error, width_of
from tests.traps import full_disk
from tfclip.data import EmbeddingTable


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
