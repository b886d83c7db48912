"""``tfclip encode``: what is finished stays when a run ends early, and is taken up again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.commands import LAYOUT, ROOT, draw_frames, run
from tests.traps import full_disk
from tfclip import TFCLIP, jobs
from tfclip.data import EmbeddingTable


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
