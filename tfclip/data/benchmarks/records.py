"""What a benchmark consists of: tracklets to train on, tracklets to test on, and protocols.

A protocol is data: rows of the test tracklets that are queries, rows that are the gallery, and the
rule of what a query's ranking leaves out. Nothing else decides what a figure means.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from tfclip.data.tracklets import Tracklet
from tfclip.errors import TableError

Rows: TypeAlias = tuple[int, ...]
Exclude = Literal["person_and_camera", "camera", "none"]
FrameRule = Literal["dense", "rrs", "all"]
AveragePrecision = Literal["step", "trapezoid"]
Choice: TypeAlias = Mapping[str, str | int | Collection[Any]]
"""Value, or values, that fields of a tracklet may have; ``"part"`` is its part of the test set."""

_CHOOSABLE = ("part", "person", "camera", "platform", "modality", "clothes", "session")
_WITHDRAWN = (
    "DukeMTMC was recorded without the consent of those filmed and taken down by its authors in "
    "2019; tfclip has no reader for it and will not accept one (docs/responsible_use.md)"
)


class Split(NamedTuple):
    """Queries and the gallery they are searched in, as rows of the test tracklets."""

    query: Rows
    gallery: Rows


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a data set is evaluated.

    Args:
        name: Unique within the data set.
        query: Rows of the test tracklets that are searched for.
        gallery: Rows of the test tracklets that are searched in, without those of ``junk``.
        description: One line that says what is special about it.
        exclude: What is left out of a query's ranking; ``tfclip.functional.evaluate_ranking`` knows
            these words.
        junk: Persons whose tracklets are in neither, such as -1 for detections that show nobody.
        frames: Which frames of a tracklet are encoded, as ``encode_sequences(sampling=...)``.
        ap: Form of the average precision.
        repeats: Further queries and galleries; the figures of all are averaged.

    Raises:
        ValueError: A word is unknown, there is no query or gallery, or a row is twice in one.

    Example:
        >>> protocol = Protocol(name="a-to-b", query=[0, 1], gallery=[2, 3, 4], description="")
        >>> [len(split.gallery) for split in protocol.splits]
        [3]
    """

    name: str
    query: Sequence[int]
    gallery: Sequence[int]
    description: str
    exclude: Exclude = "person_and_camera"
    junk: tuple[str | int, ...] = ()
    frames: FrameRule = "dense"
    ap: AveragePrecision = "step"
    repeats: tuple[Split, ...] = ()

    def __post_init__(self) -> None:
        for word, known in (
            ("exclude", Exclude),
            ("frames", FrameRule),
            ("ap", AveragePrecision),
        ):
            if getattr(self, word) not in get_args(known):
                raise ValueError(
                    f"{word} must be one of {get_args(known)}, got {getattr(self, word)!r}"
                )
        object.__setattr__(self, "query", tuple(map(int, self.query)))
        object.__setattr__(self, "gallery", tuple(map(int, self.gallery)))
        repeats = tuple(Split(tuple(map(int, q)), tuple(map(int, g))) for q, g in self.repeats)
        object.__setattr__(self, "repeats", repeats)
        for split in self.splits:
            for part, rows in split._asdict().items():
                if not rows or min(rows) < 0 or len(set(rows)) != len(rows):
                    raise ValueError(
                        f"{part} of protocol {self.name!r} must be at least one row, "
                        f"none negative and none twice, got {len(rows)} rows"
                    )

    @property
    def splits(self) -> tuple[Split, ...]:
        """All pairs of queries and gallery; more than one are averaged."""
        return (Split(tuple(self.query), tuple(self.gallery)), *self.repeats)


