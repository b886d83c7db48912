"""``tfclip search``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfclip.cli.shared import (
    PICTURE_SUFFIXES,
    UsageError,
    add_command,
    picture_path,
    positive,
    wrong_usage,
)
from tfclip.errors import TableError
from tfclip.files import check_file

if TYPE_CHECKING:
    from tfclip.data.embeddings import EmbeddingTable
    from tfclip.data.search import Found

_MAX_PICTURED_QUERIES = 8
_MAX_REPORTED_QUERIES = 200


def add_parser(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "search",
        run,
        "nearest tracklets of a gallery",
        """
Find, for each tracklet of one file of embeddings, the nearest of another.

The distance is squared Euclidean between vectors of length 1, which is
2 - 2 cos: 0 is the same direction, 4 the opposite; smaller is nearer. Both files
must come from one model. With --reject a result beyond the threshold that the
model's folder holds (tfclip evaluate --fit-threshold) is left out: then the
answer may be that nobody is there.

Example:
  tfclip search queries.safetensors gallery.safetensors --top 10 --picture ranked.png
  tfclip search queries.safetensors gallery.safetensors --report ranked.html
  tfclip search queries.safetensors gallery.safetensors --reject --model calibrated/
""",
    )
    command.add_argument("queries", type=Path, metavar="QUERIES", help="a file of tfclip encode")
    command.add_argument("gallery", type=Path, metavar="GALLERY", help="another, or the same")
    command.add_argument("--top", type=positive, default=5, metavar="K", help="results (5)")
    command.add_argument(
        "--query", action="append", metavar="NAME", help="only this query; may be repeated"
    )
    command.add_argument(
        "--exclude-same-camera", action="store_true", help="leave out the query's own camera"
    )
    command.add_argument(
        "--exclude-same-name",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out the query itself where it is in the gallery (default)",
    )
    command.add_argument(
        "--reject", action="store_true", help="leave out what is beyond the model's threshold"
    )
    command.add_argument(
        "--model", metavar="NAME", help="whose threshold: a folder or a Hub repository owner/name"
    )
    command.add_argument("--revision", help="branch, tag or commit of a Hub repository")
    command.add_argument(
        "--picture",
        type=picture_path,
        metavar="FILE",
        help=f"draw the first {_MAX_PICTURED_QUERIES} queries: {', '.join(PICTURE_SUFFIXES)}",
    )
    command.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help=f"write the first {_MAX_REPORTED_QUERIES} queries as one HTML page, pictures included",
    )


def run(options: argparse.Namespace) -> None:
    """Search one file of embeddings in another."""
    from tfclip.data.embeddings import EmbeddingTable
    from tfclip.data.search import search_table
    from tfclip.visualize import check_matplotlib, draw_search, save_figure

    if options.reject != (options.model is not None):
        raise UsageError("--reject and --model NAME, whose threshold it is, go together")
    if options.picture:
        check_matplotlib()
    if options.report is not None:
        check_file(options.report)
    queries = _pick(EmbeddingTable.load(options.queries), options.query, options.queries)
    gallery = EmbeddingTable.load(options.gallery)
    queries.check_comparable(gallery)
    threshold = _threshold(options, queries, gallery) if options.reject else None
    results = search_table(
        queries,
        gallery,
        top=options.top,
        exclude_same_name=options.exclude_same_name,
        exclude_same_camera=options.exclude_same_camera,
    )
    if threshold is not None:
        results = [[one for one in found if one.distance <= threshold] for found in results]
    for row, found in enumerate(results):
        _print_results(queries, row, gallery, found)
    print("distance: squared Euclidean, 2 - 2 cos for vectors of length 1; smaller is nearer")
    if threshold is not None:
        count = sum(1 for found in results if not found)
        print(f"threshold: {threshold:.4f}; nobody is near enough to {count} of {len(results)}")
    if options.picture:
        number = min(len(queries), _MAX_PICTURED_QUERIES)
        figure = draw_search(queries.select(range(number)), gallery, results[:number])
        save_figure(figure, options.picture)
        print(f"picture of {number} of {len(queries)} queries: {options.picture}")
    if options.report is not None:
        _write_page(options.report, queries, gallery, results, threshold)


def _write_page(
    path: Path,
    queries: EmbeddingTable,
    gallery: EmbeddingTable,
    results: Sequence[Sequence[Found]],
    threshold: float | None,
) -> None:
    from tfclip.visualize import search_rows, write_search_page

    number = min(len(queries), _MAX_REPORTED_QUERIES)
    revision = f" at {gallery.revision}" if gallery.revision else ""
    facts = [
        f"model: {gallery.model or 'without a name'}{revision}, fingerprint "
        f"{gallery.fingerprint or 'unknown'}",
        f"queries: {number:,} of {len(queries):,}; gallery: {len(gallery):,} tracklets",
        "distance: squared Euclidean, 2 - 2 cos for vectors of length 1; smaller is nearer",
    ]
    if threshold is not None:
        facts.append(f"threshold: {threshold:.4f}; what is farther away is left out")
    rows = search_rows(queries.select(range(number)), gallery, results[:number])
    write_search_page(rows, path, facts=facts)
    print(f"page of {number} of {len(queries)} queries: {path}")


def _threshold(options: argparse.Namespace, *tables: EmbeddingTable) -> float:
    """Return the threshold of a model, if it was fitted for embeddings such as these."""
    from tfclip import hub

    with wrong_usage("--revision"):
        fitted = hub.load_config(options.model, revision=options.revision).calibration
    if not fitted:
        raise UsageError(
            f"--reject: {options.model} holds no threshold; tfclip evaluate --fit-threshold "
            "writes a copy that does"
        )
    for table in tables:
        if table.fingerprint != fitted["fingerprint"]:
            raise TableError(
                f"the threshold of {options.model} is for the model {fitted['fingerprint']}, and "
                f"these embeddings are of {table.fingerprint or 'an unknown one'}"
            )
        for setting, word in (("sampling", "frames"), ("cameras", "cameras told")):
            ours = table.settings.get(setting)
            if ours != fitted[setting]:
                raise TableError(
                    f"the threshold of {options.model} is for embeddings of {word} "
                    f"{fitted[setting]}, and these are of {word} {ours}"
                )
    return float(fitted["threshold"])


def _pick(table: EmbeddingTable, names: Sequence[str] | None, path: Path) -> EmbeddingTable:
    if names is None:
        return table
    unknown = [name for name in names if name not in table.names]
    if unknown:
        raise UsageError(f"--query: there is no tracklet {unknown[0]!r} in {path}")
    return table.select([table.names.index(name) for name in names])


def _print_results(
    queries: EmbeddingTable, row: int, gallery: EmbeddingTable, found: Sequence[Found]
) -> None:
    print(f"query {queries.names[row]} (person {_known(queries.persons[row])}, ", end="")
    print(f"camera {_known(queries.cameras[row])})")
    lines: list[tuple[str, ...]] = [("rank", "distance", "name", "person", "camera")]
    for rank, (place, distance) in enumerate(found, start=1):
        facts = (gallery.names[place], gallery.persons[place], gallery.cameras[place])
        lines.append((str(rank), f"{distance:.4f}", *map(_known, facts)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for rank, distance, *facts in lines:
        texts = [text.ljust(width) for text, width in zip(facts, widths[2:], strict=True)]
        numbers = f"{rank.rjust(widths[0])}  {distance.rjust(widths[1])}"
        print(f"  {numbers}  {'  '.join(texts)}".rstrip())
    if not found:
        print("  nothing is left of the gallery")
    print()


def _known(value: object) -> str:
    return "?" if value is None else str(value)
