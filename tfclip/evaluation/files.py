"""The files of a report: JSON, Markdown, a table of queries, pictures, and one page of all."""

from __future__ import annotations

import base64
import csv
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

from tfclip.evaluation.report import EvaluationReport
from tfclip.files import replace_when_done

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; margin: 2em auto; max-width: 62em;
  padding: 0 1em }
h1 { font-size: 1.5em }
table { border-collapse: collapse; margin: 1.5em 0; display: block; overflow-x: auto }
th, td { padding: .35em .7em; text-align: right; border-bottom: 1px solid #eceef0;
  font-variant-numeric: tabular-nums; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; width: 30em }
.notes { color: #656d76; font-size: .85em }
"""


def write_report(
    report: EvaluationReport, folder: str | Path, *, threshold: float | None = None
) -> list[Path]:
    """Write a report as files of a folder.

    Args:
        report: What to write.
        folder: Where to; made when it is missing. ``report.json``, ``report.md``,
            ``per_query.csv``, ``cmc.png`` and, where there are pairs of both kinds,
            ``distances.png``.
        threshold: Drawn among the distances; None for none.

    Returns:
        The files.

    Raises:
        SaveError: A file cannot be written.
        MissingExtraError: Matplotlib is not installed.
    """
    from tfclip.visualize import save_figure

    folder = Path(folder)
    figures = draw_figures(report, threshold)
    texts = {
        "report.json": report.to_json(),
        "report.md": report.to_markdown(),
        "per_query.csv": per_query_csv(report),
    }
    for name, text in texts.items():
        with replace_when_done(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return [*(folder / name for name in texts), *(folder / f"{name}.png" for name in figures)]


def write_page(
    report: EvaluationReport, path: str | Path, *, threshold: float | None = None
) -> None:
    """Write a report as one HTML file that needs nothing else: no script, no link, no other file.

    Args:
        report: What to write.
        path: The file.
        threshold: Drawn among the distances; None for none.

    Raises:
        SaveError: The file cannot be written.
        MissingExtraError: Matplotlib is not installed.
    """
    parts = [f"<h1>{html.escape(report.title)}</h1>", _list(report.facts(), "facts")]
    parts += [_table(table) for table in report.tables()]
    parts.append(_list(report.notes(), "notes"))
    for name, figure in draw_figures(report, threshold).items():
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
        data = base64.b64encode(drawn.getvalue()).decode()
        parts.append(f'<img alt="{_MEANINGS[name]}" src="data:image/png;base64,{data}">')
    head = (
        f'<meta charset="utf-8"><title>{html.escape(report.title)}</title><style>{_STYLE}</style>'
    )
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n'
    with replace_when_done(path) as temporary:
        temporary.write_text(page + "\n".join(parts) + "\n</body></html>\n", encoding="utf-8")


_MEANINGS = {
    "cmc": "Cumulative match characteristics of every row",
    "distances": "Histogram of the distances of pairs of one person and of two persons",
}


def draw_figures(report: EvaluationReport, threshold: float | None = None) -> dict[str, Figure]:
    """Draw the curves of every row, and the distances of the first.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    from tfclip.visualize import cmc_curves, distance_histogram

    curves = {row.name: row.result for row in report.rows}
    figures = {"cmc": cmc_curves(curves, title=report.title)}
    first = report.rows[0]
    if bool(first.pairs.same.any()) and not bool(first.pairs.same.all()):
        figures["distances"] = distance_histogram(
            *first.pairs,
            threshold=threshold,
            title=f"{report.title}: {first.name}",
            note=first.splits[0].protocol,
        )
    return figures


def per_query_csv(report: EvaluationReport) -> str:
    """Return what each query gave as the text of a CSV table; empty cells are not known."""
    lines = report.per_query()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _list(lines: list[str], kind: str) -> str:
    items = "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">\n{items}\n</ul>'


def _table(table: list[tuple[str, ...]]) -> str:
    lines = []
    for number, cells in enumerate(table):
        tag = "td" if number else "th"
        lines.append("<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"
