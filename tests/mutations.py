"""Small changes of a module's source, one at a time: what ``tests/mutate.py`` puts to the test.

What no test should look at stays as it is: docstrings and other text (but for ``"left"`` and
``"right"``), annotations, decorators, the message of a ``raise``, logging.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from types import CodeType

_PAIRS: tuple[tuple[type[ast.AST], type[ast.AST]], ...] = (
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
    (ast.BitAnd, ast.BitOr),
    (ast.LShift, ast.RShift),
    (ast.And, ast.Or),
    (ast.Break, ast.Continue),
)
_SWAPS = {
    **dict(_PAIRS),
    **{right: left for left, right in _PAIRS},
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
}
_BUILTINS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_METHODS = {
    **_BUILTINS,
    "amin": "amax",
    "minimum": "maximum",
    "argmin": "argmax",
    "clamp_min": "clamp_max",
    "sum": "mean",
    "zeros": "ones",
    "zeros_like": "ones_like",
    "floor": "ceil",
    "sin": "cos",
}
_METHODS |= {new: old for old, new in _METHODS.items()}
_SIDES = {"left": "right", "right": "left"}
_UNTOUCHED = {"annotation", "returns", "decorator_list", "type_params", "ctx"}
_OPPOSITES = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # swapped anyway


@dataclass
class Mutation:
    """``new`` in the place of ``owner.field``, or of ``owner.field[index]``; None takes it out."""

    kind: str
    line: int
    owner: ast.AST
    field: str
    index: int | None
    new: ast.AST | None
    before: str = ""
    after: str = ""

    def put(self) -> None:
        """Change the tree, and keep what undoes it."""
        old = getattr(self.owner, self.field)
        self._old = list(old) if self.index is not None else old
        if self.index is None:
            setattr(self.owner, self.field, self.new)
        else:
            old[self.index : self.index + 1] = [] if self.new is None else [self.new]

    def undo(self) -> None:
        setattr(self.owner, self.field, self._old)


def find_mutations(tree: ast.Module, only: Collection[str] = ()) -> list[Mutation]:
    """Return every change of a module, in the order of its source; each for itself.

    Args:
        tree: The module; it is as it was when this returns.
        only: Names of the functions and classes to change; empty is all of the module.
    """
    spare = _spare_assignments(tree)
    found = []
    for owner, field, index, node in _places(tree, only):
        for kind, new in _variants(field, node, node in spare):
            line = getattr(node, "lineno", getattr(owner, "lineno", 0))
            mutation = Mutation(kind, line, owner, field, index, new)
            shows_owner = isinstance(owner, (ast.expr, ast.keyword, ast.arguments, ast.AugAssign))
            mutation.before = _text(owner if shows_owner else node)
            mutation.put()
            mutation.after = _text(owner if shows_owner else new)
            mutation.undo()
            found.append(mutation)
    return found


def compile_mutant(tree: ast.Module, mutation: Mutation, path: str) -> CodeType:
    """Return the code of a module with one change."""
    mutation.put()
    try:
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)
    finally:
        mutation.undo()


def _text(node: ast.AST | None) -> str:
    return "" if node is None else " ".join(ast.unparse(node).split())


def _places(
    owner: ast.AST, only: Collection[str] = ()
) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Yield what may be changed, with the place where it stands."""
    for field, value in ast.iter_fields(owner):
        if field in _UNTOUCHED:
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            named = not only or getattr(node, "name", None) in only
            if not isinstance(node, ast.AST) or not named or _is_aside(node):
                continue
            yield owner, field, index if isinstance(value, list) else None, node
            if not isinstance(node, ast.Raise):
                yield from _places(node)


def _is_aside(node: ast.AST) -> bool:
    """Whether a statement is for readers, type checkers or the log."""
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom():
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name in ("logger", "logging", "_logger", "warnings")
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
    return False


def _variants(field: str, node: ast.AST, spare: bool) -> Iterator[tuple[str, ast.AST | None]]:
    """Yield what may stand in the place of a node."""
    if type(node) in _SWAPS:
        yield "operator", _SWAPS[type(node)]()
    match node:
        case ast.UnaryOp(operand=operand):
            yield "operator", operand
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield "constant", ast.Constant(value + 1)
            yield "constant", ast.Constant(value - 1)
        case ast.Constant(value=str(value)) if value in _SIDES:
            yield "constant", ast.Constant(_SIDES[value])
        case ast.Name(id=name) if name in _BUILTINS:
            yield "name", ast.Name(_BUILTINS[name], ast.Load())
        case ast.Attribute(value=value, attr=name) if name in _METHODS:
            yield "name", ast.Attribute(value, _METHODS[name], ast.Load())
        case ast.keyword(arg=str(), value=value):
            # Of True and False there is the other one already.
            if not (isinstance(value, ast.Constant) and isinstance(value.value, bool)):
                yield "keyword", None
        case ast.Return(value=ast.expr() as value) if _text(value) != "None":
            yield "return", ast.Return(ast.Constant(None))
        case ast.Raise() | ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield "statement", ast.Pass()
        case ast.Assign() if spare:
            yield "statement", ast.Pass()
    if field in ("test", "ifs") and isinstance(node, ast.expr) and not _has_opposite(node):
        yield "condition", ast.UnaryOp(ast.Not(), node)


def _has_opposite(test: ast.expr) -> bool:
    """Whether a change of its operator makes the opposite of a condition."""
    match test:
        case ast.Compare(ops=[operator]):
            return isinstance(operator, _OPPOSITES)
        case ast.UnaryOp(op=ast.Not()):
            return True
    return False


def _spare_assignments(tree: ast.Module) -> set[ast.AST]:
    """Return the assignments without which every name still has a value, if another one."""
    spare = set()
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        known = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
        assignments = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
        for node in sorted(assignments, key=lambda node: node.lineno):
            names = {
                name.id
                for target in node.targets
                for name in ast.walk(target)
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            }
            if names <= known:
                spare.add(node)
            known |= names
    return spare
