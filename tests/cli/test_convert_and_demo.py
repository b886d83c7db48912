"""``tfclip convert`` and ``tfclip demo``."""

import pytest
import torch

from tests.cli.commands import run, width_of
from tests.traps import full_disk
from tfclip import TFCLIP
from tfclip.data import EmbeddingTable


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
