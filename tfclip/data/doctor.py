"""The doctor: is what lies on the disk the data set that it should be?"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from tfclip.data.benchmarks.records import Counts, Dataset, DatasetSpec
from tfclip.data.benchmarks.registry import find_spec, load_dataset
from tfclip.data.tracklets import Tracklet
from tfclip.errors import FrameError, TableError
from tfclip.images import IMAGE_SUFFIXES, read_picture

_SHOWN = 3  # examples of each kind in the text; the JSON has all
_FIELDS = ("tracklets", "persons", "frames", "cameras", "shortest", "longest")


class CountRow(NamedTuple):
    """One line of what there is and what there should be."""

    part: str
    what: str
    expected: int | None
    found: int


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something the doctor noticed.

    Args:
        kind: ``"unreadable"``, ``"count"``, ``"missing"``, ``"damaged"``, ``"gap"``, ``"shared"``,
            ``"surplus"`` or ``"unmatched"``.
        summary: One sentence.
        problem: Whether figures would be wrong or a run would fail; else it is only worth knowing.
        items: All files or tracklets it is about.
    """

    kind: str
    summary: str
    problem: bool
    items: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the doctor found. ``str`` makes a text of it.

    Args:
        name: Of the data set.
        root: Where it lies.
        spec: The table it was compared with.
        counts: What there is beside what there should be.
        findings: Problems, and what is worth knowing.
        images_checked: Whether every image was decoded.
    """

    name: str
    root: str
    spec: DatasetSpec
    counts: tuple[CountRow, ...]
    findings: tuple[Finding, ...]
    images_checked: bool

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not any(finding.problem for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, with every file named, for JSON."""
        return {
            "name": self.name,
            "title": self.spec.title,
            "root": self.root,
            "ok": self.ok,
            "images_checked": self.images_checked,
            "counts": [row._asdict() for row in self.counts],
            "findings": [
                {**asdict(finding), "items": list(finding.items)} for finding in self.findings
            ],
            "source": self.spec.source,
            "terms": self.spec.terms,
            "url": self.spec.url,
            "citation": self.spec.citation,
        }

    def __str__(self) -> str:
        lines = [f"{self.spec.title} in {self.root}", *_table(self.counts)]
        for heading, problem in (("problems", True), ("worth knowing", False)):
            found = [finding for finding in self.findings if finding.problem is problem]
            if found:
                lines += ["", f"{heading}:", *(line for f in found for line in _describe(f))]
        images = "every image decodes" if self.images_checked else "images were not decoded"
        if self.ok:
            lines += ["", f"all well; {images}"]
        elif self.spec.layout:
            lines += ["", "expected layout:", *self.spec.layout.strip("\n").split("\n")]
        page = f", {self.spec.url}" if self.spec.url else ""
        lines += ["", f"handed out by: {self.spec.source}{page}", f"terms: {self.spec.terms}"]
        return "\n".join([*lines, *([f"note: {self.spec.notes}"] if self.spec.notes else [])])


def check_dataset(
    name: str | DatasetSpec, root: str | Path, *, images: bool = False, progress: bool = False
) -> Report:
    """Compare a data set on the disk with what it should be. Nothing is written.

    Args:
        name: One of ``dataset_names()``, or a ``DatasetSpec`` of your own.
        root: Its folder.
        images: Also decode every image, to find truncated ones, which takes long.
        progress: Show a bar while images are decoded.

    Returns:
        Counts and findings; a data set that cannot be read at all is a finding too.

    Raises:
        ValueError: There is no data set of that name.
    """
    spec = find_spec(name)
    try:
        dataset = load_dataset(spec, root)
    except TableError as error:
        finding = Finding(kind="unreadable", summary=str(error), problem=True)
        return Report(
            name=spec.name,
            root=str(root),
            spec=spec,
            counts=(),
            findings=(finding,),
            images_checked=False,
        )
    counts = tuple(_count(dataset, spec))
    tracklets = (*dataset.train, *dataset.test)
    findings = [
        *_wrong_counts(counts),
        *_files(tracklets),
        *_gaps(tracklets),
        *_shared(dataset),
        *_unmatched(dataset),
        *(_damaged(tracklets, progress) if images else ()),
    ]
    return Report(
        name=spec.name,
        root=str(root),
        spec=spec,
        counts=counts,
        findings=tuple(findings),
        images_checked=images,
    )


def _count(dataset: Dataset, spec: DatasetSpec) -> Iterator[CountRow]:
    parts: dict[str, Sequence[Tracklet]] = {"train": dataset.train, "test": dataset.test}
    for protocol in dataset.protocols.values():
        split = protocol.splits[0]
        parts[f"{protocol.name}/query"] = [dataset.test[row] for row in split.query]
        parts[f"{protocol.name}/gallery"] = [dataset.test[row] for row in split.gallery]
    for part, tracklets in parts.items():
        expected = spec.expected.get(part, Counts())
        found = Counts.of(tracklets)
        for what in _FIELDS:
            wanted = getattr(expected, what)
            # Of a protocol the numbers of tracklets and persons say all that is of interest.
            if wanted is not None or "/" not in part or what in _FIELDS[:2]:
                yield CountRow(part, what, wanted, getattr(found, what))


def _wrong_counts(counts: Iterable[CountRow]) -> Iterator[Finding]:
    for part, what, expected, found in counts:
        if expected is not None and expected != found:
            yield Finding(
                kind="count",
                summary=f"{part} should have {_amount(what, expected)}, and has {found:,}",
                problem=True,
            )


