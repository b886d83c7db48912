"""CLIP-Memory: one centroid of sequence features per identity, in place of text features."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn


class CLIPMemory(nn.Module):
    """Hold one vector per identity, in ascending order of identity (Eq. 6).

    The vectors are plain means, neither normalised nor learned. They are kept as buffers: they
    follow the module to its device and are saved with it.

    Args:
        centroids: One vector per identity, ``(K, E)``, floating point.
        identities: The identity of each row, ``(K,)``, strictly ascending; None is 0 .. K-1.

    Raises:
        ValueError: The shapes do not fit, a value is not finite or the identities do not ascend.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
        >>> CLIPMemory.from_features(features, torch.tensor([0, 0, 1])).centroids
        tensor([[2., 0.],
                [0., 5.]])
    """

    centroids: Tensor
    identities: Tensor

    def __init__(self, centroids: Tensor, identities: Tensor | None = None) -> None:
        super().__init__()
        if centroids.ndim != 2 or 0 in centroids.shape or not centroids.is_floating_point():
            raise ValueError(
                f"centroids must be floating point (K, E), "
                f"got {centroids.dtype} of shape {tuple(centroids.shape)}"
            )
        if not centroids.isfinite().all():
            raise ValueError("centroids must be finite, got NaN or infinity")
        if identities is None:
            identities = torch.arange(len(centroids), device=centroids.device)
        if identities.shape != centroids.shape[:1] or (identities.diff() <= 0).any():
            raise ValueError(
                f"identities must be (K,) = ({len(centroids)},) and strictly ascending, "
                f"got {identities.tolist()}"
            )
        # Whoever computed the features in inference mode may still train with their memory.
        with torch.inference_mode(False):
            self.register_buffer("centroids", centroids.detach().float().clone())
            self.register_buffer("identities", identities.detach().long().clone())

    @classmethod
    def from_features(
        cls, features: Tensor, identities: Tensor, *, num_identities: int | None = None
    ) -> Self:
        """Average the sequence features of each identity (Eq. 6, Algorithm 1).

        Each tracklet weighs the same, whatever its length.

        Args:
            features: One feature per tracklet, ``(M, E)``, not normalised.
            identities: The identity of each tracklet, ``(M,)``; negative ones are left out.
            num_identities: When given, each of 0 .. K-1 must occur, so that row k is identity k.

        Raises:
            ValueError: The lengths differ, a feature is not finite, or an identity is missing.
        """
        centroids, present = identity_centroids(features, identities)
        if num_identities is not None:
            missing = sorted(set(range(num_identities)) ^ set(present.tolist()))
            if missing:
                raise ValueError(
                    f"identities must be exactly 0 to {num_identities - 1}, each at least once; "
                    f"missing or beyond: {missing[:10]}"
                )
        return cls(centroids, present)

    @torch.inference_mode(False)
    def update(self, features: Tensor, identities: Tensor, momentum: float) -> None:
        """Move the rows of some identities towards new features: a momentum memory.

        The reference never does; it is how later memories are kept (Yu et al., AAAI 2025).

        Args:
            features: Sequence features, ``(B, E)``; no gradient goes through them.
            identities: The identity of each, ``(B,)``; all must have a row.
            momentum: Share of the old row that stays; the rest is the identity's mean feature.

        Raises:
            ValueError: The shapes do not fit, a feature is not finite, an identity has no row, or
                the momentum is not in [0, 1].
        """
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1], got {momentum}")
        if features.shape[1:] != self.centroids.shape[1:]:
            raise ValueError(
                f"features must be (B, E) with E = {self.centroids.shape[1]}, "
                f"got shape {tuple(features.shape)}"
            )
        means, present = identity_centroids(features.detach(), identities)
        rows = torch.searchsorted(self.identities, present).clamp_max(len(self.identities) - 1)
        strangers = present[self.identities[rows] != present]
        if len(strangers):
            raise ValueError(f"identities must have a row in the memory, got {strangers.tolist()}")
        # A new tensor, not a write: the old one is still needed for the gradient of this batch.
        moved = torch.lerp(means.to(self.centroids.dtype), self.centroids[rows], momentum)
        self.centroids = self.centroids.index_copy(0, rows, moved)

    def forward(self) -> Tensor:
        """Return the centroids, ``(K, E)``."""
        return self.centroids

    def extra_repr(self) -> str:
        """Show the sizes in ``print(module)``."""
        return "num_identities={}, dim={}".format(*self.centroids.shape)


def identity_centroids(features: Tensor, identities: Tensor) -> tuple[Tensor, Tensor]:
    """Average the features of each identity.

    Args:
        features: Any features, ``(M, E)``.
        identities: The identity of each row, ``(M,)``, whole numbers; negative rows are left out.

    Returns:
        Centroids in float32, ``(K, E)``, and their identities in ascending order, ``(K,)``.

    Raises:
        ValueError: The lengths differ, identities are no whole numbers, none is left, or a feature
            is not finite.
    """
    if features.ndim != 2 or identities.shape != features.shape[:1]:
        raise ValueError(
            f"features must be (M, E) and identities (M,), "
            f"got shapes {tuple(features.shape)} and {tuple(identities.shape)}"
        )
    if identities.is_floating_point():
        raise ValueError(f"identities must be whole numbers, got {identities.dtype}")
    known = identities >= 0
    if not known.any():
        raise ValueError("identities must have at least one that is not negative, got none")
    features, identities = features[known].float(), identities[known]
    if not features.isfinite().all():
        raise ValueError("features must be finite, got NaN or infinity")
    present, rows, counts = identities.unique(return_inverse=True, return_counts=True)
    sums = features.new_zeros(len(present), features.shape[1]).index_add_(0, rows, features)
    return sums / counts[:, None], present
