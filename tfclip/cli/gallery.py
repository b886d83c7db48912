"""``tfclip gallery``."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfclip.cli import associate
from tfclip.cli.shared import UsageError, add_command, natural, positive
from tfclip.errors import TFCLIPError

if TYPE_CHECKING:
    from tfclip.gallery import Gallery

_INDEXES = ("flat", "hnsw", "ivf")
_STORAGES = ("exact", *_INDEXES, "milvus")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def add_parser(commands: Any) -> None:
    """Add the command with its parts."""
    command = add_command(
        commands,
        "gallery",
        run_info,
        "keep embeddings in a gallery that grows",
        """
Keep embeddings of tracklets, find in them, and forget them. A gallery is a folder,
or the address of a Milvus server. It holds personal data: only you can read it, and
what is forgotten is gone from the folder when the command ends.

Example:
  tfclip gallery add people/ day1.safetensors --ttl 7d
  tfclip gallery import people/ year.parquet
  tfclip gallery search people/ queries.safetensors --exclude-same-camera
  tfclip gallery forget people/ --person 7
""",
    )
    parts = command.add_subparsers(title="parts", metavar="PART", required=True)
    _add_add(parts)
    _add_import(parts)
    _add_search(parts)
    _add_forget(parts)
    _add_cluster(parts)
    info = add_command(
        parts,
        "info",
        run_info,
        "what a gallery holds",
        """
Print the model of a gallery and how many entries, persons and cameras it holds.

Example:
  tfclip gallery info people/
""",
    )
    _add_gallery(info)
    info.add_argument("--json", action="store_true", help="for programs")


def _add_add(parts: Any) -> None:
    add = add_command(
        parts,
        "add",
        run_add,
        "add files of embeddings",
        """
Add the rows of files that tfclip encode wrote, under their names; the gallery is made
when it is not there. All files must come from one model. When the command ends, the
rows are safe on the disk.

Example:
  tfclip gallery add people/ day1.safetensors day2.safetensors
""",
    )
    _add_gallery(add)
    _add_filling(add)


def _add_import(parts: Any) -> None:
    command = add_command(
        parts,
        "import",
        run_import,
        "add large files of embeddings, some thousands of rows at a time",
        """
Add the rows of files that tfclip encode wrote, in steps of bounded memory (of .parquet
files). After an interruption the same command goes on: rows that are there already
are not added again. A row whose name is there with another vector stops the import.

Example:
  tfclip gallery import people/ monday.parquet --set site=north
         --started 2026-03-16T06:00:00+00:00 --frame-rate 25
""",
    )
    _add_gallery(command)
    _add_filling(command)
    command.add_argument(
        "--set",
        type=_pair,
        action="append",
        default=[],
        metavar="KEY=TEXT",
        help="metadata of every row, as in site=north; may be repeated",
    )
    command.add_argument(
        "--started",
        type=_moment,
        metavar="TIME",
        help="when the recording started, in seconds or as 2026-03-16T06:00:00+00:00; "
        "tracklets then have the time of their first frame",
    )
    command.add_argument(
        "--frame-rate", type=float, metavar="R", help="frames per second; goes with --started"
    )
    command.set_defaults(resumes=True)


def _add_filling(command: Any) -> None:
    """Add what all commands have that put files into a gallery."""
    command.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="files of tfclip encode"
    )
    command.add_argument(
        "--replace", action="store_true", help="put rows in the place of entries of their name"
    )
    made = command.add_argument_group("said when the gallery is made")
    made.add_argument(
        "--ttl", type=_duration, metavar="TIME", help="keep entries for so long, as in 12h or 7d"
    )
    made.add_argument(
        "--partition",
        metavar="FIELD",
        help="keep entries apart in Milvus: camera, time or added (by days), or a key of metadata",
    )
    made.add_argument(
        "--num-shards", type=positive, metavar="N", help="in how many shards a server takes entries"
    )
    command.add_argument(
        "--replica-number", type=positive, metavar="N", help="copies a server holds in memory"
    )


def _add_search(parts: Any) -> None:
    search = add_command(
        parts,
        "search",
        run_search,
        "nearest entries of each query",
        """
Find, for each row of a file of embeddings, the nearest entries of a gallery.

