"""How long a comparison layer by layer will take, said before it begins.

The machine's pace is measured on one layer: reading it, and products with one of its matrices. The rest is counting.
The estimate is meant to tell minutes from hours; other work on the machine, and a checkpoint that is not in the page
cache, are not foreseen beyond what that layer shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor

from export.ranges.side_by_side import cores
from fastvlm_ref.checkpoint import materialised
from fastvlm_ref.config import TextConfig
from fastvlm_ref.model.decoder import DecoderLayer
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.threads import one_thread
from validation.layerwise.need import FLOAT, decoder_weights

ROWS = 256  # of the product that is timed: about as many as a prompt with a picture has
LOWER_RUNGS = 6  # times that constants, ops and blocks read all weights of one side
# FastViTHD at 1024 takes 487 GFLOP. A picture is encoded three times: float32, each op rounded, and by the package.
ENCODER_FLOP, ENCODINGS = 487e9 / 1024**2, 3


@dataclass(frozen=True)
class Pace:
    """What one core of this machine does in a second."""

    read: float  # weights from the checkpoint, raised to float32
    products: float  # FLOP, many rows times a matrix
    row: float  # weights that one row is multiplied with


@dataclass(frozen=True)
class Work:
    """What there is to do.

    positions: rows of all prompts; tokens: greedy steps of all samples; pixels: of all pictures. runs: of the package
    over each sample: with the reference's image tokens, and with its own.
    """

    layers: int
    layer: int  # weights
    head: int  # weights
    samples: int
    positions: int
    passes: int
    tokens: int
    pixels: int
    runs: int = 2

    @property
    def decoder(self) -> int:
        """Weights that one pass reads."""
        return self.layers * self.layer + self.head


def work_of(text: TextConfig, positions: Sequence[int], steps: Sequence[int], pixels: int, runs: int = 2) -> Work:
    """Returns the work of samples with so many rows in their prompts and so many steps each."""
    head = text.vocab_size * text.hidden_size
    layer = (decoder_weights(text) - (1 if text.tied_head else 2) * head - text.hidden_size) // text.layers
    return Work(text.layers, layer, head, len(steps), sum(positions), max(steps), sum(steps), pixels, runs)


@one_thread()
@torch.inference_mode()
def measured_pace(model: FastVLM) -> Pace:
    """Reads a layer, and multiplies with one of its matrices; one in the middle, where nobody has just been."""
    layer = cast(DecoderLayer, model.decoder.layers[len(model.decoder.layers) // 2])
    begun = time.perf_counter()
    with materialised(layer):
        read = time.perf_counter() - begun
        weight = layer.mlp.gate_proj.weight
        count = sum(part.numel() for part in layer.parameters())
        many, one = (_seconds(partial(_product, torch.ones(rows, weight.shape[1]), weight)) for rows in (ROWS, 1))
    return Pace(count / read, 2 * ROWS * weight.numel() / many, weight.numel() / one)


def _product(rows: Tensor, weight: Tensor) -> Tensor:
    return rows @ weight.T


def _seconds(work: Callable[[], object]) -> float:
    """The shorter of two times: the first finds nothing in the caches."""
    times = []
    for _ in range(2):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return max(min(times), 1e-9)


def expected_seconds(work: Work, pace: Pace) -> float:
    """Returns how long reference and package take for the work.

    A package's products are counted like the reference's: on 1.5B and 7B a core did as many in fp16 as in float32.
    """
    side = min(cores(), work.samples)
    prompts = 2.0 * work.positions * work.layers * work.layer / pace.products
    tokens = work.tokens * work.decoder / pace.row
    encoder = ENCODINGS * ENCODER_FLOP * work.pixels / pace.products
    reference = work.passes * work.decoder / pace.read + (prompts + tokens) / side
    package = work.decoder / pace.read + work.runs * (prompts + tokens) / side
    return encoder + reference + package + LOWER_RUNGS * work.decoder / pace.read


def announcement(work: Work, seconds: float) -> str:
    """Returns the one line that says what will be done and for how long."""
    size = work.layer * FLOAT / 1e9
    long = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    return (
        f"this model takes more than half of the memory and is compared layer by layer: {work.layers} layers of "
        f"{size:.2g} GB, {work.passes} steps on {work.samples} samples, about {long}; --steps N changes the number"
    )
