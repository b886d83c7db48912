"""Exports give the model's embeddings, say how they are used, and are refused when damaged."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tfclip import TFCLIP, TFCLIPConfig
from tfclip.cli import main
from tfclip.data import model_fingerprint
from tfclip.errors import ExportError, MissingExtraError, SaveError
from tfclip.export import ExportedModel, export_model, exporting, formats, parity
from tfclip.export.graph import trace
from tfclip.preprocess import Preprocess

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[1]
CONSUMER = ROOT / "examples" / "consume_onnx.py"
SMALL: dict[str, Any] = {
    "backbone_options": {"width": 64, "layers": 2, "heads": 2, "output_dim": 32},
    "frame_size": (64, 32),
    "clip_length": 4,
}
SHAPES = ((1, 1), (1, 7), (2, 8), (3, 16), (4, 2))


def seeded(**changes: Any) -> TFCLIP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TFCLIP(TFCLIPConfig(**{**SMALL, **changes})).eval()


def pixels(batch: int, frames: int, size: tuple[int, int] = (64, 32), seed: int = 0) -> np.ndarray:
    random = np.random.default_rng([seed, batch, frames])
    return random.integers(0, 256, (batch, frames, 3, *size), dtype=np.uint8)


def embed(model: TFCLIP, frames: np.ndarray, cameras: np.ndarray | None = None) -> np.ndarray:
    """Return the embeddings of pixels by the model's own forward."""
    with torch.inference_mode():
        normalised = Preprocess(model.config).normalize(torch.from_numpy(frames))
        numbers = None if cameras is None else torch.from_numpy(cameras)
        return model(normalised, numbers).embedding.numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture(scope="module")
def tiny() -> TFCLIP:
    return TFCLIP.from_pretrained("tfclip-tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def onnx_file(tiny: TFCLIP, folder: Path) -> Path:
    export_model(tiny, folder / "tiny.onnx", model_name="tfclip-tiny")
    return folder / "tiny.onnx"


@pytest.fixture
def quick_gate(monkeypatch) -> None:
    """Fewer shapes, where the gate is not what is tested."""
    monkeypatch.setattr(parity, "SHAPES", ((1, 1), (3, 2)))
    monkeypatch.setattr(parity, "ROUNDS", 1)


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


# --- the gate ------------------------------------------------------------------------------------


def damage_onnx(path: Path) -> None:
    """Add noise of a tenth of its spread to one matrix."""
    model = onnx.load_model(path)
    matrices = [t for t in model.graph.initializer if len(t.dims) == 2 and min(t.dims) >= 32]
    tensor = max(matrices, key=lambda tensor: tensor.dims[0] * tensor.dims[1])
    values = onnx.numpy_helper.to_array(tensor)
    noise = np.random.default_rng(0).normal(0, values.std() / 2, values.shape)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values + noise.astype(np.float32), tensor.name))
    onnx.save_model(model, path)


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


def test_the_gate_refuses_weights_that_changed_after_the_export(tiny, tmp_path, damaged):
    damaged(damage_onnx)
    path = tmp_path / "model.onnx"
    path.write_text("what stood there before")
    with pytest.raises(ExportError, match=r"model\.onnx is not written: .*less than 0\.9999 \("):
        export_model(tiny, path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "what stood there before"


@pytest.mark.slow
def test_a_lesser_cosine_can_be_accepted_by_hand(tiny, tmp_path, damaged):
    damaged(damage_onnx)
    report = export_model(tiny, tmp_path / "model.onnx", min_cosine=0.5)
    assert 0.5 <= report.cosine < 0.9999
    assert report.least_cosine == 0.5
    assert (tmp_path / "model.onnx").exists()


class Faulty:
    """An export that answers what it is told to."""

    def __init__(self, model: TFCLIP, answer):
        self.description = {"cameras": {"input": False}, "frames": {"normalize": False}}
        self.model, self.answer = model, answer

    def __call__(self, frames, cameras=None):
        return self.answer(embed(self.model, frames))


def gate(model, answer, least_cosine):
    exported: Any = Faulty(model, answer)
    return parity.check_parity(model, exported, least_cosine=least_cosine, name="model.onnx")


def test_the_gate_passes_what_is_equal(tiny):
    trials, nearest = gate(tiny, lambda embedding: embedding, 0.9999)
    assert min(trial.cosine for trial in trials) == pytest.approx(1, abs=1e-6)
    assert max(trial.difference for trial in trials) < 1e-6
    assert nearest < 0.999


def test_the_gate_refuses_answers_that_are_always_the_same_however_alike_people_are(tiny):
    constant = embed(tiny, pixels(1, 8))[0]
    with pytest.raises(ExportError, match="8 of 9 drawn people are nearer to another"):
        gate(tiny, lambda embedding: np.tile(constant, (len(embedding), 1)), -1)


def test_the_gate_refuses_answers_in_another_order(tiny):
    with pytest.raises(ExportError, match="its embeddings are not the model's"):
        gate(tiny, lambda embedding: embedding[::-1].copy(), 0.9999)


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_the_gate_refuses_what_is_no_direction(tiny, value):
    with pytest.raises(ExportError, match="its embeddings are not the model's"):
        gate(tiny, lambda embedding: np.full_like(embedding, value), 0.9999)


def test_frames_normalised_twice_do_not_pass(tiny):
    """The commonest mistake of those who use exports: the gate would have seen it."""

    class Twice(Faulty):
        def __call__(self, frames, cameras=None):
            normalised = Preprocess(tiny.config).normalize(torch.from_numpy(frames))
            with torch.inference_mode():
                again = Preprocess(tiny.config).normalize((normalised * 255).to(torch.uint8))
                return tiny(again).embedding.numpy()

    exported: Any = Twice(tiny, None)
    with pytest.raises(ExportError, match="its embeddings are not the model's"):
        parity.check_parity(tiny, exported, least_cosine=0.9999, name="model.onnx")


# --- bad input -----------------------------------------------------------------------------------


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


def test_weights_that_one_onnx_file_cannot_hold_are_refused(tiny, tmp_path, monkeypatch):
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


def test_frames_of_another_type_or_shape_are_refused(onnx_file):
    exported = ExportedModel(onnx_file, threads=1)
    for frames in (pixels(1, 2).astype(np.float32), pixels(1, 2)[0], pixels(1, 2, (32, 64))):
        with pytest.raises(ValueError, match=r"frames must be \(B, T, 3, H, W\) uint8 with"):
            exported(frames)


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
