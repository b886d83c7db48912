"""Data that is no part of the repository."""

import os
from pathlib import Path

import pytest


def real(*parts):
    """Find real data, which is no part of the repository."""
    path = Path(os.environ.get("TFCLIP_TEST_DATA", "unset"), *parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} in the folder that TFCLIP_TEST_DATA names")
    return path
