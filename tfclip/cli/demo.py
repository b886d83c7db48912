"""``tfclip demo``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from tfclip.cli.shared import add_command, add_model, load_model, natural, positive


def add_parser(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "demo",
        run,
        "see it work on drawn people, without a network",
        """
Draw people the model has not seen, walking through several cameras; encode
their tracklets with the small bundled model; search each in the other cameras.
Prints rank-1, rank-5 and mAP beside those of untrained weights and of a colour
histogram, and writes the embeddings, a picture of the results and their curves.

Example:
  tfclip demo --out demo
""",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    add_model(command)
    command.add_argument("--seed", type=natural, default=0, help="other people (0)")
    command.add_argument(
        "--identities", type=positive, default=12, metavar="N", help="how many people (12)"
    )


def run(options: argparse.Namespace) -> None:
    """Run the demo and print its figures."""
    from tfclip.demo import run_demo

    start = time.monotonic()
    model, _, fingerprint = load_model(options)
    report = run_demo(
        model,
        options.out,
        model_name=options.model,
        fingerprint=fingerprint,
        identities=options.identities,
        seed=options.seed,
        progress=True,
    )
    print(
        f"drew {options.identities} people whom no training has seen, in 3 cameras: "
        f"{report.num_tracklets} tracklets of {report.num_frames} frames"
    )
    name = options.model
    if model.config.provenance.get("weights") == "random":
        name += " (untrained)"
    rows = [
        (name, report.model),
        ("untrained weights", report.untrained),
        ("colour histogram", report.histogram),
    ]
    width = max(len(name) for name, _ in rows)
    print(f"\n{'':{width}}  rank-1  rank-5     mAP")
    for name, result in rows:
        figures = (result.rank(1), result.rank(5), result.mAP)
        print(f"{name:{width}}" + "".join(f"  {figure:6.1%}" for figure in figures))
    print(f"\nprotocol: {report.model.protocol}")
    print(f"pictures: {report.picture}, {report.curves}")
    print(f"embeddings: {report.embeddings}")
    print(f"frames: {report.people} ({time.monotonic() - start:.0f} s in all)")
