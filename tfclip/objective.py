"""What training adds and inference never needs: heads, prompt, CLIP-Memory, weighted losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from tfclip.building import part_widths
from tfclip.config import TFCLIPConfig
from tfclip.distributed import gather_with_gradient
from tfclip.losses import (
    batch_hard_triplet_loss,
    frame_loss,
    identity_loss,
    video_to_memory_logits,
    video_to_memory_loss,
)
from tfclip.memory import CLIPMemory
from tfclip.model import TFCLIPOutput
from tfclip.prompt import PromptVariant, SequenceSpecificPrompt

Context = Literal["tokens", "frames", "clip"]
Similarity = Literal["dot", "cosine"]
Scope = Literal["all", "batch"]
LossPreset = Literal["released", "paper"]

# The weight of each term. The frame loss has its 1 / T inside.
LOSS_WEIGHTS: dict[LossPreset, dict[str, float]] = {
    "released": {
        "video_to_memory": 1.0,
        "identity_appearance": 0.25,
        "identity_projected": 0.25,
        "identity_temporal": 0.25,
        "triplet_appearance": 1.0,
        "triplet_projected": 1.0,
        "triplet_temporal": 1.0,
        "frame": 1.0,
    },
    # The paper's plain sum; "on v and v-hat" is our reading of its figure.
    "paper": {
        "video_to_memory": 1.0,
        "identity_projected": 1.0,
        "identity_temporal": 1.0,
        "triplet_projected": 1.0,
        "triplet_temporal": 1.0,
    },
}


class Losses(Mapping[str, Tensor]):
    """The terms of the objective by name, and their weighted sum.

    Attributes:
        total: The weighted sum, a scalar to call ``backward`` on.
    """

    def __init__(self, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> None:
        self._terms = dict(terms)
        self.total = torch.stack([weights[name] * terms[name] for name in terms]).sum()

    def __getitem__(self, name: str) -> Tensor:
        return self._terms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms)

    def __len__(self) -> int:
        return len(self._terms)

    def __repr__(self) -> str:
        terms = ", ".join(f"{name}={value.item():.4f}" for name, value in self.items())
        return f"Losses(total={self.total.item():.4f}, {terms})"


class TFCLIPObjective(nn.Module):
    """The training objective: identity heads, prompt, CLIP-Memory and the sum of losses.

    Args:
        config: The configuration of the model that is trained.
        num_identities: Training identities, ``K``.
        memory: CLIP-Memory or centroids, ``(K, E)``; None when ``set_memory`` will give it.
        loss: Weights of the terms: those of the ``"released"`` code, the ``"paper"``'s plain sum,
            or a weight for each term that counts, under the names of ``LOSS_WEIGHTS``.
        prompt: Variant of the Sequence-Specific Prompt, or ``"none"``: the memory stays as it is.
        prompt_depth: Decoder layers of the prompt.
        context: What the prompt looks at: the projected ``"tokens"`` averaged over frames, the
            projected class tokens of the ``"frames"``, or the feature of the ``"clip"``.
        similarity: Of the video-to-memory loss, ``"dot"`` or ``"cosine"``.
        scope: Of the video-to-memory loss: ``"all"`` identities compete, or the ``"batch"``'s.
        scale: Factor on the similarities.
        margin: Of the triplet losses; None is the soft margin.
        label_smoothing: Of all identity losses.
        dropout: Of the prompt.
        memory_momentum: How much of a memory row stays when a training batch has clips of its
            identity, in [0, 1); the rest is their mean. None, the reference, fixes the memory.

    In a process group of ``torch.distributed`` each process gives its share of the batch, of the
    same size everywhere, and gets the losses of the whole batch: the hardest examples, the
    statistics of the batch norms and the memory are those of all.

    Raises:
        ValueError: An argument is wrong.
    """

    def __init__(
        self,
        config: TFCLIPConfig,
        num_identities: int,
        memory: CLIPMemory | Tensor | None = None,
        *,
        loss: LossPreset | Mapping[str, float] = "released",
        prompt: PromptVariant | Literal["none"] = "released",
        prompt_depth: int = 2,
        context: Context = "tokens",
        similarity: Similarity = "dot",
        scope: Scope = "all",
        scale: float = 1.0,
        margin: float | None = 0.3,
        label_smoothing: float = 0.1,
        dropout: float = 0.1,
        memory_momentum: float | None = None,
    ) -> None:
        super().__init__()
        if num_identities < 1:
            raise ValueError(f"num_identities must be at least 1, got {num_identities}")
        if memory_momentum is not None and not 0 <= memory_momentum < 1:
            raise ValueError(f"memory_momentum must be in [0, 1), got {memory_momentum}")
        if context not in get_args(Context):
            raise ValueError(f"context must be one of {get_args(Context)}, got {context!r}")
        self.num_identities = num_identities
        self.weights = _loss_weights(loss)
        self.memory_momentum = memory_momentum
        self.context = context
        self.similarity: Similarity = similarity
        self.scope: Scope = scope
        self.scale = scale
        self.margin, self.label_smoothing = margin, label_smoothing
        widths = part_widths(config)
        self.memory_width = widths["projected"]
        self.necks = nn.ModuleDict({part: _neck(width) for part, width in widths.items()})
        self.necks["frame"] = _neck(widths["temporal"])
        # Frames and clips share one classifier of temporal features; the released weights have a
        # second one, which nothing reads.
        self.classifiers = nn.ModuleDict(
            {part: _classifier(width, num_identities) for part, width in widths.items()}
        )
        self.prompt = None
        if prompt != "none":
            self.prompt = SequenceSpecificPrompt(
                widths["projected"], depth=prompt_depth, variant=prompt, dropout=dropout
            )
        self.memory: CLIPMemory | None = None
        if memory is not None:
            self.set_memory(memory)

    def set_memory(self, memory: CLIPMemory | Tensor) -> None:
        """Set the CLIP-Memory: row k is the centroid of training identity k.

        Args:
            memory: CLIP-Memory or centroids, ``(K, E)``.

        Raises:
            ValueError: The shape is not ``(K, E)``, or an identity is missing.
        """
        memory = memory if isinstance(memory, CLIPMemory) else CLIPMemory(memory)
        expected = (self.num_identities, self.memory_width)
        if memory.centroids.shape != expected:
            raise ValueError(
                f"memory must be (K, E) = {expected}, got shape {tuple(memory.centroids.shape)}"
            )
        if memory.identities[-1] != self.num_identities - 1:
            raise ValueError(
                f"memory must have a row for each identity 0 to {self.num_identities - 1}, "
                f"got identities up to {int(memory.identities[-1])}"
            )
        with torch.inference_mode(False):  # or what is copied could not be trained with
            self.memory = memory.to(next(self.parameters()).device)

    def updated_memory(self, output: TFCLIPOutput) -> Tensor:
        """Return the memory as each clip sees it (Eq. 8), ``(B, K, E)``; ``(K, E)`` without prompt.

        Raises:
            ValueError: The memory is not set.
        """
        if self.memory is None:
            raise ValueError("memory must be set before the objective is computed: set_memory(...)")
        memory = self.memory.centroids
        if self.prompt is None:
            return memory
        context = {
            "tokens": output.projected_tokens,
            "frames": output.frame_projected,
            "clip": output.projected[:, None],
        }[self.context]
        return memory + self.prompt(memory, context)

    def forward(self, output: TFCLIPOutput, identities: Tensor) -> Losses:
        """Compute every term that has a weight, and their sum.

        Args:
            output: Of ``TFCLIP.forward``.
            identities: The identity of each clip, ``(B,)``, 0 to K-1; at least two different ones.

        Returns:
            The terms by name and ``.total``.

        Raises:
            ValueError: Identities are out of range or of another length, or the memory is not set.
        """
        if identities.shape != output.projected.shape[:1]:
            raise ValueError(
                f"identities must be (B,) = ({len(output.projected)},), "
                f"got shape {tuple(identities.shape)}"
            )
        if identities.min() < 0 or identities.max() >= self.num_identities:
            raise ValueError(
                f"identities must be 0 to {self.num_identities - 1}, got {identities.tolist()}"
            )
        batch = self._whole_batch(output)
        identities = gather_with_gradient(identities)
        terms = {name: self._term(name, batch, identities) for name in self.weights}
        if self.training and self.memory_momentum is not None and self.memory is not None:
            self.memory.update(batch["projected"], identities, self.memory_momentum)
        return Losses(terms, self.weights)

    def _whole_batch(self, output: TFCLIPOutput) -> dict[str, Tensor]:
        """Return what the terms are computed from, of all processes' clips: B is their number."""
        needed = {name.partition("_")[2] for name in self.weights if "memory" not in name}
        local = {part: getattr(output, part) for part in needed - {""}}
        if "frame" in self.weights:
            local["frame"] = output.frame_temporal
        if "video_to_memory" in self.weights:
            local["video_to_memory"] = video_to_memory_logits(
                output.projected,
                self.updated_memory(output),
                similarity=self.similarity,
                scale=self.scale,
            )
        if self.memory_momentum is not None:
            local["projected"] = output.projected
        return {name: gather_with_gradient(local[name]) for name in sorted(local)}

    def _term(self, name: str, batch: dict[str, Tensor], identities: Tensor) -> Tensor:
        smoothing = self.label_smoothing
        if name == "video_to_memory":
            return video_to_memory_loss(
                batch[name], identities, scope=self.scope, label_smoothing=smoothing
            )
        if name == "frame":
            num_frames = batch[name].shape[1]
            frames = rearrange(batch[name], "b t d -> (b t) d")
            logits = self.classifiers["temporal"](self.necks["frame"](frames))
            return frame_loss(logits, identities, num_frames, label_smoothing=smoothing)
        kind, part = name.split("_")
        features = batch[part]
        if kind == "triplet":  # on features before their batch norm
            return batch_hard_triplet_loss(features, identities, margin=self.margin)
        logits = self.classifiers[part](self.necks[part](features))
        return identity_loss(logits, identities, label_smoothing=smoothing)


def _loss_weights(loss: LossPreset | Mapping[str, float]) -> dict[str, float]:
    """Return the weight of each term that counts."""
    if isinstance(loss, str):
        if loss not in LOSS_WEIGHTS:
            raise ValueError(f"loss must be one of {tuple(LOSS_WEIGHTS)}, got {loss!r}")
        return LOSS_WEIGHTS[loss]
    unknown = sorted(set(loss) - set(LOSS_WEIGHTS["released"]))
    if unknown or not loss:
        raise ValueError(
            f"loss must name some of the terms {tuple(LOSS_WEIGHTS['released'])}, "
            f"got {sorted(loss)}"
        )
    return dict(loss)


def _neck(width: int) -> nn.BatchNorm1d:
    """Return a batch norm whose shift stays where it is (Luo et al., 2019)."""
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


def _classifier(width: int, num_identities: int) -> nn.Linear:
    classifier = nn.Linear(width, num_identities, bias=False)
    nn.init.normal_(classifier.weight, std=0.001)
    return classifier