@dataclass(frozen=True, kw_only=True)
class ProtocolRule:
    """How to choose a protocol's rows, so that a benchmark can be declared as a table.

    Args:
        name: Of the protocol.
        query: Values that fields of the queries have, such as ``{"platform": ("aerial",)}``.
            ``"part"`` means the part of the test set. No field at all chooses every tracklet.
        gallery: The same for the gallery.
        description: One line.
        exclude: As in ``Protocol``.
        junk: Persons that neither queries nor gallery hold.
        frames: As in ``Protocol``.
        ap: As in ``Protocol``.

    Raises:
        ValueError: A field is unknown.
    """

    name: str
    query: Choice
    gallery: Choice
    description: str
    exclude: Exclude = "person_and_camera"
    junk: tuple[str | int, ...] = ()
    frames: FrameRule = "dense"
    ap: AveragePrecision = "step"

    def __post_init__(self) -> None:
        for key in (*self.query, *self.gallery):
            if key not in _CHOOSABLE:
                raise ValueError(f"a protocol chooses by {', '.join(_CHOOSABLE)}, got {key!r}")

    def apply(self, tracklets: Sequence[Tracklet], parts: Sequence[str]) -> Protocol:
        """Return the protocol for a test set.

        Args:
            tracklets: The test tracklets, ``(M,)``.
            parts: The part each of them lies in, ``(M,)``.

        Raises:
            ValueError: No tracklet is a query, or none is in the gallery.
        """
        rows = [row for row, t in enumerate(tracklets) if t.person not in self.junk]
        return Protocol(
            name=self.name,
            query=[row for row in rows if _fits(self.query, tracklets[row], parts[row])],
            gallery=[row for row in rows if _fits(self.gallery, tracklets[row], parts[row])],
            description=self.description,
            exclude=self.exclude,
            junk=self.junk,
            frames=self.frames,
            ap=self.ap,
        )


def _fits(choice: Choice, tracklet: Tracklet, part: str) -> bool:
    for key, allowed in choice.items():
        value = part if key == "part" else getattr(tracklet, key)
        if isinstance(allowed, (str, int)):
            allowed = (allowed,)  # one value, not the letters of one
        if value not in allowed:
            return False
    return True


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """A benchmark as it lies on the disk.

    Args:
        name: As ``load_dataset`` knows it.
        root: The folder.
        train: Tracklets to train on.
        test: Tracklets that the protocols choose from. Not all of them need be in a protocol.
        protocols: By name; the first is the one to report unless another is named.

    Raises:
        TableError: Two tracklets of one part have the same name, a protocol asks for a row that is
            not there, or no query of it has a match; the message says what the likely cause is.
    """

    name: str
    root: str
    train: tuple[Tracklet, ...]
    test: tuple[Tracklet, ...]
    protocols: Mapping[str, Protocol]

    def __post_init__(self) -> None:
        for part, tracklets in (("training", self.train), ("test", self.test)):
            names: set[str] = set()
            for tracklet in tracklets:
                if tracklet.name in names:
                    raise TableError(
                        f"{self.root}: two {part} tracklets are called {tracklet.name}"
                    )
                names.add(tracklet.name)
        for protocol in self.protocols.values():
            self._check(protocol)

    def protocol(self, name: str | None = None) -> Protocol:
        """Return a protocol; None is the first.

        Raises:
            ValueError: The data set has no such protocol, or none at all.
        """
        if name is None and self.protocols:
            return next(iter(self.protocols.values()))
        if name is None or name not in self.protocols:
            raise ValueError(
                f"protocol of {self.name} must be one of {tuple(self.protocols)}, got {name!r}"
            )
        return self.protocols[name]

    def valid_queries(self, name: str | None = None) -> list[Rows]:
        """Return the queries that have a match left in the gallery, for each split of a protocol.

        Args:
            name: Of the protocol; None is the first.
        """
        protocol = self.protocol(name)
        return [matched_queries(self.test, s, protocol.exclude) for s in protocol.splits]

    def _check(self, protocol: Protocol) -> None:
        for split in protocol.splits:
            last = max(*split.query, *split.gallery)
            if last >= len(self.test):
                raise TableError(
                    f"{self.root}: protocol {protocol.name!r} asks for row {last} "
                    f"of {len(self.test)} test tracklets"
                )
            if matched_queries(self.test, split, protocol.exclude):
                continue
            cameras = {self.test[row].camera for row in (*split.query, *split.gallery)}
            persons = {self.test[row].person for row in split.query}
            if not persons & {self.test[row].person for row in split.gallery}:
                cause = "no person is in both"
            elif len(cameras) == 1:
                cause = f"every tracklet is of camera {cameras.pop()}"
            else:
                cause = "every person was seen by one camera only"
            raise TableError(
                f"{self.root}: no query of protocol {protocol.name!r} has a match in its gallery: "
                f"{cause}"
            )


