"""What the pictures share: colours, and how a figure is written."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from tfclip.errors import MissingExtraError
from tfclip.files import replace_when_done

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1f2328"
MUTED = "#656d76"
EMPTY = "#eceef0"
RIGHT = "#1a8f4c"
WRONG = "#d1362b"
UNKNOWN = "#a0a7af"
DPI = 150


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure to a file, whole or not at all.

    Args:
        figure: What the functions of this module return.
        path: Its suffix says the format: ``.png``, ``.jpg``, ``.svg``, ``.pdf``, ...

    Raises:
        SaveError: The file cannot be written; what stood there is untouched.
        ValueError: Matplotlib does not know the suffix.
    """
    path = Path(path)
    # Drawn in memory first: some of Matplotlib's writers stumble over a full disk in their own way.
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.removeprefix(".").lower())
    with replace_when_done(path) as temporary:
        temporary.write_bytes(drawn.getvalue())


def check_matplotlib() -> None:
    """Refuse to begin work that ends in a picture, where none can be drawn.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingExtraError(
            "drawing needs Matplotlib; install it with: pip install 'tfclip[viz]'"
        ) from error
