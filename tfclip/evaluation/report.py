"""What an evaluation found, with everything that a reader needs to trust or repeat it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch

from tfclip.data.benchmarks import Protocol
from tfclip.data.benchmarks.records import FrameRule
from tfclip.data.tracklets import Tracklet
from tfclip.functional import Pairs, RankingResult, bootstrap_interval

SCHEMA_VERSION = 1
RANKS = (1, 5, 10, 20)

Table: TypeAlias = list[tuple[str, ...]]

_FIGURES = (
    "row", "mAP", "95 %", "rank-1", "95 %", "rank-5", "rank-10", "rank-20", "mINP", "valid queries",
)  # fmt: skip
_PAIRS = ("row", "TPR at FPR 1e-2", "TPR at FPR 1e-3", "EER", "pairs of one", "of two persons")


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How well a threshold tells pairs of one person from pairs of two; see ``pair_scores``.

    Args:
        num_same: Pairs of one person, of all splits.
        num_different: Pairs of two persons, of all splits.
        equal_error_rate: From 0 to 1; None without pairs of two persons.
        true_match_rates: By false match rate, the true match rate that a threshold reaches.
        too_few_pairs_for: False match rates that so few pairs of two persons cannot show.
    """

    num_same: int
    num_different: int
    equal_error_rate: float | None
    true_match_rates: Mapping[float, float]
    too_few_pairs_for: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationRow:
    """The figures of one way to encode and rank.

    Args:
        frames: Which frames of a tracklet were encoded.
        cameras: Whether the model was told the cameras.
        reranked: Whether the ranking is by k-reciprocal neighbours.
        num_tracklets: Tracklets encoded, of queries and gallery.
        num_frames: Their frames; ``"rrs"`` reads only some of them.
        splits: What each split of the protocol gave.
        verification: The same distances as decisions about pairs.
        pairs: The pairs of the first split, to draw.
    """

    frames: FrameRule
    cameras: bool
    reranked: bool
    num_tracklets: int
    num_frames: int
    splits: tuple[RankingResult, ...]
    verification: Verification
    pairs: Pairs

    @property
    def name(self) -> str:
        """What the row is called in tables and pictures."""
        words = [self.frames, "cameras" * self.cameras, "re-ranked" * self.reranked]
        return ", ".join(filter(None, words))

    @cached_property
    def result(self) -> RankingResult:
        """The mean over the splits."""
        return _mean(self.splits)

    def interval(self, figure: str) -> tuple[float, float]:
        """Return the 95 % bootstrap interval of ``"mAP"`` or ``"rank1"``, over the valid queries.

        The queries of several splits are drawn from together. As many of them show one tracklet,
        the interval is then rather too short.
        """
        values = []
        for result in self.splits:
            scores = result.per_query
            assert scores is not None  # evaluate_ranking keeps them
            valid = scores.num_matches > 0
            kept = scores.average_precision if figure == "mAP" else scores.first_match == 1
            values.append(kept[valid].double())
        # Weighted so that the mean of all is the mean of the splits' means.
        total = sum(map(len, values))
        weighted = [each * (total / (len(values) * len(each))) for each in values]
        return bootstrap_interval(torch.cat(weighted))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        result, pairs = self.result, self.verification
        return {
            "name": self.name,
            "frames": self.frames,
            "cameras": self.cameras,
            "reranked": self.reranked,
            "num_tracklets": self.num_tracklets,
            "num_frames": self.num_frames,
            "mAP": result.mAP,
            "mAP_interval": list(self.interval("mAP")),
            **{f"rank{k}": result.rank(k) for k in RANKS},
            "rank1_interval": list(self.interval("rank1")),
            "mINP": result.mINP,
            "cmc": result.cmc.tolist(),
            "num_valid_queries": result.num_valid_queries,
            "num_queries": result.num_queries,
            "verification": {
                "num_same": pairs.num_same,
                "num_different": pairs.num_different,
                "equal_error_rate": pairs.equal_error_rate,
                "true_match_rates": {f"{k:g}": v for k, v in pairs.true_match_rates.items()},
                "too_few_pairs_for": list(pairs.too_few_pairs_for),
            },
            "protocol": result.protocol,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationReport:
    """The rows of an evaluation, and what they were measured on and with.

    Args:
        dataset: Name of the data set.
        protocol: Whose queries and galleries were ranked.
        model: Name or path of the model.
        revision: Its revision, where it has one.
        fingerprint: ``model_fingerprint`` of it.
        dtype: Type of its weights.
        tfclip_version: Of this library.
        torch_version: Of PyTorch.
        rows: One for each way to encode and rank.
        queries: The queries of each split, in the order of ``RankingResult.per_query``.
    """

    dataset: str
    protocol: Protocol
    model: str
    revision: str | None
    fingerprint: str
    dtype: str
    tfclip_version: str
    torch_version: str
    rows: tuple[EvaluationRow, ...]
    queries: tuple[tuple[Tracklet, ...], ...]

    @property
    def title(self) -> str:
        """Data set and protocol in a few words."""
        return f"{self.dataset}, protocol {self.protocol.name}"

    def facts(self) -> list[str]:
        """Return in words what was measured with what, a line each."""
        protocol, first = self.protocol, self.rows[0]
        revision = f" at {self.revision}" if self.revision else ""
        splits = f", mean of {len(protocol.splits)} splits" if len(protocol.splits) > 1 else ""
        return [
            f"protocol: {protocol.name}, {protocol.description or 'without a description'}{splits}",
            f"model: {self.model or 'without a name'}{revision}, fingerprint {self.fingerprint}, "
            f"{self.dtype}",
            f"encoded: {first.num_tracklets:,} tracklets of {first.num_frames:,} frames",
            f"versions: tfclip {self.tfclip_version}, torch {self.torch_version}",
        ]

    def tables(self) -> list[Table]:
        """Return the figures of rankings and those of pairs as cells, the headings first."""
        rankings: Table = [_FIGURES]
        pairs: Table = [_PAIRS]
        for row in self.rows:
            result, verification = row.result, row.verification
            rates = verification.true_match_rates
            rankings.append(
                (
                    row.name,
                    _percent(result.mAP),
                    _range(row.interval("mAP")),
                    _percent(result.rank(1)),
                    _range(row.interval("rank1")),
                    *(_percent(result.rank(k)) for k in RANKS[1:]),
                    _percent(result.mINP),
                    f"{result.num_valid_queries:,} of {result.num_queries:,}",
                )
            )
            pairs.append(
                (
                    row.name,
                    *(_percent(rates.get(rate)) for rate in (1e-2, 1e-3)),
                    _percent(verification.equal_error_rate),
                    f"{verification.num_same:,}",
                    f"{verification.num_different:,}",
                )
            )
        return [rankings, pairs]

    def notes(self) -> list[str]:
        """Return what has to stand below the tables: protocols, and what was left out."""
        protocols = dict.fromkeys(row.result.protocol for row in self.rows)
        notes = []
        for text in protocols:
            names = "; ".join(row.name for row in self.rows if row.result.protocol == text)
            notes.append(f"{names}: {text}")
        notes.append("95 %: bootstrap over the valid queries; it knows of no other seed or place")
        missing = sorted({r for row in self.rows for r in row.verification.too_few_pairs_for})
        if missing:
            rates = " and ".join(f"{rate:g}" for rate in missing)
            notes.append(f"-: too few pairs of two persons to measure an FPR of {rates}")
        return notes

    def __str__(self) -> str:
        rankings, pairs = (_align(table) for table in self.tables())
        return "\n".join([self.title, *self.facts(), "", *rankings, "", *pairs, "", *self.notes()])

    def to_markdown(self) -> str:
        """Return the report as Markdown: facts, two tables, protocols."""
        lines = [f"# {self.title}", "", *(f"- {fact}" for fact in self.facts())]
        for table in self.tables():
            heading, *rows = ("| " + " | ".join(cells) + " |" for cells in _escape(table))
            rule = "| --- |" + " ---: |" * (len(table[0]) - 1)
            lines += ["", heading, rule, *rows]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes())]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types; ``docs/evaluation.md`` lists the keys."""
        protocol = self.protocol
        return {
            "schema_version": SCHEMA_VERSION,
            "dataset": self.dataset,
            "protocol": {
                "name": protocol.name,
                "description": protocol.description,
                "exclude": protocol.exclude,
                "junk": list(protocol.junk),
                "ap": protocol.ap,
                "num_splits": len(protocol.splits),
            },
            "model": {
                "name": self.model,
                "revision": self.revision,
                "fingerprint": self.fingerprint,
                "dtype": self.dtype,
            },
            "versions": {"tfclip": self.tfclip_version, "torch": self.torch_version},
            "rows": [row.to_dict() for row in self.rows],
        }

    def to_json(self) -> str:
        """Return ``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def per_query(self) -> list[dict[str, Any]]:
        """Return what each query gave, row by row and split by split.

        Returns:
            ``row``, ``split`` from 0, ``name``, ``person``, ``camera``, ``average_precision``,
            ``first_rank`` from 1 and ``num_matches``; where a query was skipped for want of a
            match, its average precision and first rank are None.
        """
        lines = []
        for row in self.rows:
            for number, (result, queries) in enumerate(zip(row.splits, self.queries, strict=True)):
                assert result.per_query is not None  # evaluate_ranking keeps them
                scores = (column.tolist() for column in result.per_query)
                for query, ap, _, first, matches in zip(queries, *scores, strict=True):
                    lines.append(
                        {
                            "row": row.name,
                            "split": number,
                            "name": query.name,
                            "person": query.person,
                            "camera": query.camera,
                            "average_precision": None if math.isnan(ap) else ap,
                            "first_rank": first or None,
                            "num_matches": matches,
                        }
                    )
        return lines


