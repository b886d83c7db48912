"""Calls that start at the same moment in threads of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def together(calls: Sequence[Callable[[], Result]], rounds: int = 3) -> list[list[Result]]:
    """Make each call in a thread of its own, so many times, and return what each one got."""
    start = threading.Barrier(len(calls), timeout=60)

    def repeat(call: Callable[[], Result]) -> list[Result]:
        start.wait()
        return [call() for _ in range(rounds)]

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(repeat, calls))
