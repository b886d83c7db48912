"""Drawn people to test and to train with."""

import pytest

from tests.evaluation.literally import draw
from tfclip import TFCLIP
from tfclip.data import own_dataset


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Seven drawn persons in three cameras."""
    return draw(tmp_path_factory.mktemp("people"), 7)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Five others."""
    return draw(tmp_path_factory.mktemp("others"), 5, first=7)


@pytest.fixture(scope="module")
def trained():
    """A model that knows one person from another."""
    return TFCLIP.from_pretrained("tfclip-tiny")


@pytest.fixture
def dataset(people, others):
    """Queries of camera 0, searched in one another and in the rest."""
    queries = [tracklet for tracklet in people if tracklet.camera == 0]
    gallery = [tracklet for tracklet in people if tracklet.camera != 0]
    return own_dataset(queries, gallery, train=others, name="drawn")
