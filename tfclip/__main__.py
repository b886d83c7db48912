"""``python -m tfclip`` is the command ``tfclip``."""

from __future__ import annotations

import sys

from tfclip.cli import main

if __name__ == "__main__":
    sys.exit(main())
