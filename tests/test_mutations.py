"""What ``tests/mutate.py`` changes, and what it leaves alone."""

from __future__ import annotations

import ast
import textwrap

import pytest

from tests.mutate import wilson
from tests.mutations import compile_mutant, find_mutations


def changes_of(source: str) -> list[str]:
    tree = ast.parse(textwrap.dedent(source))
    untouched = ast.dump(tree)
    found = [f"{m.before} -> {m.after}" for m in find_mutations(tree)]
    assert ast.dump(tree) == untouched
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x < y", ["x < y -> x <= y"]),
        ("x in y", ["x in y -> x not in y"]),
        ("x @ y", ["x @ y -> x * y"]),
        ("x and y", ["x and y -> x or y"]),
        ("~x", ["~x -> x"]),
        ("x[3]", ["x[3] -> x[4]", "x[3] -> x[2]"]),
        ("f(True)", ["f(True) -> f(False)", "f(True) -> pass"]),
        ("f(dim=x)", ["f(dim=x) -> f()", "f(dim=x) -> pass"]),
        ("f(keep=True)", ["keep=True -> keep=False", "f(keep=True) -> pass"]),
        ("x = y.argmin()", ["y.argmin() -> y.argmax()"]),
        ("x = min(y)", ["min(y) -> max(y)"]),
        ("x = argmin(y)", []),
        ("x = y if z else w", ["y if z else w -> y if not z else w"]),
        ("x = y if z == w else w", ["z == w -> z != w"]),
        ("x += y", ["x += y -> pass", "x += y -> x -= y"]),
        ("for x in y: break", ["break -> continue"]),
        ("def f(x=1): return x", ["x=1 -> x=2", "x=1 -> x=0", "return x -> return None"]),
        ("def f(x):\n  x = g(x)\n  y = x", ["x = g(x) -> pass"]),
        ("def f(x):\n  raise ValueError(f'{x + 1}')", ["raise ValueError(f'{x + 1}') -> pass"]),
    ],
)
def test_each_change_is_made_once_and_undone(source, expected):
    assert sorted(changes_of(source)) == sorted(expected)


def test_what_is_for_readers_stays():
    source = """
        '''A module of 3 lines.'''
        import torch
        from typing import Literal
        logger.warning("%d", 3)
        if TYPE_CHECKING:
            x = 1
        y: Literal[1, 2]
        @cache(3)
        def f(a: Literal[3], b: "x > 1") -> Literal[4]:
            '''Return 3.'''
        """
    assert changes_of(source) == []


def test_a_mutant_differs_in_its_one_place():
    tree = ast.parse("def f(x):\n    return x > 2\ndef g(x):\n    return x > 2\n")
    found = find_mutations(tree, only=("g",))
    (boundary,) = [mutation for mutation in found if mutation.kind == "operator"]
    space: dict = {}
    exec(compile_mutant(tree, boundary, "mutant"), space)
    assert (space["f"](2), space["g"](2)) == (False, True)
    assert boundary.line == 4


def test_wilsons_interval_of_nine_in_ten():
    # (0.9 + z²/20 -+ z sqrt(0.09/10 + z²/400)) / (1 + z²/10) with z = 1.96, by hand.
    low, high = wilson(9, 10)
    assert (low, high) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))
    assert wilson(0, 0) == (0, 1)
