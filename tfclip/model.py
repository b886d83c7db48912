"""TF-CLIP: the frames of a tracklet to one vector (Yu et al., AAAI 2024).

A forward reads as the paper does: an image tower gives the tokens of each frame; class tokens,
averaged over time, are the appearance feature, and projected into CLIP's joint space the sequence
feature; Temporal Memory Diffusion relates the frames and gives the temporal feature. What only
training needs - heads, prompt, CLIP-Memory, losses - is in ``tfclip.objective``.

Parameter names and values follow the authors' release (github.com/AsuradaYuci/TF-CLIP, MIT) through
the table in ``tfclip.convert``; the code is our own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from tfclip import encoding, hub, precision, speed
from tfclip.backbones import build_backbone
from tfclip.checks import check_cameras, check_frame_mask, check_frames
from tfclip.config import TFCLIPConfig
from tfclip.diffusion import mean_over_frames
from tfclip.errors import ConfigError
from tfclip.inference import InferenceOptions
from tfclip.temporal import build_temporal_head

if TYPE_CHECKING:
    from tfclip.encoding import Sampling
    from tfclip.functional import Calibration
    from tfclip.reading import Reading


class TFCLIPOutput(NamedTuple):
    """What one batch of clips gives; B clips of T frames."""

    appearance: Tensor
    """Class token averaged over frames, ``(B, D)``."""
    projected: Tensor
    """Projected class token averaged over frames, ``(B, E)``: the paper's sequence feature."""
    temporal: Tensor
    """Temporal feature, ``(B, D)``; ``(B, E)`` for the heads of Table 5."""
    frame_temporal: Tensor
    """The same before it is averaged over frames, ``(B, T, D)``."""
    frame_projected: Tensor
    """Projected class token of each frame, ``(B, T, E)``."""
    projected_tokens: Tensor
    """Projected tokens averaged over frames, ``(B, N, E)``: what the prompt looks at."""
    embedding: Tensor
    """The parts that the config's descriptor names, side by side, ``(B, F)``, not normalised."""


