"""Embeddings as points of a plane."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from tfclip.visualize.style import DPI, EMPTY, INK, MUTED, UNKNOWN, check_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Method = Literal["pca", "tsne"]

_COLORS = (
    "#1f5fbf", "#d1362b", "#1a8f4c", "#c26a12", "#7a3fb0", "#0d8a94", "#b8327f", "#77721a",
    "#4a4f9c", "#8a4b2a", "#3f7a1f", "#5b6b7a",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_MOST_NAMED = 40  # persons whose names still find room
_MOST_TSNE = 5000  # rows: all pairs are held in memory

# t-SNE as its authors describe it: pull together at first, then refine.
_PERPLEXITY = 12.0
_STEPS = 500
_EARLY = 120


def project(embeddings: Tensor, method: Method = "pca", *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Lay embeddings out in a plane.

    Args:
        embeddings: ``(M, F)``, finite, at least two rows.
        method: ``"pca"`` shows the two directions in which the rows spread most, and keeps what is
            far apart far apart; ``"tsne"`` (exact, at most 5000 rows) keeps neighbours together,
            and its distances and sizes of groups mean nothing.
        seed: Of t-SNE's first places; PCA draws nothing.

    Returns:
        Places, ``(M, 2)`` float64; and the share of the variance in each direction, ``(2,)``, from
        0 to 1, NaN for t-SNE.

    Raises:
        ValueError: The embeddings have another shape or a number that is not finite, or the method
            is unknown.

    Example:
        >>> places, shares = project(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
        >>> places[:, 0].round().tolist(), shares.round(decimals=3).tolist()
        ([-5.0, 0.0, 5.0], [1.0, 0.0])
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
    if embeddings.ndim != 2 or len(embeddings) < 2 or not embeddings.shape[1]:
        raise ValueError(
            f"embeddings must be (M, F) with at least two rows, got {tuple(embeddings.shape)}"
        )
    rows = embeddings.detach().cpu().double()
    if not rows.isfinite().all():
        bad = int((~rows.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"embeddings must be finite, got {rows[bad].tolist()[:4]}... in row {bad}")
    places, shares = _pca(rows)
    if method == "pca":
        return places, shares
    if len(rows) > _MOST_TSNE:
        raise ValueError(f"embeddings must be at most {_MOST_TSNE} for 'tsne', got {len(rows)}")
    return _tsne(rows, places, seed), torch.full((2,), torch.nan, dtype=torch.float64)


def embedding_map(
    embeddings: Tensor,
    persons: Sequence[Hashable | None],
    cameras: Sequence[int | None] | None = None,
    *,
    method: Method = "pca",
    title: str | None = None,
    seed: int = 0,
) -> Figure:
    """Draw embeddings in a plane: a colour for each person, a shape for each camera.

    Colours come again after 12 persons, so up to 40 persons have their names beside their points
    too. Unknown persons are grey.

    Args:
        embeddings: ``(M, F)``, finite, at least two rows.
        persons: ``(M,)`` identities, or None where unknown.
        cameras: ``(M,)`` numbers, or None where unknown; None leaves the shapes alike.
        method: As in ``project``.
        title: Text above; None for none.
        seed: As in ``project``.

    Raises:
        ValueError: The lengths differ, or as in ``project``.
        MissingExtraError: Matplotlib is not installed.

    Example:
        >>> points = torch.tensor([[0.0, 0.1], [0.1, 0.0], [1.0, 1.0]])
        >>> embedding_map(points, ["a", "a", "b"], [0, 1, 0]).savefig("map.png")  # doctest: +SKIP
    """
    cameras = [None] * len(embeddings) if cameras is None else cameras
    for name, column in (("persons", persons), ("cameras", cameras)):
        if len(column) != len(embeddings):
            raise ValueError(
                f"{name} must be {len(embeddings)}, one for each row of embeddings, "
                f"got {len(column)}"
            )
    places, shares = project(embeddings, method, seed=seed)
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.4), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.08, 0.13, 0.88, 0.78 if title else 0.83))
    known = list(dict.fromkeys(person for person in persons if person is not None))
    colors = {person: _COLORS[i % len(_COLORS)] for i, person in enumerate(known)}
    seen = sorted({camera for camera in cameras if camera is not None})
    markers = {camera: _MARKERS[i % len(_MARKERS)] for i, camera in enumerate(seen)}
    x, y = places.T.numpy()
    small = 46 if len(embeddings) <= 300 else 14
    for camera in dict.fromkeys(cameras):
        rows = [row for row, other in enumerate(cameras) if other == camera]
        axes.scatter(
            x[rows],
            y[rows],
            s=small,
            c=[colors.get(persons[row], UNKNOWN) for row in rows],
            marker="o" if camera is None else markers[camera],
            edgecolors="white",
            linewidths=0.6,
            zorder=2,
        )
    if 0 < len(known) <= _MOST_NAMED:
        _name_persons(axes, x, y, persons, colors)
    _describe(axes, method, shares, seen, markers)
    if title:
        figure.text(0.08, 0.945, title, fontsize=12, weight="bold", color=INK, parse_math=False)
    unknown = sum(person is None for person in persons)
    facts = f"{len(embeddings):,} embeddings of {len(known):,} persons"
    facts += f", {unknown:,} of unknown ones in grey" if unknown else ""
    figure.text(0.08, 0.025, facts, fontsize=7, color=MUTED)
    return figure


def _name_persons(
    axes: Axes,
    x: np.ndarray,
    y: np.ndarray,
    persons: Sequence[Hashable | None],
    colors: dict[Hashable, str],
) -> None:
    """Write each name above the highest of its points."""
    from matplotlib.patheffects import withStroke

    for person, color in colors.items():
        rows = [row for row, other in enumerate(persons) if other == person]
        top = max(rows, key=lambda row: y[row])
        axes.annotate(
            str(person),
            (float(x[top]), float(y[top])),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=color,
            weight="bold",
            parse_math=False,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=3,
        )


def _describe(
    axes: Axes, method: Method, shares: Tensor, cameras: Sequence[int], markers: dict[int, str]
) -> None:
    axes.margins(0.08)
    axes.tick_params(labelbottom=False, labelleft=False, length=0)
    axes.grid(color=EMPTY, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    if method == "pca":
        axes.set_aspect("equal", adjustable="datalim")
        names = [f"principal axis {i + 1}: {share:.0%} of the variance" for i, share in
                 enumerate(shares.tolist())]  # fmt: skip
        axes.set_xlabel(names[0], color=INK, fontsize=8.5)
        axes.set_ylabel(names[1], color=INK, fontsize=8.5)
    else:
        axes.set_xlabel(
            "t-SNE: neighbours stay together, distances mean nothing", color=INK, fontsize=8.5
        )
    if len(cameras) < 2:
        return
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=MUTED, marker=markers[camera], linestyle="", markersize=5,
               label=f"camera {camera}")
        for camera in cameras[: len(_MARKERS)]
    ]  # fmt: skip
    legend = axes.legend(handles=handles, loc="best", fontsize=7.5, labelcolor=MUTED)
    legend.get_frame().set(alpha=0.85, edgecolor="none")


def _pca(rows: Tensor) -> tuple[Tensor, Tensor]:
    centred = rows - rows.mean(0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    if len(axes) < 2 or axes.shape[1] < 2:  # a line has one direction only
        axes = torch.cat([axes, torch.zeros_like(axes[:1])])
        sizes = torch.cat([sizes, sizes.new_zeros(1)])
    axes = axes[:2]
    # The sign of an axis is free: the same rows shall give the same picture everywhere.
    largest = axes.abs().argmax(1, keepdim=True)
    axes = axes * axes.gather(1, largest).sign()
    total = sizes.square().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return centred @ axes.T, sizes[:2].square() / total


def _tsne(rows: Tensor, start: Tensor, seed: int) -> Tensor:
    """Return places whose neighbours are those of the rows (van der Maaten and Hinton, 2008)."""
    wanted = _neighbour_shares(torch.cdist(rows, rows).square())
    random = torch.Generator().manual_seed(seed)
    places = 1e-2 * start / start.std().clamp_min(1e-12)  # where PCA puts them, but for the scale
    places = places + 1e-4 * torch.randn(places.shape, generator=random, dtype=places.dtype)
    speed, gains = torch.zeros_like(places), torch.ones_like(places)
    rate = max(len(rows) / 12, 10.0)
    for step in range(_STEPS):
        early = step < _EARLY
        near = 1 / (1 + torch.cdist(places, places).square())
        near.fill_diagonal_(0)
        pull = ((12 if early else 1) * wanted - near / near.sum()) * near
        gradient = 4 * (pull.sum(1, keepdim=True) * places - pull @ places)
        agrees = gradient.sign() == speed.sign()
        gains = torch.where(agrees, gains * 0.8, gains + 0.2).clamp_min(0.01)
        speed = (0.5 if early else 0.8) * speed - rate * gains * gradient
        places = places + speed
        places = places - places.mean(0)
    return places


def _neighbour_shares(squared: Tensor) -> Tensor:
    """Return how near each pair is, (M, M), summing to 1: as many neighbours for every row."""
    squared = squared.clone().fill_diagonal_(torch.inf)
    aim = np.log(min(_PERPLEXITY, max((len(squared) - 1) / 3, 1.0)))
    nearest = squared.min(1, keepdim=True).values
    scale = (squared.masked_fill(squared.isinf(), 0).sum(1, keepdim=True) / len(squared)).clamp_min(
        torch.finfo(torch.float64).tiny
    )
    low = torch.full_like(nearest, -30.0)  # logarithms of the sharpness, in units of 1 / scale
    high = torch.full_like(nearest, 30.0)
    for _ in range(60):  # halves the range each time
        middle = (low + high) / 2
        shares = _sharpened(squared - nearest, middle, scale)
        entropy = torch.special.entr(shares).sum(1, keepdim=True)
        low = torch.where(entropy > aim, middle, low)
        high = torch.where(entropy > aim, high, middle)
    shares = _sharpened(squared - nearest, low, scale)
    return (shares + shares.T) / (2 * len(shares))


def _sharpened(squared: Tensor, sharpness: Tensor, scale: Tensor) -> Tensor:
    return torch.softmax(-squared * sharpness.exp() / scale, dim=1)
