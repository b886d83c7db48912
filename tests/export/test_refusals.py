"""What cannot be exported or opened is refused in one sentence."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.exports import need_onnx, onnx, pixels
from tfclip.errors import ExportError, MissingExtraError, SaveError
from tfclip.export import ExportedModel, export_model, exporting


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("m.bin", {}, r"path must end in \.pt2 or \.onnx or \.xml, got"),
        ("m.onnx", {"format": "torch"}, r"path must end in \.pt2, got"),
        ("m.onnx", {"format": "tensorrt"}, "format must be one of .*, got 'tensorrt'"),
        ("m.onnx", {"precision": "bfloat16"}, r"precision must be one of \('float32', 'float16'\)"),
        ("m.pt2", {"precision": "float16"}, "precision must be one of .* for format 'torch'"),
        ("m.pt2", {"quantize": "int8"}, "quantize='int8' is for the formats 'onnx' and"),
        ("m.xml", {"quantize": "int8", "precision": "bfloat16"}, "got format 'openvino' and"),
        ("m.onnx", {"quantize": "int4"}, "quantize must be None or 'int8', got 'int4'"),
        ("m.onnx", {"pixels": "bgr"}, "pixels must be one of .*, got 'bgr'"),
        ("m.onnx", {"camera_input": True}, "camera_input must be False for a model without"),
        ("m.onnx", {"opset": 11}, "opset must be a whole number from 18 on, got 11"),
        ("m.onnx", {"min_cosine": 1.5}, "min_cosine must be from -1 to 1, got 1.5"),
    ],
)
def test_bad_options_are_refused_before_any_work(tiny, tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        export_model(tiny, tmp_path / "new" / name, **options)
    assert not (tmp_path / "new").exists()


def test_a_place_where_nothing_can_be_written_is_refused_before_any_work(tiny, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(SaveError, match="is not a folder"):
        export_model(tiny, tmp_path / "file" / "model.onnx")
    with pytest.raises(SaveError, match="it is a folder"):
        export_model(tiny, tmp_path / "folder.onnx")


def test_what_is_no_model_is_refused(tmp_path):
    wrong: Any = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match="model must be a TFCLIP, got Linear"):
        export_model(wrong, tmp_path / "model.onnx")


def test_a_torch_too_old_for_onnx_is_refused_before_any_work(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")
    monkeypatch.setattr(exporting, "trace", None)  # would be called next
    with pytest.raises(ExportError, match=r"'onnx' needs torch 2\.7 or newer, got 2\.6\.0\+cpu;"):
        export_model(tiny, tmp_path / "new" / "model.onnx")
    assert not (tmp_path / "new").exists()


def test_weights_that_one_onnx_file_cannot_hold_are_refused(tiny, tmp_path, monkeypatch):
    need_onnx()
    monkeypatch.setattr(exporting, "_MAX_ONNX_BYTES", 10**6)
    with pytest.raises(ExportError, match="an ONNX file must stay below 2 GiB"):
        export_model(tiny, tmp_path / "model.onnx")


@pytest.mark.parametrize(("suffix", "package"), [(".onnx", "onnxscript"), (".xml", "openvino")])
def test_a_missing_extra_is_one_sentence(tiny, tmp_path, monkeypatch, suffix, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"exporting needs {package}; install it with: pip install 'tfclip\[export\]'"
    with pytest.raises(MissingExtraError, match=message):
        export_model(tiny, tmp_path / f"model{suffix}")


def test_files_that_are_no_exports_are_refused(tmp_path, onnx_file):
    with pytest.raises(ExportError, match="there is no exported model"):
        ExportedModel(tmp_path / "nothing.onnx")
    with pytest.raises(ExportError, match=r"must end in one of \.pt2, \.onnx, \.xml"):
        ExportedModel(tmp_path / "model.pth")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(onnx_file.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"damaged\.onnx cannot be opened"):
        ExportedModel(damaged)
    model = onnx.load_model(onnx_file)
    del model.metadata_props[:]
    onnx.save_model(model, tmp_path / "foreign.onnx")
    with pytest.raises(ExportError, match=r"foreign\.onnx was not made by tfclip"):
        ExportedModel(tmp_path / "foreign.onnx")
    for text in ("{", "[1]", "{}", '{"format_version": "1"}', "[" * 100_000):
        onnx.helper.set_model_props(model, {"tfclip": text})
        onnx.save_model(model, tmp_path / "strange.onnx")
        with pytest.raises(ExportError, match=r"strange\.onnx says what no tfclip writes"):
            ExportedModel(tmp_path / "strange.onnx")


def test_frames_of_another_type_or_shape_are_refused(onnx_file):
    exported = ExportedModel(onnx_file, threads=1)
    for frames in (pixels(1, 2).astype(np.float32), pixels(1, 2)[0], pixels(1, 2, (32, 64))):
        with pytest.raises(ValueError, match=r"frames must be \(B, T, 3, H, W\) uint8 with"):
            exported(frames)
