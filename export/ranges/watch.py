"""Looks at every value that ops compute: the largest magnitude, and how many are fp16 subnormals.

Notable choices:
- numbers are compared as bits: without its sign, a larger float32 is a larger integer, and NaN is larger than infinity;
  in blocks that stay in the cache all of it costs 0.35 ns a value on one core;
- an op is seen as torch composed it (a TorchDispatchMode) and named by the innermost module whose call is running,
  which hooks tell; both belong to the running thread, so that two frames may run side by side through one module;
- what moves values computes none and is left out; of an op with several results the first counts.
It does not know models.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from export.ranges.result import SMALLEST_NORMAL, TensorRange
from fastvlm.errors import TensorError
from fastvlm.manifest import significant

BLOCK = 1 << 16  # values at a time: 256 KB
NO_SIGN = np.uint32(0x7FFFFFFF)
NORMAL_BITS = int(np.float32(SMALLEST_NORMAL).view(np.uint32))
# aten calls them by what they are composed of
WRITTEN = {"bmm": "matmul", "mm": "matmul", "addmm": "linear"}
MOVES = frozenset({
    "_unsafe_view", "_reshape_alias", "_to_copy", "clone", "copy_", "cat", "stack", "constant_pad_nd", "index",
    "index_select", "embedding", "lift_fresh", "empty", "empty_like", "zeros", "ones", "full", "scalar_tensor",
})  # fmt: skip


@dataclass(frozen=True)
class Extremes:
    """Of some values: the largest |x|, how many have 0 < |x| < 2⁻¹⁴, and how many there are."""

    peak: float = 0.0
    subnormals: int = 0
    count: int = 0

    def __or__(self, other: Extremes) -> Extremes:
        peak = max(self.peak, other.peak)
        return Extremes(peak, self.subnormals + other.subnormals, self.count + other.count)


def extremes(x: Tensor) -> Extremes:
    """Returns the extremes of a float tensor of any shape; the peak is infinity where a value is that or NaN."""
    bits = x.detach().float().reshape(-1).view(torch.int32).numpy().view(np.uint32)
    buffer, flags = np.empty(min(BLOCK, len(bits)), np.uint32), np.empty(min(BLOCK, len(bits)), np.bool_)
    largest, subnormals = 0, 0
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK]
        part, flag = buffer[: len(block)], flags[: len(block)]
        np.bitwise_and(block, NO_SIGN, out=part)
        largest = max(largest, int(part.max()))
        np.subtract(part, 1, out=part)  # zeros become the largest: they are no subnormals
        np.less(part, NORMAL_BITS - 1, out=flag)
        subnormals += int(np.count_nonzero(flag))
    peak = float(np.uint32(largest).view(np.float32))
    return Extremes(peak if peak == peak else float("inf"), subnormals, len(bits))


class Look:
    """Looks at tensors that are handed to it by name; what comes under one name counts together."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.found: dict[str, Extremes] = {}

    def __call__(self, name: str, value: Tensor, count: int | None = None) -> Tensor:
        """Looks at `value` and returns it; `count` says how many of its values count, where others are zeros."""
        seen = extremes(value)
        seen = seen if count is None else Extremes(seen.peak, seen.subnormals, count)
        self.found[self.prefix + name] = self.found.get(self.prefix + name, Extremes()) | seen
        return value


class Tally:
    """Gathers the extremes of tensors over many inputs, in the order in which tensors and inputs come."""

    def __init__(self) -> None:
        self._found: dict[str, Extremes] = {}
        self._worst: dict[str, str] = {}

    def add(self, found: Mapping[str, Extremes], source: str) -> None:
        """Takes what one input, called `source`, gave; TensorError for NaN or infinity."""
        for name, seen in found.items():
            if seen.peak == float("inf"):
                raise TensorError(
                    f"{name} gives NaN or infinity in float32 on the input {source!r}; fetch the checkpoint again, or "
                    "take an earlier one of its training"
                )
            before = self._found.get(name, Extremes())
            if name not in self._found or seen.peak > before.peak:
                self._worst[name] = source
            self._found[name] = before | seen

    def tensors(self) -> tuple[TensorRange, ...]:
        """Returns all that was gathered, rounded."""
        rows = ((name, seen, seen.subnormals / max(seen.count, 1)) for name, seen in self._found.items())
        return tuple(
            TensorRange(name, significant(seen.peak), significant(share), self._worst[name])
            for name, seen, share in rows
        )


_running = threading.local()


class OpWatch(TorchDispatchMode):
    """Inside this context every op's result is looked at; `found` has the extremes by name, with `prefix` before it.

    Modules are known by name where `named_calls` holds them.
    """

    def __init__(self, prefix: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.prefix = prefix
        self.found: dict[str, Extremes] = {}
        self._calls: list[tuple[str, Counter[str]]] = [("", Counter())]

    def __enter__(self) -> OpWatch:
        _running.watch = self
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *given: Any) -> None:
        del _running.watch
        super().__exit__(*given)  # type: ignore[no-untyped-call]

    def enter(self, path: str) -> None:
        """A module's call begins."""
        self._calls.append((path, Counter()))

    def leave(self) -> None:
        """The innermost call ends."""
        self._calls.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        op = func.overloadpacket.__name__
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        if not (func.is_view or op in MOVES) and isinstance(first, Tensor) and first.is_floating_point():
            self._see(WRITTEN.get(op, op.strip("_")), first)
        return out

    def _see(self, op: str, value: Tensor) -> None:
        path, counts = self._calls[-1]
        counts[op] += 1
        name = self.prefix + f"{path} {op}".lstrip() + (f".{counts[op]}" if counts[op] > 1 else "")
        self.found[name] = self.found.get(name, Extremes()) | extremes(value)


@contextmanager
def named_calls(root: nn.Module) -> Iterator[None]:
    """Tells the running OpWatch of the calls of `root` and of modules below it, for the length of a `with` block."""
    hooks = []
    for path, module in root.named_modules():
        hooks.append(module.register_forward_pre_hook(_entering(path)))
        hooks.append(module.register_forward_hook(_leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _entering(path: str) -> Callable[..., None]:
    def enter(module: nn.Module, inputs: object) -> None:
        if (watch := getattr(_running, "watch", None)) is not None:
            watch.enter(path)

    return enter


def _leave(module: nn.Module, inputs: object, output: object) -> None:
    if (watch := getattr(_running, "watch", None)) is not None:
        watch.leave()
