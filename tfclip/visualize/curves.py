"""Curves and histograms of what a ranking or a set of distances is worth."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tfclip.visualize.style import DPI, EMPTY, INK, MUTED, RIGHT, WRONG, check_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from torch import Tensor

    from tfclip.functional import Pairs, RankingResult

# Of lines, in order, also told apart without colour: each has a marker of its own.
_LINES = (("#1f5fbf", "o"), ("#c26a12", "s"), ("#6f7780", "^"), ("#7a3fb0", "D"), ("#1a8f4c", "v"))
_STYLES = ("solid", (0, (4, 1.5)), (0, (1.5, 1.5)))  # from the sixth line on, and the eleventh
_NOTE_WIDTH = 112  # letters of the small print in a line


def cmc_curves(
    results: Mapping[str, RankingResult], *, max_rank: int = 20, title: str | None = None
) -> Figure:
    """Draw cumulative match characteristics: how many queries have found their person by rank k.

    Each line bears its name, its mAP and its rank-1; the protocol of the first result stands below.

    Args:
        results: Evaluations by name, in the order of the legend; best of one protocol.
        max_rank: Last rank drawn; a result measured to fewer ends earlier.
        title: Text above; None for none.

    Raises:
        ValueError: There is no result, or ``max_rank`` is less than 1.
        MissingExtraError: Matplotlib is not installed.

    Example:
        >>> import torch
        >>> from tfclip.functional import evaluate_ranking
        >>> distance = torch.tensor([[0.1, 0.2], [0.3, 0.1]])
        >>> result = evaluate_ranking(distance, [1, 2], [2, 1], [0, 0], [1, 1])
        >>> cmc_curves({"a model": result}).savefig("cmc.png")  # doctest: +SKIP
    """
    if not results or max_rank < 1:
        raise ValueError(
            f"results and max_rank must be at least one, got {len(results)} results, {max_rank}"
        )
    check_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(6.4, 4.4), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.11, 0.2, 0.85, 0.7 if title else 0.76))
    for number, (name, result) in enumerate(results.items()):
        color, marker = _LINES[number % len(_LINES)]
        shares = result.cmc[:max_rank].tolist()
        axes.plot(
            range(1, len(shares) + 1),
            shares,
            color=color,
            marker=marker,
            markersize=4.5,
            markeredgecolor="white",
            linewidth=1.8,
            linestyle=_STYLES[number // len(_LINES) % len(_STYLES)],
            label=f"{name}: mAP {result.mAP:.1%}, rank-1 {result.rank(1):.1%}",
        )
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("rank", color=INK, fontsize=9)
    axes.set_ylabel("queries that have found their person", color=INK, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _tidy(axes, axes.legend(loc="lower right"))
    _write(figure, title, next(iter(results.values())).protocol)
    return figure


def roc_curves(results: Mapping[str, Pairs], *, title: str | None = None, note: str = "") -> Figure:
    """Draw receiver operating characteristics: true matches against false matches.

    A point is a threshold; nothing is interpolated between thresholds. False match rates are on a
    logarithmic scale, which ends at the smallest that the pairs can show. Each line bears its name,
    its equal error rate and its true match rate at a false match rate of 1 %, where there are pairs
    enough to measure that.

    Args:
        results: Pairs by name, such as ``tfclip.functional.pair_scores`` returns, in the order of
            the legend; best of one protocol.
        title: Text above; None for none.
        note: Small print below, such as the protocol.

    Raises:
        TypeError: Distances are not floating point, or labels not boolean.
        ValueError: There is no result, or a result has not both kinds of pairs.
        MissingExtraError: Matplotlib is not installed.

    Example:
        >>> import torch
        >>> from tfclip.functional import Pairs
        >>> pairs = Pairs(torch.tensor([0.1, 0.4, 0.9]), torch.tensor([True, True, False]))
        >>> roc_curves({"a model": pairs}).savefig("roc.png")  # doctest: +SKIP
    """
    from tfclip.functional import equal_error_rate, roc_curve, tpr_at_fpr

    if not results:
        raise ValueError("results must be at least one, got none")
    curves = {name: roc_curve(*pairs) for name, pairs in results.items()}
    check_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    figure = Figure(figsize=(6.4, 4.4), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.11, 0.2, 0.85, 0.7 if title else 0.76))
    smallest = 1 / max(int((~pairs.same).sum()) for pairs in results.values())
    left = min(smallest, 0.1) / 1.6  # thresholds without a false match stand at the left edge
    for number, (name, curve) in enumerate(curves.items()):
        distance, same = results[name]
        text = f"{name}: EER {equal_error_rate(distance, same):.1%}"
        if int((~same).sum()) >= 100:
            text += f", TPR {tpr_at_fpr(distance, same, 0.01):.1%} at FPR 1%"
        axes.step(
            curve.false_match_rate.clamp_min(left).tolist(),
            curve.true_match_rate.tolist(),
            where="post",
            color=_LINES[number % len(_LINES)][0],
            linewidth=1.8,
            linestyle=_STYLES[(number // len(_LINES)) % len(_STYLES)],
            label=text,
        )
    axes.set_xscale("log")
    axes.set_xlim(left, 1)
    axes.set_ylim(0, 1.03)
    chance = np.geomspace(left, 1, 64)
    axes.plot(chance, chance, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)), label="chance")
    axes.set_xlabel("pairs of two persons that match (FPR)", color=INK, fontsize=9)
    axes.set_ylabel("pairs of one person that match (TPR)", color=INK, fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g}%"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _tidy(axes, axes.legend(loc="best"))
    axes.tick_params(which="minor", length=0)
    _write(figure, title, note)
    return figure


def distance_histogram(
    distance: Tensor,
    same: Tensor,
    *,
    threshold: float | None = None,
    bins: int = 50,
    title: str | None = None,
    distance_name: str = "squared distance",
    note: str = "",
) -> Figure:
    """Draw how distances of one person and of two persons are spread, each as shares of its kind.

    The less the two overlap, the better a threshold can tell them apart.

    Args:
        distance: ``(M,)``, finite, smaller is nearer; such as ``tfclip.functional.pair_scores``
            returns with ``same``.
        same: ``(M,)`` bool: the pair is of one person. Both kinds must occur.
        threshold: A line at this distance, with the share of each kind that lies within; None for
            no line.
        bins: Bars of equal width, from the smallest distance to the largest.
        title: Text above; None for none.
        distance_name: What the distances are.
        note: Small print below, such as the protocol.

    Raises:
        TypeError: ``distance`` is not floating point or ``same`` not boolean.
        ValueError: Two lengths, a distance that is not finite, only one kind of pair, or ``bins``
            less than 1.
        MissingExtraError: Matplotlib is not installed.

    Example:
        >>> import torch
        >>> pairs = torch.tensor([0.1, 0.4, 0.9]), torch.tensor([True, True, False])
        >>> distance_histogram(*pairs, threshold=0.5).savefig("pairs.png")  # doctest: +SKIP
    """
    from tfclip.functional.verification import check_pairs

    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    distances, labels = check_pairs(distance, same)
    check_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(6.4, 4.4), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.11, 0.2, 0.85, 0.7 if title else 0.76))
    low, high = float(distances.min()), float(distances.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    # Hatched too, so that the two are told apart without colour.
    for kind, text, color, hatch in (
        (True, "one person", RIGHT, ""),
        (False, "two persons", WRONG, "////"),
    ):
        values = distances[labels == kind]
        counts, _ = np.histogram(values, edges)
        axes.stairs(
            counts / len(values),
            edges,
            fill=True,
            facecolor=(color, 0.25),
            edgecolor=color,
            linewidth=1.4,
            hatch=hatch,
            label=f"{len(values):,} pairs of {text}",
        )
    if threshold is not None:
        within = distances <= threshold
        axes.axvline(
            threshold,
            color=INK,
            linewidth=1.4,
            linestyle=(0, (4, 2)),
            label=f"threshold {threshold:.4g}: within it {within[labels].mean():.1%} "
            f"of one person, {within[~labels].mean():.2%} of two",
        )
    axes.set_ylim(0, axes.get_ylim()[1] * 1.25)  # room for the legend
    axes.set_xlabel(f"{distance_name}: smaller is nearer", color=INK, fontsize=9)
    axes.set_ylabel("share of the pairs of a kind", color=INK, fontsize=9)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _tidy(axes, axes.legend(loc="upper right"))
    _write(figure, title, note)
    return figure


def _tidy(axes: Axes, legend: Legend) -> None:
    axes.tick_params(labelsize=8, colors=MUTED, length=0)
    axes.set_axisbelow(True)
    axes.grid(color=EMPTY, linewidth=0.9)
    axes.spines[:].set_visible(False)
    frame = legend.get_frame()
    frame.set_alpha(0.9)
    frame.set_edgecolor("none")
    entries = legend.get_texts()
    for entry in entries:
        entry.set_fontsize(8.5 if len(entries) <= len(_LINES) else 6.5)
        entry.set_parse_math(False)  # a name may hold "$", which would begin a formula


def _write(figure: Figure, title: str | None, note: str) -> None:
    if title:
        figure.text(0.11, 0.945, title, fontsize=12, weight="bold", color=INK, parse_math=False)
    lines = "\n".join(textwrap.wrap(note, _NOTE_WIDTH))
    figure.text(0.11, 0.02, lines, fontsize=6.5, color=MUTED, va="bottom", parse_math=False)