def _mean(splits: Sequence[RankingResult]) -> RankingResult:
    """Average figures over splits; one split is itself."""
    if len(splits) == 1:
        return splits[0]
    length = max(len(result.cmc) for result in splits)
    # A shorter curve is that of a smaller gallery, in which every query has found its person.
    cmc = torch.stack(
        [torch.cat([r.cmc, r.cmc.new_ones(length - len(r.cmc))]) for r in splits]
    ).mean(0)
    protocols = {result.protocol for result in splits}
    which = "each" if len(protocols) == 1 else "the first"
    return RankingResult(
        mAP=math.fsum(result.mAP for result in splits) / len(splits),
        cmc=cmc,
        mINP=math.fsum(result.mINP for result in splits) / len(splits),
        num_valid_queries=sum(result.num_valid_queries for result in splits),
        num_queries=sum(result.num_queries for result in splits),
        protocol=f"mean of {len(splits)} splits, {which}: {splits[0].protocol}",
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _range(ends: tuple[float, float]) -> str:
    return f"{ends[0] * 100:.1f} - {ends[1] * 100:.1f}"


def _align(table: Iterable[tuple[str, ...]]) -> list[str]:
    """Return lines of cells in columns: the first to the left, figures to the right."""
    rows = list(table)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        figures = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *figures]))
    return lines


def _escape(table: Iterable[tuple[str, ...]]) -> list[list[str]]:
    return [[cell.replace("|", "\\|") for cell in cells] for cells in table]
