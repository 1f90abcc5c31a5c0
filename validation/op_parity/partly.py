"""A part of a module of the reference: its own forward, with results of some of its children given beforehand.

What the module hands to a child, or returns, is then a function of those results alone: attention between its
projections, GELU between two convolutions. The module itself is never changed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from validation.program.anchors import Unmatched


class _Given(nn.Module):
    """Returns what it was made with, whatever it is called with."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: Any) -> Tensor:
        return self.value


class _Noted(nn.Module):
    """Keeps what it is called with, and returns it."""

    seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x


def partly(module: nn.Module, *inputs: Any, given: Mapping[str, Tensor], wanted: str = "") -> Tensor:
    """Returns what a module hands to its child `wanted` (by path), or what it returns, with results of others given.

    Unmatched where it never runs that child.
    """
    noted = _Noted()
    children: dict[str, nn.Module] = {path: _Given(value) for path, value in given.items()}
    if wanted:
        children[wanted] = noted
    with torch.no_grad():
        returned: Tensor = _with_children(module, children)(*inputs)
    if not wanted:
        return returned
    if noted.seen is None:
        raise Unmatched(f"the reference never runs its {wanted}")
    return noted.seen


def with_values(module: nn.Module, **values: Any) -> nn.Module:
    """Returns a copy of a module that shares everything but the attributes, or parameters, that are given."""
    changed = _copied(module)
    for name, value in values.items():
        if name in changed._parameters:
            changed._parameters[name] = nn.Parameter(value, requires_grad=False)
        else:
            setattr(changed, name, value)
    return changed


def _with_children(module: nn.Module, children: Mapping[str, nn.Module]) -> nn.Module:
    changed = _copied(module)
    for path, child in children.items():
        head, _, rest = path.partition(".")
        changed._modules[head] = _with_children(_child(changed, head), {rest: child}) if rest else child
    return changed


def _child(module: nn.Module, name: str) -> nn.Module:
    child = module._modules[name]
    assert child is not None
    return child


def _copied(module: nn.Module) -> nn.Module:
    changed = copy.copy(module)
    changed._modules, changed._parameters = dict(module._modules), dict(module._parameters)
    forward = vars(module).get("forward")
    if isinstance(forward, MethodType):  # one of the instance's own is bound to the original and its children
        changed.forward = MethodType(forward.__func__, changed)
    return changed
