"""Exported models run: one callable for the three formats, as a consumer would run them."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch

from tfclip.errors import ExportError, MissingExtraError
from tfclip.export.description import FORMAT_VERSION, KEY
from tfclip.untrusted import first_line, one_line, parse_json

Run = Callable[[dict[str, np.ndarray]], np.ndarray]

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx", "openvino": ".xml"}


class ExportedModel:
    """An exported model, ready to run on the processor.

    Args:
        path: A ``.pt2``, ``.onnx`` or ``.xml`` (with its ``.bin`` beside it) of ``export_model``.
        threads: Threads to compute with; None is ``torch.get_num_threads()``. torch has one number
            for the whole process, which is not changed.

    Attributes:
        description: What the file says about itself; see ``docs/export.md``.

    Raises:
        ExportError: The file is missing, damaged or none of ours.
        MissingExtraError: Its runtime is not installed.
    """

    description: dict[str, Any]

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        path = Path(path)
        openers = {".pt2": _open_torch, ".onnx": _open_onnx, ".xml": _open_openvino}
        if path.suffix not in openers:
            raise ExportError(f"{path} must end in one of {', '.join(openers)}")
        if not path.is_file():
            raise ExportError(f"there is no exported model {path}")
        try:
            text, self._run = openers[path.suffix](path, threads or torch.get_num_threads())
        except MissingExtraError:
            raise
        except Exception as error:  # each runtime has exceptions of its own
            raise ExportError(f"{path} cannot be opened: {first_line(error)}") from error
        self.description = _read_description(path, text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an ExportedModel cannot be pickled; open its file in each process")

    def __call__(self, frames: np.ndarray, cameras: np.ndarray | None = None) -> np.ndarray:
        """Return the embeddings of clips, ``(B, F)`` float32, not normalised.

        Args:
            frames: ``(B, T, 3, H, W)``, as ``description["frames"]`` says.
            cameras: ``(B,)`` whole numbers, -1 where not known, for a model exported with cameras
                as an input; None is not known for all.

        Raises:
            ValueError: The shape or type of the frames is wrong, or there is no input for cameras.
        """
        self._check(frames, cameras)
        inputs = {"frames": np.ascontiguousarray(frames)}
        if self.description["cameras"]["input"]:
            unknown = np.full(len(frames), -1)
            inputs["cameras"] = np.asarray(unknown if cameras is None else cameras, dtype=np.int64)
        return self._run(inputs)

    def _check(self, frames: np.ndarray, cameras: np.ndarray | None) -> None:
        wanted = self.description["frames"]
        size = (3, wanted["height"], wanted["width"])
        if frames.ndim != 5 or frames.shape[2:] != size or frames.dtype != wanted["dtype"]:
            raise ValueError(
                f"frames must be (B, T, 3, H, W) {wanted['dtype']} with (3, H, W) = {size}, "
                f"got {frames.dtype} of shape {frames.shape}"
            )
        if cameras is not None and not self.description["cameras"]["input"]:
            raise ValueError(
                "cameras must be None for a model exported without an input for them; "
                "export it with camera_input=True"
            )
        count = self.description["cameras"]["count"]
        if cameras is not None and not all(-1 <= camera < count for camera in cameras):
            raise ValueError(f"cameras must be -1 to {count - 1}, got {list(cameras)}")


def import_extra(name: str) -> ModuleType:
    """Import a package of the extra ``export``.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"exporting needs {name.partition('.')[0]}; install it with: "
            "pip install 'tfclip[export]'"
        ) from error


@contextlib.contextmanager
def quiet_openvino() -> Iterator[ModuleType]:
    """Give OpenVINO, which reports each of its imports and conversions to its makers if it can.

    Its package for that, openvino_telemetry, cannot be imported in the block, and OpenVINO then
    goes without, for as long as the process lives. A caller who has imported OpenVINO before has
    made that choice already.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    reporter = "openvino_telemetry"
    before = sys.modules.get(reporter)
    if before is None:
        sys.modules[reporter] = None  # type: ignore[assignment] (so Python says it is not there)
    try:
        yield import_extra("openvino")
    finally:
        if before is None:
            del sys.modules[reporter]


def _open_torch(path: Path, threads: int) -> tuple[str | None, Run]:
    extra = {f"{KEY}.json": ""}
    program = torch.export.load(path, extra_files=extra)
    module: Any = program.module()

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return module(*(torch.from_numpy(value) for value in inputs.values())).numpy()

    return extra[f"{KEY}.json"], run


def _open_onnx(path: Path, threads: int) -> tuple[str | None, Run]:
    runtime: Any = import_extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return session.run(["embedding"], inputs)[0]

    return session.get_modelmeta().custom_metadata_map.get(KEY), run


def _open_openvino(path: Path, threads: int) -> tuple[str | None, Run]:
    with quiet_openvino() as openvino:
        model: Any = openvino.Core().read_model(path)
        text = model.get_rt_info(KEY).value if model.has_rt_info(KEY) else None
        properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        properties |= parse_json(text)["openvino_properties"] if text else {}
        request = openvino.compile_model(model, "CPU", properties).create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return request.infer(inputs)["embedding"].copy()  # the next call would overwrite it

    return text, run


def _read_description(path: Path, text: str | None) -> dict[str, Any]:
    if not text:
        raise ExportError(f"{path} was not made by tfclip: it does not say what goes into it")
    try:
        description = parse_json(text)
        is_newer = (version := description["format_version"]) > FORMAT_VERSION
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ExportError(f"{path} says what no tfclip writes about itself: {reason}") from error
    if is_newer:
        raise ExportError(
            f"{path} has format version {version} and this tfclip reads up to {FORMAT_VERSION}; "
            "upgrade with: pip install --upgrade tfclip"
        )
    return description
