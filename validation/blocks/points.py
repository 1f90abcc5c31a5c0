"""Points at which program and reference are compared in one run, and how far apart they are there.

The yardstick at each point is the reference with every op rounded to fp16 (`validation.rounding`): errors grow from
block to block in any fp16 run, so that a fixed limit would alarm at the end of a network and sleep at its beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from validation.counterparts.counterpart import Block, Change, Counterpart
from validation.program.anchors import Anchors


@dataclass(frozen=True)
class Point:
    """A value of one function of a program, and the module of the reference that gives it too.

    where: the function, "decode", "encode_1024". value: the name of the program's value.
    """

    name: str
    package: Path
    where: str
    module: str
    value: str
    result: Change

    @classmethod
    def of_block(cls, block: Block, package: Path, where: str) -> Point:
        """The result of a block."""
        return cls(block.name, package, where, block.name, block.value, block.result)

    @classmethod
    def of_op(cls, counterpart: Counterpart, package: Path, where: str, anchors: Anchors) -> Point:
        """The result of a weighted op; Unmatched where the program has none."""
        value = anchors.given(counterpart.parameter).name
        return cls(counterpart.parameter, package, where, counterpart.module, value, counterpart.result)

    @property
    def title(self) -> str:
        """How reports call it."""
        return f"{self.name} in {self.where}"


@dataclass
class Distance:
    """How far values are from the reference's, gathered call by call.

    index, found, expected: where they are furthest apart; `row` is that call's first row of the prompt.
    """

    signal: float = 0.0
    noise: float = 0.0
    largest: float = -1.0
    index: tuple[int, ...] = ()
    row: int = 0
    found: float = math.nan
    expected: float = math.nan

    def add(self, expected: Tensor, found: Tensor, row: int = 0) -> None:
        """Counts two tensors of one shape, of a call that begins at `row`; another shape is as bad as can be."""
        if expected.shape != found.shape:
            self.noise = math.inf
            return
        error = (found.double() - expected.double()).abs()
        self.signal += float(expected.double().square().sum())
        self.noise += float(error.square().sum())
        error = torch.where(error.isnan(), math.inf, error)
        place = int(error.argmax())
        if float(error.flatten()[place]) > self.largest:
            self.largest = float(error.flatten()[place])
            self.index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), error.shape))
            self.row = row
            self.found, self.expected = float(found.flatten()[place]), float(expected.flatten()[place])

    @property
    def snr_db(self) -> float:
        """SNR in dB; −inf for what is no number or was never seen."""
        if not math.isfinite(self.noise) or self.largest < 0:
            return -math.inf
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 else -math.inf


@dataclass
class PointRow:
    """One point in a run of the package, beside the yardstick."""

    point: Point
    own: Distance = field(default_factory=Distance)
    yardstick: Distance = field(default_factory=Distance)

    @property
    def snr_loss_db(self) -> float:
        """How much worse than fp16 alone in dB, negative where better; inf where nothing was computed."""
        if self.own.snr_db == -math.inf or self.yardstick.snr_db == -math.inf:
            return math.inf
        if self.own.snr_db == math.inf:
            return 0.0
        return self.yardstick.snr_db - self.own.snr_db


@contextmanager
def watched(root: nn.Module, modules: Iterable[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Shows what modules of the reference return, by path, while the block runs."""
    hooks = [
        root.get_submodule(name).register_forward_hook(lambda _, __, result, name=name: see(name, result.detach()))
        for name in dict.fromkeys(modules)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gathered(points: Iterable[Point], results: Mapping[str, Tensor]) -> dict[Point, Tensor]:
    """Returns the reference's value of each point, as the program has it, float32; none where no module gave one."""
    return {point: point.result(results[point.module]).float() for point in points if point.module in results}
