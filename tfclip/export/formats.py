"""Traced programs written as files: torch.export, ONNX and OpenVINO, with weights of 8 bits."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from tfclip.errors import ExportError
from tfclip.export.description import KEY
from tfclip.export.runtimes import import_extra, quiet_openvino

# Activations are rounded to 8 bits in groups of so many channels; a number that divides 64.
_GROUP = "32"

_WORTH_HALVING = 1024  # numbers


def write_torch(program: ExportedProgram, path: Path, description: dict[str, Any]) -> None:
    """Write a ``.pt2``; the description is its extra file ``tfclip.json``."""
    torch.export.save(program, path, extra_files={f"{KEY}.json": json.dumps(description)})


def write_onnx(
    program: ExportedProgram, path: Path, description: dict[str, Any], *, opset: int
) -> None:
    """Write one ONNX file; the description is in its ``metadata_props``.

    Args:
        program: What to write; its inputs keep their names.
        path: Where to.
        description: Of ``describe``. With ``"precision": "float16"`` the weights are stored in 16
            bits, and the arithmetic stays float32. With ``"quantize": "int8"`` the weights of
            linear layers are stored in 8 bits, one scale for each output channel, and their inputs
            are rounded to 8 bits as they come, one scale for each tensor.
        opset: Version of ONNX's operators.

    Raises:
        MissingExtraError: onnx, onnxscript or, for int8, onnxruntime is not installed.
    """
    onnx: Any = import_extra("onnx")
    import_extra("onnxscript")
    inputs = ["frames", "cameras"] if description["cameras"]["input"] else ["frames"]
    exported: Any = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=inputs,
        output_names=["embedding"],
        dynamic_shapes=_named_axes(program, inputs),
        verbose=False,
    )
    model = exported.model_proto
    if description["quantize"] == "int8":
        model = _quantize_onnx(model, path)
    if description["precision"] == "float16":
        _store_in_half(onnx, model)
    _drop_traces_of_torch(model)
    onnx.helper.set_model_props(model, {KEY: json.dumps(description)})
    model.producer_name, model.producer_version = "tfclip", description["tfclip_version"]
    onnx.save_model(model, path)


def write_openvino(program: ExportedProgram, path: Path, description: dict[str, Any]) -> None:
    """Write an ``.xml`` and a ``.bin`` beside it; the description is in ``rt_info``.

    Args:
        program: What to write, traced in float32.
        path: Where to, ending in ``.xml``.
        description: Of ``describe``; with ``"quantize": "int8"`` the weights of linear layers are
            stored in 8 bits, one scale for each output channel; with ``"precision": "bfloat16"``
            all weights in float16.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    with quiet_openvino() as openvino:
        model: Any = openvino.convert_model(_spell_out_attention(program))
        frames = description["frames"]
        shapes = {"frames": openvino.PartialShape([-1, -1, 3, frames["height"], frames["width"]])}
        if description["cameras"]["input"]:
            shapes["cameras"] = openvino.PartialShape([-1])
        model.reshape(shapes)
        model.output(0).get_tensor().set_names({"embedding"})
        if description["quantize"] == "int8":
            _compress_openvino(openvino, model)
        model.set_rt_info(json.dumps(description), KEY)
        half = description["precision"] == "bfloat16"
        openvino.save_model(model, path, compress_to_fp16=half)


def openvino_properties(precision: str, quantize: str | None) -> dict[str, str]:
    """Return the properties that a file must be compiled with to compute as it was checked.

    OpenVINO would otherwise choose bfloat16 on a processor that has it, whatever the weights are.
    """
    properties = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32"}
    if quantize == "int8":
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _GROUP
    return properties


def _named_axes(program: ExportedProgram, inputs: list[str]) -> dict[str, dict[int, str]]:
    """Return the names of the axes that vary."""
    # One name for each size: that of cameras is the batch of the frames.
    axes: dict[str, dict[int, str]] = {name: {} for name in inputs}
    axes["frames"][0] = "batch"
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    if not isinstance(placeholders["frames"].meta["val"].shape[1], int):
        axes["frames"][1] = "frames"
    return axes


def _drop_traces_of_torch(model: Any) -> None:
    """Remove what the exporter notes beside every node: stack traces with the maker's paths."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
    for node in (*graph.node, *graph.initializer):
        node.doc_string = ""


def _store_in_half(onnx: Any, model: Any) -> None:
    """Store large tensors as float16, each with a cast that the runtime does once, when it loads.

    A graph that computes in float16 is no use on a processor: onnxruntime 1.32 goes down with a
    segmentation fault while it optimises one that begins with a convolution.
    """
    casts = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _WORTH_HALVING:
            continue
        name, stored = tensor.name, f"{tensor.name}.float16"
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]  # a tensor is made before it is used
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _quantize_onnx(model: Any, path: Path) -> Any:
    onnx: Any = import_extra("onnx")
    quantization: Any = import_extra("onnxruntime.quantization")
    whole = path.with_name("float32.onnx")
    onnx.save_model(model, whole)
    with _quiet_root_logger():
        quantization.quantize_dynamic(
            whole,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
        )
    whole.unlink()
    return onnx.load_model(path)


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """Swallow what onnxruntime tells the root logger; it would install a handler there too."""
    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


def _spell_out_attention(program: ExportedProgram) -> ExportedProgram:
    """Replace each fused attention by its two products and the softmax between them.

    What OpenVINO 2026.4 makes of a fused one whose sizes vary is wrong on some processors: from 16
    tokens on in float32, now and then in bfloat16. These three it computes rightly.
    """
    aten = torch.ops.aten
    for node in program.graph.nodes:
        # torch up to 2.8 traces views of a fused result, which this one lays out in another way.
        if node.target is aten.view.default:
            node.target = aten.reshape.default
    program = program.run_decompositions({aten.scaled_dot_product_attention.default: _attention})
    for node in [*program.graph.nodes]:
        if node.target is aten.slice.Tensor and len(node.args) == 1:  # takes all, and says no axis
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None or is_causal or enable_gqa:
        raise ExportError("attention with a mask or with shared heads cannot be spelled out")
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (scores @ key.transpose(-2, -1)).softmax(-1) @ value


def _compress_openvino(openvino: Any, model: Any) -> None:
    """Store the weights of linear layers as 8 bits and a scale for each output channel.

    This graph is what OpenVINO knows as compressed weights: with a group size set it also rounds
    their inputs to 8 bits and multiplies whole numbers.
    """
    operators: Any = import_extra("openvino.opset13")
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        constant = node.input_value(1).get_node()
        if constant.get_type_name() != "Constant":
            continue  # attention multiplies what is computed
        weight = np.asarray(constant.data, dtype=np.float32)
        summed = 1 if node.get_attributes()["transpose_b"] else 0
        scale = np.abs(weight).max(axis=summed, keepdims=True) / 127
        scale[scale == 0] = 1
        whole = operators.constant(np.rint(weight / scale).astype(np.int8))
        converted = operators.convert(whole, "f32")
        restored = operators.multiply(converted, operators.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(restored.output(0))
