"""Pure functions on tensors: distances between embeddings, plain or re-ranked, and their worth."""

from __future__ import annotations

from tfclip.functional.bootstrap import bootstrap_interval
from tfclip.functional.calibration import Calibration, fit_threshold, match
from tfclip.functional.camera_jaccard import camera_aware_jaccard
from tfclip.functional.clustering import ClusteringResult, evaluate_clustering
from tfclip.functional.distance import cosine_distance, squared_euclidean_distance
from tfclip.functional.expansion import alpha_query_expansion, neighbour_average
from tfclip.functional.graph_reranking import gnn_rerank
from tfclip.functional.identification import OpenSetResult, open_set_identification
from tfclip.functional.ranking import (
    evaluate_ranking,
    evaluate_ranking_from_features,
    evaluate_ranking_topk,
)
from tfclip.functional.reranking import (
    k_reciprocal_rerank,
    k_reciprocal_rerank_blocks,
    k_reciprocal_rerank_from_distance,
    k_reciprocal_rerank_from_topk,
    k_reciprocal_rerank_topk,
)
from tfclip.functional.result import QueryScores, RankingResult
from tfclip.functional.verification import (
    Pairs,
    RocCurve,
    equal_error_rate,
    pair_scores,
    roc_curve,
    tpr_at_fpr,
)

__all__ = [
    "Calibration",
    "ClusteringResult",
    "OpenSetResult",
    "Pairs",
    "QueryScores",
    "RankingResult",
    "RocCurve",
    "alpha_query_expansion",
    "bootstrap_interval",
    "camera_aware_jaccard",
    "cosine_distance",
    "equal_error_rate",
    "evaluate_clustering",
    "evaluate_ranking",
    "evaluate_ranking_from_features",
    "evaluate_ranking_topk",
    "fit_threshold",
    "gnn_rerank",
    "k_reciprocal_rerank",
    "k_reciprocal_rerank_blocks",
    "k_reciprocal_rerank_from_distance",
    "k_reciprocal_rerank_from_topk",
    "k_reciprocal_rerank_topk",
    "match",
    "neighbour_average",
    "open_set_identification",
    "pair_scores",
    "roc_curve",
    "squared_euclidean_distance",
    "tpr_at_fpr",
]
