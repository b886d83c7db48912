"""Pure functions on tensors: distances between embeddings, and what a ranking is worth."""

from __future__ import annotations

from tfclip.functional.distance import cosine_distance, squared_euclidean_distance
from tfclip.functional.ranking import RankingResult, evaluate_ranking

__all__ = [
    "RankingResult",
    "cosine_distance",
    "evaluate_ranking",
    "squared_euclidean_distance",
]
