"""What the commands share: arguments, checks, and loading a model."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfclip.errors import TFCLIPError

if TYPE_CHECKING:
    from tfclip.model import TFCLIP

PICTURE_SUFFIXES = (".jpg", ".pdf", ".png", ".svg")


class UsageError(Exception):
    """Arguments that contradict each other; argparse reports it."""


@contextlib.contextmanager
def wrong_usage(option: str = "") -> Iterator[None]:
    """Say a wrong value of an argument as wrong usage; what a file is to blame for goes through.

    Args:
        option: The option that the value came from, where the message does not name it.
    """
    try:
        yield
    except ValueError as error:
        if isinstance(error, TFCLIPError):
            raise
        raise UsageError(f"{option}: {error}" if option else str(error)) from error


def add_command(commands: Any, name: str, run: Any, summary: str, text: str) -> Any:
    """Add a command; ``text`` is its description and, from the line "Example:" on, its example."""
    description, _, epilog = text.partition("\nExample")
    command = commands.add_parser(
        name,
        help=summary,
        description=description.strip(),
        epilog=f"example{epilog.rstrip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, parser=command, resumes=False)
    return command


def add_model(command: Any) -> None:
    """Add the options that say which model runs where."""
    command.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: cuda if there is one")
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "auto", "int8"),
        default="float32",
        help="(float32); auto: what is fast here, measured once; int8: bfloat16 "
        "with 8-bit products, on x86",
    )
    add_model_name(command)


def add_model_name(command: Any) -> None:
    """Add the options that say which model."""
    command.add_argument(
        "--model",
        default="tfclip-tiny",
        metavar="NAME",
        help="a folder, a Hub repository owner/name or a bundled model (tfclip-tiny)",
    )
    command.add_argument("--revision", help="branch, tag or commit of a Hub repository")


def natural(text: str) -> int:
    """Read a whole number from 0 on."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """Read a whole number from 1 on."""
    number = natural(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text!r}")
    return number


def data_set(text: str) -> Any:
    """Read the name of a data set that can be loaded."""
    from tfclip.data.benchmarks.registry import find_spec

    try:
        return find_spec(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def layout(text: str) -> str:
    """Read how folders of tracklets are laid out."""
    if text not in ("auto", "mars"):
        from tfclip.data.readers import compile_layout

        try:
            compile_layout(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return text


def existing(text: str) -> Path:
    """Read the path of something to read; an empty text, which an unset variable gives, is none."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty text")
    return Path(text)


def picture_path(text: str) -> Path:
    """Read a path that ends as a picture does."""
    path = Path(text)
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise argparse.ArgumentTypeError(
            f"must end in one of {', '.join(PICTURE_SUFFIXES)}, got {text!r}"
        )
    return path


def load_model(
    options: argparse.Namespace, *, is_here: bool = True
) -> tuple[TFCLIP, str | None, str]:
    """Return the model, its revision and its fingerprint, which is that of the weights as saved.

    Args:
        options: Of ``add_model``.
        is_here: Whether ``--device`` means this machine; else the model stays on the processor.
    """
    import torch

    from tfclip import hub
    from tfclip.data.embeddings import model_fingerprint
    from tfclip.model import TFCLIP
    from tfclip.precision import convert

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not is_here:
        if options.dtype in ("auto", "int8") and torch.device(device).type != "cpu":
            raise UsageError(
                f"--dtype {options.dtype} is found out on this machine, not on that of the actors; "
                "name float32, bfloat16 or float16"
            )
        device = "cpu"
    with wrong_usage("--device"):
        hub.check_device(device)
    with wrong_usage("--revision"):
        # A branch may move on between two runs; the commit that it is now does not.
        source = hub.find(options.model, revision=options.revision).source
    commit = source.rpartition("@")[2] if source.startswith(f"{options.model}@") else None
    model = TFCLIP.from_pretrained(options.model, revision=commit)
    if model.config.provenance.get("weights") == "random":
        _say_untrained(options.model)
    fingerprint = model_fingerprint(model)  # before the cast, which is no other model
    model = model.to(device)
    try:
        return convert(model, options.dtype), commit, fingerprint
    except ValueError as error:
        raise UsageError(f"--dtype {options.dtype}: {error}") from error


def _say_untrained(name: str) -> None:
    print(
        f"tfclip: the weights of {name} are random, untrained: expect nothing of its vectors",
        file=sys.stderr,
    )
