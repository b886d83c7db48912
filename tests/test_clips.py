"""Training clips: which frames, whose number, and that nothing depends on who asks when."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tfclip.data.clips import ClipDataset, TrackletDataset, collate_tracklets, number_people
from tfclip.data.samplers import IdentitySampler
from tfclip.data.synthetic import SyntheticTracklets
from tfclip.data.tracklets import Tracklet
from tfclip.data.transforms import ClipTransform, RandomErasing


def counting_tracklet(length, person, camera=None):
    """Return a tracklet whose frame number t has the brightness t."""
    frames = np.arange(length, dtype=np.uint8)[:, None, None, None]
    return Tracklet(
        name=f"{person}-{length}",
        frames=np.broadcast_to(frames, (length, 64, 32, 3)),
        person=person,
        camera=camera,
    )


@pytest.fixture
def tracklets():
    return [counting_tracklet(n, f"p{n % 3}", camera=n % 2) for n in range(3, 27)]


def frame_numbers(clip):
    return clip.frames[:, 0, 0, 0].tolist()


def test_a_clip_has_one_frame_of_each_part_of_its_tracklet(tiny_config, tracklets):
    dataset = ClipDataset(tracklets, tiny_config)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for tracklet, clip in zip(tracklets, map(dataset.__getitem__, range(24)), strict=True):
            length = len(tracklet.frames)
            chunk = -(-length // 4)
            for part, number in enumerate(frame_numbers(clip)):
                first = min(part * chunk, length - 1)
                assert first <= number <= min(first + chunk - 1, length - 1)


def test_clips_change_with_epoch_draw_and_seed_and_with_nothing_else(tiny_config, tracklets):
    dataset = ClipDataset(tracklets, tiny_config)
    clip = frame_numbers(dataset[23])
    others = [dataset[(23, draw)] for draw in range(1, 9)]
    others += [ClipDataset(tracklets, tiny_config, seed=seed)[23] for seed in range(1, 9)]
    dataset.set_epoch(1)
    others.append(dataset[23])
    assert sum(frame_numbers(other) == clip for other in others) < 3
    dataset.set_epoch(0)
    assert frame_numbers(dataset[23]) == frame_numbers(dataset[(23, 0)]) == clip


def test_identities_are_numbered_in_natural_order_and_cameras_kept(tiny_config, tracklets):
    dataset = ClipDataset(tracklets, tiny_config)
    assert dataset.people == ["p0", "p1", "p2"]
    assert dataset.identities.tolist() == [n % 3 for n in range(3, 27)]
    assert (dataset[4].identity, dataset[4].camera) == (1, 1)
    assert ClipDataset([counting_tracklet(3, 5)], tiny_config)[0].camera == -1
    assert number_people([counting_tracklet(3, p) for p in (10, 9, "9")])[1] == [9, "9", 10]


def test_the_transform_sees_the_resized_clip_and_may_draw(tiny_config, tracklets):
    plain = ClipDataset(tracklets, tiny_config)
    erased = ClipDataset(
        tracklets, tiny_config, ClipTransform(flip=0, erasing=RandomErasing(probability=1))
    )
    changed = (plain[5].frames != erased[5].frames).flatten(1).any(1)
    assert changed.all()
    assert torch.equal(erased[5].frames, erased[5].frames)
    assert erased[5].frames.shape == (4, 3, 64, 32)


def test_a_loader_gives_the_same_batches_from_a_copy_in_another_process(tiny_config, tracklets):
    dataset = ClipDataset(tracklets, tiny_config, ClipTransform.reference())
    sampler = IdentitySampler(dataset.identities, 3, 4, numbered=True)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        sampler.set_epoch(epoch)
        in_worker = pickle.loads(pickle.dumps(dataset))
        list(in_worker)  # what a worker did before does not matter
        loader = DataLoader(in_worker, batch_sampler=sampler)
        for keys, batch in zip(sampler, loader, strict=True):
            clips = [dataset[key] for key in keys]
            assert torch.equal(batch.frames, torch.stack([clip.frames for clip in clips]))
            assert batch.identity.tolist() == [clip.identity for clip in clips]
            assert batch.camera.tolist() == [clip.camera for clip in clips]


def test_data_that_cannot_be_trained_on_is_one_sentence(tiny_config):
    with pytest.raises(ValueError, match=r"known persons.*None for 'None-4'"):
        ClipDataset([counting_tracklet(4, None)], tiny_config)
    with pytest.raises(ValueError, match="at least one"):
        ClipDataset([], tiny_config)


@pytest.mark.parametrize("sampling", ["dense", "rrs", "all"])
@pytest.mark.parametrize("workers", [0, 2])
def test_whole_tracklets_from_a_loader_encode_as_the_tracklets_do(tiny_model, sampling, workers):
    people = list(SyntheticTracklets(3, 2, 1, frame_size=(80, 40), seed=2))
    whole = TrackletDataset(people, tiny_model.config, sampling)
    loader = DataLoader(whole, batch_size=4, num_workers=workers, collate_fn=collate_tracklets)
    found = torch.empty(len(people), tiny_model.embedding_dim)
    for frames, rows, cameras in loader:
        found[rows] = tiny_model.encode_sequences(frames, cameras, sampling=sampling)
    cameras = [tracklet.camera for tracklet in people]
    opened = [tracklet.open() for tracklet in people]
    expected = tiny_model.encode_sequences(opened, cameras, sampling=sampling)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_whole_tracklets_are_of_any_length_and_an_unknown_camera_is_none(tiny_config):
    tracklets = [
        Tracklet(name=str(n), frames=np.zeros((n, 20, 10, 3), np.uint8)) for n in (1, 5, 40)
    ]
    batch = collate_tracklets([TrackletDataset(tracklets, tiny_config)[i] for i in range(3)])
    assert [tuple(frames.shape) for frames in batch.frames] == [(n, 3, 64, 32) for n in (1, 5, 40)]
    assert batch.camera == [None] * 3
    assert len(TrackletDataset(tracklets, tiny_config, "rrs")[2].frames) == tiny_config.clip_length
    with pytest.raises(ValueError, match=r"sampling must be one of .*, got 'some'"):
        TrackletDataset(tracklets, tiny_config, "some")  # type: ignore[arg-type]
