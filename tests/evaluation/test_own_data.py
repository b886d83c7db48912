"""Data of one's own, and what cannot be evaluated."""

import dataclasses
import re
from typing import Any

import pytest

from tests.evaluation.literally import refuse
from tfclip import TFCLIP, groups
from tfclip.data import Dataset, Protocol, own_dataset
from tfclip.errors import FrameError, TableError
from tfclip.evaluation import evaluate_model

# --- refusals ------------------------------------------------------------------------------------


def test_wrong_choices_are_refused_before_anything_is_encoded(
    tiny_model, tiny_config, dataset, people, monkeypatch
):
    monkeypatch.setattr(groups.GroupEncoder, "encode", refuse)
    choices: tuple[tuple[dict[str, Any], str], ...] = (
        ({"protocol": "official"}, "protocol of drawn must be one of"),
        ({"frames": "some"}, "frames must be some of"),
        ({"frames": ()}, "frames must be some of"),
        ({"frames": ("rrs", "rrs")}, "each once"),
        ({"use_cameras": "all"}, "use_cameras must be True, False or 'both', got 'all'"),
    )
    for options, message in choices:
        with pytest.raises(ValueError, match=message):
            evaluate_model(tiny_model, dataset, **options)
    without = TFCLIP(tiny_config.replace(num_cameras=0)).eval()
    with pytest.raises(ValueError, match="this one has none"):
        evaluate_model(without, dataset, use_cameras="both")
    few = TFCLIP(tiny_config.replace(num_cameras=2)).eval()
    with pytest.raises(TableError, match="is of camera 2; the model knows cameras 0 to 1"):
        evaluate_model(few, dataset, use_cameras=True)


def test_a_tracklet_of_unknown_labels_is_named(tiny_model, people):
    protocol = Protocol(name="p", query=[0], gallery=[1, 2], description="")
    for field, message in (
        ("person", "not known whom tracklet '0000/2/0' shows"),
        ("camera", "the camera of tracklet '0000/2/0' is not known"),
    ):
        test = (*people[:2], dataclasses.replace(people[2], **{field: None}))
        dataset = Dataset(name="d", root="d", train=(), test=test, protocols={"p": protocol})
        with pytest.raises(TableError, match=message):
            evaluate_model(tiny_model, dataset)


def test_frames_that_are_gone_are_named(tiny_model, people, tmp_path):
    text = tmp_path / "no.png"
    text.write_text("no image")
    broken = dataclasses.replace(people[1], frames=(str(text),))
    with pytest.raises(FrameError, match=re.escape(str(text))):
        evaluate_model(tiny_model, own_dataset([people[0], broken]))


# --- own data ------------------------------------------------------------------------------------


def test_a_tracklet_that_is_query_and_gallery_is_taken_once(people):
    dataset = own_dataset(people[:2], people[1:4])
    assert [t.name for t in dataset.test] == [
        "query/0000/0/0",
        "query/0000/1/0",
        "gallery/0000/2/0",
        "gallery/0001/0/0",
    ]
    assert dataset.protocol().gallery == (0, 1, 2, 3)
    apart = own_dataset(people[:2], [people[1], *people[1:4]], queries_in_gallery=False)
    assert apart.protocol().gallery == (1, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda p: {"queries": []}, "at least one query"),
        (lambda p: {"queries": p, "queries_in_gallery": False}, "something to search in"),
        (
            lambda p: {"queries": p, "train": p[:1]},
            "person '0000' is in the training tracklets and in the others",
        ),
        (
            lambda p: {"queries": [dataclasses.replace(t, person=None) for t in p]},
            "not known whom tracklet '0000/0/0' shows",
        ),
        (
            lambda p: {"queries": [dataclasses.replace(t, camera=None) for t in p]},
            "the camera of tracklet '0000/0/0' is not known",
        ),
        (
            lambda p: {"queries": [dataclasses.replace(t, camera=4) for t in p]},
            "every tracklet is of camera 4",
        ),
    ],
)
def test_own_data_that_cannot_be_evaluated_is_refused(people, arguments, message):
    with pytest.raises(TableError, match=message):
        own_dataset(**arguments(people))
