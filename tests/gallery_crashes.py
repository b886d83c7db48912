"""Kill a process that adds to and forgets from a gallery, again and again, and count what is lost.

    python tests/gallery_crashes.py FOLDER --kills 200 --seed 0

The child writes what it is about to do, and that it was done, to a log. After each kill the gallery
is opened and compared with the log: everything that was acknowledged, and of the one operation
that was under way all or nothing. No torch is loaded, so that a child starts within a millisecond.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from tfclip.gallery import Gallery

WIDTH = 4
Log = list[tuple[str, dict[str, list[float]]]]


def vector_of(seed: int) -> list[float]:
    return np.random.default_rng(seed).normal(size=WIDTH).tolist()


def work(folder: Path, log: int, seed: int) -> None:
    """Add, replace and forget until killed."""
    random = np.random.default_rng(seed)
    gallery = Gallery.open(folder, dim=WIDTH)
    while True:
        ids = list(gallery.entries().ids)
        action = random.choice(["add", "add", "replace", "forget", "compact"])
        some = sorted(random.choice(ids, min(len(ids), 3), replace=False)) if ids else []
        if action == "add":
            some = [f"{seed}-{random.integers(2**60)}" for _ in range(random.integers(1, 20))]
        if not some and action != "compact":
            continue
        vectors = [vector_of(int(random.integers(2**60))) for _ in some]
        operation = [str(action), dict(zip(some, vectors, strict=True))]
        os.write(log, (json.dumps(["begin", *operation]) + "\n").encode())
        if action == "forget":
            gallery.forget(some)
        elif action == "compact":
            gallery.compact()
        else:
            gallery.add(np.array(vectors), some, replace=action == "replace")
        os.write(log, (json.dumps(["done", *operation]) + "\n").encode())


def apply(state: dict[str, list[float]], action: str, entries: dict[str, list[float]]) -> None:
    for id_, vector in entries.items():
        if action == "forget":
            del state[id_]
        elif action != "compact":
            state[id_] = vector


def same(found: dict[str, np.ndarray], state: dict[str, list[float]]) -> bool:
    if set(found) != set(state):
        return False
    return all(
        np.allclose(found[id_], np.array(vector) / np.linalg.norm(vector), atol=1e-6)
        for id_, vector in state.items()
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.2, help="seconds until a kill (0.2)")
    options = parser.parse_args(arguments)
    random = np.random.default_rng(options.seed)
    state: dict[str, list[float]] = {}
    stored: set[bytes] = set()
    operations = undone = finished = 0
    for kill in range(options.kills):
        log = options.folder.with_suffix(f".log{kill}")
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        child = os.fork()
        if child == 0:
            try:
                work(options.folder, handle, options.seed * 1_000_000 + kill)
            finally:
                os._exit(1)  # only a kill may end it
        time.sleep(random.uniform(0, options.longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(handle)
        if not os.WIFSIGNALED(status):
            sys.stderr.write(f"kill {kill}: the child failed by itself\n")
            return 1
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        log.unlink()
        for word, action, entries in lines:
            if word == "done":
                apply(state, action, entries)
                operations += 1
        gallery = Gallery.open(options.folder, dim=WIDTH)
        kept = gallery.entries()
        found = dict(zip(kept.ids, kept.vectors, strict=True))
        under_way = bool(lines) and lines[-1][0] == "begin"
        after = dict(state)
        if under_way:
            apply(after, lines[-1][1], lines[-1][2])
        if under_way and same(found, after):
            finished += not same(found, state)
            state = after
        elif same(found, state):
            undone += under_way
        else:
            sys.stderr.write(f"kill {kill}: the gallery is not what was acknowledged\n")
            return 1
        # Opening has removed what the interruption left behind.
        now = {vector.tobytes() for vector in found.values()}
        files = [path.read_bytes() for path in options.folder.iterdir()]
        if any(vector in file for vector in stored - now for file in files):
            sys.stderr.write(f"kill {kill}: a forgotten vector is on the disk\n")
            return 1
        stored = now
        if len(state) > 300:  # keep it small and fast
            gallery.forget(list(state)[:250])
            state = dict(list(state.items())[250:])
    sys.stdout.write(
        f"{options.kills} kills, {operations} acknowledged operations, nothing lost; "
        f"interrupted: {finished} took place, {undone} did not\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
