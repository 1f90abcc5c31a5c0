"""What torch keeps of every traced graph, given back when an export ends.

torch.jit registers each traced module, and its type, in one unit of the whole process (torch/jit/_state.py and
_recursive.py, 2.7 to 2.13), which never forgets: 10 MB an export of tiny's encoder. C++ looks that unit up by its name
whenever it makes a type, so for the time of an export another stands there, and goes with the graphs. These names are
torch's own; where a version has none of them, nothing is changed, and its exports keep what they kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.jit import _recursive, _state


@contextmanager
def graphs_forgotten() -> Iterator[None]:
    """Runs the block, or the function it decorates; what it traces and nobody holds is then freed."""
    state: Any = _state
    recursive: Any = _recursive
    if not (hasattr(state, "_python_cu") and hasattr(recursive, "concrete_type_store")):
        yield
        return
    kept = state._python_cu, recursive.concrete_type_store
    state._python_cu, recursive.concrete_type_store = torch._C.CompilationUnit(), recursive.ConcreteTypeStore()
    try:
        yield
    finally:
        state._python_cu, recursive.concrete_type_store = kept
