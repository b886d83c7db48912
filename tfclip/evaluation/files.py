"""The files of a report: JSON, Markdown, a table of queries, pictures, and one page of all."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from tfclip.evaluation.report import EvaluationReport
from tfclip.files import replace_when_done
from tfclip.pages import html_figure, html_list, html_table, write_html

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    report: EvaluationReport, folder: str | Path, *, threshold: float | None = None
) -> list[Path]:
    """Write a report as files of a folder.

    Args:
        report: What to write.
        folder: Where to; made when it is missing. ``report.json``, ``report.md``,
            ``per_query.csv``, ``cmc.png`` and, where there are pairs of both kinds,
            ``roc.png`` and ``distances.png``.
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
    parts = [html_list(report.facts(), "facts")]
    parts += [html_table(table) for table in report.tables()]
    parts.append(html_list(report.notes(), "notes"))
    for name, figure in draw_figures(report, threshold).items():
        parts.append(html_figure(figure, _MEANINGS[name]))
    write_html(path, report.title, parts)


_MEANINGS = {
    "cmc": "Cumulative match characteristics of every row",
    "roc": "Receiver operating characteristics of every row",
    "distances": "Histogram of the distances of pairs of one person and of two persons",
}


def draw_figures(report: EvaluationReport, threshold: float | None = None) -> dict[str, Figure]:
    """Draw the curves of every row, and the distances of the first.

    Pairs, in ``roc`` and ``distances``, are those of the first split.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    from tfclip.visualize import cmc_curves, distance_histogram, roc_curves

    curves = {row.name: row.result for row in report.rows}
    figures = {"cmc": cmc_curves(curves, title=report.title)}
    first = report.rows[0]
    both_kinds = {
        row.name: row.pairs
        for row in report.rows
        if row.pairs.same.any() and not row.pairs.same.all()
    }
    if both_kinds:
        note = first.splits[0].protocol
        figures["roc"] = roc_curves(both_kinds, title=report.title, note=note)
    if first.name in both_kinds:
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
