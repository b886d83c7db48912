"""The page of the API has every public name, and the page of the equations only names that exist.

What Sphinx would make of a directive is worked out here, so that no build is needed.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tfclip
from tfclip import TFCLIPConfig, TFCLIPObjective, TFCLIPOutput
from tfclip.backbones import Backbone

DOCS = Path(__file__).parents[1] / "docs"

# Public names that have no entry of their own, and why.
WITHOUT_ENTRY = {
    "tfclip.data.synthetic.CUES": "the values of Cue",
    "tfclip.data.synthetic.Cue": "a type whose values SyntheticTracklets explains",
    "tfclip.export.Format": "a type whose values export_model lists",
    "tfclip.export.Pixels": "a type whose values export_model lists",
    "tfclip.export.Precision": "a type whose values export_model lists",
    "tfclip.video.VIDEO_SUFFIXES": "a list of file suffixes",
    "tfclip.visualize.CARD_STYLE": "the style sheet of ranked_cards, which names it",
}


def modules() -> Iterator[ModuleType]:
    """Every module that says which of its names are public."""
    yield tfclip
    for found in pkgutil.walk_packages(tfclip.__path__, "tfclip."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        if hasattr(module, "__all__"):
            yield module


def public_names() -> dict[str, Any]:
    return {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in modules()
        for name in module.__all__
    }


def resolve(name: str) -> Any:
    """What a dotted name stands for, its modules imported."""
    words = name.split(".")
    found: Any = importlib.import_module(words[0])
    for end, word in enumerate(words[1:], start=2):
        if not hasattr(found, word) and isinstance(found, ModuleType):
            importlib.import_module(".".join(words[:end]))
        fields = getattr(found, "__annotations__", {})  # of a class, where nothing has a default
        found = (
            fields[word] if word in fields and not hasattr(found, word) else getattr(found, word)
        )
    return found


def directives() -> list[tuple[str, str, dict[str, str]]]:
    """Kind, name and options of each directive of the page."""
    found: list[tuple[str, str, dict[str, str]]] = []
    for line in (DOCS / "api.md").read_text(encoding="utf-8").splitlines():
        if head := re.fullmatch(r"\.\. auto(class|function|module):: (\S+)", line):
            found.append((head[1], head[2], {}))
        elif option := re.fullmatch(r"   :([\w-]+): *(.*)", line):
            found[-1][2][option[1]] = option[2]
    return found


def members(module: Any, options: dict[str, str]) -> list[str]:
    """The names of a module that get an entry."""
    if "members" not in options:
        return []
    if options["members"]:
        names = options["members"].split(", ")
    else:
        own = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        names = getattr(module, "__all__", own)
    hidden = options.get("exclude-members", "").split(", ")
    return [
        name
        for name in names
        if name not in hidden
        and (inspect.isclass(getattr(module, name)) or inspect.isroutine(getattr(module, name)))
    ]


def documented() -> set[int]:
    """Identities of all that has an entry: a class is the same by whatever path it is found."""
    found = set()
    for kind, name, options in directives():
        value = resolve(name)
        found.add(id(value))
        if kind == "module":
            found |= {id(getattr(value, member)) for member in members(value, options)}
    return found


def test_every_public_name_has_an_entry_or_a_reason_for_having_none():
    entries = documented()
    missing = [
        name
        for name, value in public_names().items()
        if name not in WITHOUT_ENTRY and id(value) not in entries
    ]
    assert missing == []


def test_no_name_is_excused_that_has_an_entry_or_is_gone():
    names, entries = public_names(), documented()
    for name in WITHOUT_ENTRY:
        value = names[name]
        assert not isinstance(value, type | ModuleType), name
        assert not inspect.isroutine(value), name
        assert id(value) not in entries, name


def test_members_that_the_page_asks_for_by_name_are_there():
    for kind, name, options in directives():
        value = resolve(name)
        for member in filter(None, options.get("members", "").split(", ")):
            fields = getattr(value, "__annotations__", {})
            assert hasattr(value, member) or member in fields, f"{kind} {name}: {member}"


def test_what_has_an_entry_has_a_docstring():
    for _, name, options in directives():
        value = resolve(name)
        assert inspect.getdoc(value), name
        if isinstance(value, ModuleType):
            for member in members(value, options):
                assert inspect.getdoc(getattr(value, member)), f"{name}.{member}"


# --- equations -------------------------------------------------------------------------------

EQUATIONS = (DOCS / "equations.md").read_text(encoding="utf-8")
HOMES = ("tfclip", "tfclip.model", "tfclip.memory_building", "tfclip.losses", "tfclip.diffusion")
# What is written as code without being a name of the library: operators, letters of shapes, and
# tensors of the example, of a call, or of the tables.
NO_NAMES = {"LN", "MHA", "CA", "B", "T", "N", "D", "E", "K", "messages", "memories"}
NO_NAMES |= {"tokens[b, t, j]", "tests/test_api_page.py", "appearance", "projected"}
HOLDERS: dict[str, Any] = {
    "config": {field.name for field in dataclasses.fields(TFCLIPConfig)},
    "output": set(TFCLIPOutput._fields),
    "backbone": {*Backbone.__annotations__, *vars(Backbone)},
}


def quoted_lines() -> list[tuple[str, str]]:
    """Each function of the table of lines with the line quoted beside it."""
    table = EQUATIONS.partition("## Where each one is computed")[2].partition("\n## ")[0]
    rows, last = [], ""
    for row in table.splitlines():
        cells = row.strip("|").split(" | ")
        if row.startswith("| ") and len(cells) == 3 and "`" in cells[2]:
            last = last if cells[1].strip() == "the same" else cells[1].strip(" `")
            rows.append((last, cells[2].strip(" `")))
    return rows


def test_every_equation_of_the_method_has_a_line():
    table = EQUATIONS.partition("## Where each one is computed")[2].partition("\n## ")[0]
    numbers = set()
    for first, last in re.findall(r"^\| Eq\. (\d+)(?:-(\d+))?", table, re.MULTILINE):
        numbers |= set(range(int(first), int(last or first) + 1))
    assert numbers == set(range(2, 15))


@pytest.mark.parametrize(("name", "line"), quoted_lines())
def test_a_quoted_line_is_in_the_function_beside_it(name: str, line: str):
    source = " ".join(inspect.getsource(resolve(name)).split())
    assert line in source


def code_names() -> list[str]:
    """Every piece of code in the text and the first table, without fenced blocks and lines."""
    prose = re.sub(r"^```.*?^```$", "", EQUATIONS, flags=re.DOTALL | re.MULTILINE)
    lines = {line for _, line in quoted_lines()}
    return sorted(set(re.findall(r"`([^`]+)`", prose)) - lines - NO_NAMES)


def is_known(code: str) -> bool:
    """Whether a piece of code names something that is there."""
    if re.fullmatch(r"\(\w+(, \w+)*\)", code):  # a shape
        return True
    if value := re.fullmatch(r'(\w+)="(\w+)"', code):  # an option and its value
        option = {value[1]: value[2]}
        if value[1] == "variant":
            tfclip.SequenceSpecificPrompt(8, 1, **option)  # pyright: ignore[reportArgumentType]
        else:
            config = TFCLIPConfig(backbone_options={"width": 64, "layers": 1, "output_dim": 32})
            TFCLIPObjective(config, 2, **option)  # pyright: ignore[reportArgumentType]
        return True
    name = re.sub(r"\(.*\)$", "", code)
    holder, _, attribute = name.partition(".")
    if holder in HOLDERS:
        return attribute in HOLDERS[holder]
    places = [name] if holder == "tfclip" else [f"{home}.{name.lstrip('.')}" for home in HOMES]
    for place in places:
        try:
            return resolve(place) is not None
        except (AttributeError, ModuleNotFoundError):
            continue
    return hasattr(tfclip.TemporalMemoryConstruction, name.lstrip("."))


@pytest.mark.parametrize("code", code_names())
def test_a_name_on_the_page_of_equations_is_there(code: str):
    assert is_known(code)


@pytest.mark.parametrize(
    "code", ["tfclip.losses.centre_loss", "config.clip_size", "output.features", "Memory"]
)
def test_a_name_that_is_not_there_would_be_noticed(code: str):
    assert not is_known(code)
