"""One value of a program and the module of the reference that computes it too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Counterpart:
    """A weighted op of a program and the reference's module that it stands for.

    parameter: how the graph calls it (`network.2.0.convffn.fc1`); with `.weight` behind it the program's constant.
    block: the block that it belongs to. module: its path in FastVLM. takes, gives: exponents e of the op's input and
    result, which are stored as x · 2^−e. result: from what the module returns, float32 of batch 1, to the op's result,
    layout and all factors included.
    """

    parameter: str
    block: str
    module: str
    takes: int
    gives: int
    result: Change


@dataclass(frozen=True)
class Block:
    """A block's result in a program and in the reference.

    name: as reports call it, `vision_encoder.network.2.0`, `decoder.layers.5`; also the module's path in FastVLM.
    value: the name of the program's value. result: as for a Counterpart.
    """

    name: str
    value: str
    result: Change
