"""Fill a gallery until killed, and say after each step what has been acknowledged.

    python tests/milvus_worker.py add GALLERY COLLECTION
    python tests/milvus_worker.py import GALLERY COLLECTION FILE

Each line of output is a JSON list of the ids that are safe now.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from tfclip.gallery import Gallery, tables

WIDTH = 8
STEP = 50  # entries in one step
STEP_BYTES = 4 * WIDTH * STEP


def vector_of(id_: str) -> np.ndarray:
    return np.random.default_rng(int(id_)).normal(size=WIDTH)


class Reporting(Gallery):
    """A gallery that says what it has acknowledged."""

    def add(self, *arguments: Any, **options: Any) -> list[str]:
        ids = super().add(*arguments, **options)
        print(json.dumps(ids), flush=True)  # noqa: T201 (the test reads it)
        return ids


def main(action: str, address: str, collection: str, *files: str) -> None:
    options: dict[str, Any] = {"storage": "milvus", "collection": collection}
    gallery = Reporting.open(address, dim=WIDTH, partition="camera", **options)
    if action == "import":
        tables._BATCH_BYTES = STEP_BYTES
        gallery.import_file(files[0])
        return
    start = 0
    while True:
        ids = [str(number) for number in range(start, start + STEP)]
        vectors = np.stack([vector_of(id_) for id_ in ids])
        gallery.add(vectors, ids, [int(id_) % 3 for id_ in ids])
        start += STEP


if __name__ == "__main__":
    main(*sys.argv[1:])
