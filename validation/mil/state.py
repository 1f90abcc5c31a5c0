"""The states of one conversation, shared by the functions of a package.

`MILModel.make_state()` makes one; every `predict` that takes it may change it. A `predict` that fails leaves what its
ops had written until then: write the state again, or start from a fresh one. The tensors are the runtime's own: what is
read is a copy, what is written is copied in.
"""

from __future__ import annotations

import numpy as np
import torch

from fastvlm.errors import ExecutionError, PackageError
from validation.mil.features import given_array, narrowed
from validation.mil.registry import State
from validation.within_memory import within_memory


class MILState:
    """Zeros at first, one tensor per state name; PackageError when they do not fit into memory."""

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, torch.dtype], device: torch.device | str = "cpu"
    ):
        self.boxes = {name: State(_zeros(name, shape, dtypes[name], device)) for name, shape in shapes.items()}

    def _box(self, name: str) -> State:
        if name not in self.boxes:
            raise ExecutionError(f"there is no state {name!r}; the model has {', '.join(self.boxes) or 'none'}")
        return self.boxes[name]

    def read_state(self, name: str) -> np.ndarray:
        """A copy of the state's value, in its own shape and type; ExecutionError for an unknown name."""
        copied: np.ndarray = self._box(name).tensor.cpu().numpy().copy()
        return copied

    def write_state(self, name: str, value: np.ndarray) -> None:
        """Replace the state's value; ExecutionError for an unknown name, another shape, what its type cannot hold."""
        box, what = self._box(name), f"state {name!r}"
        array = given_array(value, what)
        if array.shape != tuple(box.tensor.shape):
            raise ExecutionError(f"{what}: shape {list(array.shape)} given, expected {list(box.tensor.shape)}")
        held = box.tensor.new_empty(0, device="cpu").numpy().dtype
        box.tensor = torch.from_numpy(narrowed(array, held, what)).to(box.tensor)


def _zeros(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    try:
        with within_memory():
            return torch.zeros(shape, dtype=dtype, device=device)
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise PackageError(f"state {name!r} of shape {list(shape)} cannot be made ({reason})") from error
