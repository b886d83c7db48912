"""Whether the names of tfclip in code exist, where the code itself cannot run."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple


class Instance(NamedTuple):
    """An object of which only the class is known."""

    type: type


def wrong_names(code: str, known: Mapping[str, Any]) -> list[str]:
    """Return what code asks of tfclip and tfclip does not have, a sentence each.

    Imports, attributes and the arguments of calls are looked up as far as one can tell, without
    running anything, which object a name stands for.

    Args:
        code: Statements in Python.
        known: What names stand for before the first of them; an ``Instance`` where only the class
            is known.
    """
    reader = _Reader(known)
    reader.visit(ast.parse(code))
    return reader.problems


class _Reader(ast.NodeVisitor):
    """Follows what names stand for, statement by statement."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self.names = dict(known)
        self.problems: list[str] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] != "tfclip":
                continue
            module = self._module(alias.name, node)
            name = alias.asname or "tfclip"
            self.names[name] = module if alias.asname else importlib.import_module("tfclip")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").split(".")[0] != "tfclip":
            return
        module = self._module(node.module or "", node)
        for alias in node.names:
            self.names[alias.asname or alias.name] = self._attribute(module, alias.name, node)

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self._resolve(node.value)
        for target in node.targets:
            self._bind(target, value)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            value = self._resolve(item.context_expr)
            if item.optional_vars is not None:
                self._bind(item.optional_vars, value)
        for statement in node.body:
            self.visit(statement)

    def visit_For(self, node: ast.For) -> None:
        self._resolve(node.iter)
        self._bind(node.target, None)
        for statement in (*node.body, *node.orelse):
            self.visit(statement)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = dict(self.names)
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        for argument in arguments:
            self.names.pop(argument.arg, None)
        for statement in node.body:
            self.visit(statement)
        self.names = {**before, node.name: None}

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._resolve(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._resolve(node)

    def _bind(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
            return
        for inner in ast.walk(target):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                self.names[inner.id] = None

    def _resolve(self, node: ast.expr) -> Any:
        """Return what an expression stands for, an ``Instance``, or None where nobody can tell."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(self._resolve(node.value), node.attr, node)
        if isinstance(node, ast.Call):
            return self._call(node)
        self.generic_visit(node)
        return None

    def _call(self, node: ast.Call) -> Any:
        function = self._resolve(node.func)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self._resolve(argument)
        if isinstance(function, Instance) or not callable(function):
            return None
        self._check_arguments(function, node)
        if inspect.isclass(function):
            return Instance(function)
        return _returned(function)

    def _check_arguments(self, function: Any, node: ast.Call) -> None:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # of C
            return
        keywords = {word.arg: None for word in node.keywords if word.arg is not None}
        whole = len(keywords) == len(node.keywords) and not any(
            isinstance(argument, ast.Starred) for argument in node.args
        )
        try:
            if whole:
                signature.bind(*node.args, **keywords)
            else:
                signature.bind_partial(**keywords)
        except TypeError as error:
            name = getattr(function, "__qualname__", str(function))
            self.problems.append(f"line {node.lineno}: {name}: {error}")

    def _module(self, name: str, node: ast.stmt) -> Any:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] == "tfclip":
                self.problems.append(f"line {node.lineno}: there is no module {name}")
            return None

    def _attribute(self, owner: Any, name: str, node: ast.AST) -> Any:
        if owner is None:
            return None
        if isinstance(owner, Instance):
            return self._member(owner.type, name, node)
        if hasattr(owner, name):
            return getattr(owner, name)
        if isinstance(owner, types.ModuleType):
            try:
                return importlib.import_module(f"{owner.__name__}.{name}")
            except ModuleNotFoundError:
                pass
        label = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", str(owner))
        self.problems.append(f"line {getattr(node, 'lineno', 0)}: {label} has no {name}")
        return None

    def _member(self, cls: type, name: str, node: ast.AST) -> Any:
        """Return a method of an object, bound to nothing; None for what it holds."""
        if hasattr(cls, name):
            member = inspect.getattr_static(cls, name)
            if isinstance(member, types.FunctionType):
                return types.MethodType(member, object())  # so that ``self`` is not asked for
            return getattr(cls, name) if isinstance(member, classmethod | staticmethod) else None
        if any(name in inspect.get_annotations(base) for base in cls.__mro__):
            return None
        sources = (_source(base) for base in cls.__mro__)
        if not any(re.search(rf"\bself\.{name}\b", source) for source in sources):
            place = getattr(node, "lineno", 0)
            self.problems.append(f"line {place}: {cls.__qualname__} has no {name}")
        return None


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return ""


def _returned(function: Any) -> Instance | None:
    """Return what a function says it gives, if that is an object of tfclip."""
    owner = getattr(function, "__self__", None)
    plain = getattr(function, "__func__", function)
    if getattr(plain, "__annotations__", {}).get("return") == "Self":
        return Instance(owner) if inspect.isclass(owner) else None
    try:
        given = typing.get_type_hints(plain).get("return")
    except Exception:  # a name that is only there for type checkers
        return None
    if inspect.isclass(given) and given.__module__.split(".")[0] == "tfclip":
        return Instance(given)
    return None
