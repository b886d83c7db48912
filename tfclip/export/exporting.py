"""Writing an export: checked options, a file aside, the gate, and only then a rename."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.torch_version import TorchVersion

from tfclip.data.embeddings import model_fingerprint
from tfclip.errors import ExportError, SaveError
from tfclip.export.description import describe
from tfclip.export.formats import openvino_properties, write_onnx, write_openvino, write_torch
from tfclip.export.graph import Pixels, Precision, trace
from tfclip.export.parity import ParityReport, check_parity, machine, measure_latency, versions
from tfclip.export.runtimes import SUFFIXES, ExportedModel, import_extra, quiet_openvino
from tfclip.files import check_file, replace_when_done
from tfclip.model import TFCLIP

Format = Literal["torch", "onnx", "openvino"]

OPSET = 20
"""Version of ONNX's operators, unless said otherwise."""

ONNX_TORCH = "2.7"
"""The first torch that writes ONNX files of these models."""

_PRECISIONS: dict[str, tuple[str, ...]] = {
    "torch": ("float32", "bfloat16"),
    "onnx": ("float32", "float16"),
    "openvino": ("float32", "bfloat16"),
}
_LEAST_COSINE = {"float32": 0.9999, "reduced": 0.999}
_MAX_ONNX_BYTES = 2**31 - 2**20  # one file of protobuf cannot be larger; a margin for the graph


def export_model(
    model: TFCLIP,
    path: str | Path,
    *,
    format: Format | None = None,
    precision: Precision = "float32",
    quantize: Literal["int8"] | None = None,
    pixels: Pixels = "uint8",
    camera_input: bool = False,
    opset: int = OPSET,
    min_cosine: float | None = None,
    model_name: str = "",
    fingerprint: str | None = None,
) -> ParityReport:
    """Write a model as one file that other programs run, if its embeddings are the model's.

    The file is written aside, run on drawn people and random pixels in several shapes beside the
    model in float32, and takes its place only when every embedding agrees. Whatever stood at
    ``path`` stays when it does not. What the comparison found is written to ``path`` + ``.json``.

    Args:
        model: The model; neither its mode nor its device nor its type changes.
        path: Where to: ``.pt2``, ``.onnx`` or ``.xml``, which gets a ``.bin`` beside it.
        format: ``"torch"``, ``"onnx"`` or ``"openvino"``; None is what the suffix of ``path`` says.
        precision: ``"float32"``; ``"bfloat16"`` for torch and OpenVINO; ``"float16"`` for ONNX,
            where it is how weights are stored and the arithmetic stays float32.
        quantize: ``"int8"`` for ONNX and OpenVINO: linear layers multiply numbers of 8 bits.
        pixels: What goes in: ``"uint8"`` RGB, or ``"normalized"`` float32 as ``TFCLIP.forward``.
        camera_input: Add an input for cameras; without it, all are not known
            (``config.unknown_camera``).
        opset: Version of ONNX's operators, at least 18; 23 has attention as one of them.
        min_cosine: The least cosine between an embedding and the model's; None is 0.9999 for
            float32 and 0.999 for all else.
        model_name: What the file calls the model.
        fingerprint: ``model_fingerprint`` of the weights as they were saved; None takes it of
            ``model``.

    Returns:
        What the comparison found.

    Raises:
        ExportError: torch cannot trace the model or is too old for ONNX, the format cannot hold
            the model, or the embeddings differ.
        SaveError: The file cannot be written.
        MissingExtraError: The extra ``export`` is not installed.
        ValueError: An argument is wrong, or two do not go together.
        TypeError: ``model`` is no ``TFCLIP``.

    Example:
        >>> import tempfile
        >>> from tfclip import TFCLIP
        >>> folder = tempfile.TemporaryDirectory()
        >>> model = TFCLIP.from_pretrained("tfclip-tiny")
        >>> report = export_model(model, f"{folder.name}/tiny.pt2")
        >>> report.cosine > 0.9999, len(report.trials)
        (True, 10)
        >>> folder.cleanup()
    """
    if not isinstance(model, TFCLIP):
        raise TypeError(f"model must be a TFCLIP, got {type(model).__name__}")
    path = Path(path)
    format = _format_of(path, format)
    _check_options(model, format, precision, quantize, pixels, camera_input, opset, min_cosine)
    check_file(path)
    _check_extra(format, quantize)
    _check_size(model, format, precision)
    reduced = precision != "float32" or quantize is not None
    least = _LEAST_COSINE["reduced" if reduced else "float32"] if min_cosine is None else min_cosine
    description = describe(
        model,
        model_name=model_name,
        fingerprint=fingerprint or model_fingerprint(model),
        pixels=pixels,
        camera_input=camera_input,
        precision=precision,
        quantize=quantize,
        properties=openvino_properties(precision, quantize) if format == "openvino" else {},
    )
    if format == "onnx":
        description["opset"] = opset
    program = trace(
        model,
        # OpenVINO computes in bfloat16, and ONNX stores float16, from a graph that is float32.
        precision=precision if format == "torch" else "float32",
        pixels=pixels,
        camera_input=camera_input,
    )
    reference = copy.deepcopy(model).to("cpu", torch.float32).eval()
    reference.quantize_dynamic(False)
    with _folder_beside(path) as folder:
        file = folder / f"model{SUFFIXES[format]}"
        _write(program, file, description)
        report = _compare(reference, file, path, least)
        _put_in_place(file, path, report)
    return report


