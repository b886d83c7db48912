"""The losses: slow oracles, literal formulas, recorded numbers, and what holds of any input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tfclip.losses import (
    batch_hard_triplet_loss,
    frame_loss,
    hardest_distances,
    identity_loss,
    video_to_memory_logits,
    video_to_memory_loss,
)

TERMS = json.loads((Path(__file__).parent / "golden" / "train_stats.json").read_text())[
    "loss_terms"
]
RELATIVE = {"atol": 0, "rtol": 1e-5}

# Any number of rows for each of at least two identities, in any order.
LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=12).filter(lambda x: len(set(x)) > 1)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def triplet_by_loops(features, labels, margin):
    """Look at every pair, one at a time."""
    losses = []
    for anchor, label in zip(features, labels, strict=True):
        distances = [math.dist(anchor.tolist(), other.tolist()) for other in features]
        pairs = list(zip(distances, labels, strict=True))
        farthest = max(distance for distance, other in pairs if other == label)
        nearest = min(distance for distance, other in pairs if other != label)
        if margin is None:
            losses.append(math.log1p(math.exp(farthest - nearest)))
        else:
            losses.append(max(0.0, margin + farthest - nearest))
    return sum(losses) / len(losses)


# --- recorded numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "expected"),
    list(
        zip(["cls_score", "cls_score_proj", "cls_score_proj_temp"], TERMS["id_losses"], strict=True)
    ),
)
def test_identity_loss_of_recorded_scores_is_the_recorded_loss(golden, scores, expected):
    target = golden("inputs")["target"]
    loss = identity_loss(golden("train_outputs")[scores], target)
    torch.testing.assert_close(loss, torch.tensor(expected), **RELATIVE)


@pytest.mark.parametrize(
    ("name", "expected"),
    list(
        zip(["img_feature", "img_feature_proj", "cls_f_tp"], TERMS["triplet_losses"], strict=True)
    ),
)
def test_triplets_of_recorded_features_are_the_recorded_ones(golden, name, expected):
    recorded, target = golden("train_outputs"), golden("inputs")["target"]
    positive, negative = hardest_distances(recorded[name], target)
    torch.testing.assert_close(positive, recorded[f"dist_ap.{name}"], **RELATIVE)
    torch.testing.assert_close(negative, recorded[f"dist_an.{name}"], **RELATIVE)
    loss = batch_hard_triplet_loss(recorded[name], target)
    torch.testing.assert_close(loss, torch.tensor(expected), **RELATIVE)


def test_video_to_memory_of_recorded_features_is_the_recorded_loss(golden):
    recorded, inputs = golden("train_outputs"), golden("inputs")
    memory = inputs["clip_memory"] + recorded["ssp_out"]
    logits = video_to_memory_logits(recorded["img_feature_proj"], memory)
    torch.testing.assert_close(logits, recorded["logits"], atol=2e-5, rtol=0)
    loss = video_to_memory_loss(logits, inputs["target"])
    torch.testing.assert_close(loss, torch.tensor(TERMS["i2t_loss"]), **RELATIVE)


def test_frame_loss_of_recorded_scores_is_the_recorded_loss_over_the_frames(golden):
    scores, target = golden("train_outputs")["cls_score_proj_frame"], golden("inputs")["target"]
    expected = torch.tensor(TERMS["frame_loss"] / TERMS["T"])
    torch.testing.assert_close(frame_loss(scores, target, TERMS["T"]), expected, **RELATIVE)


# --- literal formulas ------------------------------------------------------------------------


@settings(deadline=None)
@given(smoothing=st.floats(0, 0.9), rows=st.integers(1, 6), identities=st.integers(2, 9))
def test_identity_loss_is_the_cross_entropy_of_a_smoothed_target(smoothing, rows, identities):
    logits, labels = draw(rows, identities), torch.arange(rows) % identities
    target = (1 - smoothing) * F.one_hot(labels, identities) + smoothing / identities
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    loss = identity_loss(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None)
@given(labels=LABELS, margin=st.sampled_from([None, 0.0, 0.3, 5.0]))
def test_triplet_loss_is_what_loops_over_all_pairs_find(labels, margin):
    features = draw(len(labels), 5)
    loss = batch_hard_triplet_loss(features, torch.tensor(labels), margin=margin)
    assert loss.item() == pytest.approx(triplet_by_loops(features, labels, margin), abs=2e-3)


def test_logits_are_dot_products_of_one_memory_for_all_or_one_for_each():
    features, memory = draw(3, 4), draw(5, 4, seed=1)
    expected = torch.stack([torch.stack([(f * row).sum() for row in memory]) for f in features])
    torch.testing.assert_close(video_to_memory_logits(features, memory), expected)
    copies = memory.expand(3, -1, -1)
    torch.testing.assert_close(video_to_memory_logits(features, copies), expected)


def test_cosine_logits_are_scaled_cosines():
    features, memory = draw(3, 4), draw(5, 4, seed=1)
    logits = video_to_memory_logits(features, memory, similarity="cosine", scale=30.0)
    expected = 30 * F.cosine_similarity(features[:, None], memory[None], dim=-1)
    torch.testing.assert_close(logits, expected)


def test_cosine_logits_of_a_memory_for_each_clip_are_cosines_too():
    features, memory = draw(3, 4), draw(3, 5, 4, seed=1)
    logits = video_to_memory_logits(features, memory, similarity="cosine")
    torch.testing.assert_close(logits, F.cosine_similarity(features[:, None], memory, dim=-1))


def test_in_the_scope_of_the_batch_absent_identities_do_not_compete():
    # exp(s_y) / sum of exp(s_k) over the persons k in the batch, each once.
    features, memory, labels = draw(4, 3), draw(6, 3, seed=1), [4, 1, 4, 2]
    logits = video_to_memory_logits(features, memory, similarity="cosine")
    terms = []
    for scores, label in zip(logits.tolist(), labels, strict=True):
        terms.append(math.log(sum(math.exp(scores[k]) for k in {1, 2, 4})) - scores[label])
    loss = video_to_memory_loss(logits, torch.tensor(labels), scope="batch", label_smoothing=0.0)
    assert loss.item() == pytest.approx(sum(terms) / 4, rel=1e-5)


def test_frame_loss_gives_each_frame_its_clips_identity_and_divides_by_the_frames():
    logits, labels = draw(6, 4), torch.tensor([3, 1])
    by_hand = sum(identity_loss(logits[i : i + 1], labels[i // 3 : i // 3 + 1]) for i in range(6))
    torch.testing.assert_close(frame_loss(logits, labels, 3), torch.as_tensor(by_hand) / 6 / 3)
    plain = frame_loss(logits, labels, 3, label_smoothing=0.0)
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels.repeat_interleave(3)) / 3)


# --- what holds of any input -----------------------------------------------------------------


@settings(deadline=None)
@given(labels=LABELS, seed=st.integers(0, 99))
def test_order_of_the_rows_does_not_matter(labels, seed):
    features, identities = draw(len(labels), 5), torch.tensor(labels)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        batch_hard_triplet_loss(features[order], identities[order]),
        batch_hard_triplet_loss(features, identities),
        atol=2e-3,
        rtol=0,
    )


def test_moving_all_features_by_one_vector_does_not_change_a_triplet():
    features, labels = draw(6, 5), torch.tensor([0, 0, 1, 1, 2, 2])
    torch.testing.assert_close(
        batch_hard_triplet_loss(features + 1, labels),
        batch_hard_triplet_loss(features, labels),
        atol=1e-4,
        rtol=0,
    )


def test_identities_may_have_different_numbers_of_rows_and_one_of_them_a_single_one():
    features, labels = draw(6, 5), [0, 0, 0, 1, 1, 2]
    loss = batch_hard_triplet_loss(features, torch.tensor(labels))
    assert loss.item() == pytest.approx(triplet_by_loops(features, labels, 0.3), abs=1e-4)


def test_a_vector_added_to_every_row_of_the_memory_does_not_change_the_loss():
    features, memory, labels = draw(4, 3), draw(6, 3, seed=1), torch.tensor([0, 1, 5, 5])
    moved = video_to_memory_logits(features, memory + draw(3, seed=2))
    logits = video_to_memory_logits(features, memory)
    torch.testing.assert_close(
        video_to_memory_loss(moved, labels), video_to_memory_loss(logits, labels)
    )


def test_equal_features_give_finite_gradients():
    features = torch.ones(4, 3, requires_grad=True)
    batch_hard_triplet_loss(features, torch.tensor([0, 0, 1, 1])).backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    # Squares of 300 overflow float16, and differences of large products cancel in both.
    features, memory = (300 * draw(6, 8)).to(dtype), (300 * draw(4, 8, seed=1)).to(dtype)
    labels = torch.tensor([0, 0, 1, 1, 2, 3])
    with torch.autocast("cpu", dtype):
        loss = batch_hard_triplet_loss(features, labels)
        logits = video_to_memory_logits(features, memory)
        mixed = video_to_memory_logits(features, memory.float())
    torch.testing.assert_close(loss, batch_hard_triplet_loss(features.float(), labels))
    torch.testing.assert_close(logits, features.float() @ memory.float().T)
    torch.testing.assert_close(mixed, logits)
    assert identity_loss(logits.to(torch.bfloat16), labels % 4).dtype == torch.float32


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("scope", ["all", "batch"])
def test_gradients_reach_features_and_memory(similarity, scope):
    features, memory = draw(4, 3).requires_grad_(), draw(4, 6, 3, seed=1).requires_grad_()
    logits = video_to_memory_logits(features, memory, similarity=similarity)
    video_to_memory_loss(logits, torch.tensor([0, 1, 5, 5]), scope=scope).backward()
    assert features.grad is not None
    assert memory.grad is not None
    reached = memory.grad.abs().sum((0, 2)) > 0
    assert reached.tolist() == [True, True, *[scope == "all"] * 3, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hardest_distances(draw(3, 2), torch.zeros(3).long()), "at least two different"),
        (lambda: hardest_distances(draw(3, 2), torch.zeros(2).long()), r"\(M, F\)"),
        (lambda: hardest_distances(draw(3), torch.zeros(3).long()), r"\(M, F\)"),
        (lambda: video_to_memory_logits(draw(3, 2), draw(4, 3)), "E = 2"),
        (lambda: video_to_memory_logits(draw(3, 2), draw(4, 5, 2)), "B = 3"),
        (lambda: video_to_memory_logits(draw(2), draw(4, 2)), r"\(B, E\)"),
        (
            lambda: video_to_memory_logits(draw(3, 2), draw(4, 2), similarity="l2"),  # type: ignore[arg-type]
            "similarity must be",
        ),
        (
            lambda: video_to_memory_loss(draw(3, 2), torch.zeros(3).long(), scope="none"),  # type: ignore[arg-type]
            "scope must be",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
