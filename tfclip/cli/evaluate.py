"""``tfclip evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfclip.cli.shared import (
    UsageError,
    add_command,
    add_model,
    data_set,
    existing,
    layout,
    load_model,
    positive,
    wrong_usage,
)
from tfclip.errors import SaveError

if TYPE_CHECKING:
    from tfclip.data.benchmarks import Dataset
    from tfclip.data.tracklets import Tracklet

_FRAMES = ("dense", "rrs", "all")


def add_parser(commands: Any) -> None:
    """Add the command."""
    command = add_command(
        commands,
        "evaluate",
        run,
        "how well a model finds the people of a data set again",
        """
Encode a data set's tracklets, rank the gallery for every query by the rules of a
protocol, and print mAP, rank-k and error rates with what they were measured by.

DATASET is a public one (tfclip data list) in the folder --root; or your own
tracklets, by --query and --gallery: folders (see --layout) or tables. Embeddings
are kept in --cache (default: features/ in --out): an interrupted command goes on,
and the same model is not run on the same files again. They are personal data.

Example:
  tfclip evaluate mars --root /data/MARS --model mars-vit-b-16 --out report
  tfclip evaluate --query q/ --gallery g/ --layout "{person}/{camera}/{tracklet}"
""",
    )
    command.usage = "%(prog)s [DATASET] [options]"
    command.add_argument("dataset", type=data_set, nargs="?", metavar="DATASET")
    command.add_argument("--root", type=existing, metavar="DIR", help="folder of DATASET")
    command.add_argument("--protocol", metavar="NAME", help="of DATASET; default: its first")
    _add_own(command)
    command.add_argument(
        "--frames",
        type=_frames,
        metavar="RULES",
        help=f"some of {','.join(_FRAMES)}: a row for each; default: as the protocol says",
    )
    command.add_argument(
        "--use-cameras",
        nargs="?",
        const="only",
        choices=("only", "both"),
        metavar="both",
        help="tell the model the cameras, if it was trained with these; both: a row each",
    )
    command.add_argument("--rerank", action="store_true", help="a second row, re-ranked, below")
    command.add_argument("--out", type=Path, metavar="DIR", help="write tables and pictures here")
    command.add_argument("--report", type=Path, metavar="FILE", help="write all as one HTML page")
    command.add_argument("--cache", type=Path, metavar="DIR", help="keep embeddings here")
    command.add_argument(
        "--fit-threshold",
        type=_rate,
        metavar="RATE",
        help="fit a threshold of this false match rate on training tracklets",
    )
    command.add_argument(
        "--save-to", type=Path, metavar="FOLDER", help="copy the model here, with the threshold"
    )
    add_model(command)
    command.add_argument(
        "--batch-frames", type=positive, default=64, metavar="N", help="frames at once (64)"
    )


def _add_own(command: Any) -> None:
    own = command.add_argument_group("your own tracklets")
    own.add_argument("--query", type=existing, metavar="SOURCE", help="tracklets to search for")
    own.add_argument(
        "--gallery", type=existing, metavar="SOURCE", help="to search in; default: the queries"
    )
    own.add_argument("--train", type=existing, metavar="SOURCE", help="for --fit-threshold")
    own.add_argument("--layout", type=layout, help="of the folders, as in {person}/{camera}")
    own.add_argument(
        "--camera-names",
        type=lambda text: text.split(","),
        metavar="A,B,...",
        help="texts that {camera} can be, in the order of their numbers from 0",
    )
    own.add_argument(
        "--queries-apart", action="store_true", help="do not search in the queries as well"
    )
    own.add_argument(
        "--exclude",
        choices=("person_and_camera", "camera", "none"),
        metavar="ROWS",
        help="what a ranking leaves out: person_and_camera (default), camera or none",
    )


def _frames(text: str) -> list[str]:
    rules = text.split(",")
    if len(set(rules)) != len(rules) or not set(rules) <= set(_FRAMES):
        raise argparse.ArgumentTypeError(
            f"must be some of {','.join(_FRAMES)}, each once, got {text!r}"
        )
    return rules


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text!r}")
    return rate


def run(options: argparse.Namespace) -> None:
    """Evaluate a model and print its report."""
    _check_pictures(options)
    with wrong_usage():
        dataset = _read_dataset(options)
        dataset.protocol(options.protocol)
    _make_folders(options)
    model, revision, fingerprint = load_model(options)

    from tfclip.evaluation import evaluate_model, fit_on_training, save_calibrated
    from tfclip.evaluation.files import write_page, write_report

    cache = options.cache or (options.out and options.out / "features")
    options.resumes = cache is not None
    shared: dict[str, Any] = {
        "cache": cache,
        "fingerprint": fingerprint,
        "batch_frames": options.batch_frames,
        "progress": True,
    }
    told: Any = {None: False, "only": True, "both": "both"}[options.use_cameras]
    fitted = None
    with wrong_usage():
        if options.fit_threshold is not None:
            fitted = fit_on_training(
                model,
                dataset,
                options.fit_threshold,
                options.protocol,
                frames=options.frames and options.frames[0],
                use_cameras=told is True,
                **shared,
            )
        report = evaluate_model(
            model,
            dataset,
            options.protocol,
            frames=options.frames,
            use_cameras=told,
            rerank=options.rerank,
            model_name=options.model,
            revision=revision,
            **shared,
        )
    print(report)
    threshold = None
    if fitted is not None:
        threshold = fitted.calibration.threshold
        print(f"\n{_describe(fitted)}")
    if options.save_to is not None and fitted is not None:
        save_calibrated(options.model, options.save_to, fitted, revision=revision)
        print(f"the model with this threshold: {options.save_to}")
    if options.out is not None:
        written = write_report(report, options.out, threshold=threshold)
        print(f"\nfiles: {', '.join(map(str, written))}")
    if options.report is not None:
        write_page(report, options.report, threshold=threshold)
        print(f"page: {options.report}")


def _describe(fitted: Any) -> str:
    calibration = fitted.calibration
    return (
        f"threshold {calibration.threshold:.4f}: within it are "
        f"{calibration.false_match_rate:.3%} of {calibration.num_different:,} pairs of two persons "
        f"and {1 - calibration.false_non_match_rate:.2%} of {calibration.num_same:,} of one, "
        f"{fitted.fitted_on}; it holds for this model, frames {fitted.sampling}, "
        f"{'with' if fitted.cameras else 'without'} cameras, and this kind of data"
    )


def _check_pictures(options: argparse.Namespace) -> None:
    if options.save_to is not None and options.fit_threshold is None:
        raise UsageError("--save-to writes the threshold that --fit-threshold RATE fits")
    if options.out is not None or options.report is not None:
        from tfclip.visualize import check_matplotlib

        check_matplotlib()


def _make_folders(options: argparse.Namespace) -> None:
    """Refuse, before any work, what could not be written after it."""
    page = options.report
    if page is not None and page.is_dir():
        raise SaveError(f"cannot write {page}: it is a folder")
    folders = (options.out, options.cache, options.save_to, page and page.parent)
    for folder in filter(None, folders):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise SaveError(f"cannot write {folder}: it is not a folder") from error
        except OSError as error:
            raise SaveError(f"cannot write {folder}: {error.strerror}") from error


def _read_dataset(options: argparse.Namespace) -> Dataset:
    from tfclip.data.benchmarks import load_dataset, own_dataset

    own = ("query", "gallery", "train", "layout", "camera_names", "queries_apart", "exclude")
    given = [name for name in own if getattr(options, name)]
    if options.dataset is not None:
        if given:
            word = given[0].replace("_", "-")
            raise UsageError(
                f"--{word} is for tracklets of your own, not for {options.dataset.name}"
            )
        if options.root is None:
            raise UsageError(f"--root must name the folder of {options.dataset.name}")
        return load_dataset(options.dataset, options.root)
    if options.query is None:
        raise UsageError("name a DATASET, or tracklets of your own by --query")
    if options.root is not None:
        raise UsageError("--root is the folder of a DATASET, and none is named")
    sources = (options.query, options.gallery, options.train)
    if (options.layout or options.camera_names) and all(map(_is_table, filter(None, sources))):
        raise UsageError("--layout and --camera-names are for folders of tracklets")
    queries, gallery, train = (_read(source, options) for source in sources)
    return own_dataset(
        queries,
        gallery,
        train=train,
        name=options.query.absolute().stem,
        root=str(options.query),
        queries_in_gallery=not options.queries_apart,
        exclude=options.exclude or "person_and_camera",
    )


def _read(source: Path | None, options: argparse.Namespace) -> list[Tracklet]:
    from tfclip.data.readers import read_folder
    from tfclip.data.tables import read_table

    if source is None:
        return []
    if _is_table(source):
        return read_table(source)
    return read_folder(source, options.layout or "auto", cameras=options.camera_names)


def _is_table(source: Path) -> bool:
    return source.suffix.lower() in (".csv", ".parquet")
