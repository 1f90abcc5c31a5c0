"""Streaming: a model larger than memory, whose decoder layers exist only while they run.

The vision tower, projector and norms are small and stay. A decoder layer's weights are read from the mapped file just
before it runs and dropped after; so is the head. Of the embedding table only the rows asked for are ever read. The
numbers are those of a model held in memory, bit for bit: the same weights enter the same operations.
It costs one read of all layers per forward call, so prefill pays it once for the whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastvlm_ref.checkpoint.tensors import PIECE, LazyTensor
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import EmbeddingTable

ATTRIBUTE = "weight_stream"


class WeightStream:
    """The weights of one module, in the file until wanted: `hold` brings them in, `release` drops them.

    Calls nest: the weights go when the last holder releases them.
    """

    def __init__(self, module: nn.Module, tensors: Mapping[str, LazyTensor]) -> None:
        self.module = module
        self.tensors = dict(tensors)  # by the module's own parameter names
        self.holders = 0

    def hold(self) -> None:
        """Reads every parameter of the module into memory, float32."""
        if self.holders == 0:
            for name, tensor in self.tensors.items():
                _assign(self.module, name, tensor.read())
        self.holders += 1

    def release(self) -> None:
        """Drops the parameters again; their shapes stay, on the meta device."""
        self.holders -= 1
        if self.holders == 0:
            for name, tensor in self.tensors.items():
                _assign(self.module, name, torch.empty(tensor.shape, device="meta"))


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module.get_submodule(parent)._parameters[leaf] = nn.Parameter(value, requires_grad=False)


class StreamedEmbedding(EmbeddingTable):
    """An embedding table that stays in the file; a lookup reads the rows it needs."""

    def __init__(self, config: TextConfig, table: LazyTensor) -> None:
        super().__init__(config.vocab_size, config.hidden_size, device="meta")
        self.table = table

    def forward(self, input: Tensor) -> Tensor:  # (…) ids -> (…, H)
        if self.weight.device.type != "meta":
            return super().forward(input)
        rows = self.table.rows(input.reshape(-1))
        return rows.reshape(*input.shape, -1)


def attach(module: nn.Module, tensors: Mapping[str, LazyTensor], *, on_forward: bool = True) -> None:
    """Makes a module's weights come and go; `on_forward` ties that to its forward calls."""
    stream = WeightStream(module, tensors)
    setattr(module, ATTRIBUTE, stream)
    if on_forward:
        module.register_forward_pre_hook(_hold)
        module.register_forward_hook(_release, always_call=True)


def stored(root: nn.Module, name: str) -> tuple[tuple[int, ...], Callable[[], Iterator[Tensor]]]:
    """Returns shape and values of a parameter below `root`: flat pieces in order, read from the file where it streams.

    The pieces of a parameter in memory are float32, those of a streaming one in the dtype in which it is stored.
    """
    place = ""
    for part in name.split(".")[:-1]:
        place = f"{place}.{part}".lstrip(".")
        stream = getattr(root.get_submodule(place), ATTRIBUTE, None)
        if stream is not None:
            tensor = stream.tensors[name.removeprefix(f"{place}.")]
            return tensor.shape, tensor.pieces
    value = root.get_parameter(name).detach()
    return tuple(value.shape), lambda: iter(value.reshape(-1).split(PIECE // value.element_size()))


def _hold(module: nn.Module, _: Any) -> None:
    getattr(module, ATTRIBUTE).hold()


def _release(module: nn.Module, _: Any, __: Any) -> None:
    getattr(module, ATTRIBUTE).release()


@contextmanager
def materialised(module: nn.Module) -> Iterator[nn.Module]:
    """Holds the weights of every streaming module at or below `module` for the length of a `with` block.

    A module that does not stream is yielded as it is, so that callers need not know which they have.
    """
    streams = [stream for part in module.modules() if (stream := getattr(part, ATTRIBUTE, None)) is not None]
    held: list[WeightStream] = []
    try:
        for stream in streams:
            held.append(stream)
            stream.hold()
        yield module
    finally:
        for stream in held:
            stream.release()
