"""A model and a folder of crops that tests of several commands share."""

import pytest

from tests.cli.commands import draw_frames, make_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model(folder)
    return str(folder)


@pytest.fixture
def crops(tmp_path):
    """A folder person/camera/tracklet of six small tracklets."""
    for seed, (name, count) in enumerate(
        [("a/0/x", 5), ("a/1/x", 1), ("b/0/x", 9), ("b/1/x", 3), ("c/0/x", 4), ("c/1/x", 2)]
    ):
        draw_frames(tmp_path / "crops" / name, count, seed)
    return tmp_path / "crops"
