"""The bundled model, exported once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.exports import need_onnx
from tfclip import TFCLIP
from tfclip.export import export_model, exporting, formats, parity


@pytest.fixture(scope="module")
def tiny() -> TFCLIP:
    return TFCLIP.from_pretrained("tfclip-tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def onnx_file(tiny: TFCLIP, folder: Path) -> Path:
    need_onnx()
    export_model(tiny, folder / "tiny.onnx", model_name="tfclip-tiny")
    return folder / "tiny.onnx"


@pytest.fixture
def quick_gate(monkeypatch) -> None:
    """Fewer shapes, where the gate is not what is tested."""
    monkeypatch.setattr(parity, "SHAPES", ((1, 1), (3, 2)))
    monkeypatch.setattr(parity, "ROUNDS", 1)


@pytest.fixture
def damaged(monkeypatch):
    """Let something happen to every ONNX file between its writing and the gate."""

    def arrange(harm) -> None:
        write = formats.write_onnx

        def write_damaged(program, path, description, *, opset):
            write(program, path, description, opset=opset)
            harm(path)

        monkeypatch.setattr(exporting, "write_onnx", write_damaged)

    return arrange
