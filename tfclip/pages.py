"""HTML pages that need nothing else: no script, no link, no other file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tfclip.files import replace_when_done

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; background: #fff; margin: 2em auto;
  max-width: 62em; padding: 0 1em }
h1 { font-size: 1.5em }
table { border-collapse: collapse; margin: 1.5em 0; display: block; overflow-x: auto }
th, td { padding: .35em .7em; text-align: right; border-bottom: 1px solid #eceef0;
  font-variant-numeric: tabular-nums; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
img.figure { max-width: 100%; width: 30em }
.notes { color: #656d76; font-size: .85em }
"""
# The browser itself then refuses whatever would come from elsewhere.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_html(path: str | Path, title: str, parts: Iterable[str], *, style: str = "") -> None:
    """Write a page, whole or not at all.

    Args:
        path: The file.
        title: Plain text, of the window and of the heading.
        parts: Pieces of HTML, in their order.
        style: Rules of CSS beyond those of every page.

    Raises:
        SaveError: The file cannot be written; what stood there is untouched.
    """
    heading = html.escape(title)
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{heading}</title><style>{_STYLE}{style}</style>"
    )
    body = "\n".join([f"<h1>{heading}</h1>", *parts])
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    with replace_when_done(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def html_figure(figure: Figure, meaning: str) -> str:
    """Return a figure as an image that the page holds itself; ``meaning`` is read to the blind."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return f'<img class="figure" alt="{html.escape(meaning)}" src="{data_uri(drawn, "png")}">'


def html_list(lines: Iterable[str], kind: str) -> str:
    """Return lines of text as a list of the class ``kind``."""
    items = "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">\n{items}\n</ul>'


def html_table(table: Iterable[Iterable[str]]) -> str:
    """Return rows of cells as a table, the headings first."""
    lines = []
    for number, cells in enumerate(table):
        tag = "td" if number else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def data_uri(data: io.BytesIO, kind: str) -> str:
    """Return the bytes of an image as an address that holds them."""
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
