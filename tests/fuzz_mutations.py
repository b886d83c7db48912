"""Changes to valid files: of bytes, of text and its numbers, of JSON and of safetensors headers."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
_CUTS = re.compile(rb"[\n,;\t /]")
NUMBERS = (
    *(b"0", b"-1", b"1", b"2", b"7", b"255", b"65536", b"2147483648", b"4294967295"),
    *(b"9223372036854775807", b"-9223372036854775809", b"18446744073709551616", b"1e308"),
    *(b"1e309", b"-0.0", b"nan", b"inf", b"1_0", b"0x10", b"1e-320", b"9" * 30, b"9" * 5000),
    *(b"1000000000000", b"0.5", "٣".encode(), "²".encode(), b"", b"+1", b"1.0000000000000002"),
)
WORDS = (
    *(b"../../../../etc/passwd", b"/etc/passwd", b"/dev/zero", b"/dev/stdin", b"..", b".", b"~"),
    *(b"\0", b"\xff\xfe", b"\xed\xa0\x80", "\u202e".encode(), b'"', b"'", b",", b"\r", b"\n"),
    *(b"%s%n", b"{0}", b"a" * 300, b"a/" * 200, "é".encode(), b"NUL", b"\xef\xbb\xbf", b"[" * 200),
)
_INTEGERS = (0, 1, 2, 4, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**53, 2**63, 2**64, 10**12, 10**400, 0.5, -0.0),
    *(1e308, float("nan"), float("inf"), "", "a", "\0", "\ud800", "../x", "/dev/zero", "F32"),
    *([], {}, [[]], [None], {"": None}, ["a"], [0, 0], [1, -1], {"a": {"b": [1]}}),
)

Change = Callable[[random.Random, bytes], bytes]


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return a changed copy of a file; ``others`` are valid files to take pieces from."""
    if rng.random() < 0.5:
        structured = _change_structure(rng, data)
        if structured is not None:
            return structured if rng.random() < 0.8 else _flip(rng, structured)
    changes = _TEXT_CHANGES if _is_text(data) else _BYTE_CHANGES
    for _ in range(1 if rng.random() < 0.6 else rng.randrange(2, 8)):
        change = rng.choice(changes)
        data = _splice(rng, data, rng.choice(others)) if change is None else change(rng, data)
    return data


def _is_text(data: bytes) -> bool:
    return b"\0" not in data[:4096]


def _place(rng: random.Random, data: bytes) -> int:
    """Return a place in a file; half of the time near an end, where headers and footers are."""
    if rng.random() < 0.25:
        return min(rng.randrange(128), len(data))
    if rng.random() < 0.33:
        return max(0, len(data) - rng.randrange(256))
    return rng.randrange(len(data) + 1)


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[min(_place(rng, data), len(changed) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: random.Random, data: bytes) -> bytes:
    """Put an integer that often goes wrong into 1 to 8 bytes."""
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(_INTEGERS) % 2 ** (8 * size)
    packed = number.to_bytes(size, rng.choice(("little", "big")))
    place = _place(rng, data)
    return data[:place] + packed + data[place + size :]


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: _place(rng, data)]


def _remove(rng: random.Random, data: bytes) -> bytes:
    start = _place(rng, data)
    return data[:start] + data[start + rng.choice((1, 2, 4, 8, 64, 512)) :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    place = _place(rng, data)
    noise = rng.choice((rng.randbytes(rng.choice((1, 4, 64))), b"\0" * 8, rng.choice(WORDS)))
    return data[:place] + noise + data[place:]


def _repeat(rng: random.Random, data: bytes) -> bytes:
    start = _place(rng, data)
    piece = data[start : start + rng.choice((1, 8, 64, 512))]
    return data[:start] + piece * rng.choice((2, 3, 50)) + data[start:]


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def _change_number(rng: random.Random, data: bytes) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return _flip(rng, data)
    number = rng.choice(found)
    return data[: number.start()] + rng.choice(NUMBERS) + data[number.end() :]


def _change_cell(rng: random.Random, data: bytes) -> bytes:
    ends = [0, *(cut.end() for cut in _CUTS.finditer(data)), len(data)]
    place = rng.randrange(len(ends) - 1)
    start, end = ends[place], ends[place + 1]
    return data[:start] + rng.choice((*WORDS, b"")) + data[max(start, end - 1) :]


def _move_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True) or [b""]
    line = rng.choice(lines)
    if rng.random() < 0.5:
        lines.remove(line)
    else:
        lines.insert(rng.randrange(len(lines) + 1), line)
    return b"".join(lines)


_BYTE_CHANGES: tuple[Change | None, ...] = (
    *(_flip, _flip, _overwrite, _overwrite, _truncate, _remove, _insert, _repeat, None),
)
_TEXT_CHANGES: tuple[Change | None, ...] = (
    *(_flip, _truncate, _remove, _insert, _repeat, None),
    *(_change_number, _change_number, _change_cell, _change_cell, _move_line),
)


def _change_structure(rng: random.Random, data: bytes) -> bytes | None:
    """Change one value of a JSON text or of a safetensors header, whatever else stays whole."""
    if data[:1] in (b"{", b"["):
        return _changed_json(rng, data)
    if len(data) >= 10 and data[8:9] == b"{":
        (size,) = struct.unpack_from("<Q", data)
        header = _changed_json(rng, data[8 : 8 + size])
        if header is not None:
            length = len(header) if rng.random() < 0.9 else rng.choice(_INTEGERS)
            return struct.pack("<Q", length) + header + data[8 + size :]
    return None


def _changed_json(rng: random.Random, data: bytes) -> bytes | None:
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if rng.random() < 0.02:
        depth = rng.choice((50, 1_000, 100_000))
        return rng.choice((b"[", b'{"a":')) * depth
    holder, key = rng.choice(list(_places(whole)) or [(None, None)])
    if holder is None:
        return json.dumps(rng.choice(_VALUES)).encode()
    value = rng.choice(_VALUES)
    if rng.random() < 0.3:
        value = _near(rng, holder[key])
    if rng.random() < 0.1:
        del holder[key]
    elif isinstance(holder, dict) and rng.random() < 0.15:
        holder[rng.choice(("a", "", "__class__", "version", "shape", "rows"))] = value
    else:
        holder[key] = value
    return json.dumps(whole).encode()


def _near(rng: random.Random, value: Any) -> Any:
    """Return a value that is nearly right."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((value + 1, -value, value * 2, float(value), str(value), [value]))
    if isinstance(value, str):
        return rng.choice((value[:-1], value + "x", value.upper(), [value], value * 100))
    if isinstance(value, list):
        return rng.choice((value[:-1], value * 2, value[::-1], dict(enumerate(map(str, value)))))
    return [value]


def _places(value: Any) -> Any:
    """Yield every place of a JSON value, as what holds it and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    if isinstance(value, dict | list):
        for key, inner in items:
            yield value, key
            if isinstance(inner, dict | list):
                yield from _places(inner)
