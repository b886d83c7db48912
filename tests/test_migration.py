"""Every name and command that the page about migration gives as ours is there, with its options."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tfclip.cli import _build_parser

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")


def our_column() -> list[str]:
    """The last cell of every row of the tables, which is headed "here"."""
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    heads = [cell for cell in cells if cell[-1] == "here"]
    assert len(heads) == 6
    assert all(len(cell) == 2 for cell in cells)
    return [cell[-1] for cell in cells if cell[-1] != "here" and set(cell[-1]) != {"-"}]


def spans(start: str) -> list[str]:
    """The pieces of code in that column, and below the tables, that begin so."""
    text = "\n".join([*our_column(), PAGE.rpartition("## ")[2]])
    return sorted({span for span in re.findall(r"`([^`]+)`", text) if span.startswith(start)})


def resolve(name: str) -> Any:
    """What a dotted name stands for, its modules imported."""
    words = name.split(".")
    found: Any = importlib.import_module(words[0])
    for end, word in enumerate(words[1:], start=2):
        try:
            found = getattr(found, word)
        except AttributeError:
            found = importlib.import_module(".".join(words[:end]))
    return found


def check(code: str) -> None:
    """Resolve the function that a piece of code calls, and bind the arguments to it."""
    tree = ast.parse(code, mode="eval").body
    if not isinstance(tree, ast.Call):
        assert resolve(code) is not None
        return
    function = resolve(ast.unparse(tree.func))
    given = {word.arg: ... for word in tree.keywords if word.arg}
    assert len(given) == len(tree.keywords)
    inspect.signature(function).bind_partial(*tree.args, **given)


def test_a_row_of_the_page_would_be_caught_if_it_were_wrong():
    for code in ("tfclip.TFCLIPConfig(frame_sizes=3)", "tfclip.functional.evaluate_rank(q, g)"):
        with pytest.raises((TypeError, ImportError)):
            check(code)


def test_the_page_has_as_many_names_and_commands_as_it_had():
    assert len(spans("tfclip.")) > 60
    assert len(spans("tfclip ")) > 10


@pytest.mark.parametrize("code", spans("tfclip."))
def test_a_name_is_there_and_takes_these_arguments(code: str):
    check(code)


@pytest.mark.parametrize("command", spans("tfclip "))
def test_a_command_has_options_that_exist(command: str):
    assert _build_parser().parse_args(shlex.split(command)[1:]).run


@pytest.mark.parametrize("command", spans("python examples/train.py"))
def test_a_training_has_options_that_exist(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    assert importlib.import_module("train").parse(shlex.split(command)[2:]).out


def test_defaults_that_the_page_writes_down_are_those_of_the_code():
    from tfclip import TFCLIPConfig, TFCLIPObjective
    from tfclip.training import Recipe

    written = ast.parse(
        next(code for code in spans("tfclip.training.Recipe(") if "warmup_epochs" in code),
        mode="eval",
    ).body
    assert isinstance(written, ast.Call)
    for word in written.keywords:
        assert word.arg
        assert ast.literal_eval(word.value) == getattr(Recipe(), word.arg), word.arg
    parameters = inspect.signature(TFCLIPObjective).parameters
    assert (parameters["margin"].default, parameters["label_smoothing"].default) == (0.3, 0.1)
    config = TFCLIPConfig()
    assert (config.frame_size, config.clip_length, config.neck) == ((256, 128), 8, "before")
