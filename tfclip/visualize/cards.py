"""Ranked lists as HTML: for pages, where a list may be long and its text be copied."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tfclip.pages import data_uri, html_list, write_html
from tfclip.visualize.lists import Shown, same_camera, verdict
from tfclip.visualize.style import MUTED, RIGHT, UNKNOWN, WRONG

_CLASSES = {RIGHT: "right", WRONG: "wrong", UNKNOWN: "unknown"}
_MARKS = {RIGHT: "\N{CHECK MARK}", WRONG: "\N{MULTIPLICATION X}"}
_HEIGHT = 196  # pixels of a picture on the page

CARD_STYLE = f"""
.tf-row {{ display: flex; flex-wrap: wrap; gap: 12px; margin: 6px 0 26px; align-items: flex-start }}
.tf-card {{ width: 104px; margin: 0; text-align: center; font: 12px/1.35 system-ui, sans-serif }}
.tf-card .tf-picture {{ position: relative; height: 196px; box-sizing: border-box;
  border: 3px solid {UNKNOWN}; border-radius: 6px; background: #eceef0; overflow: hidden;
  display: flex; align-items: center; justify-content: center; color: #656d76 }}
.tf-card img {{ width: 100%; height: 100%; object-fit: contain; display: block; margin: 0 }}
.tf-card figcaption {{ margin-top: 5px; overflow-wrap: anywhere }}
.tf-card b {{ font-size: 13px; font-variant-numeric: tabular-nums }}
.tf-card small {{ display: block; opacity: .7; font-size: 11px }}
.tf-query {{ margin-right: 14px }}
.tf-query .tf-picture {{ border-color: {MUTED} }}
.tf-right .tf-picture {{ border-color: {RIGHT} }}
.tf-wrong .tf-picture {{ border-color: {WRONG} }}
.tf-same-camera .tf-picture {{ border-style: dashed }}
.tf-rank, .tf-mark {{ position: absolute; top: 4px; font-weight: 700; font-size: 11px;
  line-height: 18px; min-width: 18px; box-sizing: border-box; border-radius: 9px;
  text-align: center; color: #fff !important }}
.tf-rank {{ left: 4px; padding: 0 5px; background: rgba(31, 35, 40, .78) }}
.tf-mark {{ right: 4px }}
.tf-right .tf-mark {{ background: {RIGHT} }}
.tf-wrong .tf-mark {{ background: {WRONG} }}
"""

_PAGE_STYLE = """
body { max-width: 72em }
h2 { font-size: 1.05em; margin: 1em 0 .3em; overflow-wrap: anywhere }
"""


def ranked_cards(query: Shown, results: Sequence[Shown]) -> str:
    """Return a query and its results as HTML, which ``CARD_STYLE`` makes a row of cards.

    Pictures are held in the text itself. Marks and frames are those of ``ranked_list``.

    Args:
        query: What was looked for.
        results: What was found, nearest first.

    Example:
        >>> picture = np.zeros((64, 32, 3), dtype=np.uint8)
        >>> query = Shown(picture=picture, person=7, camera=0)
        >>> cards = ranked_cards(query, [Shown(picture=picture, person=7, distance=0.25)])
        >>> "tf-right" in cards, "<b>0.250</b>" in cards
        (True, True)
    """
    cards = [_card(query, "tf-query", "query", "")]
    for rank, result in enumerate(results, start=1):
        color = verdict(query, result)
        kinds = f"tf-{_CLASSES[color]}"
        if same_camera(query, result):
            kinds += " tf-same-camera"
        cards.append(_card(result, kinds, str(rank), _MARKS.get(color, "")))
    return '<div class="tf-row">\n' + "\n".join(cards) + "\n</div>"


def write_search_page(
    rows: Sequence[tuple[Shown, Sequence[Shown]]],
    path: str | Path,
    *,
    title: str = "Nearest tracklets",
    facts: Sequence[str] = (),
) -> None:
    """Write queries and what was found for each as one HTML file that needs nothing else.

    Args:
        rows: Each query with its results, nearest first; ``search_rows`` makes them of tables.
        path: The file.
        title: Heading of the page.
        facts: What a reader must know: the model, what the distance is, a threshold; a line each.

    Raises:
        ValueError: There is no row.
        SaveError: The file cannot be written.
    """
    if not rows:
        raise ValueError("rows must have at least one query, got none")
    parts = [html_list(facts, "facts"), _legend(rows)]
    for query, results in rows:
        parts.append(f"<h2>{html.escape(_name(query))}</h2>")
        parts.append(ranked_cards(query, results))
        if not results:
            parts.append('<p class="notes">Nothing is near enough, or left of the gallery.</p>')
    write_html(path, title, parts, style=CARD_STYLE + _PAGE_STYLE)


def _card(shown: Shown, kinds: str, rank: str, mark: str) -> str:
    address = _thumbnail(shown.picture)
    name = html.escape(_name(shown))
    picture = f'<img alt="{name}" src="{address}">' if address else "no picture"
    badge = f'<span class="tf-mark">{mark}</span>' if mark else ""
    lines = [] if shown.distance is None else [f"<b>{shown.distance:.3f}</b>"]
    lines += [] if shown.camera is None else [f"cam {shown.camera}"]
    details = [] if shown.person is None else [f"person {shown.person}"]
    details += [shown.label] if shown.label and shown.label != str(shown.person) else []
    caption = " \N{MIDDLE DOT} ".join(lines)
    caption += "".join(f"<small>{html.escape(detail)}</small>" for detail in details)
    badges = f'<span class="tf-rank">{rank}</span>{badge}'
    return (
        f'<figure class="tf-card {kinds}"><div class="tf-picture">{picture}{badges}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _legend(rows: Sequence[tuple[Shown, Sequence[Shown]]]) -> str:
    pairs = [(query, result) for query, results in rows for result in results]
    lines = []
    if any(verdict(*pair) != UNKNOWN for pair in pairs):
        lines.append("green, \N{CHECK MARK}: same person; red, \N{MULTIPLICATION X}: other person")
    if any(verdict(*pair) == UNKNOWN for pair in pairs):
        lines.append("grey: the person is unknown")
    if any(same_camera(*pair) for pair in pairs):
        lines.append("dashed: same camera as the query")
    return html_list(lines, "notes") if lines else ""


def _name(shown: Shown) -> str:
    return shown.label or ("" if shown.person is None else f"person {shown.person}") or "tracklet"


def _thumbnail(picture: np.ndarray | None) -> str:
    """Return a small copy of a picture, held in its address; an empty text of none."""
    if picture is None:
        return ""
    image = Image.fromarray(picture)
    image.thumbnail((2 * _HEIGHT, 2 * _HEIGHT))
    written = io.BytesIO()
    image.save(written, format="JPEG", quality=88)
    return data_uri(written, "jpeg")
