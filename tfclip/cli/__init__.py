"""The command ``tfclip``; torch is imported inside a command, so that help comes at once."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence

from tfclip import __version__
from tfclip.cli import (
    app,
    associate,
    convert,
    data,
    demo,
    encode,
    evaluate,
    export,
    gallery,
    search,
)
from tfclip.cli.shared import UsageError
from tfclip.errors import TFCLIPError

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
    status = 0
    with _messages_on_stderr():
        try:
            status = options.run(options) or 0
            sys.stdout.flush()
        except UsageError as error:
            options.parser.error(str(error))
        except KeyboardInterrupt:
            hint = "; the same command goes on from here" if options.resumes else ""
            print(f"tfclip: interrupted{hint}", file=sys.stderr)
            return _INTERRUPTED
        except BrokenPipeError:  # the reader of our output has left, as in "tfclip ... | head"
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (TFCLIPError, OSError) as error:
            print(f"tfclip: {' '.join(str(error).split())}", file=sys.stderr)
            return 1
    return status


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


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfclip",
        description="Find the same person again in other cameras: tracklets to vectors.",
        epilog="tfclip COMMAND --help explains each.",
    )
    parser.add_argument("--version", action="version", version=f"tfclip {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (
        encode, search, gallery, associate, evaluate, convert, export, data, demo, app,
    ):  # fmt: skip
        command.add_parser(commands)
    return parser
