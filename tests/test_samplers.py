"""Identity-balanced batches: the reference's rules, on any data and any number of processes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfclip.data.samplers import IdentitySampler

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=60).filter(lambda x: len(set(x)) >= 4)


@settings(deadline=None)
@given(labels=LABELS, size=st.integers(1, 5), seed=st.integers(0, 99))
def test_every_batch_is_p_different_identities_with_k_entries_side_by_side(labels, size, seed):
    sampler = IdentitySampler(labels, 4, size, seed=seed)
    for batch in sampler:
        of_identity = [labels[index] for index in batch]
        groups = [set(of_identity[i : i + size]) for i in range(0, len(batch), size)]
        assert len(batch) == 4 * size
        assert all(len(group) == 1 for group in groups)
        assert len(set(of_identity)) == 4


@settings(deadline=None)
@given(labels=LABELS, size=st.integers(1, 5))
def test_a_tracklet_comes_once_an_epoch_unless_its_identity_had_to_be_filled_up(labels, size):
    numbers = Counter(labels)
    drawn = Counter(index for batch in IdentitySampler(labels, 4, size) for index in batch)
    for index, count in drawn.items():
        assert count == 1 or numbers[labels[index]] < size


@settings(deadline=None)
@given(labels=LABELS, size=st.integers(1, 5))
def test_no_identity_gives_more_than_its_whole_groups_and_few_are_left(labels, size):
    groups = {identity: max(n // size, 1) for identity, n in Counter(labels).items()}
    used = Counter()
    for batch in IdentitySampler(labels, 4, size):
        used.update({labels[index] for index in batch})
    left = {identity: groups[identity] - used[identity] for identity in groups}
    assert min(left.values()) >= 0
    assert sum(n > 0 for n in left.values()) < 4


def test_a_short_identity_keeps_all_its_tracklets_when_it_is_filled_up():
    labels = [0, 0, 0, *[1] * 4]
    for seed in range(10):
        (batch,) = IdentitySampler(labels, 2, 4, seed=seed)
        assert {0, 1, 2} <= set(batch)
        assert len([index for index in batch if index < 3]) == 4


@settings(deadline=None, max_examples=25)
@given(labels=LABELS, size=st.integers(1, 4), world=st.sampled_from([1, 2, 4]))
def test_processes_share_what_one_process_would_draw(labels, size, world):
    alone = IdentitySampler(labels, 4, size, seed=3, numbered=True)
    ranks = [
        IdentitySampler(labels, 4, size, seed=3, numbered=True, rank=rank, world_size=world)
        for rank in range(world)
    ]
    for sampler in (alone, *ranks):
        sampler.set_epoch(5)
    for whole, *shares in zip(alone, *ranks, strict=True):
        assert [entry for share in shares for entry in share] == whole
        assert {len(share) for share in shares} == {4 // world * size}
        people = [{labels[index] for index, _ in share} for share in shares]
        assert sum(len(of_rank) for of_rank in people) == len(set().union(*people)) == 4


def test_the_same_seed_and_epoch_give_the_same_batches_and_others_do_not():
    labels = [i % 10 for i in range(80)]
    sampler = IdentitySampler(labels, seed=1)
    first = list(sampler)
    assert list(sampler) == first == list(IdentitySampler(labels, seed=1))
    assert list(IdentitySampler(labels)) == list(IdentitySampler(labels, seed=0)) != first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(IdentitySampler(labels, seed=2)) != first


def test_unless_told_otherwise_a_batch_is_four_identities_with_four_tracklets_each():
    (batch,) = IdentitySampler([i % 4 for i in range(16)])
    assert sorted(batch) == list(range(16))


def test_a_batch_of_one_identity_is_allowed():
    assert [sorted(batch) for batch in IdentitySampler([5, 5], 1, 2)] == [[0, 1]]


def test_drawing_does_not_touch_the_random_state_of_torch():
    state = torch.get_rng_state()
    list(IdentitySampler([0, 0, 1, 1], 2, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_length_is_the_number_of_batches_of_the_epoch():
    sampler = IdentitySampler([i % 7 for i in range(60)], 4, 4)
    for epoch in range(5):
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))


def test_places_of_an_epoch_are_numbered_from_zero_without_a_gap():
    sampler = IdentitySampler([i % 7 for i in range(60)], 4, 4, numbered=True)
    assert [n for batch in sampler for _, n in batch] == list(range(16 * len(sampler)))


def test_every_identity_has_the_same_chance_to_be_drawn():
    labels = [i % 8 for i in range(32)]
    counts = Counter()
    for seed in range(400):
        counts.update({labels[i] for i in next(iter(IdentitySampler(labels, 4, 4, seed=seed)))})
    # 200 of 400 are expected, with a standard deviation of 10.
    assert all(150 < counts[identity] < 250 for identity in range(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_identities": 0}, "num_identities must be at least 1"),
        ({"num_tracklets": 0}, "num_tracklets must be at least 1"),
        ({"num_identities": 5}, "at least 5 different ones"),
        ({"world_size": 3}, "multiple of world_size 3"),
        ({"world_size": 0}, "world_size must be at least 1"),
        ({"rank": 1}, "rank must be 0 to 0"),
        ({"rank": -1}, "rank must be 0 to 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"identities": torch.zeros(4)}, "whole numbers"),
        ({"identities": torch.zeros(4, 2).long()}, r"\(M,\)"),
    ],
)
def test_bad_input_is_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        IdentitySampler(**{"identities": [0, 1, 2, 3], **options})