def _amount(what: str, number: int) -> str:
    if what in ("shortest", "longest"):
        return f"{number:,} frames in its {what} tracklet"
    return f"{number:,} {what}"


def _files(tracklets: Iterable[Tracklet]) -> Iterator[Finding]:
    """Compare the files that tracklets name with those of their folders, listing each once."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for tracklet in tracklets:
        for path in tracklet.frames:
            folder, name = os.path.split(path)
            wanted[folder].add(name)
    missing: list[str] = []
    surplus: list[str] = []
    for folder, names in wanted.items():
        there = _listed(folder)
        missing += (f"{folder}/{name}" for name in sorted(names - there))
        surplus += (f"{folder}/{name}" for name in sorted(there - names))
    if missing:
        folders = len({os.path.dirname(path) for path in missing})  # noqa: PTH120 - of a million
        yield Finding(
            kind="missing",
            summary=f"{len(missing):,} images are not there, of {folders:,} folders",
            problem=True,
            items=tuple(missing),
        )
    if surplus:
        yield Finding(
            kind="surplus",
            summary=f"{len(surplus):,} images are of no tracklet",
            problem=False,
            items=tuple(surplus),
        )


def _listed(folder: str) -> set[str]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names alone, of a million files
    except OSError:
        return set()
    return {name for name in names if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES}  # noqa: PTH122


def _gaps(tracklets: Iterable[Tracklet]) -> Iterator[Finding]:
    """Find tracklets whose frame numbers skip one, which is how a lost file in the middle shows."""
    broken: dict[str, None] = {}
    for tracklet in tracklets:
        names = [os.path.basename(path) for path in tracklet.frames]  # noqa: PTH119 - of a million
        ends = [re.search(r"(\d+)\.\w+$", name) for name in names]
        numbers = [int(end[1]) for end in ends if end]
        if len(numbers) == len(names) and any(b - a != 1 for a, b in pairwise(numbers)):
            broken[tracklet.name] = None
    if broken:
        yield Finding(
            kind="gap",
            summary=f"{len(broken):,} tracklets skip a frame number: frames may be missing in the "
            "middle",
            problem=False,
            items=tuple(broken),
        )


def _shared(dataset: Dataset) -> Iterator[Finding]:
    """Find images that are in two tracklets of one part, or in training and test."""
    twice = []
    for tracklets in (dataset.train, dataset.test):
        uses = Counter(path for tracklet in tracklets for path in tracklet.frames)
        twice += (path for path, count in uses.items() if count > 1)
    if twice:
        yield Finding(
            kind="shared",
            summary=f"{len(twice):,} images are in two tracklets of one part",
            problem=True,
            items=tuple(twice),
        )


def _unmatched(dataset: Dataset) -> Iterator[Finding]:
    for protocol in dataset.protocols.values():
        valid = dataset.valid_queries(protocol.name)
        lost = [
            row
            for split, rows in zip(protocol.splits, valid, strict=True)
            for row in sorted(set(split.query) - set(rows))
        ]
        if lost:
            number = sum(len(split.query) for split in protocol.splits)
            yield Finding(
                kind="unmatched",
                summary=f"{len(lost):,} of {number:,} queries of protocol {protocol.name!r} have "
                "no match in another camera of its gallery and are not counted",
                problem=False,
                items=tuple(dataset.test[row].name for row in lost),
            )


def _damaged(tracklets: Sequence[Tracklet], progress: bool) -> Iterator[Finding]:
    paths = list(dict.fromkeys(path for t in tracklets for path in t.frames))
    damaged = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(paths), unit="image", disable=not progress) as bar,
    ):
        for start in range(0, len(paths), 1000):  # a million waiting tasks would fill the memory
            for path, fault in zip(
                paths[start : start + 1000],
                pool.map(_fault, paths[start : start + 1000]),
                strict=True,
            ):
                bar.update()
                if fault is not None:
                    damaged.append(path)
    if damaged:
        yield Finding(
            kind="damaged",
            summary=f"{len(damaged):,} images cannot be decoded",
            problem=True,
            items=tuple(damaged),
        )


def _fault(path: str) -> str | None:
    """Return why an image cannot be decoded; a missing one is told elsewhere."""
    if not Path(path).exists():
        return None
    try:
        read_picture(path, path)
    except FrameError as error:
        return str(error)
    return None


def _table(counts: Sequence[CountRow]) -> list[str]:
    if not counts:
        return []
    rows = [("", "", "should be", "is")]
    part = ""
    for row in counts:
        expected = "?" if row.expected is None else f"{row.expected:,}"
        mark = "" if row.expected in (None, row.found) else "  <-"
        rows.append(
            (row.part if row.part != part else "", row.what, expected, f"{row.found:,}{mark}")
        )
        part = row.part
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [
        "",
        *(f"{a:{first}}  {b:{second}}  {c:>10}  {d:>10}".rstrip() for a, b, c, d in rows),
    ]


def _describe(finding: Finding) -> list[str]:
    lines = [f"- {finding.summary}"]
    lines += [f"    {item}" for item in finding.items[:_SHOWN]]
    if len(finding.items) > _SHOWN:
        lines.append(f"    ... and {len(finding.items) - _SHOWN:,} more")
    return lines