The distance is squared Euclidean between vectors of length 1, which is
2 - 2 cos: 0 is the same direction, 4 the opposite; smaller is nearer. Re-ranking has
distances of its own.

Example:
  tfclip gallery search people/ queries.safetensors --top 10 --exclude-same-camera
""",
    )
    _add_gallery(search)
    search.add_argument("queries", type=Path, metavar="QUERIES", help="a file of tfclip encode")
    search.add_argument("--top", type=positive, default=10, metavar="K", help="results (10)")
    search.add_argument(
        "--exclude-same-camera", action="store_true", help="leave out the query's own camera"
    )
    search.add_argument(
        "--exclude-same-name",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave out the query itself where it is in the gallery (default)",
    )
    search.add_argument(
        "--camera", type=natural, action="append", metavar="N", help="only these; may be repeated"
    )
    search.add_argument("--rerank", choices=("k_reciprocal",), help="re-rank the 100 nearest")


def _add_forget(parts: Any) -> None:
    forget = add_command(
        parts,
        "forget",
        run_forget,
        "remove entries for good",
        """
Remove the entries that fulfil everything that is said. No file of the gallery's folder
holds them when the command ends; a Milvus server takes them off its disk later.
Copies that you made elsewhere are yours to remove.

Example:
  tfclip gallery forget people/ --person 7
  tfclip gallery forget people/ --camera 3 --older 7d
""",
    )
    _add_gallery(forget)
    forget.add_argument("--name", action="append", metavar="NAME", help="may be repeated")
    forget.add_argument("--person", metavar="PERSON")
    forget.add_argument("--camera", type=natural, metavar="N")
    forget.add_argument(
        "--older", type=_duration, metavar="TIME", help="added longer ago, as in 12h or 7d"
    )


def _add_cluster(parts: Any) -> None:
    cluster = add_command(
        parts,
        "cluster",
        run_cluster,
        "group the tracklets of a gallery into people",
        """
Group all entries into people, as tfclip cluster does with files: the nearest are merged
first, until they are farther apart than a threshold. Writes a table with one line for
each entry, whose column "label" is the same for the same person. The gallery itself
stays as it is.

Example:
  tfclip gallery cluster people/ --threshold 0.5 --out people.csv
  tfclip gallery cluster people/ --false-match-rate 0.001 --fit-on known.safetensors
         --out people.csv
