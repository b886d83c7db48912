"""``tfclip export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tfclip.cli.shared import (
    add_command,
    add_model_name,
    existing,
    load_model,
    positive,
    wrong_usage,
)


def add_parser(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "export",
        run,
        "a model to a file that runs without tfclip",
        """
Write a model as ONNX (OUT.onnx), OpenVINO (OUT.xml and OUT.bin) or a torch.export
program (OUT.pt2), for any number of clips and frames. What a consumer must know is
in the file: frame size, colours, how to cut a tracklet into clips, whose weights
these are. Both models then run on drawn people and random pixels; a file whose
embeddings differ is not written. OUT.json, with the file's suffix before it, says
how well they agreed and how long both took. The fastest on a processor is usually
OUT.xml with --dtype bfloat16; see docs/export.md.

Example:
  tfclip export person.onnx --model mars-vit-b-16
  tfclip export person.xml --model mars-vit-b-16 --dtype bfloat16
""",
    )
    command.add_argument("out", type=existing, metavar="OUT", help=".onnx, .xml or .pt2")
    command.add_argument(
        "--format", choices=("onnx", "openvino", "torch"), help="default: what OUT ends in"
    )
    add_model_name(command)
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="float32 (default); bfloat16 for .xml and .pt2; float16 weights for .onnx",
    )
    command.add_argument(
        "--quantize", choices=("int8",), help="linear layers of 8 bits, for .onnx and .xml"
    )
    command.add_argument(
        "--pixels",
        choices=("uint8", "normalized"),
        default="uint8",
        help="what goes in: pixels (default), or float32 that the consumer has normalised",
    )
    command.add_argument(
        "--cameras", action="store_true", help="add an input for the camera of each clip"
    )
    command.add_argument(
        "--opset", type=positive, default=20, metavar="N", help="of ONNX's operators (20)"
    )
    command.add_argument(
        "--min-cosine",
        type=float,
        metavar="C",
        help="write the file from this cosine on (0.9999 for float32, 0.999 for all else)",
    )


def run(options: argparse.Namespace) -> None:
    """Export a model, and say how well the file agrees."""
    from tfclip.export import export_model

    out: Path = options.out
    source = {**vars(options), "device": "cpu", "dtype": "float32"}
    model, _, fingerprint = load_model(argparse.Namespace(**source))
    with wrong_usage():
        report = export_model(
            model,
            out,
            format=options.format,
            precision=options.dtype,
            quantize=options.quantize,
            pixels=options.pixels,
            camera_input=options.cameras,
            opset=options.opset,
            min_cosine=options.min_cosine,
            model_name=options.model,
            fingerprint=fingerprint,
        )
    latency = report.latency
    print(
        f"{out}: {report.size / 1e6:.1f} MB; worst cosine {report.cosine:.6f} in "
        f"{len(report.trials)} trials; one clip of {latency.frames} frames in "
        f"{latency.exported * 1000:.0f} ms, torch float32 {latency.torch * 1000:.0f} ms "
        f"({latency.threads} threads); {out}.json has the rest"
    )
