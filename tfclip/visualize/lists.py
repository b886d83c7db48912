"""Ranked lists and contact sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfclip.visualize.style import (
    DPI,
    EMPTY,
    INK,
    MUTED,
    RIGHT,
    UNKNOWN,
    WRONG,
    check_matplotlib,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tfclip.data.embeddings import EmbeddingTable
    from tfclip.data.search import Found

_MEANINGS = {RIGHT: "same person", WRONG: "other person", UNKNOWN: "person unknown"}
_MARKS = {RIGHT: "\N{CHECK MARK}", WRONG: "\N{MULTIPLICATION X}"}  # not by colour alone

# Inches.
_MARGIN = 0.25
_PICTURE = (0.95, 1.9)  # width and height
_STEP = 1.1  # from one picture to the next
_QUERY_GAP = 0.3
_CAPTION = 0.5
_DASHES = (0, (2.2, 1.2))


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """One tracklet in a picture.

    Args:
        picture: ``(H, W, 3)`` uint8 RGB, or None where there is none.
        person: Identity, or None where unknown.
        camera: Number of the camera, or None where unknown.
        distance: To the query; None for the query itself.
        label: A short text; None shows the person.
    """

    picture: np.ndarray | None
    person: str | int | None = None
    camera: int | None = None
    distance: float | None = None
    label: str | None = None


def ranked_list(
    rows: Sequence[tuple[Shown, Sequence[Shown]]],
    *,
    title: str | None = None,
    distance_name: str = "squared distance",
) -> Figure:
    """Draw queries, one a row, each with its results from the nearest on.

    A result is framed in green if it is the query's person, in red if it is another one, and in
    grey if either is unknown; the frame is dashed if its camera is the query's. Under each stand
    its distance, camera and label.

    Args:
        rows: Each query with its results, nearest first.
        title: Text above; None for none.
        distance_name: What the distances are; said once, below.

    Raises:
        ValueError: There is no row.
        MissingExtraError: Matplotlib is not installed.

    Example:
        >>> picture = np.zeros((64, 32, 3), dtype=np.uint8)
        >>> query = Shown(picture=picture, person=7, camera=0)
        >>> result = Shown(picture=picture, person=7, camera=1, distance=0.25)
        >>> ranked_list([(query, [result])]).savefig("ranked.png")  # doctest: +SKIP
    """
    if not rows:
        raise ValueError("rows must have at least one query, got none")
    columns = max(len(results) for _, results in rows)
    row_height = _PICTURE[1] + _CAPTION + 0.1
    head = 0.85 if title else 0.45
    height = head + len(rows) * row_height + 0.5
    legend = _legend_entries(rows)
    width = max(_left_of(columns + 1), _legend_width(legend, distance_name) + _MARGIN)
    canvas = Canvas(width, height)
    if title:
        canvas.write(_MARGIN, height - 0.35, title, size=13, weight="bold")
    for column in range(columns + 1):
        center = _left_of(column) + _PICTURE[0] / 2
        text = str(column) if column else "query"
        canvas.write(center, height - head + 0.12, text, size=8.5, color=MUTED, ha="center")
    for number, (query, results) in enumerate(rows):
        top = height - head - number * row_height
        canvas.show(query, _left_of(0), top, INK, dashed=False)
        for rank, result in enumerate(results, start=1):
            dashed = same_camera(query, result)
            canvas.show(result, _left_of(rank), top, verdict(query, result), dashed=dashed)
    _draw_legend(canvas, legend, distance_name)
    return canvas.figure


def draw_search(
    queries: EmbeddingTable,
    gallery: EmbeddingTable,
    results: Sequence[Sequence[Found]],
    *,
    title: str | None = None,
) -> Figure:
    """Draw the results of ``tfclip.data.search_table`` as a ranked list.

    Pictures are read from where the tables' thumbnails point; one that is gone is left blank.

    Args:
        queries: What was looked for.
        gallery: Where.
        results: For each query what was found.
        title: Text above; None for none.

    Raises:
        ValueError: There is no query.
        MissingExtraError: Matplotlib is not installed.
    """
    return ranked_list(search_rows(queries, gallery, results), title=title)


def search_rows(
    queries: EmbeddingTable, gallery: EmbeddingTable, results: Sequence[Sequence[Found]]
) -> list[tuple[Shown, list[Shown]]]:
    """Return what ``tfclip.data.search_table`` found, with its pictures, a row for each query.

    Args:
        queries: What was looked for.
        gallery: Where.
        results: For each query what was found.
    """
    from tfclip.data.tracklets import load_thumbnails

    places = sorted({place for found in results for place, _ in found})
    asked = load_thumbnails(queries.thumbnails)
    pictures = load_thumbnails([gallery.thumbnails[place] for place in places])
    by_place = dict(zip(places, pictures, strict=True))

    def show(table: EmbeddingTable, row: int, picture: Any, distance: float | None) -> Shown:
        return Shown(
            picture=picture,
            person=table.persons[row],
            camera=table.cameras[row],
            distance=distance,
            label=table.names[row],
        )

    return [
        (
            show(queries, row, asked[row], None),
            [show(gallery, place, by_place[place], distance) for place, distance in found],
        )
        for row, found in enumerate(results)
    ]


def contact_sheet(
    frames: Sequence[np.ndarray] | np.ndarray,
    *,
    columns: int = 10,
    title: str | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Draw the frames of a tracklet side by side, in reading order.

    Args:
        frames: Pictures ``(H, W, 3)`` uint8 RGB of any sizes.
        columns: Pictures in a line.
        title: Text above; None for none.
        labels: A short text under each; None numbers them from 1.

    Raises:
        ValueError: There is no frame, or not one label for each.
        MissingExtraError: Matplotlib is not installed.

    Example:
        >>> frames = [np.zeros((64, 32, 3), dtype=np.uint8)] * 12
        >>> contact_sheet(frames, columns=6).savefig("frames.png")  # doctest: +SKIP
    """
    if len(frames) == 0 or columns < 1:
        raise ValueError(
            f"frames and columns must be at least one, got {len(frames)} frames, {columns} columns"
        )
    labels = [str(number) for number in range(1, len(frames) + 1)] if labels is None else labels
    if len(labels) != len(frames):
        raise ValueError(f"labels must be {len(frames)}, one for each frame, got {len(labels)}")
    columns = min(columns, len(frames))
    row_height = _PICTURE[1] + 0.27
    head = 0.65 if title else 0.2
    height = head + math.ceil(len(frames) / columns) * row_height + 0.1
    canvas = Canvas(2 * _MARGIN + columns * _STEP - (_STEP - _PICTURE[0]), height)
    if title:
        canvas.write(_MARGIN, height - 0.35, title, size=13, weight="bold")
    for number, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        left = _MARGIN + (number % columns) * _STEP
        top = height - head - (number // columns) * row_height
        canvas.place(frame, left, top, UNKNOWN, line_width=0.8)
        below = top - _PICTURE[1] - 0.12
        canvas.write(left + _PICTURE[0] / 2, below, label, size=7, color=MUTED, ha="center")
    return canvas.figure


def _left_of(column: int) -> float:
    return _MARGIN + column * _STEP + (_QUERY_GAP if column else 0)


def verdict(query: Shown, result: Shown) -> str:
    """Return the colour that says whether a result is right."""
    if query.person is None or result.person is None:
        return UNKNOWN
    return RIGHT if str(query.person) == str(result.person) else WRONG


def same_camera(query: Shown, result: Shown) -> bool:
    """Tell whether a result is known to be from the query's own camera."""
    return query.camera is not None and query.camera == result.camera


class Canvas:
    """A white sheet measured in inches from its lower left corner."""

    def __init__(self, width: float, height: float) -> None:
        check_matplotlib()
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.limits = (0, width, 0, height)
        self.axes.axis(self.limits)

    def write(self, x: float, y: float, text: str, *, size: float, **style: Any) -> None:
        """Write text; its left end is at ``x`` and its middle at ``y`` unless ``style`` differs."""
        style = {"color": INK, "va": "center", **style}
        # A name may hold "$", which would begin a formula.
        self.axes.text(x, y, text, fontsize=size, parse_math=False, zorder=3, **style)

    def place(
        self,
        picture: np.ndarray | None,
        left: float,
        top: float,
        color: str,
        *,
        line_width: float = 2.4,
        dashed: bool = False,
    ) -> None:
        """Draw a picture as large as fits, in the middle of its frame."""
        from matplotlib.patches import Rectangle

        width, height = _PICTURE
        corner = (left, top - height)
        self.axes.add_patch(Rectangle(corner, width, height, color=EMPTY, linewidth=0, zorder=0))
        if picture is None:
            middle = (left + width / 2, top - height / 2)
            self.write(*middle, "no picture", size=7, color=MUTED, ha="center")
        else:
            scale = min(width / picture.shape[1], height / picture.shape[0])
            across, down = picture.shape[1] * scale, picture.shape[0] * scale
            x, y = left + (width - across) / 2, top - (height + down) / 2
            extent = (x, x + across, y, y + down)
            self.axes.imshow(
                picture, extent=extent, interpolation="bicubic", aspect="auto", zorder=1
            )
            self.axes.axis(self.limits)  # imshow moves them
        style = _DASHES if dashed else "solid"
        border = Rectangle(
            corner,
            width,
            height,
            fill=False,
            edgecolor=color,
            linewidth=line_width,
            linestyle=style,
            zorder=2,
        )
        self.axes.add_patch(border)

    def show(self, shown: Shown, left: float, top: float, color: str, *, dashed: bool) -> None:
        """Draw a tracklet with its mark and caption."""
        self.place(shown.picture, left, top, color, dashed=dashed)
        width, height = _PICTURE
        if color in _MARKS:
            self.badge(left + width - 0.13, top - 0.13, color)
        facts = [] if shown.distance is None else [f"{shown.distance:.3f}"]
        facts += [] if shown.camera is None else [f"cam {shown.camera}"]
        label = shown.label
        if label is None and shown.person is not None:
            label = f"person {shown.person}"
        middle, below = left + width / 2, top - height
        if facts:
            line = "  \N{MIDDLE DOT}  ".join(facts)
            self.write(middle, below - 0.15, line, size=8, ha="center")
        below -= 0.32 if facts else 0.15
        self.write(middle, below, _shorten(label or ""), size=7, color=MUTED, ha="center")

    def badge(self, x: float, y: float, color: str) -> None:
        """Draw the mark of right or wrong."""
        box = {"boxstyle": "circle,pad=0.18", "facecolor": color, "edgecolor": "white"}
        style = {"color": "white", "ha": "center", "weight": "bold", "bbox": box}
        self.write(x, y, _MARKS[color], size=6.5, **style)


def _shorten(text: str, length: int = 18) -> str:
    """Keep the end of a long name: that is where the names of one data set differ."""
    return text if len(text) <= length else f"\N{HORIZONTAL ELLIPSIS}{text[1 - length :]}"


class _Entry(NamedTuple):
    """One line style of the legend."""

    color: str
    dashed: bool
    text: str

    @property
    def width(self) -> float:
        return 0.45 + 0.066 * len(self.text)


def _legend_entries(rows: Sequence[tuple[Shown, Sequence[Shown]]]) -> list[_Entry]:
    """Return what the legend has to explain: only what is in the picture."""
    pairs = [(query, result) for query, results in rows for result in results]
    present = {verdict(query, result) for query, result in pairs}
    entries = [_Entry(color, False, text) for color, text in _MEANINGS.items() if color in present]
    if any(same_camera(query, result) for query, result in pairs):
        entries.append(_Entry(INK, True, "same camera"))
    return entries


def _legend_width(entries: Sequence[_Entry], distance_name: str) -> float:
    note = _Entry(INK, False, _distance_note(distance_name)).width
    return _MARGIN + sum(entry.width for entry in entries) + note


def _distance_note(distance_name: str) -> str:
    return f"{distance_name}: smaller is nearer"


def _draw_legend(canvas: Canvas, entries: Sequence[_Entry], distance_name: str) -> None:
    from matplotlib.patches import Rectangle

    x, y = _MARGIN, 0.25
    for entry in entries:
        style = _DASHES if entry.dashed else "solid"
        box = Rectangle(
            (x, y - 0.06),
            0.14,
            0.12,
            fill=False,
            edgecolor=entry.color,
            linewidth=1.8,
            linestyle=style,
        )
        canvas.axes.add_patch(box)
        canvas.write(x + 0.22, y, entry.text, size=8, color=MUTED)
        x += entry.width
    canvas.write(x, y, _distance_note(distance_name), size=8, color=MUTED)
