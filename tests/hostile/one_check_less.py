"""A module's checks, and the same module without one of them: what must turn a suite red.

A check is an `if` that ends in a raise, or in the words of a problem (yielded or returned), and an `except` that raises
another error in its place. Each is taken out of the source and the function that held it gets the code of what is left:
whoever has imported that function has it without the check, in this process and in what is forked from it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import pytest


@dataclass(frozen=True)
class Check:
    """module: its name; function: qualified within it; words: the condition, or "except X", as the source has it."""

    module: str
    function: str
    words: str

    def __str__(self) -> str:
        return f"{self.module}: {self.function}: {self.words}"


def checks_of(module: str) -> list[Check]:
    """All checks of a module, in the order of its source."""
    return [Check(module, function, words) for function, words, _ in _found(_tree(module))]


def without(check: Check, patch: pytest.MonkeyPatch) -> None:
    """Takes the check out until `patch` is undone; AssertionError where there is no such check, or more than one."""
    tree = _tree(check.module)
    nodes = [node for function, words, node in _found(tree) if (function, words) == (check.function, check.words)]
    assert len(nodes) == 1, f"{check}: found {len(nodes)} times"
    left = ast.fix_missing_locations(_Without(nodes[0]).visit(tree))
    module = importlib.import_module(check.module)
    code = _code(compile(left, str(inspect.getsourcefile(module)), "exec"), check.function)
    patch.setattr(_function(module, check.function), "__code__", code)


def _tree(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(importlib.import_module(module)))


def _found(tree: ast.Module) -> Iterator[tuple[str, str, ast.AST]]:
    """Of each check the function that holds it, its words and its node."""
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        place, node = waiting.pop(0)
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, (ast.FunctionDef, ast.ClassDef))
            waiting.append((f"{place}.{child.name}".lstrip(".") if named else place, child))  # type: ignore[attr-defined]
            if isinstance(child, ast.If) and _tells(child.body[-1]):
                yield place, ast.unparse(child.test), child
            if isinstance(child, ast.ExceptHandler) and isinstance(child.body[-1], ast.Raise):
                yield place, f"except {ast.unparse(child.type) if child.type else ''}".strip(), child


def _tells(last: ast.stmt) -> bool:
    """Whether a statement raises, or gives the words of a problem."""
    if isinstance(last, ast.Raise):
        return True
    value = getattr(last, "value", None)
    if isinstance(last, ast.Expr) and isinstance(value, ast.Yield):
        value = value.value
    elif not isinstance(last, ast.Return):
        return False
    return isinstance(value, ast.JoinedStr) or (isinstance(value, ast.Constant) and isinstance(value.value, str))


class _Without(ast.NodeTransformer):
    """Leaves one check out; what stands in its `else` stays, and a generator is one without its last yield."""

    def __init__(self, gone: ast.AST) -> None:
        self._gone = gone

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        if node is self._gone:
            node.test = ast.Constant(False)
        return node

    def visit_Try(self, node: ast.Try) -> Any:
        self.generic_visit(node)
        node.handlers = [handler for handler in node.handlers if handler is not self._gone]
        return node if node.handlers or node.finalbody else [*node.body, *node.orelse]


def _code(code: CodeType, name: str) -> CodeType:
    for part in name.split("."):
        code = next(each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == part)
    return code


def _function(module: Any, name: str) -> FunctionType:
    found = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    found = inspect.unwrap(found)
    assert isinstance(found, FunctionType)
    return found
