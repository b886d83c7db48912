"""Exports as others use them: the small consumer, the command, OpenVINO."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.export.exports import ROOT, damage_onnx, need_onnx, pixels, seeded
from tfclip import TFCLIP
from tfclip.cli import main
from tfclip.data import model_fingerprint
from tfclip.export import ExportedModel, export_model

CONSUMER = ROOT / "examples" / "consume_onnx.py"


# --- consumers -----------------------------------------------------------------------------------


def consume(*arguments: Path) -> np.ndarray:
    done = subprocess.run(
        [sys.executable, CONSUMER, *arguments], capture_output=True, text=True, check=True
    )
    return np.array(json.loads(done.stdout))


@pytest.mark.parametrize("length", [1, 19])
def test_the_small_consumer_gives_encode_sequences_embedding(tiny, onnx_file, tmp_path, length):
    frames = pixels(1, length)[0].transpose(0, 2, 3, 1)
    np.save(tmp_path / "crops.npy", frames)
    expected = tiny.encode_sequence(frames)
    np.testing.assert_allclose(
        consume(onnx_file, tmp_path / "crops.npy"), expected, rtol=0, atol=1e-5
    )


def test_the_small_consumer_resizes_images_as_the_model_does(tiny, onnx_file, tmp_path):
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{i:02d}.png" for i in range(3)]
    for path in paths:
        low = Image.fromarray(random.integers(0, 256, (9, 5, 3), dtype=np.uint8))
        low.resize((50, 90), Image.Resampling.BICUBIC).save(path)
    expected = tiny.encode_sequence(paths)
    np.testing.assert_allclose(consume(onnx_file, *paths), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_gate")
def test_the_small_consumer_can_normalise_and_knows_no_camera(tmp_path):
    need_onnx()
    model = seeded(num_cameras=3, unknown_camera="mean")
    export_model(model, tmp_path / "m.onnx", pixels="normalized", camera_input=True)
    frames = pixels(1, 6)[0].transpose(0, 2, 3, 1)
    np.save(tmp_path / "crops.npy", frames)
    got = consume(tmp_path / "m.onnx", tmp_path / "crops.npy")
    np.testing.assert_allclose(got, model.encode_sequence(frames), rtol=0, atol=1e-5)


def test_the_small_consumer_is_small_and_needs_neither_torch_nor_tfclip():
    text = CONSUMER.read_text()
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE))
    assert imported == {"json", "sys", "numpy", "onnxruntime", "PIL"}
    code = text.split('"""')[2].splitlines()
    steps = [line for line in code if line.strip() and not re.match(r"\s*(import|from) ", line)]
    assert len(steps) <= 23


# --- command line --------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_gate")
def test_the_command_writes_the_bundled_model_and_says_how_well_it_agrees(tmp_path, capsys):
    path = tmp_path / "person.pt2"
    assert main(["export", str(path)]) == 0
    assert re.search(
        r"person\.pt2: \d+\.\d MB; worst cosine 1\.000000 in \d+", capsys.readouterr().out
    )
    about = ExportedModel(path).description
    tiny = TFCLIP.from_pretrained("tfclip-tiny")
    assert (about["model"], about["fingerprint"]) == ("tfclip-tiny", model_fingerprint(tiny))


@pytest.mark.slow
def test_the_command_reports_wrong_usage_and_refused_files(tmp_path, capsys, damaged):
    need_onnx()
    for arguments in (["m.xyz"], ["m.pt2", "--quantize", "int8"], ["m.onnx", "--cameras"]):
        with pytest.raises(SystemExit) as caught:
            main(["export", *arguments])
        assert caught.value.code == 2
    damaged(damage_onnx)
    capsys.readouterr()
    assert main(["export", str(tmp_path / "m.onnx")]) == 1
    assert re.match(r"tfclip: .*m\.onnx is not written: its emb", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


# --- OpenVINO ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_openvino_reports_to_nobody(tmp_path):
    """Importing OpenVINO alone would make a folder in the home directory and open a connection."""
    pytest.importorskip("openvino")
    code = (
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'): raise SystemExit(event)\n"
        "sys.addaudithook(refuse)\n"
        "from tfclip import TFCLIP\n"
        "from tfclip.export import export_model\n"
        "export_model(TFCLIP.from_pretrained('tfclip-tiny'), sys.argv[1])\n"
        "assert 'openvino' in sys.modules and 'openvino_telemetry' not in sys.modules\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code, tmp_path / "model.xml"],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert (tmp_path / "model.bin").exists()
    assert not (home / "intel").exists()
