"""Fuzz every file that tfclip parses: ``python tests/fuzz.py --inputs 100000 --seed 0``.

Small valid files are changed - bits, pieces, numbers, values of JSON - and given to the reader that
users call. It may return, or raise what its documentation names. Everything else is a finding:
another exception, a crash, an input that takes longer than ``--limit`` seconds, memory beyond the
target's bound, a file written outside the folder, a process or a connection.

Each input is a function of seed, target and its number, so ``--replay TARGET:NUMBER`` gives it
again. A target runs in a process of its own; one that dies is started again behind the input that
killed it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # and not tests/
    sys.path[1:] = [path for path in sys.path[1:] if Path(path).name != "tests"]

from tests.fuzz_mutations import mutate
from tests.fuzz_targets import MIB, TARGETS, Samples

ADDRESS_SPACE = 8 * 2**30  # beyond what the process has at the start
_BROKEN = 70  # the status of a process whose samples are refused
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.")
_PATHS = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.chmod")


@dataclass
class Result:
    """What became of the inputs of one target."""

    target: str
    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)  # by number and kind
    slowest: float = 0
    growth: float = 0
    note: str = ""  # of the source of inputs

    def line(self) -> str:
        refused = ", ".join(f"{count:,} {name}" for name, count in sorted(self.refused.items()))
        return (
            f"{self.target:20} {self.inputs:>8,} inputs: {self.accepted:,} accepted, "
            f"{refused or '0'} refused, {len(self.findings)} findings; "
            f"slowest {self.slowest:.2f} s, memory +{self.growth / MIB:.0f} MiB{self.note}"
        )


def make_input(seed: int, target: str, number: int, samples: Samples) -> tuple[str, bytes]:
    """Return the name of the file to change and its new content."""
    rng = random.Random(f"{seed}/{target}/{number}")
    name = rng.choice(sorted(samples))
    changed = mutate(rng, samples[name], [samples[other] for other in sorted(samples)])
    return name, TARGETS[target].finish(rng, changed)


class _Guard:
    """Notes what a reader does to the rest of the machine."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: str | None = None
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event.startswith(_FORBIDDEN):
            self.seen = f"{event} {arguments[:1]}"
        elif event == "open":
            path, mode, flags = arguments
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (flags & _WRITING)
            if writes and not isinstance(path, int):
                self._check(event, path)
        elif event in _PATHS:
            if event in ("os.remove", "os.rmdir") and arguments[-1] not in (-1, None):
                base = Path(f"/proc/self/fd/{arguments[-1]}").readlink()  # of a folder held open
                arguments = (str(base / os.fsdecode(arguments[0])),)
            for path in arguments[:2]:
                if isinstance(path, str | bytes):
                    self._check(event, path)

    def _check(self, event: str, path: Any) -> None:
        place = os.path.realpath(os.fsdecode(path))
        inside = place == self.folder or place.startswith(f"{self.folder}{os.sep}")
        if not inside and place != os.devnull:
            self.seen = f"{event} {place}"


