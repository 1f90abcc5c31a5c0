"""The MIL runtime: executes `.mlpackage` files on PyTorch, on any machine, without importing coremltools."""

from __future__ import annotations

from validation.mil.model import MILModel
from validation.mil.state import MILState

__all__ = ["MILModel", "MILState"]