def _compare(reference: TFCLIP, file: Path, path: Path, least_cosine: float) -> ParityReport:
    """Open a new file, which is held open no longer than this, and compare it with its model."""
    exported = ExportedModel(file)
    trials, nearest = check_parity(reference, exported, least_cosine=least_cosine, name=str(path))
    return ParityReport(
        path=path.name,
        description=exported.description,
        least_cosine=least_cosine,
        cosine=min(trial.cosine for trial in trials),
        difference=max(trial.difference for trial in trials),
        nearest_others=nearest,
        trials=trials,
        latency=measure_latency(reference, exported, torch.get_num_threads()),
        size=sum(part.stat().st_size for part in file.parent.iterdir()),
        versions=versions(),
        machine=machine(),
    )


def _write(program: Any, path: Path, description: dict[str, Any]) -> None:
    """Write a program in the format of the suffix."""
    if path.suffix == ".onnx":
        write_onnx(program, path, description, opset=description["opset"])
    elif path.suffix == ".xml":
        write_openvino(program, path, description)
    else:
        write_torch(program, path, description)


def _put_in_place(file: Path, path: Path, report: ParityReport) -> None:
    """Rename a checked file, and what belongs to it, to where it was asked for."""
    with contextlib.ExitStack() as stack:  # closes, that is renames, in the opposite order
        file.replace(stack.enter_context(replace_when_done(path)))
        text = json.dumps(report.to_dict(), indent=2) + "\n"
        stack.enter_context(replace_when_done(_report_path(path))).write_text(text, "utf-8")
        weights = file.with_suffix(".bin")
        if weights.exists():
            weights.replace(stack.enter_context(replace_when_done(path.with_suffix(".bin"))))
            path.unlink(missing_ok=True)  # never an old graph beside new weights


def _report_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Give a folder on the same disk, which is gone afterwards with all that is in it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
            yield Path(folder)
    except SaveError:
        raise
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from error


def _format_of(path: Path, format: str | None) -> Format:
    by_suffix: dict[str, Format] = {".pt2": "torch", ".onnx": "onnx", ".xml": "openvino"}
    if format is not None and format not in get_args(Format):
        raise ValueError(f"format must be one of {get_args(Format)}, got {format!r}")
    if path.suffix not in by_suffix or format not in (None, by_suffix[path.suffix]):
        wanted = [SUFFIXES[format]] if format else list(by_suffix)
        raise ValueError(f"path must end in {' or '.join(wanted)}, got {str(path)!r}")
    return by_suffix[path.suffix]


def _check_options(
    model: TFCLIP,
    format: Format,
    precision: str,
    quantize: str | None,
    pixels: str,
    camera_input: bool,
    opset: int,
    min_cosine: float | None,
) -> None:
    if precision not in _PRECISIONS[format]:
        raise ValueError(
            f"precision must be one of {_PRECISIONS[format]} for format {format!r}, "
            f"got {precision!r}"
        )
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize must be None or 'int8', got {quantize!r}")
    if quantize and (format == "torch" or precision != "float32"):
        raise ValueError(
            "quantize='int8' is for the formats 'onnx' and 'openvino' with precision 'float32', "
            f"got format {format!r} and precision {precision!r}"
        )
    if pixels not in get_args(Pixels):
        raise ValueError(f"pixels must be one of {get_args(Pixels)}, got {pixels!r}")
    if camera_input and not model.config.num_cameras:
        raise ValueError(
            "camera_input must be False for a model without a camera table (num_cameras 0), "
            "got True"
        )
    if not isinstance(opset, int) or opset < 18:
        raise ValueError(f"opset must be a whole number from 18 on, got {opset!r}")
    if min_cosine is not None and not -1 <= min_cosine <= 1:
        raise ValueError(f"min_cosine must be from -1 to 1, got {min_cosine}")


def _check_extra(format: Format, quantize: str | None) -> None:
    """Refuse, before any work, a format whose packages are not installed."""
    if format == "openvino":
        with quiet_openvino():
            return
    if format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            import_extra(name)
        _check_torch()


def _check_torch() -> None:
    """Refuse a torch whose ONNX exporter fails on products of matrices with sizes that vary."""
    if TorchVersion(torch.__version__) < ONNX_TORCH:
        raise ExportError(
            f"format 'onnx' needs torch {ONNX_TORCH} or newer, got {torch.__version__}; "
            "formats 'torch' and 'openvino' do not"
        )


def _check_size(model: TFCLIP, format: Format, precision: str) -> None:
    """Refuse an ONNX file that could not be one file."""
    if format != "onnx":
        return
    # Even where weights are stored in fewer bits, the exporter makes a model of float32 first.
    size = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    if size > _MAX_ONNX_BYTES:
        raise ExportError(
            f"an ONNX file must stay below 2 GiB, and the weights alone are {size / 2**30:.1f}; "
            "format 'openvino' has no such limit"
        )
