"""Measure exported models against torch, in turns within one run.

    python examples/benchmark_export.py                        # every route, 2 threads
    python examples/benchmark_export.py --only torch openvino  # some of them
    python examples/benchmark_export.py --model tfclip-tiny --accuracy 100   # mAP of each route

All take the same uint8 frames of drawn people, 4 clips of 8 frames, and give embeddings. The first
route is the reference's way through torch: float32, every output of the forward, attention written
out. Ratios are medians of the ratios of neighbouring turns; cosines are to that first route. By
default the model is ViT-B/16 at 256 x 128 with random weights, whose speed is that of trained ones
and whose cosines are not.
"""

from __future__ import annotations

import argparse
import copy
import functools
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cosine_similarity, normalize

from tfclip import TFCLIP, TFCLIPConfig, functional, int8
from tfclip.data import SyntheticTracklets
from tfclip.errors import ExportError
from tfclip.export import ExportedModel, export_model
from tfclip.export.graph import ClipEncoder
from tfclip.frames import sample_dense
from tfclip.precision import convert
from tfclip.preprocess import Preprocess

Route = Callable[[torch.Tensor], torch.Tensor]  # pixels (B, T, 3, H, W) to embeddings

EXPORTS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch.export float32": (".pt2", {}),
    "onnxruntime float32": (".onnx", {}),
    "onnxruntime float32, opset 23": (".onnx", {"opset": 23}),
    "onnxruntime int8": (".onnx", {"quantize": "int8"}),
    "onnxruntime int8, opset 23": (".onnx", {"quantize": "int8", "opset": 23}),
    "openvino float32": (".xml", {}),
    "openvino bfloat16": (".xml", {"precision": "bfloat16"}),
    "openvino int8": (".xml", {"quantize": "int8"}),
}


def draw(model: TFCLIP, clips: int, frames: int) -> torch.Tensor:
    """Return clips of drawn people, (B, T, 3, H, W) uint8, no two of the same person."""
    people = SyntheticTracklets(
        clips, 1, 1, num_frames=frames, frame_size=model.config.frame_size, seed=2**33
    )
    drawn = np.stack([people[i].frames for i in range(clips)])
    return torch.from_numpy(np.ascontiguousarray(drawn.transpose(0, 1, 4, 2, 3)))


def reference_style(model: TFCLIP, pixels: torch.Tensor) -> torch.Tensor:
    """Give embeddings as the reference does: float32, all outputs, attention written out.

    Where gradients could be recorded, though no parameter asks for any, the library takes none of
    its short ways.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        return model(Preprocess(model.config).normalize(pixels)).embedding


def encode(model: TFCLIP, pixels: torch.Tensor) -> torch.Tensor:
    """Give embeddings as the library's own encoding does."""
    frames = Preprocess(model.config).normalize(pixels, dtype=model.dtype)
    tokens = model.encode_frames(frames.flatten(0, 1))
    return model.embed(tokens.unflatten(0, frames.shape[:2])).float()


