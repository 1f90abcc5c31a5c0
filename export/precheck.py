"""Every weight that an export will use is read once before the first conversion: what is no weight is told at once.

NaN and infinity are refused: no export of them can be right, and the last layer of 7B would be reached after many
minutes. Numbers that fp16 cannot hold (those that it rounds to infinity: |x| ≥ 65,520) are located and told, not
refused: a folded norm or an exponent may bring them into range, and what then is still too large is clamped.
The bits are compared, not the numbers: in IEEE formats the bits of |x|, as an integer, are ordered as |x| is, with
infinity and NaN above all numbers; so signed for values whose sign bit is 0, unsigned for those where it is 1.
Two maxima over the mapped file need no copy, and two threads keep two cores busy.
What a folding makes of good weights, `export.weights` still watches. It knows nothing of graphs or Core ML.
Loading reads no weight for this alone: a model that gives NaN ends its first answer with an error that says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from export.plan import ExportPlan
from fastvlm.errors import TensorError
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint.stream import stored
from fastvlm_ref.model.fastvlm import FastVLM

MOST_NAMED = 20
THREADS = 2
BLOCK = 1 << 18  # bytes compared at a time: the second maximum finds them in the cache
SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a value
UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}
BEYOND = 65_520.0  # the least number that fp16 rounds to infinity; bf16 has none from 65,281 to 65,535
# What float64 rounds to infinity on its way into float32, in which everything is computed.
NO_NUMBER = {torch.float64: 2.0**128 - 2.0**103}

Pieces = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Weight:
    """One tensor that an export uses: name, shape, and its values in order, flat, piece by piece.

    folded: no package ever stores it (a batch norm's mean and variance), so fp16 need not hold it.
    """

    name: str
    shape: tuple[int, ...]
    pieces: Pieces
    folded: bool = False

    @property
    def count(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a tensor: `kind` of value, how many there are, and the flat index of the first of them."""

    weight: Weight
    kind: str  # NO_NUMBERS | TOO_LARGE
    count: int
    first: int

    def __str__(self) -> str:
        found = f"{self.count:,} of {self.weight.count:,} values, the first at flat index {self.first}"
        return f"{self.weight.name} holds {self.kind} ({found})"


NO_NUMBERS, TOO_LARGE = "NaN or infinity", "numbers beyond fp16"


def check_weights(model: FastVLM, plan: ExportPlan, progress: Progress = SILENT, halves: bool = True) -> None:
    """Reads every tensor that `plan` uses; raises TensorError naming each that holds NaN or infinity.

    `halves`: weights are stored as fp16, so that a note tells of each tensor with numbers that fp16 cannot hold.
    """
    faults = find_faults(list(used_weights(model, plan)), progress)
    none = [fault for fault in faults if fault.kind == NO_NUMBERS]
    if none:
        raise TensorError(
            f"{_named(none)}; the checkpoint is damaged or its training diverged, fetch it again or use an earlier one"
        )
    large = [fault for fault in faults if fault.kind == TOO_LARGE and not fault.weight.folded]
    if large and halves:
        progress.note(
            f"{_named(large)}: fp16 rounds them to infinity (from {BEYOND:,.0f} on); those that no exponent and no "
            "folding brings into range are clamped"
        )


def _named(faults: list[Fault]) -> str:
    more = f"; and {len(faults) - MOST_NAMED} more tensors" if len(faults) > MOST_NAMED else ""
    return "; ".join(map(str, faults[:MOST_NAMED])) + more


def find_faults(weights: list[Weight], progress: Progress = SILENT) -> list[Fault]:
    """Reads tensors, two at a time; returns what is wrong with them, in their order."""
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    faults: list[Fault] = []
    try:
        with progress.stage("Checking the weights", sum(weight.count for weight in weights)) as advance:
            for weight, found in zip(weights, pool.map(find_fault, weights), strict=True):
                faults += found
                advance(weight.count)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits for two tensors, not for all
    return faults


def used_weights(model: FastVLM, plan: ExportPlan) -> Iterator[Weight]:
    """Gives the checkpoint's tensors that an export of `plan` reads, each once, streaming or in memory."""
    if plan.encoder:
        for part in ("vision_encoder", "projector") if plan.projector else ("vision_encoder",):
            module = model.get_submodule(part)
            for name, _ in module.named_parameters():
                yield Weight(f"{part}.{name}", *stored(module, name))
            for name, value in module.named_buffers():
                if value.is_floating_point():
                    yield Weight(f"{part}.{name}", tuple(value.shape), partial(_whole, value), folded=True)
    if plan.language:
        for name, _ in model.decoder.named_parameters():
            if name != "lm_head.weight" or not model.config.text.tied_head:
                yield Weight(f"decoder.{name}", *stored(model.decoder, name))


def _whole(value: Tensor) -> Iterator[Tensor]:
    yield value.reshape(-1)


def find_fault(weight: Weight) -> list[Fault]:
    """Reads one tensor; returns what is wrong with it, nothing where fp16 holds every value."""
    counts, firsts, at = {NO_NUMBERS: 0, TOO_LARGE: 0}, {NO_NUMBERS: -1, TOO_LARGE: -1}, 0
    for piece in weight.pieces():
        if not all_below(piece, BEYOND):
            size = piece.double().abs()
            numbers = size < NO_NUMBER.get(piece.dtype, math.inf)  # NaN is not less than anything
            for kind, bad in ((NO_NUMBERS, ~numbers), (TOO_LARGE, numbers & (size >= BEYOND))):
                if count := int(bad.sum()):
                    firsts[kind] = at + int(bad.int().argmax()) if counts[kind] == 0 else firsts[kind]
                    counts[kind] += count
        at += piece.numel()
    return [Fault(weight, kind, counts[kind], firsts[kind]) for kind in counts if counts[kind]]


def all_below(piece: Tensor, limit: float) -> bool:
    """Whether every value of a flat tensor, of any float type of 2, 4 or 8 bytes, is a number with |x| < `limit`."""
    size = piece.element_size()
    bits = piece.detach().view(SIGNED[size]).numpy()
    positive, negative = bits_of(limit, piece.dtype), bits_of(-limit, piece.dtype)
    step = BLOCK // size
    for start in range(0, len(bits), step):
        block = bits[start : start + step]
        if block.max() >= positive or block.view(UNSIGNED[size]).max() >= negative:
            return False
    return True


def bits_of(value: float, dtype: torch.dtype) -> int:
    """The bits of a number as an unsigned integer."""
    signed = int(torch.tensor(value, dtype=dtype).view(SIGNED[dtype.itemsize]))
    return signed & ((1 << 8 * dtype.itemsize) - 1)