""",
    )
    _add_gallery(cluster)
    associate.add_options(cluster)


def _add_gallery(command: Any) -> None:
    command.add_argument("gallery", metavar="GALLERY", help="a folder, or http://HOST:PORT")
    command.add_argument(
        "--storage",
        choices=_STORAGES,
        help="exact (default), an index of FAISS (flat, hnsw, ivf), or milvus",
    )
    command.add_argument(
        "--collection", default="tfclip", metavar="NAME", help="its name in Milvus (tfclip)"
    )


def _duration(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.isdecimal() or not int(number):
        raise argparse.ArgumentTypeError(
            f"must be a number with one of {', '.join(_UNITS)}, as in 7d, got {text!r}"
        )
    return int(number) * _UNITS[unit]


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not key or not sign:
        raise argparse.ArgumentTypeError(f"must be KEY=TEXT, as in site=north, got {text!r}")
    return key, value


def _moment(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be seconds or a time as in 2026-03-16T06:00:00+00:00, got {text!r}"
        ) from error


def open_gallery(options: argparse.Namespace, **more: Any) -> Gallery:
    """Open the gallery that the arguments name."""
    from tfclip.gallery import Gallery

    if options.storage in _INDEXES:
        more |= {"storage": "faiss", "index": options.storage}
    else:
        more["storage"] = options.storage
    try:
        return Gallery.open(options.gallery, collection=options.collection, **more)
    except ValueError as error:  # an address with a storage that is none of Milvus
        raise UsageError(str(error)) from error


def run_add(options: argparse.Namespace) -> None:
    """Add files of embeddings to a gallery."""
    from tfclip.data.embeddings import EmbeddingTable

    tables = [EmbeddingTable.load(file) for file in options.files]
    table = EmbeddingTable.concatenate(tables)
    with _open_for(table, table.embeddings.shape[1], options) as gallery:
        added = gallery.add_table(table, replace=options.replace)
        print(f"{len(added)} entries added; {options.gallery} holds {len(gallery)}")


def run_import(options: argparse.Namespace) -> None:
    """Add large files of embeddings to a gallery."""
    from tfclip.data.embedding_reader import EmbeddingReader

    marks = {
        "metadata": dict(options.set) or None,
        "started": options.started,
        "frame_rate": options.frame_rate,
    }
    with EmbeddingReader(options.files[0]) as first:
        gallery = _open_for(first, first.width, options)
    with gallery:
        for file in options.files:
            try:
                done = gallery.import_file(file, **marks, replace=options.replace, progress=True)
            except ValueError as error:
                if isinstance(error, TFCLIPError):
                    raise
                raise UsageError(str(error)) from error
            print(f"{file}: {done.added} entries added, {done.there} were there already")
        print(f"{options.gallery} holds {len(gallery)}")


def _open_for(table: Any, width: int, options: argparse.Namespace) -> Gallery:
    """Open the gallery, or make it for embeddings such as those of a table."""
    return open_gallery(
        options,
        dim=width,
        model=table.model,
        revision=table.revision,
        fingerprint=table.fingerprint,
        ttl=options.ttl,
        partition=options.partition,
        num_shards=options.num_shards,
        replica_number=options.replica_number,
    )


def run_search(options: argparse.Namespace) -> None:
    """Search a file of embeddings in a gallery."""
    from tfclip.data.embeddings import EmbeddingTable

    queries = EmbeddingTable.load(options.queries)
    keeps_index = options.storage in _INDEXES  # so that the next search need not make it again
    with open_gallery(options, read_only=not keeps_index) as gallery:
        try:
            result = gallery.search(
                queries,
                options.top,
                where=None if options.camera is None else {"camera": options.camera},
                exclude_same_camera=options.exclude_same_camera,
                exclude_same_id=options.exclude_same_name,
                rerank=options.rerank,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
    for row, matches in enumerate(result):
        print(f"query {queries.names[row]} (person {_known(queries.persons[row])}, ", end="")
        print(f"camera {_known(queries.cameras[row])})")
        lines: list[tuple[str, ...]] = [("rank", "distance", "name", "person", "camera")]
        for rank, match in enumerate(matches, start=1):
            facts = map(_known, (match.id, match.person, match.camera))
            lines.append((str(rank), f"{match.distance:.4f}", *facts))
        _print_table(lines) if matches else print("  nothing is left of the gallery")
        print()
    if options.rerank:
        print(f"distance: {result.metric}; smaller is nearer")
    else:
        print("distance: squared Euclidean, 2 - 2 cos for vectors of length 1; smaller is nearer")


def run_forget(options: argparse.Namespace) -> None:
    """Remove entries from a gallery."""
    import time

    wanted = (options.name, options.person, options.camera, options.older)
    if all(value is None for value in wanted):
        raise UsageError("say what to forget: --name, --person, --camera or --older")
    with open_gallery(options) as gallery:
        count = gallery.forget(
            options.name,
            person=options.person,
            camera=options.camera,
            added_before=None if options.older is None else time.time() - options.older,
        )
        print(f"{count} entries forgotten; {options.gallery} holds {len(gallery)}")


def run_cluster(options: argparse.Namespace) -> None:
    """Group the entries of a gallery into people."""
    with open_gallery(options) as gallery:
        table = gallery.to_table()
    associate.group([(options.gallery, table)], options)


def run_info(options: argparse.Namespace) -> None:
    """Print what a gallery holds."""
    with open_gallery(options, read_only=True) as gallery:
        info = gallery.info()
    if options.json:
        print(json.dumps(info))
        return
    for name, value in info.items():
        print(f"{name + ':':<13}{'-' if value in (None, '', []) else value}")


def _print_table(lines: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for rank, distance, *facts in lines:
        texts = [text.ljust(width) for text, width in zip(facts, widths[2:], strict=True)]
        numbers = f"{rank.rjust(widths[0])}  {distance.rjust(widths[1])}"
        print(f"  {numbers}  {'  '.join(texts)}".rstrip())


def _known(value: object) -> str:
    return "?" if value is None else str(value)
