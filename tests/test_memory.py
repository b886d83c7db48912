"""CLIP-Memory: means of features, in ascending order of identity."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tfclip import CLIPMemory
from tfclip.memory import identity_centroids


def test_centroids_are_the_reference_centroids(golden):
    recorded = golden("clip_memory")
    memory = CLIPMemory.from_features(recorded["features"], recorded["labels"])
    torch.testing.assert_close(memory(), recorded["centers"], atol=1e-6, rtol=0)
    assert torch.equal(memory.identities, recorded["row_labels"])


@given(labels=st.lists(st.integers(-2, 6), min_size=1, max_size=30))
def test_each_row_is_the_mean_of_its_identity(labels):
    features = torch.randn(len(labels), 3)
    identities = torch.tensor(labels)
    known = sorted({label for label in labels if label >= 0})
    if not known:
        with pytest.raises(ValueError, match="not negative"):
            identity_centroids(features, identities)
        return
    centroids, present = identity_centroids(features, identities)
    assert present.tolist() == known
    for row, identity in zip(centroids, known, strict=True):
        torch.testing.assert_close(row, features[identities == identity].mean(0))


def test_a_missing_identity_is_named_instead_of_shifting_the_rows():
    features, identities = torch.zeros(3, 2), torch.tensor([0, 2, 2])
    with pytest.raises(ValueError, match=r"exactly 0 to 2.*\[1\]"):
        CLIPMemory.from_features(features, identities, num_identities=3)


def test_memory_is_kept_in_float32_without_gradient_and_saved_with_its_module():
    features = torch.randn(4, 2, dtype=torch.float16, requires_grad=True)
    memory = CLIPMemory.from_features(features, torch.tensor([0, 0, 1, 1]))
    assert memory().dtype == torch.float32
    assert not memory().requires_grad
    assert set(memory.state_dict()) == {"centroids", "identities"}
    assert repr(memory) == "CLIPMemory(num_identities=2, dim=2)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CLIPMemory(torch.zeros(3)), r"\(K, E\)"),
        (lambda: CLIPMemory(torch.zeros(3, 2).long()), "floating point"),
        (lambda: CLIPMemory(torch.full((3, 2), torch.nan)), "finite"),
        (lambda: CLIPMemory(torch.zeros(3, 2), torch.tensor([0, 2, 1])), "strictly ascending"),
        (lambda: CLIPMemory.from_features(torch.zeros(3, 2), torch.tensor([0])), r"\(M,\)"),
        (
            lambda: CLIPMemory.from_features(torch.full((1, 2), torch.inf), torch.tensor([0])),
            "finite",
        ),
        (
            lambda: CLIPMemory.from_features(torch.zeros(2, 2), torch.tensor([0.5, 1.5])),
            "identities must be whole numbers, got torch.float32",
        ),
        (
            lambda: CLIPMemory(torch.zeros(3, 2)).update(torch.zeros(1, 4), torch.tensor([0]), 0.5),
            r"features must be \(B, E\) with E = 2",
        ),
        (
            lambda: CLIPMemory(torch.zeros(3, 2)).update(torch.zeros(1, 2), torch.tensor([0]), 5),
            r"momentum must be in \[0, 1\], got 5",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_memory_made_and_moved_in_inference_mode_can_be_trained_with():
    labels = torch.tensor([0, 0, 1, 1])
    with torch.inference_mode():
        features = torch.randn(4, 2)
        memory = CLIPMemory.from_features(features, labels)
        memory.update(features.flip(0), labels, 0.5)
    clips = torch.randn(3, 2, requires_grad=True)
    (clips @ memory().T).sum().backward()  # which keeps the memory for the gradient
    torch.testing.assert_close(clips.grad, memory().sum(0).expand(3, -1))
    memory().add_(1)  # and nobody minds a change in place
    assert not memory.identities.is_inference()
