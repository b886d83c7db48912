"""Identity-balanced batches: P persons, K tracklets of each, as triplet losses want them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler


class IdentitySampler(Sampler[list]):
    """Batches of P identities with K tracklets each, by the rules of the reference.

    Each epoch, the tracklets of an identity are shuffled and cut into groups of K. What is left
    over waits for another epoch; an identity with fewer than K is filled up by drawing some of its
    tracklets again. Then P different identities that have a group left give one each, until fewer
    than P have. So batches differ in number from epoch to epoch.

    With several processes all draw the same batches and each takes its share of every batch's
    identities: together they see what one process would with the same seed.

    Args:
        identities: Identity of each tracklet, ``(M,)`` whole numbers.
        num_identities: ``P``, identities in a batch of all processes together.
        num_tracklets: ``K``, tracklets of each identity in a batch.
        seed: Of what is drawn.
        numbered: Give pairs of a tracklet and the number of its place in the epoch, and not
            tracklets alone, so that one drawn twice can be told apart; ``ClipDataset`` takes both.
        rank: Number of this process, from 0.
        world_size: Number of processes; it must divide P.

    Raises:
        ValueError: A number is out of range, or there are fewer than P identities.

    Example:
        >>> sampler = IdentitySampler([0, 0, 0, 1, 1, 2, 2, 2], num_identities=2, num_tracklets=2)
        >>> [len(batch) for batch in sampler]
        [4]
    """

    def __init__(
        self,
        identities: Tensor | Sequence[int],
        num_identities: int = 4,
        num_tracklets: int = 4,
        *,
        seed: int = 0,
        numbered: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        labels = torch.as_tensor(identities, device="cpu")
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"identities must be whole numbers (M,), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}"
            )
        for name, value, least in (
            ("num_identities", num_identities, 1),
            ("num_tracklets", num_tracklets, 1),
            ("seed", seed, 0),
            ("world_size", world_size, 1),
        ):
            if operator.index(value) < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
        if num_identities % world_size:
            raise ValueError(
                f"num_identities must be a multiple of world_size {world_size}, "
                f"got {num_identities}"
            )
        self.tracklets = [
            torch.nonzero(labels == identity).flatten().numpy() for identity in labels.unique()
        ]
        if len(self.tracklets) < num_identities:
            raise ValueError(
                f"identities must be at least {num_identities} different ones for a batch, "
                f"got {len(self.tracklets)}"
            )
        self.num_identities, self.num_tracklets = num_identities, num_tracklets
        self.seed, self.numbered = seed, numbered
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch, from 0, the next iteration is; the same epoch gives the same batches."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of the epoch that is set, by drawing them."""
        return len(self.draw(self.epoch))

    def __iter__(self) -> Iterator[list]:
        share = self.num_identities // self.world_size * self.num_tracklets
        mine = slice(self.rank * share, (self.rank + 1) * share)
        place = 0
        for batch in self.draw(self.epoch):
            entries = list(enumerate(batch, place))
            place += len(batch)
            yield [(index, n) if self.numbered else index for n, index in entries[mine]]

    def draw(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch for all processes together.

        Args:
            epoch: From 0.

        Returns:
            Tracklets, identity by identity, ``P * K`` in each batch.
        """
        random = np.random.default_rng([self.seed, epoch])
        groups = [self._cut(tracklets, random) for tracklets in self.tracklets]
        left = np.array([len(of_identity) for of_identity in groups])
        batches = []
        while np.count_nonzero(left) >= self.num_identities:
            chosen = random.choice(np.flatnonzero(left), self.num_identities, replace=False)
            left[chosen] -= 1
            batches.append([int(index) for identity in chosen for index in groups[identity].pop()])
        return batches

    def _cut(self, tracklets: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
        """Shuffle the tracklets of one identity and cut them into groups of K."""
        size = self.num_tracklets
        if len(tracklets) < size:
            more = random.choice(tracklets, size - len(tracklets))
            tracklets = np.concatenate([tracklets, more])
        shuffled = random.permutation(tracklets)
        whole = len(shuffled) // size * size
        return list(shuffled[:whole].reshape(-1, size))
