"""What goes to other processes arrives there, and what threads share is not disturbed by them."""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
import pkgutil
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import data as loading

import tfclip
from tests.class_cases import (
    CAMERAS,
    CONFIG,
    PICKLED,
    REFUSED,
    clip_file,
    crops,
    entries,
    features,
    model,
    pairs,
    people,
    ranking,
    tracks,
)
from tests.threads import together
from tfclip import Gallery, TFCLIPConfig, data, errors, export, functional, tracking
from tfclip.encoding import eval_mode
from tfclip.functional.products import pair_products


def public_classes() -> set[type]:
    """Return the classes that some ``__all__`` names; modules have a file of their own."""
    found = set()
    for info in pkgutil.walk_packages(tfclip.__path__, "tfclip."):
        if info.name.endswith("__main__"):  # would run
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if inspect.isclass(value) and not issubclass(value, nn.Module):
                found.add(value)
    return found


def untried() -> str:
    """Say which public classes are in neither list; nothing when all are."""
    left = public_classes() - set(PICKLED) - set(REFUSED)
    names = ", ".join(sorted(kind.__name__ for kind in left))
    return f"add {names} to PICKLED in tests/class_cases.py" if names else ""


def assert_same(found: Any, expected: Any) -> None:
    """Compare two objects by all that they hold."""
    assert type(found) is type(expected)
    if isinstance(expected, nn.Module):
        assert_same(dict(found.state_dict()), dict(expected.state_dict()))
    elif isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert_same(list(found.values()), list(expected.values()))
    elif isinstance(expected, Path) or inspect.isroutine(expected) or inspect.isclass(expected):
        assert found == expected
    elif hasattr(expected, "__dict__"):
        assert_same(vars(found), vars(expected))
    else:
        assert repr(found) == repr(expected)  # as NaN is not equal to itself


# --- pickles -------------------------------------------------------------------------------------


def test_every_public_class_is_tried_here():
    assert not untried(), untried()


def test_a_class_that_is_not_tried_is_named_with_the_place_to_add_it(monkeypatch):
    monkeypatch.setattr(tracking, "Rotation", type("Rotation", (), {}), raising=False)
    monkeypatch.setattr(tracking, "__all__", [*tracking.__all__, "Rotation"])
    assert untried() == "add Rotation to PICKLED in tests/class_cases.py"


@pytest.mark.parametrize("kind", PICKLED, ids=lambda kind: kind.__name__)
def test_a_pickled_object_comes_back_as_it_was(kind, tmp_path):
    made = PICKLED[kind](tmp_path)
    assert isinstance(made, kind)
    content = pickle.dumps(made)
    loaded = pickle.loads(content)
    assert_same(loaded, made)
    if hasattr(made, "__len__"):
        assert len(loaded) == len(made)


def test_a_tracklet_encoder_goes_on_growing_after_its_journey():
    stayed, gone = tracks(), pickle.loads(pickle.dumps(tracks()))
    expected, found = (each.update([9, 10], crops(2)) for each in (stayed, gone))
    assert_same(found, expected)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if kind is export.ExportedModel else ())
        for kind in REFUSED
    ],
    ids=lambda kind: kind.__name__,
)
def test_what_cannot_leave_its_process_says_what_to_do_instead(kind, tmp_path):
    with pytest.raises(TypeError, match=f"a[n]? {kind.__name__} cannot be pickled; .* in each"):
        pickle.dumps(REFUSED[kind](tmp_path))


def all_errors() -> list[type[Exception]]:
    """Return the exceptions of the library, those of single modules too."""
    found: set[type[Exception]] = set()
    for info in pkgutil.walk_packages(tfclip.__path__, "tfclip."):
        if info.name.endswith("__main__"):
            continue
        for value in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(value) and issubclass(value, Exception):
                found.add(value)
    return sorted(
        (kind for kind in found if kind.__module__.startswith("tfclip.")),
        key=lambda kind: (kind.__module__, kind.__name__),
    )


