"""Branches, loops and lists (iOS15 control_flow), and the classifier's output (iOS15 classify)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fastvlm.errors import ExecutionError
from validation.mil.binding import MOST_VALUES
from validation.mil.dtypes import dtype_named
from validation.mil.execution import MOST_ROUNDS, ROUNDS_SLOT, run_block
from validation.mil.registry import Blocks, Frame, Ints, Kind, Tensor, Tensors, op


@op("cond", kind=Kind.MOVE)
def cond(frame: Frame, blocks: Blocks, pred: bool) -> Tensors:
    """iOS15 control_flow.cond: the first block where pred holds, else the second"""
    return Tensors(tuple(run_block(frame, blocks[0] if pred else blocks[1])))


@op("while_loop", kind=Kind.MOVE)
def while_loop(frame: Frame, blocks: Blocks, loop_vars: Tensors) -> Tensors:
    """iOS15 control_flow.while_loop: the first block decides, the second gives the next loop_vars"""
    values = tuple(loop_vars)
    while _another_round(frame) and bool(run_block(frame, blocks[0], values)[0]):
        values = tuple(run_block(frame, blocks[1], values))
    return Tensors(values)


def _another_round(frame: list[Any]) -> bool:
    """True; ExecutionError where the loops of this call have had all rounds that they may have."""
    if not frame[ROUNDS_SLOT]:
        raise ExecutionError(f"loops have run {MOST_ROUNDS:,} rounds in one call, at most that many are run")
    frame[ROUNDS_SLOT] -= 1
    return True


@dataclass(frozen=True)
class TensorList:
    """A list of tensors of one shape; an element never written (None) reads as zeros. Ops return new lists."""

    items: tuple[Tensor | None, ...]
    shape: tuple[int, ...] | None
    dtype: torch.dtype

    def numel(self) -> int:
        """How many elements it has, like a tensor; those themselves are neither read nor copied by moving it."""
        return len(self.items)

    def read(self, index: int) -> Tensor:
        """The element, or zeros; IndexError outside the list, ValueError for zeros of an unknown shape."""
        if not 0 <= index < len(self.items):
            raise IndexError(f"element {index} of a list of {len(self.items)}")
        item = self.items[index]
        return item if item is not None else self._zeros()

    def _zeros(self) -> Tensor:
        written = next((item for item in self.items if item is not None), None)
        if written is not None:
            return torch.zeros_like(written)
        if self.shape is None:
            raise ValueError("an element of a list was read before any was written, and its shape is not declared")
        return torch.zeros(self.shape, dtype=self.dtype)

    def with_item(self, index: int, value: Tensor) -> TensorList:
        """The list with that element replaced, grown where it was shorter; IndexError for a negative index."""
        if not 0 <= index < MOST_VALUES:
            raise IndexError(f"element {index} of a list, which has at most {MOST_VALUES}")
        items = list(self.items) + [None] * (index + 1 - len(self.items))
        items[index] = value
        return TensorList(tuple(items), self.shape, self.dtype)


@op("make_list", kind=Kind.MOVE)
def make_list(
    elem_shape: Tensors | None = None, init_length: int = 1, dynamic_length: bool = True, dtype: str = "fp32"
) -> Any:
    """iOS15 control_flow.make_list: a shape entry that is a name stands for a length known only at run time"""
    lengths = tuple(elem_shape or ())
    known = all(isinstance(length, Tensor) for length in lengths)
    shape = tuple(int(length.item()) for length in lengths) if known else None
    if init_length > MOST_VALUES:
        raise ValueError(f"a list of {init_length} elements, at most {MOST_VALUES} are held")
    return TensorList((None,) * init_length, shape, dtype_named(dtype).torch)


@op("list_length", kind=Kind.MOVE)
def list_length(ls: Any) -> Tensor:
    """iOS15 control_flow.list_length"""
    return torch.tensor(len(ls.items), dtype=torch.int32)


@op("list_write", kind=Kind.MOVE)
def list_write(ls: Any, index: int, value: Tensor) -> Any:
    """iOS15 control_flow.list_write: past the end the list grows"""
    return ls.with_item(index, value)


@op("list_read", kind=Kind.MOVE)
def list_read(ls: Any, index: int) -> Tensor:
    """iOS15 control_flow.list_read"""
    element: Tensor = ls.read(index)
    return element


@op("list_gather", kind=Kind.MOVE)
def list_gather(ls: Any, indices: Ints) -> Tensor:
    """iOS15 control_flow.list_gather: the elements stacked on a new first axis; negative indices count from the end"""
    length = len(ls.items)
    return torch.stack([ls.read(index + length if index < 0 else index) for index in indices])


@op("list_scatter", kind=Kind.MOVE)
def list_scatter(ls: Any, indices: Ints, value: Tensor) -> Any:
    """iOS15 control_flow.list_scatter: value[i] becomes element indices[i]"""
    for index, item in zip(indices, value, strict=True):
        ls = ls.with_item(index, item)
    return ls


@op("classify", kind=Kind.MOVE)
def classify(probabilities: Tensor, classes: Any) -> Tensors:
    """iOS15 classify.classify: the likeliest class, and class -> probability"""
    values = probabilities.reshape(-1).tolist()
    names = [item.item() if hasattr(item, "item") else item for item in classes]
    best = max(range(len(values)), key=values.__getitem__)
    return Tensors((names[best], dict(zip(names, values, strict=True))))
