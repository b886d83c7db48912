"""The part of a model that is exported: clips of frames to embeddings, as one traced program."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from tfclip.errors import ExportError
from tfclip.model import TFCLIP
from tfclip.untrusted import first_line

Pixels = Literal["uint8", "normalized"]
Precision = Literal["float32", "float16", "bfloat16"]

PRECISIONS: dict[str, torch.dtype] = {name: getattr(torch, name) for name in get_args(Precision)}

# torch takes sizes of 0 and 1 for constants unless the traced ones are larger.
_TRACED_CLIPS, _TRACED_FRAMES = 2, 3

# torch 2.6 traces no size that may be as large as its largest number.
_MOST = 2**31 - 1


class ClipEncoder(nn.Module):
    """Clips to embeddings in one forward without choices, so that it can be traced.

    Args:
        model: The model; it is used as it is, in eval mode.
        pixels: ``"uint8"`` normalises frames of pixels by the config's numbers; ``"normalized"``
            takes them as ``TFCLIP.forward`` does.
    """

    statistics: Tensor
    codes: Tensor | None

    def __init__(self, model: TFCLIP, pixels: Pixels) -> None:
        super().__init__()
        self.model = model
        self.normalizes = pixels == "uint8"
        statistics = torch.tensor([model.config.mean, model.config.std], device=model.device)
        self.register_buffer("statistics", statistics.view(2, 3, 1, 1), persistent=False)
        codes = None
        if model.camera_embedding is not None:
            table = model.camera_embedding.detach()
            zero = model.config.unknown_camera == "zero"
            unknown = torch.zeros_like(table[0]) if zero else table.mean(0)
            codes = model.config.camera_coefficient * torch.cat([table, unknown[None]])
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, frames: Tensor, cameras: Tensor | None = None) -> Tensor:
        """Return embeddings, ``(B, F)`` float32, not normalised.

        Args:
            frames: ``(B, T, 3, H, W)``: RGB uint8, or normalised float32.
            cameras: ``(B,)`` int64, -1 where not known; None is not known for all.
        """
        model = self.model
        clips, length = frames.shape[:2]
        if self.normalizes:
            mean, std = self.statistics
            frames = (frames.to(torch.float32) / 255 - mean) / std
        codes = self._camera_codes(cameras, clips)
        if codes is not None:
            codes = codes[:, None].expand(-1, length, -1).flatten(0, 1)
        flat = rearrange(frames.to(model.dtype), "b t c h w -> (b t) c h w")
        tokens = model.backbone(flat, codes)
        embedding = model.embed(rearrange(tokens, "(b t) n d -> b t n d", t=length))
        return embedding.to(torch.float32)

    def _camera_codes(self, cameras: Tensor | None, clips: int) -> Tensor | None:
        if self.codes is None:
            return None
        if cameras is not None:
            last = self.codes.shape[0] - 1
            return self.codes.index_select(0, torch.where(cameras < 0, last, cameras))
        if self.model.config.unknown_camera == "zero":
            return None
        return self.codes[-1].expand(clips, -1)


def trace(
    model: TFCLIP, *, precision: Precision, pixels: Pixels, camera_input: bool
) -> torch.export.ExportedProgram:
    """Trace a copy of a model for any number of clips and of frames.

    Args:
        model: The model, which stays as it is.
        precision: What the copy computes in.
        pixels: What it takes; see ``ClipEncoder``.
        camera_input: Whether it also takes cameras.

    Returns:
        The program, with inputs ``frames`` and perhaps ``cameras``.

    Raises:
        ExportError: torch cannot trace the model.
    """
    copied = copy.deepcopy(model).to("cpu", PRECISIONS[precision]).eval().requires_grad_(False)
    encoder = ClipEncoder(copied, pixels).eval()
    longest = longest_clip(model)
    length = _TRACED_FRAMES if longest is None else min(_TRACED_FRAMES, longest)
    shape = (_TRACED_CLIPS, length, 3, *model.config.frame_size)
    frames = torch.zeros(shape, dtype=torch.uint8 if pixels == "uint8" else torch.float32)
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    arguments: tuple[Tensor, ...] = (frames,)
    dynamic: dict[str, dict[int, object]] = {"frames": {0: batch}}
    if length > 1:  # a clip that cannot be longer than one frame has no axis that varies
        dynamic["frames"][1] = torch.export.Dim("frames", min=1, max=longest or _MOST)
    if camera_input:
        arguments = (frames, torch.zeros(len(frames), dtype=torch.int64))
        dynamic["cameras"] = {0: batch}
    try:
        with _plain_attention(), torch.no_grad():
            return torch.export.export(encoder, arguments, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # torch raises whatever the tower's code does
        raise ExportError(
            f"backbone {model.config.backbone!r} with the temporal head "
            f"{model.config.temporal_head!r} cannot be traced by torch {torch.__version__}: "
            f"{first_line(error)}"
        ) from error


def longest_clip(model: TFCLIP) -> int | None:
    """Return how many frames a clip may have; None is any number."""
    return model.temporal.max_frames if "temporal" in model.config.descriptor else None


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep torch's attention layers from their fused operator, which no other runtime knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
