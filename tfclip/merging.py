"""Token merging (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023).

Between the attention and the feed-forward network of a block, tokens that are alike become their
mean. Tokens at even places look for their best partner at an odd place, and the pairs that are most
alike are merged: one bipartite matching, no clustering. A token remembers of how many it is the
mean, and weighs as much in later attention and later means.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Merged:
    """Tokens of which some stand for several.

    Attributes:
        values: The tokens, ``(M, N', D)``.
        sizes: Of how many first tokens each is the mean, ``(M, N')`` float32; None is one each.
        origin: Which token holds each of the first ones, ``(M, N)``; None is itself.
    """

    values: Tensor
    sizes: Tensor | None = None
    origin: Tensor | None = None

    def replace(self, values: Tensor) -> Self:
        """Return the same with other values of the tokens."""
        return dataclasses.replace(self, values=values)

    def attention_bias(self) -> Tensor | None:
        """Return what makes a token of size n weigh as n keys, ``(M, 1, 1, N')``, or None."""
        if self.sizes is None:
            return None
        return self.sizes.log().to(self.values.dtype)[:, None, None]

    def merge(self, metric: Tensor, number: int) -> Merged:
        """Merge the most alike tokens; token 0 is never merged.

        Args:
            metric: What tells how alike two tokens are, by its cosine, ``(M, N', d)``: the keys of
                the attention before.
            number: How many tokens to merge away; at most half of those that can be are.

        Returns:
            Tokens, ``(M, N' - number, D)``: those at even places that stay, in order, then those at
            odd places.
        """
        number = min(number, (metric.shape[1] - 1) // 2)
        if number < 1:
            return self
        gone, stays, partners = match(metric, number)
        values = self.values.float()
        if self.sizes is None:
            sizes = values.new_ones(values.shape[:2])
        else:
            sizes, values = self.sizes, values * self.sizes[..., None]
        sizes = _move(sizes[..., None], gone, stays, partners)
        values = _move(values, gone, stays, partners) / sizes
        origin = _places(metric.shape[1], gone, stays, partners)
        if self.origin is not None:
            origin = origin.gather(1, self.origin)
        return Merged(values.to(self.values.dtype), sizes[..., 0], origin)

    def unmerge(self) -> Tensor:
        """Return a token in the place of each first one, ``(M, N, D)``: copies of what holds it."""
        if self.origin is None:
            return self.values
        index = self.origin[..., None].expand(-1, -1, self.values.shape[-1])
        return self.values.gather(1, index)


def match(metric: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pair tokens at even places with the most alike at odd places.

    Args:
        metric: ``(M, N', d)``.
        number: How many pairs, less than the number of even places.

    Returns:
        Which of the even tokens go, best pair first, ``(M, number)``; which stay, in order,
        ``(M, rest)``; and for each that goes, the odd token that it goes to, ``(M, number)``. All
        count among the even, or the odd, places alone.

    Example:
        >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [1.0, 1.0], [3.0, 2.0]]])
        >>> [found.tolist() for found in match(keys, 1)]  # place 2 into place 1
        [[[1]], [[0, 2]], [[0]]]
    """
    unit = F.normalize(metric.float(), dim=-1)
    alike = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    best, partners = alike.max(-1)
    # Token 0 stands for the image, and comes last in every ranking.
    best = torch.cat([torch.full_like(best[:, :1], -torch.inf), best[:, 1:]], dim=1)
    order = best.argsort(dim=1, descending=True, stable=True)
    gone, stays = order[:, :number], order[:, number:].sort(1).values
    return gone, stays, partners.gather(1, gone)


def _move(x: Tensor, gone: Tensor, stays: Tensor, partners: Tensor) -> Tensor:
    """Add what goes to its partners: (M, N', D) to (M, N' - number, D)."""
    even, odd = x[:, ::2], x[:, 1::2]
    width = (-1, -1, x.shape[-1])
    moved = even.gather(1, gone[..., None].expand(width))
    odd = odd.scatter_add(1, partners[..., None].expand(width), moved)
    return torch.cat([even.gather(1, stays[..., None].expand(width)), odd], dim=1)


def _places(number: int, gone: Tensor, stays: Tensor, partners: Tensor) -> Tensor:
    """Return where each of ``number`` tokens is afterwards, (M, number)."""
    after = torch.empty(len(gone), number, dtype=torch.long, device=gone.device)
    rank = torch.arange(number, device=gone.device).expand(len(gone), number)
    num_stay = stays.shape[1]
    even = torch.empty_like(after[:, ::2]).scatter(1, stays, rank[:, :num_stay])
    after[:, ::2] = even.scatter(1, gone, num_stay + partners)
    after[:, 1::2] = num_stay + rank[:, : number // 2]
    return after
