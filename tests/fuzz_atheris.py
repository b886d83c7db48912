"""Fuzz the same files, led by coverage: ``python tests/fuzz_atheris.py --seconds 600``.

Atheris (``pip install atheris``; Linux and macOS) makes the inputs. It sees which branches of
``tfclip`` an input takes, keeps the inputs that take new ones, and changes those further. What is
read, what may be raised and what counts as a finding are the same as in ``tests/fuzz.py``.

An input is one byte, which says which of the target's files it is, and the content of this file;
checksums are repaired afterwards. Half of the changes are libFuzzer's own, half those of
``tests/fuzz.py``. The input of a finding is kept in ``--keep``, one for each defect as far as they
can be told apart; ``--replay TARGET:FILE`` gives it again, with Atheris or without.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import random
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # and not tests/
    sys.path[1:] = [path for path in sys.path[1:] if Path(path).name != "tests"]

from tests.fuzz_mutations import NUMBERS, WORDS, mutate

if TYPE_CHECKING:  # when it runs, it is imported where Atheris can watch
    from tests.fuzz import Feeder, Samples

MISSING = "Atheris is not installed: pip install atheris (for Linux and macOS)"
# What libFuzzer, which knows bytes alone, is told to try; the last are of JSON.
_TOKENS = (*WORDS, *NUMBERS, rb"\n", rb"\u0000", rb"\ud800", b"[]", b"{}", b"null", b"true")
_EDGES = re.compile(r"cov: (\d+) .*corp: (\d+)/")


def find_input(target: str, data: bytes, samples: Samples) -> tuple[str, bytes]:
    """Return the name of the file that an input is for, and its new content."""
    from tests.fuzz_targets import TARGETS

    names = sorted(samples)
    name = names[(data[0] if data else 0) % len(names)]
    return name, TARGETS[target].finish(random.Random(data), data[1:])


def make_seeds(samples: Samples) -> list[bytes]:
    """Return the inputs that leave each file as it is, but for repaired checksums."""
    return [bytes([number]) + samples[name] for number, name in enumerate(sorted(samples))]


def write_tokens(tokens: Iterable[bytes]) -> str:
    """Return a dictionary as libFuzzer reads it, which takes words of up to 64 bytes."""
    short = [token for token in tokens if 0 < len(token) <= 64]
    escaped = ("".join(f"\\x{byte:02X}" for byte in token) for token in short)
    return "".join(f'"{token}"\n' for token in escaped)


def find_kind(finding: str) -> str:
    """Return what findings of one defect share: their begin, places in tfclip, the exception."""
    lines = finding.rstrip().splitlines()
    begin = re.sub(r"\d+ MiB", "", lines[0].partition(":")[0])
    places = re.findall(r'File "[^"]*/(tfclip/[^"]*)", line (\d+)', finding)
    raised = re.findall(r"^[\w.]+(?=:|$)", lines[-1]) if 'File "' in finding else []
    return repr((begin, places, raised))


class Guided:
    """Inputs that Atheris makes; what it found worth keeping is in ``corpus``."""

    def __init__(self, atheris: Any, keep: Path, corpus: Path | None) -> None:
        self._atheris, self._keep = atheris, keep.absolute()  # processes run elsewhere
        self._corpus = None if corpus is None else corpus.absolute()

    def feed(self, feeder: Feeder) -> None:
        """Give inputs until the feeder is over, and end the process."""

        def give(data: bytes) -> None:
            if feeder.over:
                said = (feeder.scratch / "stderr").read_text(errors="replace")
                feeder.result.note = describe_coverage(said)
                feeder.end()
                os._exit(0)  # libFuzzer has no other way to stop here
            (feeder.scratch / "input").write_bytes(data)  # the reader may kill this process
            feeder.give(*find_input(feeder.target, data, feeder.samples))

        arguments = self._prepare(feeder)
        self._atheris.Setup(arguments, give, custom_mutator=self._changer(feeder.samples))
        self._atheris.Fuzz()

    def _prepare(self, feeder: Feeder) -> list[str]:
        """Write what libFuzzer begins with, and return its arguments."""
        tokens, corpus = feeder.scratch / "tokens", feeder.scratch / "corpus"
        tokens.write_text(write_tokens(_TOKENS))
        if self._corpus is not None:
            corpus = self._corpus / feeder.target
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(make_seeds(feeder.samples)):  # each process makes its own
            (corpus / f"seed-{number}").write_bytes(seed)
        longest = max(len(data) for data in feeder.samples.values())
        options = {
            "seed": feeder.options.seed + feeder.number + 1,  # 0 would mean any
            "max_len": max(4096, 2 * longest),
            "dict": tokens,
            "keep_seed": 1,  # formats that another package reads take the same branches here
            "reload": 0,  # nobody else writes into the corpus
            "rss_limit_mb": 0,  # the feeder watches memory and time
            "timeout": 10**6,
            **dict.fromkeys(("handle_segv", "handle_abrt", "handle_bus", "handle_fpe"), 0),
        }
        return ["fuzz", *(f"-{name}={value}" for name, value in options.items()), str(corpus)]

    def _changer(self, samples: Samples) -> Any:
        files = [samples[name] for name in sorted(samples)]

        def change(data: bytes, size: int, seed: int) -> bytes:
            rng = random.Random(seed)
            if data and rng.random() < 0.5:
                # JSON too deep, or a number too long, to change
                with contextlib.suppress(RecursionError, ValueError, OverflowError):
                    return (data[:1] + mutate(rng, data[1:], files))[:size]
            return self._atheris.Mutate(data, size)

        return change

    def place(self, target: str, number: int, finding: str, scratch: Path) -> str:
        """Keep the input of a finding, unless a smaller one of its kind is there already."""
        given = scratch / "input"
        if not given.exists():
            return f"{target}:{number}"
        digest = hashlib.sha256(f"{target} {find_kind(finding)}".encode()).hexdigest()[:12]
        kept = self._keep / f"{target}-{digest}"
        if not kept.exists() or kept.stat().st_size > given.stat().st_size:
            self._keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(given, kept)
        return f"{target}:{kept}"


def describe_coverage(said: str) -> str:
    """Return what libFuzzer says of edges and inputs, when it began and at last."""
    told = [tuple(map(int, match)) for match in _EDGES.findall(said.partition("INITED")[2])]
    if not told:
        return ""
    (first, seeds), (last, kept) = told[0], told[-1]
    return f"; edges {first:,} to {last:,} by {kept - seeds:,} inputs that it kept"


def main(arguments: list[str] | None = None) -> int:
    atheris = None
    with contextlib.suppress(ImportError):
        atheris = importlib.import_module("atheris")
    with contextlib.ExitStack() as watched:
        if atheris is not None:  # until the end: some modules are imported when they are used
            watched.enter_context(atheris.instrument_imports(include=["tfclip"]))
        with contextlib.redirect_stderr(io.StringIO()):  # a line for each module
            fuzz = importlib.import_module("tests.fuzz")
        return _main(arguments, atheris, fuzz)


def _main(arguments: list[str] | None, atheris: Any, fuzz: Any) -> int:
    parser = fuzz.make_parser(__doc__)
    parser.add_argument("--corpus", type=Path, help="where inputs worth keeping are, and stay")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-findings"), help="where findings' inputs are kept"
    )
    parser.add_argument("--replay", metavar="TARGET:FILE", help="a kept input again")
    options = parser.parse_args(arguments)
    if options.replay:
        target, _, path = options.replay.partition(":")
        data = Path(path).read_bytes()
        fuzz.read_again(target, lambda samples: find_input(target, data, samples))
        return 0
    if atheris is None:
        parser.exit(2, f"{MISSING}\n")
    if options.seconds is None and options.inputs == 10**9:
        parser.error("say how much: --inputs or --seconds")
    options.first = 0
    guided = Guided(atheris, options.keep, options.corpus)
    return fuzz.run(options, fuzz.Source(guided.feed, guided.place))


if __name__ == "__main__":
    sys.exit(main())
