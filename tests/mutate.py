"""Mutation testing: change one thing in a module, and see whether its tests notice.

``python tests/mutate.py --sample 100`` draws that many changes of each module of ``TARGETS`` and
runs the module's tests and its own examples for each, without those marked slow. A change that no
test notices has survived: either a test is missing, or the change means nothing.

A mutant runs in a forked child of a process that has the large packages in memory already, so it
costs what its tests cost. Hypothesis draws the same examples each time, and does not shrink.
Results are kept in ``--results``; a run that was stopped goes on, and a changed module starts anew.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import math
import os
import random
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # and not tests/

from tests.mutation_targets import TARGETS, Target
from tests.mutations import Mutation, compile_mutant, find_mutations

ROOT = Path(__file__).resolve().parents[1]
_LARGE = (
    *(
        "torch",
        "torch._dynamo.utils",
        "torchvision",
        "timm",
        "open_clip",
        "einops",
        "safetensors.torch",
        "numpy",
    ),
    *("huggingface_hub", "PIL.Image", "tqdm", "scipy.sparse", "scipy.cluster", "faiss"),
)
_MEMORY = 4 * 2**30  # what a mutant may take beyond what it starts with
_BROKEN = 70


class _Finder(importlib.abc.MetaPathFinder):
    """Gives a module its changed code."""

    def __init__(self, target: Target, code: CodeType) -> None:
        self.target, self.code = target, code

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != self.target.name:
            return None
        loader = SourceFileLoader(fullname, str(ROOT / self.target.path))
        loader.get_code = lambda fullname: self.code  # type: ignore[method-assign]
        return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)


class _Witness:
    """Tells through a pipe which test failed first."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            os.write(self.pipe, f"{report.nodeid}\n".encode())

    pytest_collectreport = pytest_runtest_logreport


