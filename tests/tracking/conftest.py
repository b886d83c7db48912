"""The model whose tracklets grow."""

from __future__ import annotations

import pytest

from tests.tracking.growing import build


@pytest.fixture(scope="module")
def model():
    return build()
