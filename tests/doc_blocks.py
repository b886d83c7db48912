"""The code blocks of README and the pages, and the commands in them, as a reader sees them."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})[ \t]*([^`]*)$")
_LIST_ITEM = re.compile(r"^\s*([-*+]|\d+[.)])\s")
_SEPARATORS = ("&&", "||", ";", "|", "&")
_ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")
_VARIABLE = re.compile(r"\$\{\w+[^}]*\}|\$\w+|\$\([^)]*\)")


SHELL = ("bash", "console", "indented")
DATA: dict[str, Callable[[str], object]] = {"json": json.loads, "toml": tomllib.loads}
UNREAD = {
    "text": "what programs print, and trees of folders",
    "bibtex": "for TeX",
    "{eval-rst}": "read by Sphinx, with every name in it",
    "{toctree}": "read by Sphinx, with every page in it",
}


class Block(NamedTuple):
    """One block of code."""

    page: str
    """Its path from the root of the repository."""
    line: int
    """Where it begins, counted from 1: the fence, or the first line of an indented one."""
    end: int
    """Its last line."""
    language: str
    """The first word after the fence; nothing where there is none, ``"indented"`` without one."""
    text: str

    @property
    def place(self) -> str:
        """Where it is, as a message says it."""
        return f"{self.page}:{self.line}"

    @property
    def is_doctest(self) -> bool:
        """Whether pytest runs it as an example by itself."""
        return any(line.startswith(">>> ") for line in self.text.splitlines())


def pages() -> list[str]:
    """Return README and every page, as paths from the root of the repository."""
    found = sorted((ROOT / "docs").rglob("*.md"))
    return ["README.md", *(path.relative_to(ROOT).as_posix() for path in found)]


def read_page(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str, language: str | None = None) -> list[Block]:
    """Return the blocks of a page, or those of one language that pytest does not run itself."""
    found = read_blocks(page, read_page(page))
    if language is None:
        return found
    return [block for block in found if block.language == language and not block.is_doctest]


def read_blocks(page: str, text: str) -> list[Block]:
    """Return every block of a text in Markdown, fenced or indented, in its order.

    Raises:
        ValueError: A fence is never closed.
    """
    found: list[Block] = []
    lines = text.expandtabs(4).splitlines()
    number, in_list = 0, False
    while number < len(lines):
        line = lines[number]
        fence = _FENCE.match(line)
        if fence:
            in_list = in_list and bool(fence[1])
            end = _closing(lines, number, fence[2], page)
            content = [_dedent(one, len(fence[1])) for one in lines[number + 1 : end]]
            language = fence[3].split()[0] if fence[3].strip() else ""
            found.append(Block(page, number + 1, end + 1, language, _joined(content)))
            number = end + 1
            continue
        if _LIST_ITEM.match(line) and (in_list or not line.startswith("    ")):
            in_list = True
        elif line[:1].strip():
            in_list = in_list and bool(lines[number - 1].strip())  # a paragraph goes on lazily
        if _begins_indented(lines, number) and not in_list:
            end = number
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            content = [line[4:] for line in lines[number:end]]
            found.append(Block(page, number + 1, end, "indented", _joined(content)))
            number = end
            continue
        number += 1
    return found


def _closing(lines: list[str], start: int, fence: str, page: str) -> int:
    for number in range(start + 1, len(lines)):
        line = lines[number].strip()
        if len(line) >= len(fence) and line == fence[0] * len(line):
            return number
    raise ValueError(f"{page}:{start + 1}: this block has no end")


def _begins_indented(lines: list[str], number: int) -> bool:
    after_blank = number == 0 or not lines[number - 1].strip()
    return after_blank and lines[number].startswith("    ") and bool(lines[number].strip())


def _dedent(line: str, width: int) -> str:
    return line[min(width, len(line) - len(line.lstrip(" "))) :]


def _joined(lines: list[str]) -> str:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return "".join(f"{line}\n" for line in lines)


def kind_of(block: Block) -> str | None:
    """Return what is wrong with a block that nothing here would test, in one sentence."""
    if block.is_doctest:
        if not block.text.startswith(">>> "):
            return f"{block.place}: only the part after >>> is run; begin with it, or split it"
        if "+SKIP" in block.text:
            return f"{block.place}: an example that is skipped; use NOT_RUN in tests/doc_blocks.py"
        return None
    if block.language in ("python", *SHELL, *DATA, "yaml", *UNREAD):
        return None
    if not block.language:
        return f"{block.place}: a block without a language; say ```text where it is none"
    return (
        f"{block.place}: nothing tests blocks of {block.language!r}; add the language to DATA with "
        "its parser, or to UNREAD with the reason, in tests/doc_blocks.py"
    )


def commands(block: Block) -> Iterator[list[str]]:
    """Yield every command of a block of shell, in words, without what the shell itself takes.

    Of a ``console`` block these are the lines after ``$``; the others are what was printed.

    Raises:
        ValueError: Quotes are not closed.
    """
    for line in _whole_lines(block):
        lexer = shlex.shlex(_VARIABLE.sub("1", line), posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        command: list[str] = []
        words = iter(lexer)
        for word in words:
            if word in _SEPARATORS:
                yield from _named(command)
                command = []
            elif word[0] in "<>":
                if command and command[-1] == "2":  # 2> file
                    command.pop()
                next(words, None)
            else:
                command.append(word)
        yield from _named(command)


def _named(command: list[str]) -> Iterator[list[str]]:
    """Yield a command without the variables that are set for it, unless it is nothing else."""
    while command and _ASSIGNMENT.match(command[0]):
        command = command[1:]
    if command:
        yield command


def _whole_lines(block: Block) -> Iterator[str]:
    """Yield the lines that are typed, each put together where it goes on after a backslash."""
    pending, typing = "", block.language != "console"
    for line in block.text.splitlines():
        if block.language == "console" and not pending:
            typing = line.startswith("$ ")
            line = line.removeprefix("$ ")
        if not typing:
            continue
        if line.endswith("\\"):
            pending += line[:-1]
            continue
        yield pending + line
        pending = ""
    if pending:
        raise ValueError(f"{block.place}: the last line ends in a backslash")


def inline_code(page: str, text: str) -> list[tuple[str, str]]:
    """Return what stands between backticks in running text, each with its place."""
    lines = text.splitlines()
    for block in read_blocks(page, text):
        lines[block.line - 1 : block.end] = [""] * (block.end - block.line + 1)
    prose = "\n".join(lines)
    return [
        (f"{page}:{prose[: match.start()].count(chr(10)) + 1}", " ".join(match[1].split()))
        for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose)
    ]