def _peak() -> int:
    """Return the most memory that this process ever had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_one(
    target: str, folder: Path, name: str, data: bytes, guard: _Guard, result: Result
) -> str | None:
    """Give one input to its reader; return what is wrong, if anything is."""
    spec, path = TARGETS[target], folder / name
    path.write_bytes(data)
    before, start = _peak(), time.perf_counter()
    finding = None
    guard.folder, guard.seen = os.path.realpath(folder), None
    try:
        spec.read(folder, name)
        result.accepted += 1
    except spec.raises as error:
        result.refused[type(error).__name__] += 1
        if "\n" in str(error).strip():
            finding = f"message of several lines: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        finding = "".join(traceback.format_exception(error)[-8:])
    finally:
        guard.folder = None
    seconds, growth = time.perf_counter() - start, _peak() - before
    result.slowest, result.growth = max(result.slowest, seconds), max(result.growth, growth)
    if growth > spec.memory * MIB:
        finding = f"memory grew by {growth / MIB:.0f} MiB, {spec.memory} are allowed\n{finding}"
    if guard.seen is not None:
        finding = f"reached beyond its folder: {guard.seen}\n{finding}"
    result.inputs += 1
    return finding


class Feeder:
    """Gives inputs to a target, in a process of its own, and keeps what becomes of them.

    What the next input could take with it, should it kill the process, is in files and in
    ``shared``: the number of the input, and the results so far.
    """

    def __init__(
        self,
        target: str,
        options: argparse.Namespace,
        shared: mmap.mmap,
        scratch: Path,
        source: Source,
    ) -> None:
        warnings.simplefilter("ignore")
        faulthandler.enable()  # of a crash, too, says where it was
        _bound_memory()
        self.target, self.options, self.scratch = target, options, scratch
        self.result = Result(target)
        self._shared, self._source, self._guard = shared, source, _Guard()
        (self.number,) = struct.unpack_from("<q", shared, 0)
        self._folder = scratch / "scratch"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self.samples = TARGETS[target].make(self._folder)
        for name, data in self.samples.items():  # the first call loads modules
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_bytes(data)
        for name in self.samples:
            TARGETS[target].read(self._folder, name)  # a sample that is refused would test nothing

    @property
    def over(self) -> bool:
        """Whether there were inputs enough, or time, or findings."""
        late = self.number >= self.options.inputs or time.time() >= self.options.deadline
        return late or len(self.result.findings) >= self.options.most

    def give(self, name: str, data: bytes) -> None:
        """Give one input, as the new content of the file of this name."""
        struct.pack_into("<q", self._shared, 0, self.number)
        faulthandler.dump_traceback_later(self.options.limit, exit=True)
        finding = run_one(self.target, self._folder, name, data, self._guard, self.result)
        faulthandler.cancel_dump_traceback_later()
        if finding is not None:
            place = self._source.place(self.target, self.number, finding, self.scratch)
            self.result.findings[place] = finding
        (self._folder / name).write_bytes(self.samples[name])
        self.number += 1
        if finding is not None or self.number % 50 == 0:
            self._keep()

    def end(self) -> None:
        """Keep the results, when all inputs were given."""
        struct.pack_into("<q", self._shared, 0, self.number)
        strangers = sorted({path.name for path in self.scratch.iterdir()} - _OWN_FILES)
        if strangers:
            self.result.findings[f"{self.target}:end"] = f"left beside its folder: {strangers}"
        self._keep()

    def _keep(self) -> None:
        (self.scratch / "result.json").write_text(json.dumps(self.result.__dict__))


_OWN_FILES = {"scratch", "result.json", "stderr", "elsewhere", "input", "corpus", "tokens"}


@dataclass(frozen=True)
class Source:
    """Where inputs come from.

    Args:
        feed: Give inputs to a feeder until it is over.
        place: Return what ``--replay`` takes for an input: given are the target, the input's
            number, what is wrong with it, and the folder of the process.
    """

    feed: Callable[[Feeder], None]
    place: Callable[[str, int, str, Path], str]


def _feed_changes(feeder: Feeder) -> None:
    while not feeder.over:
        feeder.give(*make_input(feeder.options.seed, feeder.target, feeder.number, feeder.samples))


CHANGES = Source(_feed_changes, lambda target, number, *_: f"{target}:{number}")


def _bound_memory() -> None:
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * mmap.PAGESIZE + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run_target(target: str, options: argparse.Namespace, scratch: Path, source: Source) -> Result:
    """Run a target in processes of its own, one after another as inputs kill them."""
    scratch.mkdir()
    (scratch / "elsewhere").mkdir()
    shared = mmap.mmap(-1, 8)
    struct.pack_into("<q", shared, 0, options.first)
    total = Result(target)
    while True:
        (scratch / "result.json").unlink(missing_ok=True)
        status = _in_child(target, options, shared, scratch, source)
        (number,) = struct.unpack_from("<q", shared, 0)
        _add(total, scratch / "result.json")
        total.inputs = number - options.first
        if status == 0:
            return total
        total.inputs += 1
        said = (scratch / "stderr").read_text(errors="replace")[-3000:]
        finding = f"the process ended with status {status}\n{said}"
        total.findings[source.place(target, number, finding, scratch)] = finding
        late = len(total.findings) >= options.most or time.time() >= options.deadline
        if status == _BROKEN or late:
            return total
        struct.pack_into("<q", shared, 0, number + 1)


def _in_child(
    target: str, options: argparse.Namespace, shared: mmap.mmap, scratch: Path, source: Source
) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = _BROKEN
    try:
        handle = os.open(scratch / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 2)
        os.chdir(scratch / "elsewhere")
        feeder = Feeder(target, options, shared, scratch, source)
        source.feed(feeder)
        feeder.end()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _add(total: Result, path: Path) -> None:
    if not path.exists():
        return
    found = json.loads(path.read_text())
    total.accepted += found["accepted"]
    total.refused.update(found["refused"])
    total.findings.update(found["findings"])
    total.slowest = max(total.slowest, found["slowest"])
    total.growth = max(total.growth, found["growth"])
    total.note = found["note"] or total.note


def read_again(
    target: str, find: Callable[[Samples], tuple[str, bytes]], keep: Path | None = None
) -> None:
    """Give one input again, in this process, and let what it raises through."""
    with tempfile.TemporaryDirectory(prefix="tfclip-fuzz-") as scratch:
        folder = Path(scratch, "scratch")
        folder.mkdir()
        samples = TARGETS[target].make(folder)
        name, data = find(samples)
        print(f"{name}: {len(data)} bytes, the sample has {len(samples[name])}")
        if keep is not None:
            keep.write_bytes(data)
        (folder / name).write_bytes(data)
        print("returned", TARGETS[target].read(folder, name))


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every source of inputs is asked for."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument(
        "--inputs", type=int, default=10**9, help="in all, shared among the targets"
    )
    parser.add_argument("--seconds", type=float, help="in all, shared among the targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--limit", type=float, default=10, help="seconds that one input may take")
    parser.add_argument("--most", type=int, default=20, help="findings after which a target ends")
    return parser


def run(options: argparse.Namespace, source: Source) -> int:
    """Run the targets one after another and print what they find; return 1 if they do."""
    each, names = -(-options.inputs // len(options.targets)), options.targets
    options.inputs = options.first + each
    print(f"seed {options.seed}, inputs {options.first} to {options.inputs - 1} of each target")
    results, start = [], time.time()
    with tempfile.TemporaryDirectory(prefix="tfclip-fuzz-") as folder:
        for place, name in enumerate(names, start=1):
            share = (options.seconds or float("inf")) * place / len(names)
            options.deadline = start + share
            results.append(run_target(name, options, Path(folder, name), source))
            print(results[-1].line(), flush=True)
            for number, finding in results[-1].findings.items():
                print(f"--- {number}\n{finding.rstrip()}", flush=True)
    total, findings = sum(r.inputs for r in results), sum(len(r.findings) for r in results)
    print(f"{total:,} inputs, {findings} findings, {time.time() - start:.0f} s")
    return 1 if findings else 0


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--first", type=int, default=0, help="number of each target's first input")
    parser.add_argument("--replay", metavar="TARGET:NUMBER", help="one input again")
    parser.add_argument("--keep", type=Path, help="where --replay writes the input")
    options = parser.parse_args(arguments)
    if options.replay:
        target, number = options.replay.split(":")
        seed = options.seed
        read_again(target, lambda s: make_input(seed, target, int(number), s), options.keep)
        return 0
    if options.seconds is None and options.inputs == 10**9:
        parser.error("say how much: --inputs or --seconds")
    return run(options, CHANGES)


if __name__ == "__main__":
    sys.exit(main())
