"""Which floating-point type is fast on this machine: measured once, and remembered.

Half the bits are up to five times as fast where a processor multiplies them, and slower than
float32 where it does not; so it is tried. One temporal block of the model's width runs in each type
over the frames of one clip. The result is kept in ``speed.json`` in the cache folder -
``$XDG_CACHE_HOME`` or ``~/.cache``, then ``tfclip`` - under the names of processor, device and
versions. Deleting the file is safe.

A reduced type is chosen only when it is at least ``LEAST_GAIN`` times as fast. What it costs in
accuracy is in docs/speed.md.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from tfclip import __version__
from tfclip.attention import default_num_heads
from tfclip.diffusion import MemoryDiffusion
from tfclip.errors import SaveError
from tfclip.files import replace_when_done
from tfclip.untrusted import parse_json

if TYPE_CHECKING:
    from tfclip.model import TFCLIP

ModelT = TypeVar("ModelT", bound="TFCLIP")

_logger = logging.getLogger(__name__)

LEAST_GAIN = 1.2
"""How many times as fast as the wider type a narrower one must be to be chosen."""

_FRAMES = 8
_ROUNDS = 5

# Float16 last: bfloat16 has the range of float32, so that nothing overflows.
_CANDIDATES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


def choose_dtype(model: TFCLIP) -> torch.dtype:
    """Return the type that a model is best converted to where it is.

    Args:
        model: Its device, width and number of tokens are read.

    Returns:
        ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``.
    """
    device, width = model.device, model.backbone.width
    rows, columns = model.backbone.grid
    key = _machine(device, width, 1 + rows * columns)
    path = cache_file()
    seconds = _read(path).get(key)
    if seconds is None:
        seconds = measure(device, width, 1 + rows * columns)
        _remember(path, key, seconds)
    return pick(seconds)


def convert(model: ModelT, name: str) -> ModelT:
    """Let a model compute in the precision of a name, in place.

    Args:
        model: Of any type.
        name: ``"float32"``, ``"bfloat16"``, ``"float16"``; ``"auto"`` as ``choose_dtype`` says;
            ``"int8"`` for bfloat16 with products of 8-bit numbers.

    Raises:
        ValueError: ``"int8"``, and this machine or model cannot.
    """
    if name == "auto":
        return model.to(choose_dtype(model))
    if name == "int8":
        model = model.to(torch.bfloat16)
        model.quantize_dynamic()
        return model
    return model.to(getattr(torch, name))


def pick(seconds: dict[str, float]) -> torch.dtype:
    """Choose by measured times.

    Args:
        seconds: Time by name of the type; the first is the widest.

    Example:
        >>> pick({"float32": 0.050, "bfloat16": 0.010, "float16": 0.009})
        torch.bfloat16
        >>> pick({"float32": 0.050, "bfloat16": 0.045})
        torch.float32
    """
    names = list(seconds)
    best = names[0]
    for name in names[1:]:
        if seconds[best] >= LEAST_GAIN * seconds[name]:
            best = name
    return getattr(torch, best)


def measure(device: torch.device, width: int, num_tokens: int) -> dict[str, float]:
    """Time one block over the frames of a clip, in every type that the device may be fast in.

    Args:
        device: Where to.
        width: Width of the tokens, ``D``.
        num_tokens: Tokens of a frame, ``N``.

    Returns:
        Least seconds of a few rounds, by name of the type, float32 first.
    """
    heads = default_num_heads(width)
    rivals = {}
    with torch.random.fork_rng(devices=[]):  # drawing weights must not change what a user draws
        for dtype in _CANDIDATES.get(device.type, (torch.float32,)):
            block = MemoryDiffusion(width, heads if width % heads == 0 else 1).eval()
            tokens = torch.ones(1, _FRAMES, num_tokens, width, dtype=dtype, device=device)
            rivals[_name(dtype)] = (block.to(device, dtype), tokens)
    seconds = dict.fromkeys(rivals, float("inf"))
    for i in range(1 + _ROUNDS):
        for name, (rival, tokens) in rivals.items():
            spent = _time(rival, tokens)
            if i:  # the first round sets up
                seconds[name] = min(seconds[name], spent)
    return seconds


def cache_file() -> Path:
    """Return where measurements are kept."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "tfclip" / "speed.json"


@torch.no_grad()
def _time(block: MemoryDiffusion, tokens: Tensor) -> float:
    _wait(tokens.device)
    start = time.perf_counter()
    block.mean(tokens, tokens[:, :, 0])
    _wait(tokens.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _machine(device: torch.device, width: int, num_tokens: int) -> str:
    """Return what a measurement holds for."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"
    versions = f"torch {torch.__version__}, tfclip {__version__}"
    return f"{device.type}: {name}; {versions}; {num_tokens} tokens of {width}"


def processor_name() -> str:
    """Return the name by which the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _read(path: Path) -> dict[str, dict[str, float]]:
    """Return the measurements of a file, without those that are none."""
    try:
        known = parse_json(path.read_bytes())
    except (OSError, ValueError):  # there is none, or it is not ours
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: found for key, found in known.items() if _is_measurement(found)}


def _is_measurement(found: object) -> bool:
    return (
        isinstance(found, dict)
        and next(iter(found), None) == "float32"
        and set(found) <= {_name(dtype) for dtype in _CANDIDATES["cuda"]}
        and all(isinstance(value, float) and value > 0 for value in found.values())
    )


def _remember(path: Path, key: str, seconds: dict[str, float]) -> None:
    """Add a measurement to the file; where nothing can be written, it is made again next time."""
    text = json.dumps({**_read(path), key: seconds}, indent=2) + "\n"
    try:
        with replace_when_done(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except SaveError as error:
        _logger.info("the measured speed is not kept: %s", error)
