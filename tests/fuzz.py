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

    def line(self) -> str:
        refused = ", ".join(f"{count:,} {name}" for name, count in sorted(self.refused.items()))
        return (
            f"{self.target:20} {self.inputs:>8,} inputs: {self.accepted:,} accepted, "
            f"{refused or '0'} refused, {len(self.findings)} findings; "
            f"slowest {self.slowest:.2f} s, memory +{self.growth / MIB:.0f} MiB"
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
) -> None:
    """Give one input to its reader, and note what happens."""
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
    if finding is not None:
        result.findings[str(result.inputs)] = finding


def _work(target: str, options: argparse.Namespace, shared: mmap.mmap, scratch: Path) -> None:
    """Run inputs until they are done or time is over; the process's own state is in ``shared``."""
    warnings.simplefilter("ignore")
    (pages,) = Path("/proc/self/statm").read_text().split()[:1] if sys.platform == "linux" else "0"
    limit = int(pages) * mmap.PAGESIZE + ADDRESS_SPACE
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    guard, folder = _Guard(), scratch / "scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    samples = TARGETS[target].make(folder)
    for name, data in samples.items():  # the first call loads modules
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for name in samples:
        TARGETS[target].read(folder, name)  # a sample that is refused would test nothing
    result = Result(target)
    (number,) = struct.unpack_from("<q", shared, 0)
    while number < options.inputs and time.time() < options.deadline:
        name, data = make_input(options.seed, target, number, samples)
        struct.pack_into("<q", shared, 0, number)
        faulthandler.dump_traceback_later(options.limit, exit=True)
        result_before = len(result.findings)
        run_one(target, folder, name, data, guard, result)
        faulthandler.cancel_dump_traceback_later()
        if len(result.findings) > result_before:
            result.findings[f"{target}:{number}"] = result.findings.pop(str(result.inputs))
            _keep(scratch, result, number)  # the next input may kill this process
            if len(result.findings) >= options.most:
                break
        (folder / name).write_bytes(samples[name])
        number += 1
        if number % 50 == 0 or number >= options.inputs:
            _keep(scratch, result, number)
    struct.pack_into("<q", shared, 0, number)
    _keep(scratch, result, number)
    strangers = sorted({path.name for path in scratch.iterdir()} - _OWN_FILES)
    if strangers:
        result.findings[f"{target}:end"] = f"left beside its folder: {strangers}"
        _keep(scratch, result, number)


_OWN_FILES = {"scratch", "result.json", "stderr", "elsewhere"}


def _keep(scratch: Path, result: Result, number: int) -> None:
    kept = scratch / "result.json"
    kept.write_text(json.dumps({**result.__dict__, "number": number}))


def run_target(target: str, options: argparse.Namespace, scratch: Path) -> Result:
    """Run a target in processes of its own, one after another as inputs kill them."""
    scratch.mkdir()
    (scratch / "elsewhere").mkdir()
    shared = mmap.mmap(-1, 8)
    struct.pack_into("<q", shared, 0, options.first)
    total = Result(target)
    while True:
        (scratch / "result.json").unlink(missing_ok=True)
        status = _in_child(target, options, shared, scratch)
        (number,) = struct.unpack_from("<q", shared, 0)
        _add(total, scratch / "result.json")
        total.inputs = number - options.first
        if status == 0:
            return total
        total.inputs += 1
        said = (scratch / "stderr").read_text(errors="replace")[-3000:]
        total.findings[f"{target}:{number}"] = f"the process ended with status {status}\n{said}"
        late = len(total.findings) >= options.most or time.time() >= options.deadline
        if status == _BROKEN or late:
            return total
        struct.pack_into("<q", shared, 0, number + 1)


def _in_child(target: str, options: argparse.Namespace, shared: mmap.mmap, scratch: Path) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = _BROKEN
    try:
        handle = os.open(scratch / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 2)
        os.chdir(scratch / "elsewhere")
        _work(target, options, shared, scratch)
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


def replay(place: str, seed: int, keep: Path | None) -> None:
    """Give one input again, in this process, and let what it raises through."""
    target, number = place.split(":")
    with tempfile.TemporaryDirectory(prefix="tfclip-fuzz-") as scratch:
        folder = Path(scratch, "scratch")
        folder.mkdir()
        samples = TARGETS[target].make(folder)
        name, data = make_input(seed, target, int(number), samples)
        print(f"{name}: {len(data)} bytes, the sample has {len(samples[name])}")
        if keep is not None:
            keep.write_bytes(data)
        (folder / name).write_bytes(data)
        print("returned", TARGETS[target].read(folder, name))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--inputs", type=int, default=10**9, help="in all, shared among the targets"
    )
    parser.add_argument("--seconds", type=float, help="in all, shared among the targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of each target's first input")
    parser.add_argument("--targets", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--limit", type=float, default=10, help="seconds that one input may take")
    parser.add_argument("--most", type=int, default=20, help="findings after which a target ends")
    parser.add_argument("--replay", metavar="TARGET:NUMBER", help="one input again")
    parser.add_argument("--keep", type=Path, help="where --replay writes the input")
    options = parser.parse_args(arguments)
    if options.replay:
        replay(options.replay, options.seed, options.keep)
        return 0
    if options.seconds is None and options.inputs == 10**9:
        parser.error("say how much: --inputs or --seconds")
    each, names = -(-options.inputs // len(options.targets)), options.targets
    options.inputs = options.first + each
    print(f"seed {options.seed}, inputs {options.first} to {options.inputs - 1} of each target")
    results, start = [], time.time()
    with tempfile.TemporaryDirectory(prefix="tfclip-fuzz-") as folder:
        for place, name in enumerate(names, start=1):
            share = (options.seconds or float("inf")) * place / len(names)
            options.deadline = start + share
            results.append(run_target(name, options, Path(folder, name)))
            print(results[-1].line(), flush=True)
            for number, finding in results[-1].findings.items():
                print(f"--- {number}\n{finding.rstrip()}", flush=True)
    total, findings = sum(r.inputs for r in results), sum(len(r.findings) for r in results)
    print(f"{total:,} inputs, {findings} findings, {time.time() - start:.0f} s")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
