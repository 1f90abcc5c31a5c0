"""Encoder and projector over all pictures, in float32, as the graph that ships: every op of every module is looked at.

Frames run side by side, each on one thread: torch's convolutions add up in another order on two threads than on one,
and so the numbers do not depend on how many cores there are.
It knows nothing of prompts or exponents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from export.encoder import EncoderGraph
from export.ranges.frames import Picture
from export.ranges.result import ENCODER
from export.ranges.side_by_side import side_by_side
from export.ranges.watch import Extremes, OpWatch, Tally, named_calls
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.image import pixels_to_tensor

MOST_FRAMES = 2  # side by side: one of 1024 pixels takes 0.5 GB


@dataclass(frozen=True)
class Seen:
    """One picture at one side: what the ops gave by name, and the image tokens (1, T, H)."""

    picture: Picture
    side: int
    found: Mapping[str, Extremes]
    tokens: Tensor

    @property
    def source(self) -> str:
        """How the result calls the input: `noise at 1024`."""
        return f"{self.picture.name} at {self.side}"


def encoder_pass(
    graph: EncoderGraph, pictures: Sequence[Picture], sides: Sequence[int], tally: Tally, progress: Progress = SILENT
) -> list[Tensor]:
    """Adds to `tally` what the graph gives for every picture at every side; returns the tokens at the first side.

    Raises ImageError for a picture that cannot be read, TensorError where the model gives NaN or infinity.
    """
    tokens = []
    jobs = [(picture, side) for side in sides for picture in pictures]
    with progress.stage("Scanning the encoder", len(jobs)) as advance:
        for seen in watched(graph, jobs):
            tally.add(seen.found, seen.source)
            if seen.side == sides[0]:
                tokens.append(seen.tokens)
            advance(1)
    return tokens


def watched(graph: EncoderGraph, jobs: Sequence[tuple[Picture, int]]) -> Iterator[Seen]:
    """Gives what each picture at each side makes of the graph, in the order of `jobs`."""

    @torch.no_grad()  # of each thread
    def run(job: tuple[Picture, int]) -> Seen:
        picture, side = job
        pixels = pixels_to_tensor(picture.pixels(side))
        with OpWatch(ENCODER) as watch:
            tokens: Tensor = graph(pixels)
        return Seen(picture, side, watch.found, tokens)

    with named_calls(graph):
        yield from side_by_side(run, jobs, MOST_FRAMES)
