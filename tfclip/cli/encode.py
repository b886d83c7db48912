"""``tfclip encode``."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfclip.cli.shared import (
    UsageError,
    add_command,
    add_model,
    existing,
    layout,
    load_model,
    natural,
    positive,
    wrong_usage,
)
from tfclip.remote import is_address

if TYPE_CHECKING:
    from tfclip.cluster import RayCluster
    from tfclip.data.tracklets import Tracklet


def add_parser(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "encode",
        run,
        "tracklets to a file of embeddings",
        """
Turn every tracklet of SOURCE into one vector and write them to one file.

SOURCE is a folder of tracklets, each a folder of images (see --layout); a .csv
or .parquet table with a row for each frame (columns: tracklet, path, and if known
frame, person, camera, left, top, width, height); .tar shards, by a pattern in quotes
("shards/*.tar"); or a video, or folder of its frames, with --boxes, a file of tracks:
a table in MOT format, or .json or .jsonl of COCO with track ids or of Ultralytics
(to_json() of every frame). A table or shard may be an address (s3://..., https://...),
and with it the paths in a table. Finished work is kept in FILE.parts until all is
done: after an interruption the same command goes on. FILE holds personal data; only
you can read it.

Example:
  tfclip encode crops/ --layout "{person}/{camera}/{tracklet}" --out gallery.safetensors
  tfclip encode street.mp4 --boxes tracks.txt --camera 0 --out queries.safetensors
""",
    )
    command.usage = "%(prog)s SOURCE --out FILE [options]"
    command.set_defaults(resumes=True)
    command.add_argument("source", type=_path_or_address, metavar="SOURCE")
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=".safetensors or .parquet"
    )
    add_model(command)
    _add_source_options(command)
    _add_work_options(command)
    _add_faster_options(command)


def _add_source_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--boxes", type=Path, metavar="FILE", help="tracks of the video: MOT, COCO, Ultralytics"
    )
    command.add_argument(
        "--classes",
        type=lambda text: text.split(","),
        metavar="A,B,...",
        help="take only boxes of these classes, by name or number",
    )
    command.add_argument(
        "--min-confidence", type=float, metavar="C", help="take only boxes at least this sure"
    )
    command.add_argument(
        "--layout",
        type=layout,
        default="auto",
        help="auto (default), mars, or folder names as in {person}/{camera}/{tracklet}",
    )
    command.add_argument(
        "--camera-names",
        type=lambda text: text.split(","),
        metavar="A,B,...",
        help="texts that {camera} can be, in the order of their numbers from 0",
    )
    command.add_argument(
        "--camera", type=natural, metavar="N", help="camera of all tracklets, from 0"
    )
    command.add_argument(
        "--use-cameras",
        action="store_true",
        help="tell the model the cameras: only if it was trained with these very ones",
    )


def _add_work_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--sampling",
        choices=("dense", "rrs", "all"),
        default="dense",
        help="dense (default): all frames, in clips; rrs: a few, evenly spread; all: one clip",
    )
    command.add_argument(
        "--batch-frames", type=positive, default=64, metavar="N", help="frames at once (64)"
    )
    command.add_argument(
        "--workers", type=natural, metavar="N", help="threads that read frames; 0 for none"
    )
    command.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="encode with Ray, here or at ADDRESS (auto, ray://...)",
    )
    command.add_argument("--actors", type=positive, metavar="N", help="processes with --ray (1)")
    command.add_argument(
        "--cpus-per-actor", type=positive, metavar="N", help="processor cores of each (1)"
    )


def _add_faster_options(command: argparse.ArgumentParser) -> None:
    faster = command.add_argument_group("faster, with slightly other vectors")
    faster.add_argument(
        "--max-frames", type=positive, metavar="N", help="read N frames of longer tracklets"
    )
    faster.add_argument(
        "--selection",
        choices=("spread", "diverse"),
        help="which N: evenly spread (default), or those most unlike each other",
    )
    faster.add_argument(
        "--draft", action="store_true", help="decode large JPEG files at a part of their size"
    )
    faster.add_argument(
        "--resizer", choices=("pillow", "tensor"), default="pillow", help="what resizes (pillow)"
    )
    faster.add_argument(
        "--merge-tokens",
        type=natural,
        default=0,
        metavar="N",
        help="merge N tokens in each block of the tower (0)",
    )


def _path_or_address(text: str) -> Path | str:
    return text if is_address(text) else existing(text)


def run(options: argparse.Namespace) -> None:
    """Encode tracklets to a file."""
    from tfclip.jobs import check_output, encode_to_file
    from tfclip.reading import Reading

    cluster = _cluster(options)
    check_output(options.out)
    if options.selection and options.max_frames is None:
        raise UsageError("--selection is for --max-frames")
    reading = Reading(
        draft=options.draft,
        resizer=options.resizer,
        max_frames=options.max_frames,
        selection=options.selection or "spread",
    )
    tracklets = _read_tracklets(options)
    is_here = cluster is None or cluster.device is None
    model, revision, fingerprint = load_model(options, is_here=is_here)
    with wrong_usage("--merge-tokens"):
        model.merge_tokens(options.merge_tokens)
    start = time.monotonic()
    table = encode_to_file(
        model,
        tracklets,
        options.out,
        model_name=options.model,
        revision=revision,
        fingerprint=fingerprint,
        sampling=options.sampling,
        use_cameras=options.use_cameras,
        reading=reading,
        batch_frames=options.batch_frames,
        workers=options.workers,
        progress=True,
        cluster=cluster,
    )
    frames = sum(count or 0 for count in table.num_frames)
    print(
        f"{len(table)} tracklets of {frames} frames to vectors of {table.embeddings.shape[1]} "
        f"numbers in {time.monotonic() - start:.1f} s: {options.out}"
    )


def _cluster(options: argparse.Namespace) -> RayCluster | None:
    """Return where to encode, if not here; the machines of a running cluster may be others."""
    from tfclip.cluster import RayCluster

    if options.ray is None:
        for name in ("actors", "cpus_per_actor"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is for --ray")
        return None
    with wrong_usage("--device"):
        return RayCluster(
            address=options.ray or None,
            actors=options.actors or 1,
            cpus_per_actor=options.cpus_per_actor or 1,
            device=options.device if options.ray else None,
        )


def _read_tracklets(options: argparse.Namespace) -> list[Tracklet]:
    from tfclip.data.box_files import read_tracks
    from tfclip.data.encoding import read_tracklets
    from tfclip.data.readers import read_folder
    from tfclip.data.tables import read_table
    from tfclip.video import VIDEO_SUFFIXES

    if isinstance(options.source, str) or options.source.suffix.lower() == ".tar":
        return _with_camera(read_tracklets(options.source), options)
    source: Path = options.source
    is_table = source.suffix.lower() in (".csv", ".parquet")
    if (options.boxes or is_table) and (options.layout != "auto" or options.camera_names):
        raise UsageError("--layout and --camera-names are for folders of tracklets")
    choice = {"classes": options.classes, "min_confidence": options.min_confidence}
    if not options.boxes and any(value is not None for value in choice.values()):
        raise UsageError("--classes and --min-confidence are for --boxes")
    if options.boxes:
        tracklets = read_tracks(source, options.boxes, **choice)
    elif is_table:
        tracklets = read_table(source)
    elif source.suffix.lower() in VIDEO_SUFFIXES:
        raise UsageError(f"a video needs --boxes, a file of its tracks: {source}")
    else:
        tracklets = read_folder(source, options.layout, cameras=options.camera_names)
    return _with_camera(tracklets, options)


def _with_camera(tracklets: list[Tracklet], options: argparse.Namespace) -> list[Tracklet]:
    """Say which camera saw them, where the command line does."""
    if options.camera is None:
        return tracklets
    if any(tracklet.camera is not None for tracklet in tracklets):
        raise UsageError(f"--camera is for sources that do not tell it, and {options.source} does")
    return [dataclasses.replace(tracklet, camera=options.camera) for tracklet in tracklets]
