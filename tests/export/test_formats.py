"""Every format gives the model's embeddings and says how it is used."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.exports import (
    ROOT,
    SHAPES,
    SMALL,
    cosines,
    embed,
    need_onnx,
    onnx,
    pixels,
    seeded,
)
from tfclip.data import model_fingerprint
from tfclip.errors import ExportError
from tfclip.export import ExportedModel, export_model, parity
from tfclip.export.graph import trace
from tfclip.preprocess import Preprocess

# --- tracing -------------------------------------------------------------------------------------


TRACED: dict[str, dict[str, Any]] = {
    "tmd": {},
    "tmd with positions": {"temporal_position": True},
    "tmc": {"temporal_head": "tmc"},
    "average": {"temporal_head": "average"},
    "convolution": {"temporal_head": "convolution"},
    "transformer": {"temporal_head": "transformer"},
    "transformer_token": {"temporal_head": "transformer_token", "clip_length": 16},
    "clips of two": {"temporal_head": "transformer_token", "clip_length": 2},
    "clips of one": {"temporal_head": "transformer_token", "clip_length": 1},
    "neck": {"neck": "after"},
    "mean camera": {"num_cameras": 3, "unknown_camera": "mean"},
    "ResNet": {
        "backbone": "RN50",
        "backbone_options": {"width": 8, "layers": [1, 1, 1, 1], "heads": 4, "output_dim": 32},
        "temporal_heads": 4,
    },
    "timm": {
        "backbone": "timm:vit_tiny_patch16_224",
        "backbone_options": {"depth": 1},
        "num_cameras": 2,
    },
    "timm without a class token": {
        "backbone": "timm:vit_base_patch16_siglip_224",
        "backbone_options": {"depth": 1, "embed_dim": 64, "num_heads": 2},
    },
}


@pytest.mark.parametrize("changes", TRACED.values(), ids=TRACED)
def test_one_trace_holds_for_every_number_of_clips_and_frames(changes: dict[str, Any]):
    model = seeded(**changes)
    program: Any = trace(model, precision="float32", pixels="uint8", camera_input=False).module()
    longest = model.temporal.max_frames or 16
    for batch, frames in SHAPES:
        clips = pixels(batch, min(frames, longest))
        got = program(torch.from_numpy(clips)).numpy()
        np.testing.assert_allclose(got, embed(model, clips), rtol=0, atol=5e-6)


def test_tracing_leaves_the_model_and_torch_as_they_were():
    model = seeded(num_cameras=3).train()
    before = model_fingerprint(model), torch.backends.mha.get_fastpath_enabled()
    trace(model, precision="bfloat16", pixels="uint8", camera_input=True)
    assert before == (model_fingerprint(model), torch.backends.mha.get_fastpath_enabled())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_cannot_be_traced_is_refused_by_its_name(monkeypatch):
    model = seeded()
    forward = model.temporal.forward

    def chooses(tokens, projected, frame_mask=None):  # what a trace cannot hold
        return forward(tokens, projected) * (2 if tokens.sum() > 0 else 1)

    monkeypatch.setattr(model.temporal, "forward", chooses)
    with pytest.raises(ExportError, match=r"'ViT-B-16' with the temporal head 'tmd' cannot be"):
        trace(model, precision="float32", pixels="uint8", camera_input=False)


# --- formats -------------------------------------------------------------------------------------


FORMATS: dict[str, tuple[str, dict[str, Any], float]] = {
    "torch": (".pt2", {}, 0.999999),
    "torch bfloat16": (".pt2", {"precision": "bfloat16"}, 0.999),
    "onnx": (".onnx", {"opset": 18, "pixels": "normalized"}, 0.999999),
    "onnx float16": (".onnx", {"precision": "float16"}, 0.99999),
    "onnx int8": (".onnx", {"quantize": "int8"}, 0.999),
    "openvino": (".xml", {}, 0.999999),
    "openvino bfloat16": (".xml", {"precision": "bfloat16"}, 0.999),
    "openvino int8": (".xml", {"quantize": "int8"}, 0.999),
}


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "options", "least"), FORMATS.values(), ids=FORMATS)
@pytest.mark.usefixtures("quick_gate")
def test_every_format_gives_the_models_embeddings(suffix, options, least, tmp_path):
    if suffix == ".xml":
        pytest.importorskip("openvino")
    if suffix == ".onnx":
        need_onnx()
    sizes = {**SMALL["backbone_options"], "layers": 1}
    model = seeded(backbone_options=sizes, num_cameras=3, unknown_camera="mean")
    path = tmp_path / f"model{suffix}"
    report = export_model(model, path, camera_input=True, **options)
    exported = ExportedModel(path)
    assert exported.description == report.description
    for batch, frames in SHAPES:
        clips = pixels(batch, frames)
        cameras = np.arange(batch) % 4 - 1
        given = clips
        if options.get("pixels") == "normalized":
            given = Preprocess(model.config).normalize(torch.from_numpy(clips)).numpy()
        assert cosines(exported(given, cameras), embed(model, clips, cameras)).min() >= least
        assert cosines(exported(given), embed(model, clips)).min() >= least
    names = {"model.xml", "model.bin"} if suffix == ".xml" else {f"model{suffix}"}
    assert {file.name for file in tmp_path.iterdir()} == names | {f"model{suffix}.json"}


@pytest.mark.slow
def test_reduced_files_are_smaller(onnx_file, tiny, folder):
    small = folder / "int8.onnx"
    report = export_model(tiny, small, quantize="int8")
    assert report.least_cosine == 0.999
    assert small.stat().st_size < 0.4 * onnx_file.stat().st_size
    types = {node.op_type for node in onnx.load_model(small).graph.node}
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= types


@pytest.mark.slow
@pytest.mark.usefixtures("quick_gate")
def test_cameras_that_are_not_known_are_part_of_a_graph_without_an_input(tmp_path):
    known = pixels(2, 3)
    for unknown in ("zero", "mean"):
        model = seeded(num_cameras=3, unknown_camera=unknown)
        with torch.no_grad():
            assert model.camera_embedding is not None
            model.camera_embedding.add_(1)  # so that its mean is not nearly nothing
        export_model(model, tmp_path / "model.pt2")
        exported = ExportedModel(tmp_path / "model.pt2")
        np.testing.assert_allclose(exported(known), embed(model, known), rtol=0, atol=5e-6)
        with pytest.raises(ValueError, match="cameras must be None for a model exported without"):
            exported(known, np.zeros(2, dtype=np.int64))


# --- what the file says --------------------------------------------------------------------------


def test_an_onnx_file_names_its_axes_and_describes_itself(onnx_file, tiny):
    model = onnx.load_model(onnx_file)
    onnx.checker.check_model(model, full_check=True)
    (frames,), (embedding,) = model.graph.input, model.graph.output
    sizes = [axis.dim_param or axis.dim_value for axis in frames.type.tensor_type.shape.dim]
    assert (frames.name, sizes) == ("frames", ["batch", "frames", 3, 64, 32])
    assert frames.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sizes = [axis.dim_param or axis.dim_value for axis in embedding.type.tensor_type.shape.dim]
    assert (embedding.name, sizes) == ("embedding", ["batch", tiny.embedding_dim])
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    (about,) = [json.loads(p.value) for p in model.metadata_props if p.key == "tfclip"]
    assert about["model"] == "tfclip-tiny"
    assert about["fingerprint"] == model_fingerprint(tiny)
    assert about["frames"]["mean"] == list(tiny.config.mean)
    assert about["frames"]["std"] == list(tiny.config.std)
    assert about["frames"]["resize"] == tiny.config.interpolation
    assert (about["frames"]["colors"], about["frames"]["value_range"]) == ("RGB", [0, 255])
    assert about["embedding"] == {
        "width": 352,
        "parts": {"appearance": 128, "projected": 96, "temporal": 128},
        "normalized": False,
    }
    assert about["tracklet"]["clip_length"] == tiny.config.clip_length


def test_a_file_tells_nothing_of_where_it_was_made(onnx_file):
    content = onnx_file.read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content
    assert b".py" not in content


def test_the_report_beside_it_tells_shapes_agreement_latency_and_versions(onnx_file):
    report = json.loads(onnx_file.with_name("tiny.onnx.json").read_text())
    tried = {(trial["kind"], trial["clips"], trial["frames"]) for trial in report["trials"]}
    assert tried == {(kind, *shape) for kind in ("drawn", "random") for shape in parity.SHAPES}
    assert report["cosine"] == min(trial["cosine"] for trial in report["trials"])
    assert report["difference"] == max(trial["difference"] for trial in report["trials"])
    assert report["least_cosine"] == 0.9999
    assert 0.9999 < report["cosine"] < 1.00001
    assert 0 < report["nearest_others"] < 0.999
    assert report["latency"]["torch"] > 0
    assert report["latency"]["exported"] > 0
    assert report["latency"]["frames"] == 8
    assert report["size"] == onnx_file.stat().st_size
    assert report["versions"]["torch"] == torch.__version__
    assert {"python", "tfclip", "onnx", "onnxruntime"} <= set(report["versions"])
    assert report["machine"]["cores"] == os.cpu_count()
