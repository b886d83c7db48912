"""What a target of the fuzzer is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
Samples = dict[str, bytes]
Finish = Callable[[random.Random, bytes], bytes]


def _leave(_: random.Random, data: bytes) -> bytes:
    return data


@dataclass(frozen=True)
class Target:
    """One reader.

    Args:
        make: Write what the reader needs into a folder; return the files to change, by name.
        read: Call the reader; it is given the folder and the name of the changed file.
        raises: What the reader's documentation says it raises.
        finish: Repair checksums, so that changes reach what lies behind them.
        memory: MiB by which the process may grow.
    """

    make: Callable[[Path], Samples]
    read: Callable[[Path, str], object]
    raises: tuple[type[Exception], ...]
    finish: Finish = _leave
    memory: int = 384


def in_folder(read: Callable[[Path], object]) -> Callable[[Path, str], object]:
    return lambda folder, _: read(folder)


def of_file(read: Callable[[Path], object]) -> Callable[[Path, str], object]:
    return lambda folder, name: read(folder / name)
