"""The states of one conversation, shared by the functions of a package.

`MILModel.make_state()` makes one; every `predict` that takes it may change it. The tensors are the runtime's own: what
is read is a copy, what is written is copied in.
"""

from __future__ import annotations

import numpy as np
import torch

from fastvlm.errors import ExecutionError
from validation.mil.registry import State


class MILState:
    """Zeros at first, one tensor per state name."""

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, torch.dtype], device: torch.device | str = "cpu"
    ):
        self.boxes = {
            name: State(torch.zeros(shape, dtype=dtypes[name], device=device)) for name, shape in shapes.items()
        }

    def _box(self, name: str) -> State:
        if name not in self.boxes:
            raise ExecutionError(f"there is no state {name!r}; the model has {', '.join(self.boxes) or 'none'}")
        return self.boxes[name]

    def read_state(self, name: str) -> np.ndarray:
        """A copy of the state's value, in its own shape and type; ExecutionError for an unknown name."""
        copied: np.ndarray = self._box(name).tensor.cpu().numpy().copy()
        return copied

    def write_state(self, name: str, value: np.ndarray) -> None:
        """Replace the state's value; ExecutionError for an unknown name or another shape."""
        box = self._box(name)
        if tuple(np.shape(value)) != tuple(box.tensor.shape):
            raise ExecutionError(
                f"state {name!r}: shape {tuple(np.shape(value))} given, expected {tuple(box.tensor.shape)}"
            )
        box.tensor = torch.from_numpy(np.array(value)).to(box.tensor)
