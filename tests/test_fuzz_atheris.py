"""The wiring of Atheris: what it makes reaches the targets, and what they do wrong is kept."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz_atheris import (
    MISSING,
    describe_coverage,
    find_input,
    find_kind,
    main,
    make_seeds,
    write_tokens,
)

ROOT = Path(__file__).parents[1]
FORKS = pytest.mark.skipif(sys.platform == "win32", reason="the fuzzer forks")
INSTALLED = importlib.util.find_spec("atheris") is not None
REAL = pytest.mark.skipif(not INSTALLED, reason=MISSING)

# Gives the corpus, then changes of it, as libFuzzer would without looking at branches.
STAND_IN = """
import contextlib, pathlib, random

def instrument_imports(include):
    assert include == ["tfclip"]
    return contextlib.nullcontext()

def Setup(arguments, give, custom_mutator):
    global given
    given = arguments, give, custom_mutator

def Mutate(data, size):
    return (data + b"x")[:size]

def Fuzz():
    arguments, give, change = given
    rng = random.Random(arguments[1])
    inputs = [path.read_bytes() for path in sorted(pathlib.Path(arguments[-1]).iterdir())]
    for data in inputs:
        give(data)
    while True:
        give(change(rng.choice(inputs), 64, rng.randrange(2**32)))
"""

BROKEN = """
import contextlib, os, sys, time
import atheris
with atheris.instrument_imports(include=["tfclip"]):
    from tests import fuzz, fuzz_atheris, fuzz_targets
    from tfclip.data import read_csv
from tfclip.errors import TableError

VALID = b"tracklet,path\\n"  # as a table, it has no row

class Torn(TableError):
    __str__ = Exception.__str__  # which escapes no line break

def read(folder, name):
    with contextlib.suppress(TableError):
        read_csv(folder / name)
    kind = None if (folder / name).read_bytes() == VALID else int(name)
    if kind == 0:
        raise KeyError("not documented")
    if kind == 1:
        (folder.parent / "elsewhere" / "escaped").write_text("x")
    if kind == 2:
        os.abort()
    if kind == 3:
        time.sleep(5)
    if kind == 4:
        raise Torn("two\\nlines")

def make(folder):
    return {str(kind): VALID for kind in range(5)}

fuzz_targets.TARGETS = fuzz.TARGETS = {
    "broken": fuzz_targets.Target(make, read, (TableError,))
}
sys.exit(fuzz_atheris.main(sys.argv[1:]))
"""


def test_without_atheris_one_sentence_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--targets", "csv", "--seconds", "60"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"{MISSING}\n"


@pytest.mark.parametrize(
    "driver", [pytest.param("stand-in", marks=FORKS), pytest.param("atheris", marks=REAL)]
)
@pytest.mark.slow
def test_what_a_reader_does_wrong_is_found_kept_and_given_again(
    driver: str, tmp_path: Path
) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN)
    if driver == "stand-in":
        (tmp_path / "atheris.py").write_text(STAND_IN)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("--inputs", "150", "--limit", "0.5", "--keep", "kept")
    assert done.returncode == 1, done.stdout + done.stderr
    wrong = {
        "KeyError: 'not documented'",
        "reached beyond its folder: open",
        "the process ended with status -6",
        "Timeout (0:00:00.500000)!",
        "message of several lines",
    }
    assert {kind for kind in wrong if kind in done.stdout} == wrong, done.stdout
    found = re.findall(r"^--- (broken:(.*))\n((?:.|\n)*?)(?=^---|\Z)", done.stdout, re.MULTILINE)
    assert {path for _, path, _ in found} == {str(path) for path in (tmp_path / "kept").iterdir()}
    (place,) = [place for place, _, finding in found if "KeyError" in finding]
    again = run("--replay", place)
    assert again.returncode == 1
    assert again.stderr.endswith("KeyError: 'not documented'\n")


@REAL
@pytest.mark.slow
def test_atheris_finds_branches_that_the_valid_files_do_not_take(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tests/fuzz_atheris.py", "--targets", "csv", "--inputs", "1000"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    edges = re.search(r"edges ([\d,]+) to ([\d,]+) by", done.stdout)
    assert edges, done.stdout
    first, last = (int(number.replace(",", "")) for number in edges.groups())
    assert 0 < first < last


def test_the_seeds_are_the_valid_files() -> None:
    samples = {"b.csv": b"tracklet,path\n", "a.csv": b""}
    found = [find_input("csv", seed, samples) for seed in make_seeds(samples)]
    assert found == [("a.csv", b""), ("b.csv", b"tracklet,path\n")]


@given(st.binary())
def test_any_bytes_are_a_file_and_the_same_one_each_time(data: bytes) -> None:
    samples = {"a.png": b"", "b.png": b"", "c.png": b""}
    name, content = find_input("image", data, samples)
    assert name in samples
    assert find_input("image", data, samples) == (name, content)
    assert len(content) == len(data[1:])  # only checksums are written anew


def test_findings_are_of_one_kind_if_one_line_raises_one_exception() -> None:
    def raised(line: int, error: str) -> str:
        return (
            f'  File "/home/me/tfclip/tests/fuzz.py", line 7, in run_one\n    spec.read()\n'
            f'  File "/home/me/tfclip/tfclip/data/csv.py", line {line}, in read\n    {{}}[row]\n'
            f"{error}\n"
        )

    kind = find_kind(raised(30, "KeyError: 7"))
    assert find_kind(raised(30, "KeyError: 'ann'")) == kind
    assert find_kind(raised(31, "KeyError: 7")) != kind
    assert find_kind(raised(30, "IndexError: 7")) != kind


def test_other_findings_are_of_one_kind_whatever_the_numbers_and_texts() -> None:
    texts = ["message of several lines: a\nb", "message of several lines: 1: c\nd\ne"]
    grown = [f"memory grew by {size} MiB, 384 are allowed\nNone" for size in (400, 512)]
    left = ["reached beyond its folder: open /etc/a\nNone", "reached beyond its folder: x\nNone"]
    kinds = [{find_kind(finding) for finding in same} for same in (texts, grown, left)]
    assert [len(kind) for kind in kinds] == [1, 1, 1]
    assert len(set.union(*kinds)) == 3


def test_coverage_is_told_from_the_first_line_after_the_seeds_to_the_last() -> None:
    said = (
        "#2\tpulse  cov: 7 ft: 9 corp: 1/2b lim: 4 exec/s: 0 rss: 30Mb\n"
        "#3\tINITED cov: 410 ft: 500 corp: 3/5Kb exec/s: 0 rss: 300Mb\n"
        "#9\tNEW    cov: 1502 ft: 600 corp: 4/6Kb lim: 4 exec/s: 0 rss: 300Mb L: 1/9 MS: 1\n"
    )
    assert describe_coverage(said) == "; edges 410 to 1,502 by 1 inputs that it kept"
    assert describe_coverage("") == ""


def test_tokens_are_written_in_hexadecimal_and_long_ones_left_out() -> None:
    assert write_tokens([b"\0", b"", b'a"\xff', b"x" * 65]) == '"\\x00"\n"\\x61\\x22\\xFF"\n'
