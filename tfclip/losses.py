"""The losses of TF-CLIP as pure functions (Yu et al., AAAI 2024, Eq. 14 and the released code)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def identity_loss(logits: Tensor, identities: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
    """Return the label-smoothed cross-entropy of identity logits.

    The target is ``(1 - s) onehot + s / K``, spread over all identities, the true one included.

    Args:
        logits: Scores of each identity, ``(M, K)``.
        identities: The true ones, ``(M,)``, 0 to K-1.
        label_smoothing: ``s``, in [0, 1).

    Returns:
        The mean over rows, a scalar, computed in float32; in float64 for such logits.

    Example:
        >>> identity_loss(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    return F.cross_entropy(_precise(logits), identities, label_smoothing=label_smoothing)


def batch_hard_triplet_loss(
    features: Tensor, identities: Tensor, *, margin: float | None = 0.3
) -> Tensor:
    """Return the triplet loss of each anchor's farthest positive and nearest negative.

    Distances are Euclidean, of features as they are. The anchor counts among its own positives, as
    in the reference; identities may have any number of rows.

    Args:
        features: ``(M, F)``, not normalised.
        identities: ``(M,)``; at least two different ones.
        margin: How much nearer a positive has to be, in units of distance; None is the soft margin
            ``log(1 + exp(positive - negative))``.

    Returns:
        The mean over anchors, a scalar, computed in float32.

    Raises:
        ValueError: The lengths differ, or there is only one identity and so no negative.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
        >>> batch_hard_triplet_loss(features, torch.tensor([0, 0, 1, 1]), margin=5.0)
        tensor(1.5000)
    """
    positive, negative = hardest_distances(features, identities)
    if margin is None:
        return F.softplus(positive - negative).mean()
    return F.relu(margin + positive - negative).mean()


def hardest_distances(features: Tensor, identities: Tensor) -> tuple[Tensor, Tensor]:
    """Return each anchor's distance to its farthest positive and its nearest negative.

    Args:
        features: ``(M, F)``.
        identities: ``(M,)``; at least two different ones.

    Returns:
        Two Euclidean distances per anchor, ``(M,)`` each.

    Raises:
        ValueError: The lengths differ, or there is only one identity.
    """
    if features.ndim != 2 or identities.shape != features.shape[:1]:
        raise ValueError(
            f"features must be (M, F) and identities (M,), "
            f"got shapes {tuple(features.shape)} and {tuple(identities.shape)}"
        )
    same = identities[:, None] == identities[None, :]
    if same.all():
        raise ValueError(
            "identities must be at least two different ones for a triplet, "
            f"got {identities.unique().tolist()}"
        )
    with _float32(features):  # squares overflow in half precision, and differences cancel
        features = _precise(features)
        squares = features.square().sum(1)
        squared = squares[:, None] + squares[None, :] - 2 * features @ features.T
    distances = squared.clamp_min(1e-12).sqrt()  # the gradient of a root at zero is infinite
    positive = distances.masked_fill(~same, -torch.inf).amax(1)
    negative = distances.masked_fill(same, torch.inf).amin(1)
    return positive, negative


def video_to_memory_logits(
    features: Tensor,
    memory: Tensor,
    *,
    similarity: Literal["dot", "cosine"] = "dot",
    scale: float = 1.0,
) -> Tensor:
    """Score each clip against the memory (Eq. 14).

    Args:
        features: Projected features of clips, ``(B, E)``.
        memory: Centroids, ``(K, E)``, or one updated set per clip, ``(B, K, E)``.
        similarity: ``"dot"``, as in the released code, or ``"cosine"``.
        scale: Factor on the similarities (an inverse temperature).

    Returns:
        Logits, ``(B, K)``, float32; float64 for such features.

    Raises:
        ValueError: The shapes do not fit or the similarity is unknown.

    Example:
        >>> memory = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> video_to_memory_logits(torch.tensor([[3.0, 4.0]]), memory)
        tensor([[3., 8.]])
    """
    if similarity not in ("dot", "cosine"):
        raise ValueError(f"similarity must be 'dot' or 'cosine', got {similarity!r}")
    if features.ndim != 2:
        raise ValueError(f"features must be (B, E), got shape {tuple(features.shape)}")
    fits = memory.ndim in (2, 3) and memory.shape[-1] == features.shape[-1]
    if not fits or (memory.ndim == 3 and len(memory) != len(features)):
        batch, width = features.shape
        raise ValueError(
            f"memory must be (K, E) or (B, K, E) with B = {batch} and E = {width}, "
            f"got shape {tuple(memory.shape)}"
        )
    with _float32(features):  # raw dot products of half precision are coarse
        features, memory = _precise(features), _precise(memory)
        if similarity == "cosine":
            features, memory = F.normalize(features, dim=-1), F.normalize(memory, dim=-1)
        if memory.ndim == 2:
            return scale * (features @ memory.T)
        return scale * torch.einsum("be,bke->bk", features, memory)


def video_to_memory_loss(
    logits: Tensor,
    identities: Tensor,
    *,
    scope: Literal["all", "batch"] = "all",
    label_smoothing: float = 0.1,
) -> Tensor:
    """Return the video-to-memory loss: clips classified against the memory (Eq. 14).

    Args:
        logits: Of ``video_to_memory_logits``, ``(B, K)``.
        identities: The memory row of each clip, ``(B,)``.
        scope: Rows that compete: ``"all"``, as in the released code, or those of the identities in
            the ``"batch"``, as the authors restate it later.
        label_smoothing: As in ``identity_loss``.

    Returns:
        The mean over clips, a scalar.

    Raises:
        ValueError: The scope is unknown.
    """
    if scope not in ("all", "batch"):
        raise ValueError(f"scope must be 'all' or 'batch', got {scope!r}")
    if scope == "batch":
        present, identities = identities.unique(return_inverse=True)
        logits = logits[:, present]
    return identity_loss(logits, identities, label_smoothing=label_smoothing)


def frame_loss(
    logits: Tensor, identities: Tensor, num_frames: int, *, label_smoothing: float = 0.1
) -> Tensor:
    """Return the identity loss of single frames, divided once more by their number in a clip.

    The mean over all frames is divided by T although it is a mean already: the released weights
    were trained so.

    Args:
        logits: Scores of each frame, clip by clip, ``(B * T, K)``.
        identities: The identity of each clip, ``(B,)``.
        num_frames: ``T``.
        label_smoothing: As in ``identity_loss``.
    """
    labels = identities.repeat_interleave(num_frames)
    return identity_loss(logits, labels, label_smoothing=label_smoothing) / num_frames


def _precise(x: Tensor) -> Tensor:
    """Return half precision as float32, and anything wider as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _float32(like: Tensor) -> torch.autocast:
    """Suspend mixed precision, which would compute products in half precision all the same."""
    return torch.autocast(like.device.type, enabled=False)