def _run_tests(target: Target, code: CodeType | None, limit: float, pipe: int, loud: bool) -> int:
    import pytest

    os.setsid()  # what it starts ends with it
    if not loud:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
    signal.alarm(math.ceil(10 * limit))  # for one that waits forever; the machine may be busy
    if code is not None:
        sys.meta_path.insert(0, _Finder(target, code))
    try:  # before pytest does, which would make a second module of it for its examples
        importlib.import_module(target.name)
    except BaseException:
        os.write(pipe, b"import")
        return 1
    files = [target.path]
    for name in target.tests:
        file, colons, test = name.partition("::")
        files.append(f"tests/test_{file}.py{colons}{test}")
    options = ["-x", "-q", "-m", "not slow and not hub"]
    options += ["-p", "no:cacheprovider", "-p", "no:faulthandler"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # imported before pytest ran
    return int(pytest.main([*options, *files], plugins=[_Witness(pipe)]))


def run(
    target: Target, code: CodeType | None, limit: float, *, loud: bool = False
) -> tuple[str, str, float]:
    """Run the tests of a module in a forked child.

    Args:
        target: The module.
        code: What to import in its place; None is the module as it is.
        limit: Seconds of processor time.
        loud: Show what pytest prints.

    Returns:
        ``"survived"``, ``"killed"``, ``"timeout"`` or ``"broken"``; the test that failed first; and
        seconds of processor time.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = _BROKEN
        try:
            status = _run_tests(target, code, limit, writing, loud)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status, usage = os.wait4(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.close(writing)
    os.set_blocking(reading, False)
    said = ""
    with suppress(BlockingIOError):
        said = os.read(reading, 10_000).decode().partition("\n")[0]
    os.close(reading)
    status = os.waitstatus_to_exitcode(status)
    if status < 0:
        late = -status in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL)
        outcome = "timeout" if late else "killed"
    else:
        outcome = {0: "survived", 1: "killed", 2: "killed"}.get(status, "broken")
    return outcome, said or str(status), usage.ru_utime + usage.ru_stime


def _prepare() -> None:
    """Import what takes long, once for all children."""
    from hypothesis import HealthCheck, Phase, settings

    os.environ["OMP_NUM_THREADS"] = "1"
    for name in _LARGE:
        with suppress(ImportError):
            importlib.import_module(name)
    settings.register_profile(
        "mutate",
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    settings.load_profile("mutate")


def try_module(target: Target, options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Run the mutants of one module that have no result yet."""
    source = (ROOT / target.path).read_text()
    tree = ast.parse(source)
    mutations = find_mutations(tree, target.only)
    digest = hashlib.sha256(source.encode()).hexdigest()
    kept = results.get(target.label)
    if kept is None or kept["source"] != digest:
        kept = results[target.label] = {"source": digest, "mutants": {}}
    kept["total"] = len(mutations)
    order = random.Random(f"{options.seed}/{target.label}").sample(
        range(len(mutations)), len(mutations)
    )
    chosen = options.numbers or order[: options.sample]
    again = {"survived", "broken"} if options.again else set()
    if not options.numbers:
        known = {int(n) for n, mutant in kept["mutants"].items() if mutant["outcome"] not in again}
        chosen = [number for number in chosen if number not in known]
    if not chosen:
        return
    seconds = kept.get("unchanged", {}).get(tested := _digest_of_tests(target))
    if seconds is None:
        outcome, first, seconds = run(target, None, 600)
        if outcome != "survived":
            raise SystemExit(f"{target.label}: the tests fail without a change, at {first}")
        kept["unchanged"] = {tested: round(seconds, 2)}
    print(f"{target.label}: {len(chosen)} mutants, {seconds:.1f} s each at most", flush=True)
    for number in chosen:
        mutation = mutations[number]
        code = compile_mutant(tree, mutation, str(ROOT / target.path))
        if options.numbers:
            print(describe(target, number, mutation))
        outcome, by, used = run(target, code, 10 + 5 * seconds, loud=bool(options.numbers))
        if not options.numbers or str(number) in kept["mutants"]:  # else it is not of the sample
            kept["mutants"][str(number)] = {
                **{name: getattr(mutation, name) for name in ("kind", "line", "before", "after")},
                **{"outcome": outcome, "by": by, "seconds": round(used, 2)},
            }
            _write(options.results, results)
        if outcome != "killed":
            print(f"{outcome}: {describe(target, number, mutation)}", flush=True)


def _digest_of_tests(target: Target) -> str:
    names = sorted({name.partition("::")[0] for name in target.tests})
    texts = [(ROOT / "tests" / f"test_{name}.py").read_bytes() for name in names]
    return hashlib.sha256(b"".join(texts)).hexdigest()


def describe(target: Target, number: int, mutation: Mutation) -> str:
    letters = enumerate(zip(mutation.before, mutation.after, strict=False))
    first = max(0, next((i for i, (old, new) in letters if old != new), 0) - 40)
    before, after = (text[first : first + 100] for text in (mutation.before, mutation.after))
    return (
        f"{target.label}:{number} {target.path}:{mutation.line} {mutation.kind}: "
        f"{before}  ->  {after or '(nothing)'}"
    )


def _write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(results, indent=1))
    beside.replace(path)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, after Wilson."""
    if not trials:
        return 0.0, 1.0
    z, share = 1.96, successes / trials
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return tuple((middle + sign * half) / (1 + z * z / trials) for sign in (-1, 1))  # type: ignore[return-value]


def report(results: dict[str, Any]) -> None:
    """Print a Markdown table of the outcomes."""
    print("| module | mutants | tried | killed | out of time | survived | killed, 95 % interval |")
    print("|---|--:|--:|--:|--:|--:|---|")
    rows, share, variance = [], 0.0, 0.0
    everything = sum(kept["total"] for kept in results.values())
    for label, kept in results.items():
        outcomes = [mutant["outcome"] for mutant in kept["mutants"].values()]
        counts = [outcomes.count(name) for name in ("killed", "timeout", "survived")]
        rows.append((kept["total"], len(outcomes), *counts))
        good = counts[0] + counts[1]
        low, high = wilson(good, len(outcomes))
        part, weight = good / max(len(outcomes), 1), kept["total"] / everything
        rest = 1 - len(outcomes) / kept["total"]  # of a module tried whole nothing is uncertain
        share += weight * part
        variance += weight**2 * rest * part * (1 - part) / max(len(outcomes), 1)
        cells = " | ".join(f"{number:,}" for number in rows[-1])
        print(f"| `{label}` | {cells} | {part:.1%} ({low:.0%} to {high:.0%}) |")
    cells = " | ".join(f"{sum(column):,}" for column in zip(*rows, strict=True))
    half = 1.96 * math.sqrt(variance)
    print(f"| all | {cells} | {share:.1%} ± {half:.1%}, weighted by mutants |")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="default: all of TARGETS")
    parser.add_argument("--sample", type=int, help="mutants of each module; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="run survivors again")
    parser.add_argument("--numbers", type=int, nargs="+", help="these, with pytest's output")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "mutants.json")
    parser.add_argument("--report", action="store_true", help="print what is known, run nothing")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.modules) - set(TARGETS))
    if unknown or (options.numbers and len(options.modules) != 1):
        parser.error(f"MODULE must be among {', '.join(TARGETS)}; one of them with --numbers")
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    if not options.report:
        os.chdir(ROOT)
        start = time.monotonic()
        _prepare()
        for label in options.modules or TARGETS:
            try_module(TARGETS[label], options, results)
        print(f"{time.monotonic() - start:.0f} s")
    report({label: results[label] for label in options.modules or TARGETS if label in results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