def test_every_documented_error_is_among_those_that_are_tried():
    documented = {kind for kind in vars(errors).values() if inspect.isclass(kind)}
    assert len(documented) > 9
    assert documented <= set(all_errors())


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_an_error_keeps_its_type_and_sentence_on_the_way_to_another_process(kind):
    error = kind("frames must be at least 1, got 0")
    error.add_note("seen in worker 3")
    loaded = pickle.loads(pickle.dumps(error))
    assert type(loaded) is kind
    assert str(loaded) == str(error) == "frames must be at least 1, got 0"
    assert loaded.args == error.args
    assert loaded.__notes__ == ["seen in worker 3"]


def test_an_error_that_the_library_raised_comes_back_with_its_sentence(tmp_path):
    with pytest.raises(errors.ConfigError) as caught:
        TFCLIPConfig(clip_length=0)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(errors.GalleryError) as caught:
        Gallery.open(tmp_path / "none")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# --- workers of a data loader --------------------------------------------------------------------


def loader_classes() -> set[type]:
    """Return the data sets, samplers and transforms that a data loader is given."""
    transforms = importlib.import_module("tfclip.data.transforms")
    return {
        value
        for module in (data, transforms)
        for value in (getattr(module, name) for name in dir(module))
        if inspect.isclass(value)
        and value.__module__.startswith("tfclip.data.")
        and (
            issubclass(value, (loading.Dataset, loading.Sampler))
            or value.__module__ == transforms.__name__
        )
    }


# Each of these is used in one of the next tests; add a new one there, and here.
LOADED = {
    data.ClipDataset,
    data.TrackletDataset,
    data.IdentitySampler,
    data.ClipTransform,
    data.ColourJitter,
    data.RandomErasing,
}


def test_every_data_set_sampler_and_transform_is_tried_in_workers():
    left = {kind.__name__ for kind in loader_classes() - LOADED}
    assert not left, f"use {', '.join(left)} in a test of workers and add it to LOADED"


def many_sources(folder: Path) -> list[data.Tracklet]:
    """Return drawn people, image files, an array and a video with boxes, as tracklets."""
    people(1).write(folder / "people")
    read = data.read_folder(folder / "people", "{person}/{camera}/{tracklet}")
    array = data.Tracklet(name="array", frames=crops(), person="0001", camera=1)
    boxes = [[2, 2, 12, 30]] * 5
    recording = data.Tracklet(name="video", frames=clip_file(folder), boxes=boxes, person="0000")
    return [*read, array, recording]


def batches(dataset: Any, workers: int, **options: Any) -> list[Any]:
    context = "spawn" if workers else None
    return list(
        loading.DataLoader(dataset, num_workers=workers, multiprocessing_context=context, **options)
    )


@pytest.mark.slow
def test_clips_are_the_same_from_spawned_workers(tmp_path):
    transform = data.ClipTransform(jitter=data.ColourJitter(), erasing=data.RandomErasing())
    dataset = data.ClipDataset(many_sources(tmp_path), CONFIG, transform, seed=3)
    sampler = data.IdentitySampler(dataset.identities, 3, 2, numbered=True)
    for part in (dataset, sampler):
        part.set_epoch(1)
    here, there = (batches(dataset, n, batch_sampler=sampler) for n in (0, 2))
    assert len(here) > 1
    assert_same(there, here)


@pytest.mark.slow
def test_whole_tracklets_are_the_same_from_spawned_workers(tmp_path):
    sources = [*many_sources(tmp_path), *people(2)]
    dataset = data.TrackletDataset(sources, CONFIG)
    options = {"batch_size": 5, "collate_fn": data.collate_tracklets}
    here, there = (batches(dataset, n, **options) for n in (0, 2))
    assert [row for batch in here for row in batch.row] == list(range(len(sources)))
    assert_same(there, here)


