"""Pure functions on tensors: distances between embeddings, and what a ranking is worth."""

from __future__ import annotations

from tfclip.functional.bootstrap import bootstrap_interval
from tfclip.functional.distance import cosine_distance, squared_euclidean_distance
from tfclip.functional.ranking import (
    evaluate_ranking,
    evaluate_ranking_from_features,
    evaluate_ranking_topk,
)
from tfclip.functional.result import QueryScores, RankingResult

__all__ = [
    "QueryScores",
    "RankingResult",
    "bootstrap_interval",
    "cosine_distance",
    "evaluate_ranking",
    "evaluate_ranking_from_features",
    "evaluate_ranking_topk",
    "squared_euclidean_distance",
]
