"""Whether a command on a page would be understood: its own parser is asked, and nothing is run."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doc_blocks import ROOT
from tests.doc_names import wrong_names
from tfclip.cli import _build_parser

# Programs whose arguments nobody here can parse.
UNPARSED_PROGRAMS = {
    "cd": "of the shell",
    "export": "of the shell",
    "mkdir": "of the shell",
    "pyright": "not of this library; CI runs it",
    "ruff": "not of this library; CI runs it",
    "pre-commit": "not of this library",
    "curl": "talks to a service that runs elsewhere",
    "git": "of whoever has a clone",
    "ray": "of a cluster",
    "sbatch": "of a cluster",
    "kubectl": "of a cluster",
    "docker": "of a cluster",
    "milvus-lite": "of another package",
    "coverage": "not of this library; what it runs is pytest's",
    "versions": ".ci/versions: a word for itself, the rest for pytest",
}
UNPARSED_MODULES = {"sphinx": "CI runs it", "build": "CI runs it", "venv": "of Python"}
UNPARSED_SCRIPTS = {
    "examples/consume_onnx.py": "takes paths only; tests/export runs it",
}
# That a page installs and pyproject.toml does not know.
OTHER_PACKAGES = {"atheris": "a fuzzer that is run by hand; there is none for Windows"}


def check(words: list[str]) -> str | None:
    """Put a command to the parser that would read it; return its complaint."""
    program, arguments = Path(words[0]).name, words[1:]
    checks: dict[str, Callable[[list[str]], str | None]] = {
        "tfclip": lambda given: complaint(_build_parser(), given),
        "python": check_python,
        "python3": check_python,
        "torchrun": check_torchrun,
        "pip": check_pip,
        "uv": lambda given: check_pip(given[1:]) if given[:1] == ["pip"] else None,
        "pytest": check_pytest,
    }
    if program in checks:
        return checks[program](arguments)
    if program in UNPARSED_PROGRAMS:
        return None
    return (
        f"nothing checks the program {program!r}; add it to check() with its parser, or to "
        "UNPARSED_PROGRAMS with the reason, in tests/doc_commands.py"
    )


def check_python(arguments: list[str]) -> str | None:
    while arguments[:1] and arguments[0] in ("-W", "-X"):
        arguments = arguments[2:]
    if arguments[:1] == ["-c"]:
        return "; ".join(wrong_names(arguments[1], {})) or None
    if arguments[:1] == ["-m"]:
        module, rest = arguments[1], arguments[2:]
        if module in UNPARSED_MODULES:
            return None
        return check([module, *rest])
    if not arguments or not (ROOT / arguments[0]).is_file():
        return f"there is no script {arguments[:1]}"
    if arguments[0] in UNPARSED_SCRIPTS:
        return None
    return complaint(script_parser(arguments[0]), arguments[1:])


def check_torchrun(arguments: list[str]) -> str | None:
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    wrong = complaint(parser, arguments)
    if wrong:
        return wrong
    options = parser.parse_args(arguments)
    return check_python([options.training_script, *options.training_script_args])


def check_pip(arguments: list[str]) -> str | None:
    if arguments[:1] != ["install"]:
        return None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for word in arguments[1:]:
        if word.startswith("-"):
            continue
        name, wanted = requirement(word)
        if name in (".", "tfclip"):
            missing = [extra for extra in wanted if extra not in extras]
            if missing:
                return f"pip: pyproject.toml has no extra {', '.join(missing)}"
        elif name not in known_packages(project) and name not in OTHER_PACKAGES:
            return f"pip: pyproject.toml has no package {name!r}; see OTHER_PACKAGES"
    return None


def requirement(text: str) -> tuple[str, list[str]]:
    """Return the name of a requirement, in its normal form, and its extras."""
    match = re.match(r"([\w.-]+)(?:\[([^]]*)])?", text)
    assert match, text
    extras = [extra.strip() for extra in (match[2] or "").split(",") if extra.strip()]
    name = match[1] if match[1] == "." else re.sub(r"[-_.]+", "-", match[1]).lower()
    return name, extras


def known_packages(project: dict[str, Any]) -> set[str]:
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return {requirement(text)[0] for texts in lists for text in texts}


def check_pytest(arguments: list[str]) -> str | None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = {marker.partition(":")[0] for marker in options["markers"]}
    parser = argparse.ArgumentParser("pytest")
    parser.add_argument("-m", dest="markers", default="")
    parser.add_argument("-k", dest="names")
    for flag in ("-q", "-x", "-v", "-s"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("paths", nargs="*")
    wrong = complaint(parser, arguments)
    if wrong:
        return wrong
    given = parser.parse_args(arguments)
    unknown = set(re.findall(r"\w+", given.markers)) - markers - {"and", "or", "not"}
    missing = [path for path in given.paths if not (ROOT / path.partition("::")[0]).exists()]
    if unknown or missing:
        return f"pytest: there is no {', '.join([*sorted(unknown), *missing])}"
    return None


def complaint(parser: argparse.ArgumentParser, arguments: list[str]) -> str | None:
    """Return what a parser has against arguments, or nothing."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(arguments)
    except SystemExit as stopped:  # of --help and --version it is 0
        return said.getvalue().strip().splitlines()[-1] if stopped.code else None
    return None


@functools.cache
def script_parser(path: str) -> argparse.ArgumentParser:
    """Return the parser of a script, which is run until it would parse."""

    class Captured(Exception):  # noqa: N818 (not an error)
        pass

    def capture(self: argparse.ArgumentParser, *_: object) -> None:
        raise Captured(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", capture)
        patch.setattr(sys, "argv", [path])
        patch.syspath_prepend(str((ROOT / path).parent))
        try:
            runpy.run_path(str(ROOT / path), run_name="__main__")
        except Captured as captured:
            return captured.args[0]
    raise AssertionError(f"{path} parses nothing; add it to UNPARSED_SCRIPTS with the reason")


def unknown_options(words: list[str], script: str | None = None) -> list[str]:
    """Return the commands and options that a parser does not know; what follows them may be N."""
    if script in UNPARSED_SCRIPTS:
        return []
    parser = _build_parser() if script is None else script_parser(script)
    wrong = []
    for word in words:
        choices = subcommands(parser)
        if choices and word in choices:
            parser = choices[word]
        elif script is None and choices and re.fullmatch("[a-z]+", word):
            wrong.append(f"has no command {word}")
        elif word.startswith("--") and word.partition("=")[0] not in parser._option_string_actions:
            wrong.append(f"has no option {word}")
    return wrong


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}
