"""Every weight that an export will use is read once before the first conversion: NaN and infinity are told at once.

No export of them can be right, and the last layer of 7B would be reached after many minutes. The bits are compared, not
the numbers: in IEEE formats NaN and infinity are exactly those whose exponent is all ones, which for the bits as an
integer means at least +inf's where the sign bit is 0 (compare signed) and at least −inf's where it is 1 (unsigned).
Two maxima over the mapped file need no copy, and two threads keep two cores busy.
What a folding makes of good weights, `export.weights` still watches. It knows nothing of graphs or Core ML.
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

Pieces = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Weight:
    """One tensor that an export uses: name, shape, and its values in order, flat, piece by piece."""

    name: str
    shape: tuple[int, ...]
    pieces: Pieces

    @property
    def count(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Fault:
    """What is wrong with a tensor: how many values are NaN or infinite, and the flat index of the first of them."""

    weight: Weight
    count: int
    first: int

    def __str__(self) -> str:
        found = f"{self.count:,} of {self.weight.count:,} values, the first at flat index {self.first}"
        return f"{self.weight.name} holds NaN or infinity ({found})"


def check_weights(model: FastVLM, plan: ExportPlan, progress: Progress = SILENT) -> None:
    """Reads every tensor that `plan` uses; raises TensorError naming each that holds NaN or infinity."""
    weights = list(used_weights(model, plan))
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    faults = []
    try:
        with progress.stage("Checking the weights", sum(weight.count for weight in weights)) as advance:
            for weight, fault in zip(weights, pool.map(find_fault, weights), strict=True):
                faults += [fault] if fault else []
                advance(weight.count)
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits for two tensors, not for all
    if faults:
        named = "; ".join(map(str, faults[:MOST_NAMED]))
        more = f"; and {len(faults) - MOST_NAMED} more tensors" if len(faults) > MOST_NAMED else ""
        raise TensorError(
            f"{named}{more}; the checkpoint is damaged or its training diverged, fetch it again or use an earlier one"
        )


def used_weights(model: FastVLM, plan: ExportPlan) -> Iterator[Weight]:
    """Gives the checkpoint's tensors that an export of `plan` reads, each once, streaming or in memory."""
    if plan.encoder:
        for part in ("vision_encoder", "projector") if plan.projector else ("vision_encoder",):
            module = model.get_submodule(part)
            for name, _ in module.named_parameters():
                yield Weight(f"{part}.{name}", *stored(module, name))
            for name, value in module.named_buffers():
                if value.is_floating_point():
                    yield Weight(f"{part}.{name}", tuple(value.shape), partial(_whole, value))
    if plan.language:
        for name, _ in model.decoder.named_parameters():
            if name != "lm_head.weight" or not model.config.text.tied_head:
                yield Weight(f"decoder.{name}", *stored(model.decoder, name))


def _whole(value: Tensor) -> Iterator[Tensor]:
    yield value.reshape(-1)


def find_fault(weight: Weight) -> Fault | None:
    """Reads one tensor; returns what is wrong with it, None where every value is finite."""
    count, first, at = 0, -1, 0
    for piece in weight.pieces():
        if not all_finite(piece):
            bad = ~torch.isfinite(piece)
            first = at + int(bad.int().argmax()) if count == 0 else first
            count += int(bad.sum())
        at += piece.numel()
    return Fault(weight, count, first) if count else None


def all_finite(piece: Tensor) -> bool:
    """Whether no value of a flat tensor, of any float type of 2, 4 or 8 bytes, is NaN or infinite."""
    size = piece.element_size()
    bits = piece.detach().view(SIGNED[size]).numpy()
    positive, negative = bits_of(math.inf, piece.dtype), bits_of(-math.inf, piece.dtype)
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
