"""``tfclip cluster``."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tfclip.cli.shared import UsageError, add_command, existing, positive

if TYPE_CHECKING:
    from tfclip.association import Association
    from tfclip.data.embeddings import EmbeddingTable
    from tfclip.functional import Calibration

    # The name under which the rows of a table are listed: its file, as given.
    Source: TypeAlias = tuple[str, EmbeddingTable]

COLUMNS = ("name", "file", "label", "camera", "first_frame", "last_frame")


def add_parser(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "cluster",
        run,
        "group tracklets of several cameras into people",
        """
Group the tracklets of one or more files of embeddings into people: the nearest are
merged first, until they are farther apart than a threshold. Writes a table with one
line for each tracklet, whose column "label" is the same for the same person, and
prints what the grouping is worth where persons are known.

The distance is squared Euclidean between vectors of length 1, which is 2 - 2 cos.
All files must come from one model. The threshold is a number, or is fitted for a
false match rate on files of other people, whose persons are known.

Example:
  tfclip cluster cam0.safetensors cam1.safetensors --threshold 0.5 --out people.csv
  tfclip cluster cam*.safetensors --false-match-rate 0.001 --fit-on known.safetensors
         --camera-per-file --same-camera-overlap --out people.csv
""",
    )
    command.add_argument(
        "files", type=existing, nargs="+", metavar="FILE", help="a file of tfclip encode"
    )
    add_options(command)
    command.add_argument(
        "--same-camera-overlap",
        action="store_true",
        help="tracklets of one camera with a frame number in common are never one person",
    )
    command.add_argument(
        "--camera-per-file",
        action="store_true",
        help="each file is a camera of its own, whatever it says",
    )


def add_options(command: Any) -> None:
    """Add the options that say how to group, which ``group`` reads."""
    command.set_defaults(same_camera_overlap=False, camera_per_file=False)
    cut = command.add_mutually_exclusive_group(required=True)
    cut.add_argument("--threshold", type=_distance, metavar="T", help="distance, from 0 on")
    cut.add_argument(
        "--false-match-rate", type=_rate, metavar="R", help="above 0, at most 1; needs --fit-on"
    )
    command.add_argument(
        "--fit-on", type=existing, nargs="+", metavar="FILE", help="embeddings of other people"
    )
    command.add_argument(
        "--linkage", choices=("average", "complete", "single"), default="average", help="(average)"
    )
    command.add_argument(
        "--max-part",
        type=positive,
        default=20_000,
        metavar="N",
        help="refuse to cluster more tracklets at once, for their memory (20000)",
    )
    command.add_argument(
        "--out", type=_csv_path, required=True, metavar="FILE", help="table to write, .csv"
    )


def run(options: argparse.Namespace) -> None:
    """Group the tracklets of files into people."""
    group(_load(options.files, options), options)


def group(sources: Sequence[Source], options: argparse.Namespace) -> None:
    """Group the rows of tables of one model into people, write them and say what came out.

    Args:
        sources: The tables, each with the name that the written table gives to its file.
        options: What ``add_options`` reads.

    Raises:
        UsageError: Options that contradict each other or the tables.
        TFCLIPError: What can be foreseen of files, models and missing packages.
    """
    import torch

    from tfclip.association import associate
    from tfclip.errors import TFCLIPError
    from tfclip.functional.clustering import check_scipy

    check_scipy()
    if (options.false_match_rate is None) != (options.fit_on is None):
        raise UsageError("--false-match-rate and --fit-on must be given together")
    calibration = None if options.fit_on is None else _fit(sources[0], options)
    try:
        association = associate(
            torch.cat([table.embeddings for _, table in sources]),
            threshold=options.threshold if calibration is None else calibration,
            linkage=options.linkage,
            max_part=options.max_part,
            **(_seen(sources) if options.same_camera_overlap else {}),
        )
    except ValueError as error:
        if isinstance(error, TFCLIPError):
            raise
        raise UsageError(str(error).replace("max_part", "--max-part")) from error
    _write(sources, association, options.out)
    _say(sources, association, calibration)
    print(f"people: {options.out}")


def _load(paths: Sequence[Path], options: argparse.Namespace) -> list[Source]:
    """Read files of one model; with ``--camera-per-file`` each is the camera of its place."""
    import dataclasses

    from tfclip.data.embeddings import EmbeddingTable
    from tfclip.errors import TableError

    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("a file is given twice")
    sources: list[Source] = []
    for camera, path in enumerate(paths):
        table = EmbeddingTable.load(path)
        try:
            (sources[0][1] if sources else table).check_comparable(table)
        except TableError as error:
            raise TableError(f"{path}: {error}") from error
        if options.camera_per_file:
            table = dataclasses.replace(table, cameras=(camera,) * len(table))
        sources.append((str(path), table))
    return sources


def _fit(first: Source, options: argparse.Namespace) -> Calibration:
    """Fit the threshold on tracklets of known persons; across cameras where these are known."""
    import torch

    from tfclip.errors import TableError
    from tfclip.functional import fit_threshold, pair_scores, squared_euclidean_distance

    known = _load(options.fit_on, options)
    try:
        first[1].check_comparable(known[0][1])
    except TableError as error:
        raise TableError(f"{known[0][0]}: {error}") from error
    rows = [row for _, table in known for row in zip(table.persons, table.cameras, strict=True)]
    kept = [row for row, (person, _) in enumerate(rows) if person is not None]
    if not kept:
        raise UsageError("--fit-on: no tracklet has a known person")
    embeddings = torch.cat([table.embeddings for _, table in known])[kept]
    persons = [rows[row][0] for row in kept]
    cameras = [rows[row][1] for row in kept]
    across = None not in cameras
    try:
        pairs = pair_scores(
            squared_euclidean_distance(embeddings, embeddings),
            persons,
            persons,
            cameras if across else None,
            cameras if across else None,
            exclude="person_and_camera" if across else "none",
            query_rows=range(len(kept)),
        )
        return fit_threshold(*pairs, false_match_rate=options.false_match_rate)
    except ValueError as error:
        raise UsageError(f"--fit-on: {error}") from error


def _seen(sources: Sequence[Source]) -> dict[str, Any]:
    """Return cameras and frames for the rule on overlap, which must have something to go by."""
    cameras: list[int | None] = []
    times: list[tuple[float, float]] = []
    for _, table in sources:
        cameras += table.cameras
        for frames in zip(table.first_frames, table.last_frames, strict=True):
            begin, end = (math.nan if frame is None else float(frame) for frame in frames)
            times.append((begin, end))
    known = [
        camera is not None and not math.isnan(begin + end)
        for camera, (begin, end) in zip(cameras, times, strict=True)
    ]
    if not any(known):
        raise UsageError(
            "--same-camera-overlap: no tracklet has a known camera and known frames; "
            "where each file is a camera, add --camera-per-file"
        )
    if not all(known):
        number = known.count(False)
        print(f"tracklets without a known camera or frames, which no rule holds: {number}")
    return {"cameras": cameras, "times": times}


def _write(sources: Sequence[Source], association: Association, path: Path) -> None:
    from tfclip.files import replace_when_done

    labels = iter(association.labels.tolist())
    with replace_when_done(path) as temporary:
        temporary.chmod(0o600)  # who was where is personal data
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for source, table in sources:
                facts = (table.names, table.cameras, table.first_frames, table.last_frames)
                for name, *seen in zip(*facts, strict=True):
                    writer.writerow((name, source, next(labels), *seen))


def _say(
    sources: Sequence[Source], association: Association, calibration: Calibration | None
) -> None:
    from tfclip.functional import evaluate_clustering

    sizes = association.labels.bincount()
    files = f"{len(sources)} file{'s' if len(sources) > 1 else ''}"
    print(
        f"{len(association.labels)} tracklets of {files} are {association.num_people} people: "
        f"{int((sizes == 1).sum())} with one tracklet, at most {int(sizes.max())}"
    )
    print(f"threshold {association.threshold:.4g}, {association.linkage} linkage")
    if calibration is not None:
        print(
            f"  fitted on {calibration.num_same} pairs of one person and "
            f"{calibration.num_different} of two: false match rate "
            f"{calibration.false_match_rate:.2g}, false non-match rate "
            f"{calibration.false_non_match_rate:.2g}"
        )
    for rule, num_pairs, num_near in association.forbidden:
        print(f"pairs forbidden by {rule}: {num_pairs}, of which {num_near} within the threshold")
    persons = [person for _, table in sources for person in table.persons]
    known = [row for row, person in enumerate(persons) if person is not None]
    if known:
        labels = association.labels[known]
        print(f"\nagainst the persons that {len(known)} of {len(persons)} tracklets are known as:")
        print(f"{evaluate_clustering(labels, [persons[row] for row in known])}\n")


def _distance(text: str) -> float:
    value = _number(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text!r}")
    return value


def _rate(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from error


def _csv_path(text: str) -> Path:
    if Path(text).suffix.lower() != ".csv":
        raise argparse.ArgumentTypeError(f"must end in .csv, got {text!r}")
    return Path(text)