class TFCLIP(InferenceOptions, nn.Module):
    """A video person re-identification model.

    Args:
        config: Shape and use of the model; None is the default configuration.

    Raises:
        ConfigError: The configuration names a backbone that does not exist or does not fit.
        TypeError: ``config`` is no ``TFCLIPConfig``.

    Example:
        >>> config = TFCLIPConfig(
        ...     backbone_options={"width": 64, "layers": 2, "output_dim": 32}, frame_size=(64, 32)
        ... )
        >>> model = TFCLIP(config).eval()
        >>> output = model(torch.zeros(2, 8, 3, 64, 32))
        >>> output.embedding.shape  # 64 + 32 + 64
        torch.Size([2, 160])
    """

    def __init__(self, config: TFCLIPConfig | None = None) -> None:
        super().__init__()
        if not isinstance(config, (TFCLIPConfig, type(None))):
            raise TypeError(
                f"config must be a TFCLIPConfig, got {type(config).__name__}; "
                "weights are loaded by TFCLIP.from_pretrained"
            )
        self.config = config = TFCLIPConfig() if config is None else config
        self.backbone = build_backbone(config)
        width, projected_width = self.backbone.width, self.backbone.projected_width
        self.camera_embedding = None
        if config.num_cameras:
            self.camera_embedding = nn.Parameter(torch.empty(config.num_cameras, width))
            nn.init.trunc_normal_(self.camera_embedding, std=0.02)
        self.temporal = build_temporal_head(config, width, projected_width)
        self.part_widths: dict[str, int] = {
            "appearance": width,
            "projected": projected_width,
            "temporal": self.temporal.width,
        }
        self.necks = nn.ModuleDict()
        if config.neck == "after":
            for part in config.descriptor:
                self.necks[part] = nn.BatchNorm1d(self.part_widths[part])

    @property
    def embedding_dim(self) -> int:
        """Width of the embedding, ``F``; 2048 for the released ViT-B/16."""
        return sum(self.part_widths[part] for part in self.config.descriptor)

    @property
    def calibration(self) -> Calibration | None:
        """What a distance between two embeddings of this model means, where its config tells.

        It holds for the squared Euclidean distance of normalised embeddings, for data like those
        that ``config.calibration["fitted_on"]`` names, and for the weights whose
        ``model_fingerprint`` stands beside it: not for those that further training made of them.

        Raises:
            ConfigError: The values do not fit together.
        """
        from tfclip.functional import Calibration

        if not self.config.calibration:
            return None
        names = [field.name for field in dataclasses.fields(Calibration)]
        try:
            return Calibration.from_dict({name: self.config.calibration[name] for name in names})
        except ValueError as error:
            raise ConfigError(f"calibration of the model: {error}") from error

    # --- frames to embedding ---------------------------------------------------------------------

    def forward(
        self, frames: Tensor, cameras: Tensor | None = None, frame_mask: Tensor | None = None
    ) -> TFCLIPOutput:
        """Describe clips.

        Args:
            frames: Normalised frames, ``(B, T, 3, H, W)`` of the config's frame size; any T.
            cameras: Camera of each clip, ``(B,)`` whole numbers from 0, -1 where it is not known.
                None is not known for all; what that adds is ``config.unknown_camera``.
            frame_mask: ``(B, T)``, True for real frames and False for padding, or how often each
                frame counts; at least one frame of each clip must count. None counts all.

        Raises:
            ValueError: A shape, a type of numbers, a camera or the mask is wrong.
            TypeError: An argument is no tensor.
        """
        check_frames(frames, self.config.frame_size, self.dtype)
        if frame_mask is not None:
            check_frame_mask(frame_mask, *frames.shape[:2])
            absent = (frame_mask <= 0).to(frames.device)
            # Whatever padding holds, NaN even, must not matter.
            frames = frames.masked_fill(absent[:, :, None, None, None], 0)
        codes = self.camera_codes(cameras, len(frames))
        num_frames = frames.shape[1]
        if codes is not None:
            codes = repeat(codes, "b d -> (b t) d", t=num_frames)
        with self.computing():
            tokens = self.backbone(rearrange(frames, "b t c h w -> (b t) c h w"), codes)
        return self.describe(rearrange(tokens, "(b t) n d -> b t n d", t=num_frames), frame_mask)

    def encode_frames(self, frames: Tensor, camera_codes: Tensor | None = None) -> Tensor:
        """Encode frames to the tokens that ``embed`` reads; no others are computed.

        Args:
            frames: Normalised frames, ``(M, 3, H, W)``.
            camera_codes: Vector of each frame's camera, ``(M, D)``, from ``camera_codes``, or None.

        Returns:
            Tokens, ``(M, N, D)``; ``(M, 1, D)``, the class token alone, when the descriptor needs
            no other and the tower can leave the others out.
        """
        if self._compiled_frames:
            return speed.in_padded_pieces(
                self.backbone, self._compiled_frames, frames, camera_codes
            )
        with self.computing():
            if "temporal" in self.config.descriptor and self.temporal.reads_tokens:
                return self.backbone(frames, camera_codes)
            return self.backbone.encode_class(frames, camera_codes)

    def describe(self, tokens: Tensor, frame_mask: Tensor | None = None) -> TFCLIPOutput:
        """Describe clips whose frames the backbone has encoded.

        Args:
            tokens: Tokens of each frame as the backbone gives them, ``(B, T, N, D)``.
            frame_mask: As in ``forward``.
        """
        class_tokens, frame_projected = self._read_class_tokens(tokens)
        frame_tokens = self._without_registers(tokens)
        frame_temporal = self._relate(frame_tokens, frame_projected, frame_mask)
        parts = {
            "appearance": mean_over_frames(class_tokens, frame_mask),
            "projected": mean_over_frames(frame_projected, frame_mask),
            "temporal": mean_over_frames(frame_temporal, frame_mask),
        }
        return TFCLIPOutput(
            **parts,
            frame_temporal=frame_temporal,
            frame_projected=frame_projected,
            projected_tokens=self._project_tokens(frame_tokens, frame_mask),
            embedding=self.assemble(parts),
        )

    def embed(self, tokens: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Compute the embedding, ``(B, F)``, alone: what no part of it needs is left out.

        Arguments as in ``describe``.
        """
        class_tokens, frame_projected = self._read_class_tokens(tokens)
        frames = {"appearance": class_tokens, "projected": frame_projected}
        if "temporal" in self.config.descriptor:
            frame_tokens = self._without_registers(tokens)
            frames["temporal"] = self._relate(frame_tokens, frame_projected, frame_mask)
        return self.assemble(
            {part: mean_over_frames(frames[part], frame_mask) for part in self.config.descriptor}
        )

    def assemble(self, parts: dict[str, Tensor]) -> Tensor:
        """Put the parts that the descriptor names side by side, after their necks if it says so."""
        chosen = ((part, parts[part]) for part in self.config.descriptor)
        return torch.cat(
            [self.necks[part](x) if part in self.necks else x for part, x in chosen], dim=-1
        )

    def camera_codes(self, cameras: Tensor | None, batch: int) -> Tensor | None:
        """Return the vector of each clip's camera, ``(B, D)``, or None when nothing is added.

        Raises:
            ValueError: A camera is out of range, or the model has no camera table.
        """
        if cameras is not None:
            check_cameras(cameras, batch, self.config.num_cameras)
        table = self.camera_embedding
        if table is None or (cameras is None and self.config.unknown_camera == "zero"):
            return None
        if cameras is None:
            return self.config.camera_coefficient * table.mean(0).expand(batch, -1)
        unknown = table.mean(0) if self.config.unknown_camera == "mean" else 0 * table[0]
        rows = torch.cat([table, unknown[None]])  # -1 picks the last row
        return self.config.camera_coefficient * rows[cameras.to(table.device)]

    def _read_class_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class token of each frame, (B, T, D), and its projection, (B, T, E)."""
        flat = rearrange(tokens, "b t n d -> (b t) n d")
        projected = self.backbone.project_class(flat)
        return tokens[:, :, 0], rearrange(projected, "(b t) e -> b t e", t=tokens.shape[1])

    def _without_registers(self, tokens: Tensor) -> Tensor:
        flat = self.backbone.without_registers(rearrange(tokens, "b t n d -> (b t) n d"))
        return rearrange(flat, "(b t) n d -> b t n d", t=tokens.shape[1])

    def _relate(
        self, frame_tokens: Tensor, frame_projected: Tensor, frame_mask: Tensor | None
    ) -> Tensor:
        """Run the temporal head, whose losses do not reach the tower in the released code."""
        if self.config.temporal_detach:
            frame_tokens, frame_projected = frame_tokens.detach(), frame_projected.detach()
        with self.computing():
            return self.temporal(frame_tokens, frame_projected, frame_mask)

    def _project_tokens(self, frame_tokens: Tensor, frame_mask: Tensor | None) -> Tensor:
        if self.backbone.projects_linearly:  # then the mean may come first, and T-fold work goes
            return self.backbone.project(mean_over_frames(frame_tokens, frame_mask))
        return mean_over_frames(self.backbone.project(frame_tokens), frame_mask)

    # --- anything a user holds to embedding ------------------------------------------------------

    def encode_sequence(
        self,
        frames: Any,
        camera: int | None = None,
        *,
        boxes: Any = None,
        channels: Literal["rgb", "bgr"] = "rgb",
        sampling: Sampling = "dense",
        normalize: bool = True,
        reading: Reading | None = None,
        batch_frames: int = encoding.BATCH_FRAMES,
        workers: int | None = None,
    ) -> Tensor:
        """Turn one tracklet of any length into one vector.

        Args:
            frames: A folder of images, a list of paths, a video file, PIL images, an array
                ``(T, H, W, 3)`` uint8, a tensor ``(T, 3, H, W)`` uint8 or in [0, 1], ...; see
                ``tfclip.frames.open_frames``. Frames are read one by one.
            camera: Number of the camera, from 0; None when it is not known.
            boxes: One box per frame, ``(T, 4)``: left, top, width, height in pixels.
            channels: Order of the colours in arrays, ``"rgb"`` or ``"bgr"``.
            sampling: ``"dense"`` takes every frame, in clips of ``config.clip_length`` whose
                embeddings are averaged; ``"rrs"`` the reference's evenly spread frames as one clip;
                ``"all"`` every frame as one clip.
            normalize: Give the vector length 1, as the reference does before it compares.
            reading: A ``tfclip.reading.Reading`` that reads faster or fewer frames, and not quite
                the same; None reads every frame exactly.
            batch_frames: Frames that go through the tower at once; memory grows with it.
            workers: Threads that read frames while the model runs; 0 reads them in between. It
                changes no bit of the result. None chooses. Frames that are neither files nor in
                memory, but a sequence of your own, are asked for from these threads, one at a time.

        Returns:
            The embedding, ``(F,)``, float32 on the CPU.

        Raises:
            FrameError: The frames cannot be used.
            ValueError: An argument is wrong.
        """
        return self.encode_sequences(
            [frames],
            None if camera is None else [camera],
            boxes=None if boxes is None else [boxes],
            channels=channels,
            sampling=sampling,
            normalize=normalize,
            reading=reading,
            batch_frames=batch_frames,
            workers=workers,
        )[0]

    def encode_sequences(
        self,
        tracklets: Iterable[Any],
        cameras: Sequence[int | None] | Tensor | None = None,
        *,
        boxes: Sequence[Any] | None = None,
        channels: Literal["rgb", "bgr"] = "rgb",
        sampling: Sampling = "dense",
        normalize: bool = True,
        reading: Reading | None = None,
        batch_frames: int = encoding.BATCH_FRAMES,
        workers: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Turn many tracklets, each of its own length, into one vector each.

        Frames of different tracklets share the tower's batches; none depends on another.

        Args:
            tracklets: Anything that ``encode_sequence`` takes, one each.
            cameras: The camera of each tracklet, or None.
            boxes: The boxes of each tracklet, or None.
            channels: As in ``encode_sequence``.
            sampling: As in ``encode_sequence``.
            normalize: As in ``encode_sequence``.
            reading: As in ``encode_sequence``.
            batch_frames: As in ``encode_sequence``.
            workers: As in ``encode_sequence``.
            progress: Show a progress bar.

        Returns:
            Embeddings, ``(M, F)``, float32 on the CPU, in the order of the tracklets.

        Raises:
            FrameError: The frames of a tracklet cannot be used.
            ValueError: An argument is wrong.
        """
        return encoding.encode_sequences(
            self,
            tracklets,
            cameras,
            boxes=boxes,
            channels=channels,
            sampling=sampling,
            normalize=normalize,
            reading=reading,
            batch_frames=batch_frames,
            workers=workers,
            progress=progress,
        )

    # --- weights ---------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | Literal["auto", "int8"] | None = None,
    ) -> Self:
        """Load a model in eval mode, every tensor accounted for.

        Args:
            name_or_path: A folder, a Hugging Face Hub repository ``owner/name``, or the name of a
                bundled model.
            revision: Branch, tag or full commit hash of the repository.
            device: Where to put the model; None is the CPU.
            dtype: Floating type of the parameters; None is that of the file, ``"auto"`` the one
                that is fast here, float32 or a half of it: see ``tfclip.precision``. ``"int8"`` is
                bfloat16 with products of 8-bit numbers: see ``quantize_dynamic``.

        Raises:
            WeightsError: The weights are missing, damaged, unsafe or of another architecture.
            ConfigError: ``config.json`` is not one of this library's.
            ValueError: A revision of something that is not on the Hub, a dtype that is not
                floating-point or that this machine lacks, or a device that is not there.
            TypeError: ``dtype`` is no type of torch's.
        """
        if not isinstance(dtype, (torch.dtype, type(None))) and dtype not in ("auto", "int8"):
            raise TypeError(f"dtype must be a torch.dtype, 'auto', 'int8' or None, got {dtype!r}")
        known = dtype if isinstance(dtype, torch.dtype) else None
        model = hub.load(cls, name_or_path, revision=revision, device=device, dtype=known)
        return precision.convert(model, dtype) if isinstance(dtype, str) else model

    @classmethod
    def from_clip(
        cls, name: str = "ViT-B-16", pretrained: str | Path = "openai", **changes: Any
    ) -> Self:
        """Make a tracklet encoder of a plain CLIP tower: no temporal training, but usable today.

        The temporal head is there with random weights, for fine-tuning to start from; the
        descriptor leaves it out. Mean, standard deviation and interpolation are those the tower was
        trained with, unless ``changes`` says otherwise.

        Args:
            name: An ``open_clip`` model name, or ``"timm:NAME"``.
            pretrained: A tag (``"openai"``, ``"laion2b_s34b_b88k"``, a timm tag), which is
                downloaded, or a local file with CLIP's weights under OpenAI's names; its frames
                are taken to be normalised as OpenAI's are.
            changes: Fields of ``TFCLIPConfig``. For a local file that does not tell its activation,
                ``activation`` must be given.

        Raises:
            ConfigError: Unknown name or tag, or the activation contradicts the weights.
            WeightsError: The file cannot be read or is of another architecture.
        """
        from tfclip import convert

        return convert.from_clip(cls, name, pretrained, **changes)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card into a folder.

        Args:
            folder: Where to; made when missing. A model card that is there already stays.
            options: ``reports`` for the card, as in ``tfclip.hub.save``.

        Raises:
            SaveError: A file could not be written; no partial file is left.
            TableError: A report is of other weights.
        """
        hub.save(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what ``save_pretrained`` writes; see ``tfclip.hub.push`` for the options.

        Returns:
            Hash of the commit, to be pinned as ``revision``.
        """
        return hub.push(self, repo_id, **options)
