"""Results stand on the device of what is given, whatever device is the default.

``torch.set_default_device`` puts every tensor there that is made without saying where. Tensors on
the device "meta" have no numbers, so one made there by mistake cannot go unnoticed.
"""

from typing import Any

import numpy as np
import pytest
import torch

from tfclip import TemporalMemoryDiffusion, functional
from tfclip.data.samplers import IdentitySampler
from tfclip.functional import neighbours, products, ranks
from tfclip.losses import batch_hard_triplet_loss, video_to_memory_logits, video_to_memory_loss

RANDOM = torch.Generator().manual_seed(0)
ROWS = torch.randn(8, 16, generator=RANDOM)[torch.arange(70) % 8]
ROWS = ROWS + 0.7 * torch.randn(70, 16, generator=RANDOM)
QUERIES, GALLERY = ROWS[:10], ROWS[10:]
PERSONS, CAMERAS = [i % 8 for i in range(70)], [i % 3 for i in range(70)]
LABELS = PERSONS[:10], PERSONS[10:], CAMERAS[:10], CAMERAS[10:]
DISTANCE = functional.squared_euclidean_distance(QUERIES, GALLERY)
AMONG_QUERIES = functional.squared_euclidean_distance(QUERIES, QUERIES)
AMONG_GALLERY = functional.squared_euclidean_distance(GALLERY, GALLERY)
AMONG_ALL = functional.squared_euclidean_distance(ROWS, ROWS).fill_diagonal_(0).sort(dim=1)
RESULT = functional.evaluate_ranking(DISTANCE, *LABELS).to_dict(per_query=True)


def find_exactly() -> Any:
    return functional.k_reciprocal_rerank(QUERIES, GALLERY, tile_rows=16)


def find_in_bfloat16() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_MANY", 0)
        patch.setattr(neighbours, "bfloat16_is_faster", lambda threads: True)
        return find_exactly()


def find_by_index(search: Any) -> Any:
    pytest.importorskip("faiss")
    return functional.k_reciprocal_rerank(QUERIES, GALLERY, neighbours=search)


def measure() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_TRIAL", (8, 8, 8))
        convolution_is_faster = products.convolution_is_faster.__wrapped__  # not what was kept
        patch.setattr(products, "convolution_is_faster", convolution_is_faster)
        products.bfloat16_is_faster.__wrapped__(1)
    return products._trial()


def draw_batches() -> Any:
    return list(IdentitySampler(PERSONS, num_identities=4, num_tracklets=2))


def calibrate() -> Any:
    pairs = functional.pair_scores(DISTANCE, *LABELS)
    calibration = functional.fit_threshold(*pairs, false_match_rate=0.1)
    rates = functional.equal_error_rate(*pairs), functional.tpr_at_fpr(*pairs, 0.1)
    found = functional.match(DISTANCE, calibration)
    return *pairs, *rates, found, calibration.probability(DISTANCE)


def rank_as_on_a_device() -> Any:
    found = ranks._ranks_on_device(DISTANCE, [np.arange(2)] * 10)
    return [row.tolist() for row in found]


def lose() -> Any:
    labels = torch.as_tensor(PERSONS[10:], device="cpu")
    logits = video_to_memory_logits(GALLERY, QUERIES)
    losses = [video_to_memory_loss(logits, labels, scope=scope) for scope in ("all", "batch")]
    return *losses, batch_hard_triplet_loss(GALLERY, labels)


MEMORY = TemporalMemoryDiffusion(16, 2, temporal_position=True).eval().requires_grad_(False)
MASK = torch.tensor([[1.0, 2.0]] * 5)

CALLS = {
    "k_reciprocal_rerank": find_exactly,
    "in bfloat16": find_in_bfloat16,
    "by hnsw": lambda: find_by_index("hnsw"),
    "by ivf": lambda: find_by_index("ivf"),
    "k_reciprocal_rerank_from_distance": lambda: functional.k_reciprocal_rerank_from_distance(
        AMONG_QUERIES, DISTANCE, AMONG_GALLERY, tile_rows=16
    ),
    "k_reciprocal_rerank_topk": lambda: functional.k_reciprocal_rerank_topk(
        QUERIES, GALLERY, top=5
    ),
    "k_reciprocal_rerank_from_topk": lambda: functional.k_reciprocal_rerank_from_topk(
        AMONG_ALL[1], AMONG_ALL[0], 10, farthest=9.0, top=5
    ),
    "camera_aware_jaccard": lambda: functional.camera_aware_jaccard(
        QUERIES, GALLERY, CAMERAS[:10], CAMERAS[10:], tile_rows=16
    ),
    "alpha_query_expansion": lambda: functional.alpha_query_expansion(QUERIES, GALLERY),
    "neighbour_average": lambda: functional.neighbour_average(QUERIES, GALLERY),
    "gnn_rerank": lambda: functional.gnn_rerank(QUERIES, GALLERY),
    "gathered products": lambda: products._gathered(
        QUERIES, GALLERY, AMONG_ALL[1][:5, 0] % 10, AMONG_ALL[1][:5, 1] % 60
    ),
    "measuring products": measure,
    "evaluate_ranking": lambda: functional.evaluate_ranking(DISTANCE, *LABELS).per_query,
    "evaluate_ranking_from_features": lambda: (
        functional.evaluate_ranking_from_features(
            QUERIES, GALLERY, *LABELS, metric="cosine", block_queries=3
        ).per_query
    ),
    "evaluate_ranking_topk": lambda: (
        functional.evaluate_ranking_topk(DISTANCE.argsort(dim=1)[:, :20], *LABELS).cmc
    ),
    "the ranks of a device": rank_as_on_a_device,
    "reading a result": lambda: functional.RankingResult.from_dict(RESULT).per_query,
    "reading the CMC": lambda: functional.RankingResult.from_dict(RESULT).cmc,
    "an interval": lambda: functional.bootstrap_interval(DISTANCE[0]),
    "pairs and their calibration": calibrate,
    "open_set_identification": lambda: functional.open_set_identification(
        DISTANCE, [*LABELS[0][:5], *range(90, 95)], *LABELS[1:], false_alarm_rates=[0.5]
    ),
    "batches": draw_batches,
    "losses": lose,
    "temporal memory": lambda: MEMORY(GALLERY.view(5, 2, 6, 16), MASK),
}


def flat(values: Any) -> list[Any]:
    if isinstance(values, list | tuple):
        return [entry for value in values for entry in flat(value)]
    return [values]


@pytest.mark.parametrize("name", CALLS)
def test_the_default_device_does_not_matter(name):
    expected = flat(CALLS[name]())
    with torch.device("meta"):
        found = flat(CALLS[name]())
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(ours, torch.Tensor):
            assert ours.device.type == "cpu"
            assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))
        else:
            assert ours == theirs
