"""The ends of the encoder, an image in and image tokens out, and layer scales that are ops of their own."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from export.convert import constant_name
from fastvlm_ref.image import pixels_to_tensor
from validation.encoder_form import EncoderForm
from validation.op_parity.between import between
from validation.op_parity.maps import MAPS, POINTS, spot, tokens
from validation.op_parity.piece import Case, Piece, Shape, Spot
from validation.program.anchors import Anchors


def image_piece(anchors: Anchors, form: EncoderForm, block: str, taken: Spot) -> Piece:
    """Returns what takes the input to the first convolution: bytes to numbers from 0 to 1, channels in order."""

    def cases(shapes: Sequence[Shape]) -> Iterator[Case]:
        generator = np.random.default_rng(zlib.crc32(b"image"))
        pixels = generator.integers(0, 256, (*shapes[0][2:], 3), dtype=np.uint8)
        yield Case("bytes", tuple(form.inputs(pixels).values()), (taken.to_program(pixels_to_tensor(pixels)),))

    image = spot(lambda: anchors.function.inputs[0], 0)
    return Piece("image", block, "plain_db", (image,), (taken,), cases, (1,))


def scale_piece(path: str, block: str, scale: Tensor, power: int, begin: Spot, end: Spot) -> Piece:
    """Returns a layer scale (C, 1, 1) that is an op of its own, held as scale · 2^power in fp16."""
    held = (scale * 2.0**power).half().float() * 2.0**-power
    return between(
        f"{path} layer scale", block, (begin,), (end,), lambda x: x * held,
        free=MAPS, size=POINTS, op=constant_name(f"{path}.scale"),
    )  # fmt: skip


def tokens_end(anchors: Anchors) -> Spot:
    """Returns the function's result."""
    return spot(lambda: anchors.function.results[0], 0)


def tokens_piece(given: Spot, end: Spot) -> Piece:
    """Returns what makes image tokens (1, T, H) of the projector's maps (1, H, N/64, N/64)."""
    return between("image tokens", "projector", (given,), (end,), tokens, rows=(2,))
