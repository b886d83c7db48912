"""``tfclip data``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tfclip.cli.shared import add_command, data_set
from tfclip.files import replace_when_done


def add_parser(commands: Any) -> None:
    """Add the command with its two parts."""
    command = add_command(
        commands,
        "data",
        run_list,
        "public data sets: what is supported, and is it whole?",
        """
What can be said about public data sets without downloading anything. "list" says
which are supported, how large they are and who hands them out; "check" compares a
folder with what should be in it and names every missing file.

Example:
  tfclip data list
  tfclip data check mars --root /data/MARS --json report.json
""",
    )
    parts = command.add_subparsers(title="parts", metavar="PART", required=True)
    add_command(
        parts,
        "list",
        run_list,
        "the data sets that are supported",
        """
List the data sets that can be read, with the numbers of their tracklets and
persons, their protocols (the first is the one to report), and who hands them out.

Example:
  tfclip data list
""",
    )
    check = add_command(
        parts,
        "check",
        run_check,
        "compare a folder with what should be in it",
        """
Compare a folder with the data set that it should be: tracklets, persons, frames and
cameras of each part, missing and surplus images, queries without a match. With
--images every image is decoded too. Nothing is written into the folder.

Exit status: 0 all is well, 1 there are problems.

Example:
  tfclip data check mars --root /data/MARS
  tfclip data check lsvid --root /data/LS-VID --images --json report.json
""",
    )
    check.add_argument("name", type=data_set, metavar="NAME", help="see: tfclip data list")
    check.add_argument("--root", type=Path, required=True, metavar="DIR", help="its folder")
    check.add_argument("--images", action="store_true", help="decode every image (takes long)")
    check.add_argument(
        "--json", type=Path, metavar="FILE", help="write the whole report, all files named"
    )


def run_list(options: argparse.Namespace) -> None:
    """Print a table of the data sets."""
    from tfclip.data.benchmarks.registry import SPECS

    rows = [("name", "train", "test", "persons", "protocols", "handed out by")]
    for spec in SPECS:
        train, test = spec.expected.get("train"), spec.expected.get("test")
        rows.append(
            (
                spec.name,
                _number(train and train.tracklets),
                _number(test and test.tracklets),
                f"{_number(train and train.persons)} + {_number(test and test.persons)}",
                ", ".join(spec.protocols),
                f"{spec.source}; {spec.terms}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        cells = [f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  ".join([*cells, row[5]]).rstrip())


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def run_check(options: argparse.Namespace) -> int:
    """Print the report of the doctor; return the exit status."""
    from tfclip.data.doctor import check_dataset

    report = check_dataset(options.name, options.root, images=options.images, progress=True)
    print(report)
    if options.json is not None:
        with replace_when_done(options.json) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    return 0 if report.ok else 1
