"""The command ``tfclip``; torch is imported inside a command, so that help comes at once."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfclip import __version__
from tfclip.errors import SaveError, TFCLIPError
from tfclip.files import replace_when_done

if TYPE_CHECKING:
    from tfclip.data.embeddings import EmbeddingTable
    from tfclip.data.search import Found
    from tfclip.data.tracklets import Tracklet
    from tfclip.model import TFCLIP

_PICTURE_SUFFIXES = (".jpg", ".pdf", ".png", ".svg")
_MAX_PICTURED_QUERIES = 8
_INTERRUPTED = 130  # what a shell reports for Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the name of the program; None takes the process's own.

    Returns:
        The exit status: 0 done, 1 an error that one line on stderr explains, 130 interrupted.
        A wrong usage exits with 2.
    """
    parser = _build_parser()
    options = parser.parse_args(arguments)
    with _messages_on_stderr():
        try:
            options.run(options)
            sys.stdout.flush()
        except _UsageError as error:
            options.parser.error(str(error))
        except KeyboardInterrupt:
            hint = "; the same command goes on from here" if options.run is _encode else ""
            print(f"tfclip: interrupted{hint}", file=sys.stderr)
            return _INTERRUPTED
        except BrokenPipeError:  # the reader of our output has left, as in "tfclip ... | head"
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (TFCLIPError, OSError) as error:
            print(f"tfclip: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    return 0


class _UsageError(Exception):
    """Arguments that contradict each other; argparse reports it."""


@contextlib.contextmanager
def _messages_on_stderr() -> Iterator[None]:
    """Show what the library logs, for as long as a command runs."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("tfclip: %(message)s"))
    logger = logging.getLogger("tfclip")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


# --- the arguments -------------------------------------------------------------------------------


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfclip",
        description="Find the same person again in other cameras: tracklets to vectors.",
        epilog="tfclip COMMAND --help explains each.",
    )
    parser.add_argument("--version", action="version", version=f"tfclip {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_encode(commands)
    _add_search(commands)
    _add_convert(commands)
    _add_demo(commands)
    return parser


def _add_command(commands: Any, name: str, run: Any, summary: str, text: str) -> Any:
    description, _, epilog = text.partition("\nExample")
    command = commands.add_parser(
        name,
        help=summary,
        description=description.strip(),
        epilog=f"example{epilog.rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, parser=command)
    return command


def _add_encode(commands: Any) -> None:
    command = _add_command(
        commands,
        "encode",
        _encode,
        "tracklets to a file of embeddings",
        """
Turn every tracklet of SOURCE into one vector and write them to one file.

SOURCE is a folder of tracklets, each a folder of images (see --layout); a .csv
table with a row for each frame (columns: tracklet, path, and if known frame,
person, camera, left, top, width, height); or a video, or folder of its frames,
with --boxes. Finished work is kept in FILE.parts until all is done: after an
interruption the same command goes on. FILE holds personal data; only you can
read it.

Example:
  tfclip encode crops/ --layout "{person}/{camera}/{tracklet}" --out gallery.safetensors
  tfclip encode street.mp4 --boxes tracks.txt --camera 0 --out queries.safetensors
""",
    )
    command.add_argument("source", type=Path, metavar="SOURCE")
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=".safetensors or .parquet"
    )
    _add_model(command)
    command.add_argument(
        "--boxes", type=Path, metavar="TXT", help="tracks of the video, in MOT format"
    )
    command.add_argument(
        "--layout",
        type=_layout,
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
        "--camera", type=_natural, metavar="N", help="camera of all tracklets, from 0"
    )
    command.add_argument(
        "--use-cameras",
        action="store_true",
        help="tell the model the cameras: only if it was trained with these very ones",
    )
    command.add_argument(
        "--sampling",
        choices=("dense", "rrs", "all"),
        default="dense",
        help="dense (default): all frames, in clips; rrs: a few, evenly spread; all: one clip",
    )
    command.add_argument(
        "--batch-frames", type=_positive, default=64, metavar="N", help="frames at once (64)"
    )


def _add_search(commands: Any) -> None:
    command = _add_command(
        commands,
        "search",
        _search,
        "nearest tracklets of a gallery",
        """
Find, for each tracklet of one file of embeddings, the nearest of another.

The distance is squared Euclidean between vectors of length 1, which is
2 - 2 cos: 0 is the same direction, 4 the opposite; smaller is nearer. Both files
must come from one model.

Example:
  tfclip search queries.safetensors gallery.safetensors --top 10 --picture ranked.png
""",
    )
    command.add_argument("queries", type=Path, metavar="QUERIES", help="a file of tfclip encode")
    command.add_argument("gallery", type=Path, metavar="GALLERY", help="another, or the same")
    command.add_argument("--top", type=_positive, default=5, metavar="K", help="results (5)")
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
        "--picture",
        type=_picture,
        metavar="FILE",
        help=f"draw the first {_MAX_PICTURED_QUERIES} queries: {', '.join(_PICTURE_SUFFIXES)}",
    )


def _add_convert(commands: Any) -> None:
    command = _add_command(
        commands,
        "convert",
        _convert,
        "the authors' checkpoint to a model folder",
        """
Convert a checkpoint of the TF-CLIP release to a folder with config.json,
model.safetensors and a model card, which --model and from_pretrained take. Sizes
are read from the weights; no code in the file is run. What only training needs
is dropped and listed, unless --with-objective keeps it.

Example:
  tfclip convert best_model.pth.tar mars-vit-b-16
""",
    )
    command.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    command.add_argument("out", type=Path, metavar="OUT_DIR")
    command.add_argument(
        "--with-objective",
        action="store_true",
        help="also write identity heads and prompt, to objective.safetensors",
    )
    command.add_argument(
        "--neck",
        choices=("before", "after"),
        default="before",
        help="take features before (default) or after their batch norms",
    )
    command.add_argument(
        "--clip-length", type=_positive, default=8, metavar="T", help="frames in a clip (8)"
    )
    command.add_argument(
        "--frame-size",
        type=_positive,
        nargs=2,
        metavar=("H", "W"),
        help="height and width in pixels, if not 256 128",
    )
    command.add_argument(
        "--stride", type=_positive, help="between patches, if neither their size nor 12"
    )


def _add_demo(commands: Any) -> None:
    command = _add_command(
        commands,
        "demo",
        _demo,
        "see it work on drawn people, without a network",
        """
Draw people the model has not seen, walking through several cameras; encode
their tracklets with the small bundled model; search each in the other cameras.
Prints rank-1 and mAP beside those of a colour histogram, and writes the
embeddings and a picture of the results.

Example:
  tfclip demo --out demo
""",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    _add_model(command)
    command.add_argument("--seed", type=_natural, default=0, help="other people (0)")
    command.add_argument(
        "--identities", type=_positive, default=12, metavar="N", help="how many people (12)"
    )


def _add_model(command: Any) -> None:
    command.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cuda if there is one")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(float32)"
    )
    command.add_argument(
        "--model",
        default="tfclip-tiny",
        metavar="NAME",
        help="a folder, a Hub repository owner/name or a bundled model (tfclip-tiny)",
    )
    command.add_argument("--revision", help="branch, tag or commit of a Hub repository")


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    number = _natural(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return number


def _layout(text: str) -> str:
    if text not in ("auto", "mars"):
        from tfclip.data.readers import compile_layout

        try:
            compile_layout(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _PICTURE_SUFFIXES:
        raise argparse.ArgumentTypeError(
            f"must end in one of {', '.join(_PICTURE_SUFFIXES)}, got {text!r}"
        )
    return path


# --- encode --------------------------------------------------------------------------------------


def _encode(options: argparse.Namespace) -> None:
    from tfclip.jobs import check_output, encode_to_file

    check_output(options.out)
    tracklets = _read_tracklets(options)
    model, revision, fingerprint = _load_model(options)
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
        batch_frames=options.batch_frames,
        progress=True,
    )
    frames = sum(count or 0 for count in table.num_frames)
    print(
        f"{len(table)} tracklets of {frames} frames to vectors of {table.embeddings.shape[1]} "
        f"numbers in {time.monotonic() - start:.1f} s: {options.out}"
    )


def _read_tracklets(options: argparse.Namespace) -> list[Tracklet]:
    import dataclasses

    from tfclip.data.readers import read_csv, read_folder, read_mot
    from tfclip.video import VIDEO_SUFFIXES

    source: Path = options.source
    is_table = source.suffix.lower() == ".csv"
    if (options.boxes or is_table) and (options.layout != "auto" or options.camera_names):
        raise _UsageError("--layout and --camera-names are for folders of tracklets")
    if options.boxes:
        tracklets = read_mot(source, options.boxes)
    elif is_table:
        tracklets = read_csv(source)
    elif source.suffix.lower() in VIDEO_SUFFIXES:
        raise _UsageError(f"a video needs --boxes, a file of tracks in MOT format: {source}")
    else:
        tracklets = read_folder(source, options.layout, cameras=options.camera_names)
    if options.camera is None:
        return tracklets
    if any(tracklet.camera is not None for tracklet in tracklets):
        raise _UsageError(f"--camera is for sources that do not tell it, and {source} does")
    return [dataclasses.replace(tracklet, camera=options.camera) for tracklet in tracklets]


def _load_model(options: argparse.Namespace) -> tuple[TFCLIP, str | None, str]:
    """Return the model, its revision and its fingerprint, which is that of the weights as saved."""
    import torch

    from tfclip import hub
    from tfclip.data.embeddings import model_fingerprint
    from tfclip.model import TFCLIP

    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise _UsageError(f"--device {name} cannot be used: {reason}") from error
    try:
        # A branch may move on between two runs; the commit that it is now does not.
        source = hub.find(options.model, revision=options.revision).source
    except ValueError as error:
        if isinstance(error, TFCLIPError):
            raise
        raise _UsageError(f"--revision: {error}") from error
    commit = source.rpartition("@")[2] if source.startswith(f"{options.model}@") else None
    model = TFCLIP.from_pretrained(options.model, revision=commit)
    if model.config.provenance.get("weights") == "random":
        _say_untrained(options.model)
    return model.to(device, getattr(torch, options.dtype)), commit, model_fingerprint(model)


def _say_untrained(name: str) -> None:
    print(
        f"tfclip: the weights of {name} are random, untrained: expect nothing of its vectors",
        file=sys.stderr,
    )


# --- search --------------------------------------------------------------------------------------


def _search(options: argparse.Namespace) -> None:
    from tfclip.data.embeddings import EmbeddingTable
    from tfclip.data.search import search_table
    from tfclip.visualize import check_matplotlib, draw_search

    if options.picture:
        check_matplotlib()
    queries = _pick(EmbeddingTable.load(options.queries), options.query, options.queries)
    gallery = EmbeddingTable.load(options.gallery)
    results = search_table(
        queries,
        gallery,
        top=options.top,
        exclude_same_name=options.exclude_same_name,
        exclude_same_camera=options.exclude_same_camera,
    )
    for row, found in enumerate(results):
        _print_results(queries, row, gallery, found)
    print("distance: squared Euclidean, 2 - 2 cos for vectors of length 1; smaller is nearer")
    if options.picture:
        number = min(len(queries), _MAX_PICTURED_QUERIES)
        figure = draw_search(queries.select(range(number)), gallery, results[:number])
        with replace_when_done(options.picture) as temporary:
            figure.savefig(temporary)
        print(f"picture of {number} of {len(queries)} queries: {options.picture}")


def _pick(table: EmbeddingTable, names: Sequence[str] | None, path: Path) -> EmbeddingTable:
    if names is None:
        return table
    unknown = [name for name in names if name not in table.names]
    if unknown:
        raise _UsageError(f"--query: there is no tracklet {unknown[0]!r} in {path}")
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


# --- convert -------------------------------------------------------------------------------------


def _convert(options: argparse.Namespace) -> None:
    from tfclip import convert

    if options.out.exists() and not options.out.is_dir():
        raise SaveError(f"cannot write {options.out}: it is not a folder")
    arguments: dict[str, Any] = {
        "neck": options.neck,
        "clip_length": options.clip_length,
        "frame_size": options.frame_size and tuple(options.frame_size),
        "stride": options.stride,
    }
    objective = None
    if options.with_objective:
        model, objective = convert.from_reference(
            options.checkpoint, with_objective=True, **arguments
        )
    else:
        model = convert.from_reference(options.checkpoint, **arguments)
    model.save_pretrained(options.out)
    config = model.config
    print(
        f"{options.out}: {config.backbone}, frames of {config.frame_size[0]} x "
        f"{config.frame_size[1]}, {config.num_cameras} cameras, vectors of {model.embedding_dim}"
    )
    if objective is not None:
        from safetensors.torch import save

        path = options.out / "objective.safetensors"
        with replace_when_done(path) as temporary:
            temporary.write_bytes(save(objective.state_dict()))
        print(
            f"{path}: heads of {objective.num_identities} "
            "identities and prompt; the CLIP-Memory is not in a checkpoint and is built anew"
        )


# --- demo ----------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> None:
    from tfclip.demo import run_demo

    start = time.monotonic()
    model, _, fingerprint = _load_model(options)
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
    rows = [(name, report.model), ("colour histogram", report.histogram)]
    width = max(len(name) for name, _ in rows)
    print(f"\n{'':{width}}  rank-1     mAP")
    for name, result in rows:
        print(f"{name:{width}}  {result.rank(1):6.1%}  {result.mAP:6.1%}")
    print(f"\nprotocol: {report.model.protocol}")
    print(f"picture: {report.picture}")
    print(f"embeddings: {report.embeddings}")
    print(f"frames: {report.people} ({time.monotonic() - start:.0f} s in all)")