def matched_queries(tracklets: Sequence[Tracklet], split: Split, exclude: Exclude) -> Rows:
    """Return the queries of a split that have a right match left after the exclusion.

    Args:
        tracklets: The test tracklets.
        split: Rows of them.
        exclude: What is left out of a ranking. With ``"none"``, a query in the gallery is its own
            match, as it is in the evaluation.
    """
    cameras: dict[Any, set[int | None]] = defaultdict(set)
    for row in split.gallery:
        cameras[tracklets[row].person].add(tracklets[row].camera)
    left_out: Callable[[Tracklet], set[int | None]] = (
        (lambda _: set()) if exclude == "none" else (lambda tracklet: {tracklet.camera})
    )
    return tuple(
        row
        for row in split.query
        if tracklets[row].person is not None
        and cameras.get(tracklets[row].person, set()) - left_out(tracklets[row])
    )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many there should be of each; None where the publishers do not say.

    Args:
        tracklets: Tracklets.
        persons: Different persons, counting junk and distractors as one each.
        frames: Images.
        cameras: Different cameras.
        shortest: Frames of the shortest tracklet.
        longest: Frames of the longest tracklet.
    """

    tracklets: int | None = None
    persons: int | None = None
    frames: int | None = None
    cameras: int | None = None
    shortest: int | None = None
    longest: int | None = None

    @classmethod
    def of(cls, tracklets: Sequence[Tracklet]) -> Counts:
        """Count tracklets whose ``frames`` are sequences of paths."""
        lengths = [len(tracklet.frames) for tracklet in tracklets]
        return cls(
            tracklets=len(tracklets),
            persons=len({tracklet.person for tracklet in tracklets}),
            frames=sum(lengths),
            cameras=len({tracklet.camera for tracklet in tracklets}),
            shortest=min(lengths, default=0),
            longest=max(lengths, default=0),
        )


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A benchmark as a table: how it is read, what should be there and who hands it out.

    Args:
        name: As ``load_dataset`` knows it: lower case, without spaces.
        title: As its authors write it.
        reader: A function of the root that returns a ``Dataset``, or ``"module:function"``.
        options: Further arguments of the reader.
        expected: What should be there, of ``"train"`` and ``"test"`` and, for a protocol, of
            ``"official/query"`` and ``"official/gallery"``.
        protocols: Names of its protocols; the first is the one to report.
        layout: The folders the reader expects, as a tree.
        source: Who hands it out.
        terms: Under which terms.
        url: Page of the project, None if none is known.
        citation: The paper.
        notes: What a user has to know besides.

    Raises:
        ValueError: The name is not one, or is that of a withdrawn data set.
    """

    name: str
    title: str
    reader: Callable[..., Dataset] | str
    options: Mapping[str, Any] = field(default_factory=dict)
    expected: Mapping[str, Counts] = field(default_factory=dict)
    protocols: tuple[str, ...] = ()
    layout: str = ""
    source: str = "its owner"
    terms: str = "not stated"
    url: str | None = None
    citation: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        refuse_withdrawn(self.name)
        refuse_withdrawn(self.title)
        if not self.name or self.name != self.name.lower() or self.name.split() != [self.name]:
            raise ValueError(f"name must be lower case and without spaces, got {self.name!r}")


def refuse_withdrawn(name: str) -> None:
    """Refuse a data set that its authors took down.

    Raises:
        ValueError: Its name is one of theirs.
    """
    if "duke" in name.lower():
        raise ValueError(_WITHDRAWN)