def torch_routes(model: TFCLIP, only: list[str]) -> dict[str, Route]:
    """Return the ways that stay in torch."""
    models = {name: copy.deepcopy(model) for name in ("bfloat16", "int8")}
    encoders: dict[str, Any] = {"torch float32": functools.partial(encode, model)}
    for name, other in models.items():
        if name != "int8" or int8.why_not() is None:
            encoders[f"torch {name}"] = functools.partial(encode, convert(other, name))
    for name, other in (("float32", model), ("bfloat16", models["bfloat16"])):
        whole = torch.compile(ClipEncoder(other, "uint8").eval(), dynamic=False)
        encoders[f"torch.compile {name}"] = whole

    def route(encoder: Any) -> Route:
        def run(pixels: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return encoder(pixels)

        return run

    return {name: route(encoder) for name, encoder in encoders.items() if wanted(name, only)}


def exported_routes(model: TFCLIP, folder: Path, threads: int, only: list[str]) -> dict[str, Route]:
    """Export the model in each way, through the gate, and return those that pass."""
    routes: dict[str, Route] = {}
    for i, (name, (suffix, options)) in enumerate(EXPORTS.items()):
        if not wanted(name, only):
            continue
        path = folder / f"{i}{suffix}"
        try:
            if not path.exists():
                report = export_model(model, path, **options)
                print(
                    f"{name}: {report.size / 1e6:.0f} MB, worst cosine of "
                    f"{len(report.trials)} trials {report.cosine:.6f}",
                    flush=True,
                )
        except ExportError as error:
            print(f"{name}: {error}")
            continue
        exported = ExportedModel(path, threads=threads)
        routes[name] = lambda pixels, exported=exported: torch.from_numpy(exported(pixels.numpy()))
    return routes


def wanted(name: str, only: list[str]) -> bool:
    """Return whether a route was asked for."""
    return not only or any(part in name for part in only)


def measure(routes: dict[str, Route], pixels: torch.Tensor, rounds: int) -> None:
    """Let the routes take turns, after one that does not count, and print what they did."""
    times: dict[str, list[float]] = {name: [] for name in routes}
    embeddings = {name: run(pixels) for name, run in routes.items()}
    num_frames = pixels.shape[0] * pixels.shape[1]
    for _ in range(rounds):
        for name, run in routes.items():
            start = time.perf_counter()
            run(pixels)
            times[name].append(time.perf_counter() - start)
    first = next(iter(routes))
    print(f"\n{'':>30} {'seconds':>8} {'frames/s':>9} {'times first':>12} {'least cosine':>13}")
    for name in routes:
        median = statistics.median(times[name])
        ratio = statistics.median(a / b for a, b in zip(times[first], times[name], strict=True))
        cosine = cosine_similarity(embeddings[name], embeddings[first]).min()
        print(
            f"{name:>30} {median:8.3f} {num_frames / median:9.1f} {ratio:12.2f} {cosine:13.6f}",
            flush=True,
        )


def measure_accuracy(model: TFCLIP, routes: dict[str, Route], num_people: int) -> None:
    """Search each of many drawn people, seen by three cameras, among the other cameras."""
    people = SyntheticTracklets(
        num_people, 3, 1, num_frames=(12, 20), frame_size=model.config.frame_size, seed=2**33
    )
    tracklets = [people[i] for i in range(len(people))]
    persons, cameras = [t.person for t in tracklets], [t.camera for t in tracklets]
    clips = [
        torch.from_numpy(tracklet.frames[np.array(chosen)]).permute(0, 1, 4, 2, 3).contiguous()
        for tracklet in tracklets
        for chosen in [sample_dense(len(tracklet.frames), model.config.clip_length)]
    ]
    first = None
    print(f"\n{len(tracklets)} tracklets of {num_people} people")
    for name, run in routes.items():
        embeddings = normalize(torch.stack([run(clip).mean(0) for clip in clips]), dim=1)
        first = embeddings if first is None else first
        distance = functional.squared_euclidean_distance(embeddings, embeddings)
        result = functional.evaluate_ranking(distance, persons, persons, cameras, cameras)
        cosine = (embeddings * first).sum(1).min()
        print(f"{name:>30} mAP {result.mAP:.4%} rank-1 {result.rank(1):.4%} cosine {cosine:.6f}")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description="Measure exported models against torch.")
    parser.add_argument("--model", help="a folder or a bundled model; default: random ViT-B/16")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of routes")
    parser.add_argument("--accuracy", type=int, metavar="N", help="mAP among N drawn people")
    parser.add_argument("--folder", type=Path, help="keep the exported files, and use them again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = TFCLIP.from_pretrained(options.model) if options.model else TFCLIP(TFCLIPConfig())
    model.eval().requires_grad_(False)
    pixels = draw(model, options.clips, model.config.clip_length)
    print(
        f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{options.threads} threads, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        routes: dict[str, Route] = {
            "reference-style": lambda frames: reference_style(model, frames)
        }
        routes |= torch_routes(model, options.only)
        routes |= exported_routes(model, folder, options.threads, options.only)
        if options.accuracy:
            measure_accuracy(model, routes, options.accuracy)
        else:
            measure(routes, pixels, options.rounds)


if __name__ == "__main__":
    main()