@pytest.mark.slow
def test_an_error_in_a_spawned_worker_is_of_its_own_type_and_names_the_file(tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    dataset = data.TrackletDataset(
        [data.Tracklet(name="torn", frames=[str(tmp_path / "torn.png")])], CONFIG
    )
    with pytest.raises(errors.FrameError, match=r"torn\.png"):
        batches(dataset, 1, collate_fn=data.collate_tracklets)


# --- threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_threads_that_encode_with_one_model_get_what_each_gets_alone(training):
    shared = pickle.loads(pickle.dumps(model()))
    tracklets = [tracklet.frames for tracklet in people()][:4]
    alone = [model().encode_sequence(frames) for frames in tracklets]
    shared.train(training)
    before = pickle.loads(pickle.dumps(shared.state_dict()))
    found = together([functools.partial(shared.encode_sequence, each) for each in tracklets])
    for results, expected in zip(found, alone, strict=True):
        for embedding in results:
            torch.testing.assert_close(embedding, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(shared.state_dict(), before, rtol=0, atol=0)
    assert all(part.training is training for part in shared.modules())


def test_a_model_goes_back_to_training_when_the_last_who_encodes_has_left():
    shared = pickle.loads(pickle.dumps(model())).train()
    first, second = eval_mode(shared), eval_mode(shared)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(part.training for part in shared.modules())
    second.__exit__(None, None, None)
    assert all(part.training for part in shared.modules())


def test_threads_that_search_one_gallery_get_what_each_gets_alone(tmp_path):
    shared = entries(tmp_path)
    calls: list[Callable[[], Any]] = [
        lambda: shared.search(features(1), k=3).ids,
        lambda: shared.search(features(2), k=5, exclude_cameras=[0]).distances,
        lambda: shared.search(features(3), k=2, where={"person": "3"}).ids,
        lambda: (len(shared), shared.entries().ids),
    ]
    alone = [call() for call in calls]
    for results, expected in zip(together(calls, 10), alone, strict=True):
        assert results == [expected] * 10


def test_threads_that_measure_get_what_each_gets_alone():
    calls: list[Callable[[], Any]] = [
        lambda: ranking(1),
        lambda: functional.k_reciprocal_rerank(features(2), features(3), k1=5, k2=3),
        lambda: functional.k_reciprocal_rerank_topk(features(4), features(5), k1=5, k2=3, top=4),
        lambda: functional.fit_threshold(*pairs(6), false_match_rate=0.1),
        lambda: functional.camera_aware_jaccard(
            features(7), features(8), CAMERAS, CAMERAS, 2, 4, 2, 2
        ),
    ]
    alone = [call() for call in calls]
    for results, expected in zip(together(calls, 5), alone, strict=True):
        for result in results:
            assert_close_figures(result, expected)


def test_only_one_thread_at_a_time_changes_the_filters_of_warnings(monkeypatch):
    inside, most = set[int](), []  # they belong to the process: two would leave them changed
    make = torch.sparse_csr_tensor

    def slow(*arguments: Any, **options: Any) -> Tensor:
        inside.add(threading.get_ident())
        time.sleep(0.01)
        most.append(len(inside))
        inside.discard(threading.get_ident())
        return make(*arguments, **options)

    monkeypatch.setattr(torch, "sparse_csr_tensor", slow)
    first, second = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    before = list(warnings.filters)
    together([lambda: pair_products(features(), features(1), first, second)] * 3)
    assert most == [1] * 9
    assert list(warnings.filters) == before


def assert_close_figures(found: Any, expected: Any) -> None:
    """Compare results whose sums may be rounded in another order."""
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    elif isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            assert_close_figures(one, other)
    elif hasattr(expected, "__dict__"):
        assert vars(found).keys() == vars(expected).keys()
        for name, value in vars(expected).items():
            assert_close_figures(getattr(found, name), value)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-6)
    else:
        assert found == expected
