"""What an evaluation of rankings returns: figures, what each query gave, and the protocol."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from tfclip.functional.bootstrap import bootstrap_interval

AveragePrecision = Literal["step", "trapezoid"]

_FIGURES = ("mAP", "cmc", "mINP", "num_valid_queries", "num_queries", "protocol")
_PRINTED_RANKS = (1, 5, 10, 20)


class QueryScores(NamedTuple):
    """What the ranking of each query gave; every field is ``(Q,)``, on the CPU."""

    average_precision: Tensor
    """float64, from 0 to 1; NaN for a query without a right match, which is skipped."""
    inverse_penalty: Tensor
    """float64, right matches over the rank of the last of them; NaN where skipped."""
    first_match: Tensor
    """int64, rank of the first right match, from 1 on; 0 where skipped or not found."""
    num_matches: Tensor
    """int64, right matches in the gallery; 0 where skipped."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RankingResult:
    """The figures of one evaluation, and the protocol they were measured with.

    ``print`` shows them as a small table.

    Args:
        mAP: Mean over the valid queries of the average precision, from 0 to 1.
        cmc: ``(R,)`` float64; entry ``k - 1`` is the share of valid queries with a right match
            among their first ``k`` results.
        mINP: Mean inverse negative penalty: right matches over the rank of the last of them.
        num_valid_queries: Queries that have a right match in the gallery; the others are skipped.
        num_queries: All queries.
        protocol: One line that says what was counted, to be printed beside the figures.
        per_query: What each query gave, or ``None`` where it was not kept.
    """

    mAP: float  # noqa: N815 - the field writes it so
    cmc: Tensor
    mINP: float  # noqa: N815 - the field writes it so
    num_valid_queries: int
    num_queries: int
    protocol: str
    per_query: QueryScores | None = None

    def rank(self, k: int) -> float:
        """Return the share of valid queries with a right match among the first ``k`` results.

        Args:
            k: From 1 on. Beyond the end of ``cmc`` the answer is known only where all have one.

        Raises:
            ValueError: ``k`` is less than 1, or beyond the ``max_rank`` that was measured.
        """
        last = float(self.cmc[-1])
        if k < 1 or (k > len(self.cmc) and last < 1):
            raise ValueError(f"k must be from 1 to the measured {len(self.cmc)}, got {k}")
        return float(self.cmc[k - 1]) if k <= len(self.cmc) else last

    def interval(
        self, figure: str, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> tuple[float, float]:
        """Return a percentile bootstrap interval of a figure, over the valid queries.

        Args:
            figure: ``"mAP"``, ``"mINP"`` or a rank such as ``"rank1"`` or ``"rank10"``.
            level: Between 0 and 1, both excluded.
            resamples: How often the queries are drawn again.
            seed: The same seed gives the same interval.

        Returns:
            Its two ends, lower first; see ``bootstrap_interval`` for what it says and what not.

        Raises:
            ValueError: An unknown figure, a rank that was not measured, an option out of its
                range, or a result without ``per_query``.
        """
        if self.per_query is None:
            raise ValueError("interval needs per_query, and this result was kept without it")
        scores = self.per_query
        rank = re.fullmatch(r"rank([1-9]\d*)", figure)
        if figure == "mAP":
            values = scores.average_precision
        elif figure == "mINP":
            values = scores.inverse_penalty
        elif rank:
            k = int(rank[1])
            self.rank(k)  # refuses what was not measured
            values = (scores.first_match > 0) & (scores.first_match <= k)
        else:
            raise ValueError(
                f"figure must be 'mAP', 'mINP' or 'rank1', 'rank2', ..., got {figure!r}"
            )
        valid = scores.num_matches > 0
        return bootstrap_interval(
            values[valid].double(), level=level, resamples=resamples, seed=seed
        )

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """Return the figures as plain JSON types, without loss.

        Args:
            per_query: Also what each query gave, as lists, with ``None`` where a query is skipped.

        Raises:
            ValueError: ``per_query`` is asked for and this result was kept without it.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in _FIGURES}
        values["cmc"] = self.cmc.tolist()
        if per_query:
            if self.per_query is None:
                raise ValueError("per_query was not kept with this result")
            values["per_query"] = {
                name: [None if math.isnan(entry) else entry for entry in column.tolist()]
                for name, column in self.per_query._asdict().items()
            }
        return values

    def to_json(self, *, per_query: bool = False) -> str:
        """Return ``to_dict`` as text."""
        return json.dumps(self.to_dict(per_query=per_query), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` returned.

        Raises:
            ValueError: A figure is missing, or an entry unknown.
        """
        fields = dict(values)
        columns = fields.pop("per_query", None)
        if set(fields) != set(_FIGURES):
            odd = sorted(set(fields) ^ set(_FIGURES))
            raise ValueError(f"a result must have exactly the entries {_FIGURES}, check {odd}")
        fields["cmc"] = torch.tensor(fields["cmc"], dtype=torch.float64, device="cpu")
        return cls(**fields, per_query=None if columns is None else _read_scores(columns))

    def __str__(self) -> str:
        figures = {"mAP": self.mAP}
        for k in _PRINTED_RANKS:
            if k <= len(self.cmc) or self.cmc[-1] == 1:
                figures[f"rank-{k}"] = self.rank(k)
        figures["mINP"] = self.mINP
        lines = [f"{name:<13}  {value:8.2%}" for name, value in figures.items()]
        lines.append(f"{'valid queries':<13}  {self.num_valid_queries:>8} of {self.num_queries}")
        return "\n".join([*lines, f"{'protocol':<13}  {self.protocol}"])


def _read_scores(columns: Mapping[str, Any]) -> QueryScores:
    if set(columns) != set(QueryScores._fields):
        raise ValueError(f"per_query must have {QueryScores._fields}, got {tuple(columns)}")
    read = partial(torch.tensor, device="cpu")
    floats = (
        read([math.nan if x is None else x for x in columns[name]], dtype=torch.float64)
        for name in ("average_precision", "inverse_penalty")
    )
    whole = (read(columns[name]).long() for name in ("first_match", "num_matches"))
    return QueryScores(*floats, *whole)


def score_ranks(
    ranks: list[np.ndarray], num_matches: np.ndarray, ap: AveragePrecision
) -> QueryScores:
    """Score every query by the ranks at which its right matches stand.

    Args:
        ranks: For each query the ranks of the matches that were found, ascending, from 1 on.
        num_matches: ``(Q,)`` all its right matches; those that were not found add nothing.
        ap: How average precision is counted.
    """
    num_queries = len(ranks)
    num_found = np.array([len(row) for row in ranks], dtype=np.int64)
    flat = np.concatenate(ranks).astype(np.int64)
    owner = np.repeat(np.arange(num_queries), num_found)
    ends = num_found.cumsum()
    found = np.arange(len(flat)) - (ends - num_found)[owner] + 1  # 1, 2, ... within each query
    precision = found / flat
    if ap == "trapezoid":
        # Precision one rank earlier; by the scripts' convention it is 1 before the first rank.
        earlier = np.where(flat > 1, (found - 1) / np.maximum(flat - 1, 1), 1.0)
        precision = (precision + earlier) / 2
    first, last = np.zeros(num_queries, np.int64), np.zeros(num_queries, np.int64)
    any_found = num_found > 0
    first[any_found] = flat[(ends - num_found)[any_found]]
    last[any_found] = flat[ends[any_found] - 1]
    all_found = any_found & (num_found == num_matches)
    skipped = num_matches == 0
    average = np.bincount(owner, weights=precision, minlength=num_queries)
    average = np.where(skipped, np.nan, average / np.maximum(num_matches, 1))
    penalty = np.where(all_found, num_matches / np.maximum(last, 1), 0.0)
    return QueryScores(
        average_precision=torch.from_numpy(average),
        inverse_penalty=torch.from_numpy(np.where(skipped, np.nan, penalty)),
        first_match=torch.from_numpy(first),
        num_matches=torch.from_numpy(num_matches.astype(np.int64)),
    )


def summarise(scores: QueryScores, length: int, protocol: str) -> RankingResult:
    """Average over the valid queries, of which there must be one.

    Args:
        scores: What each query gave.
        length: Of the CMC.
        protocol: What was counted.
    """
    valid = scores.num_matches > 0
    num_valid = int(valid.sum())
    first = scores.first_match[valid]
    first = torch.where((first > 0) & (first <= length), first, length + 1)
    reached = torch.bincount(first, minlength=length + 2)[1 : length + 1].cumsum(0)
    return RankingResult(
        mAP=float(scores.average_precision[valid].mean()),
        cmc=reached.double() / num_valid,
        mINP=float(scores.inverse_penalty[valid].mean()),
        num_valid_queries=num_valid,
        num_queries=len(valid),
        protocol=protocol,
        per_query=scores,
    )
