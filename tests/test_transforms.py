"""Augmentation: what is alike in a clip, what is not, and where a patch may lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tfclip.data.transforms import ClipTransform, ColourJitter, RandomErasing, flip_clip

ERASING = RandomErasing(probability=1.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def clip():
    random = seeded(0)
    return torch.randint(256, (8, 3, 64, 32), generator=random, dtype=torch.uint8)


def changed_box(before, after):
    """Return top, bottom, left and right of what differs between two frames, or None."""
    different = (before != after).any(0)
    if not different.any():
        return None
    rows, columns = np.flatnonzero(different.any(1)), np.flatnonzero(different.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def erased_boxes(transform, seeds=200):
    """Return boxes of patches in black frames; colours of 0 make one smaller, which is rare."""
    boxes = []
    for seed in range(seeds):
        black = torch.zeros(1, 3, 64, 32, dtype=torch.uint8)
        box = changed_box(black[0], transform(black, seeded(seed))[0])
        if box is not None:
            boxes.append(box)
    return boxes


@pytest.mark.parametrize("seed", range(8))
def test_a_flip_mirrors_the_whole_clip_or_nothing(clip, seed):
    flipped = flip_clip(clip, seeded(seed))
    assert torch.equal(flipped, clip) or torch.equal(flipped, clip.flip(-1))


def test_half_of_the_clips_are_flipped(clip):
    flips = sum(not torch.equal(flip_clip(clip, seeded(seed)), clip) for seed in range(400))
    assert 150 < flips < 250


def test_erasing_is_one_colour_in_one_rectangle_of_each_frame(clip):
    for before, after in zip(clip, ERASING(clip, seeded(1)), strict=True):
        box = changed_box(before, after)
        assert box is not None
        top, bottom, left, right = box
        patch = after[:, top:bottom, left:right].flatten(1)
        assert (patch == patch[:, :1]).all()


def test_frames_of_one_clip_are_erased_differently(clip):
    boxes = {changed_box(*pair) for pair in zip(clip, ERASING(clip, seeded(1)), strict=True)}
    assert len(boxes) == len(clip)


def test_half_of_the_frames_are_erased(clip):
    changed = 0
    for seed in range(50):
        erased = RandomErasing()(clip, seeded(seed))
        changed += int((erased != clip).flatten(1).any(1).sum())
    assert 150 < changed < 250  # of 400


def test_patches_have_the_area_and_aspect_that_were_asked_for():
    for top, bottom, left, right in erased_boxes(ERASING):
        height, width = bottom - top, right - left
        # Sides are rounded to whole pixels, which is much for the smallest.
        assert 0.02 - 0.008 <= height * width / (64 * 32) <= 0.2 + 0.02
        assert 0.3 * 0.8 <= height / width <= 1 / 0.3 * 1.25


def test_patches_lie_anywhere_in_the_frame():
    boxes = erased_boxes(ERASING)
    assert min(top for top, *_ in boxes) == 0
    assert max(bottom for _, bottom, *_ in boxes) == 64
    assert min(left for *_, left, _ in boxes) == 0
    assert max(right for *_, right in boxes) == 32


def test_legacy_puts_the_corner_as_far_in_as_the_patch_is_large():
    for top, bottom, left, right in erased_boxes(RandomErasing(probability=1.0, legacy=True)):
        assert bottom == min(2 * top, 64)
        assert right == min(2 * left, 32)


def test_a_frame_in_which_no_patch_fits_is_left_as_it_is():
    line = torch.zeros(2, 3, 64, 1, dtype=torch.uint8)
    assert torch.equal(ERASING(line, seeded(0)), line)


def test_colours_change_alike_in_all_frames_of_a_clip(clip):
    still = clip[:1].expand(8, -1, -1, -1)
    jittered = ColourJitter()(still, seeded(3))
    assert torch.equal(jittered, jittered[:1].expand_as(jittered))
    assert not torch.equal(jittered, still)


def test_no_jitter_is_no_change(clip):
    none = ColourJitter(brightness=0, contrast=0, saturation=0, gain=0)
    assert (none(clip, seeded(0)).int() - clip.int()).abs().max() <= 1


def test_a_grey_clip_stays_grey_when_only_saturation_changes():
    grey = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8).expand(-1, 3, -1, -1)
    jitter = ColourJitter(brightness=0, contrast=0, saturation=1, gain=0)
    assert (jitter(grey, seeded(0)).int() - grey.int()).abs().max() <= 1


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), legacy=st.booleans())
def test_the_same_generator_gives_the_same_clip_and_the_source_is_never_written_to(seed, legacy):
    transform = ClipTransform(erasing=RandomErasing(legacy=legacy), jitter=ColourJitter())
    clip = torch.randint(256, (3, 3, 32, 16), dtype=torch.uint8)
    before, state = clip.clone(), torch.get_rng_state()
    first = transform(clip, seeded(seed))
    assert torch.equal(first, transform(clip, seeded(seed)))
    assert torch.equal(clip, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (first.dtype, first.shape) == (torch.uint8, clip.shape)


def test_the_reference_flips_and_erases_and_leaves_colours_alone():
    reference = ClipTransform.reference()
    assert (reference.flip, reference.erasing, reference.jitter) == (0.5, RandomErasing(), None)
    assert ClipTransform.reference(legacy=True).erasing == RandomErasing(legacy=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ClipTransform(flip=1.5), "flip must be in"),
        (lambda: RandomErasing(probability=-0.1), "probability must be in"),
        (lambda: RandomErasing(area=(0.2, 0.1)), "area must be"),
        (lambda: RandomErasing(area=(0.0, 0.1)), "area must be"),
        (lambda: RandomErasing(aspect=(0.0, 1.0)), "aspect must be"),
        (lambda: ColourJitter(gain=2), "gain must be in"),
        (lambda: flip_clip(torch.zeros(3, 8, 8, dtype=torch.uint8), seeded(0)), "uint8"),
        (lambda: ERASING(torch.zeros(2, 3, 8, 8), seeded(0)), "float32"),
        (lambda: ColourJitter()(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), seeded(0)), "T, 3"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
