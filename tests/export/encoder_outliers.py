"""How an encoder's package does on pictures and on hostile frames: shared by a small checkpoint and an official size.

The exponents come from the peaks of the same pictures and frames, as `export` takes them from a scan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tensor_watch import peaks_of
from test_export_streaming import LABELS

import fastvlm_ref
from export.contract import encoder_functions
from export.encoder import EncoderGraph
from export.encoder_sites import encoder_exponents
from export.package import write_package
from export.plan import ExportPlan
from export.protection import UNPROTECTED, Protection
from export.vision import converted_encoder
from fastvlm_ref.image import pixels_to_tensor, preprocess
from validation.limits import Limit
from validation.metrics import psnr_db, snr_db
from validation.mil import MILModel
from validation.mil.registry import only_moves
from validation.rounding import RoundEachOp

Pixels = NDArray[np.uint8]
PICTURES = Path(fastvlm_ref.__file__).parent / "tiny" / "pictures"

# DESIGN's limits, which a build of a user's is held to as well; measured is the worst of the small checkpoint and of
# the official size.
ROWS = (
    Limit("photo", "psnr_db", "min", 60.0, 62.9, "of a package with exponents, in fp16"),
    Limit("hostile", "psnr_db", "min", 40.0, 62.5, "the same on frames that no camera takes"),
    Limit("fp16", "snr_loss_db", "max", 6.0, 1.1, "against the reference with each op rounded to fp16's precision"),
    Limit("accumulate", "psnr_db", "min", 45.0, 59.4, "sums in fp16 blocks of 32, on all of them"),
    Limit("every", "peak", "max", 32_768.0, 15_500.0, "largest value that any op returns"),
)
LIMITS = {row.key: row for row in ROWS}


def pictures(side: int) -> dict[str, Pixels]:
    """The shipped pictures as they are preprocessed."""
    return {path.stem: preprocess(Image.open(path).convert("RGB"), side) for path in sorted(PICTURES.glob("*.png"))}


def frames(side: int) -> dict[str, Pixels]:
    """Uniform noise, saturated white and colour, a checkerboard, one bright pixel, black: uint8 (N, N, 3)."""
    rows, columns = np.mgrid[:side, :side]
    board = np.where((rows + columns) % 2, 255, 0).astype(np.uint8)
    pixel = np.zeros((side, side, 3), np.uint8)
    pixel[side // 2, side // 2] = 255
    flat = {"white": (255, 255, 255), "red": (255, 0, 0), "black": (0, 0, 0)}
    return {
        "noise": np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8),
        "checkerboard": np.repeat(board[..., None], 3, 2),
        "one pixel": pixel,
    } | {name: np.full((side, side, 3), colour, np.uint8) for name, colour in flat.items()}


def exponents_for(model: Any, images: Mapping[str, Pixels]) -> dict[str, int]:
    graph = EncoderGraph(model).eval()
    return encoder_exponents(peaks_of(graph, *map(pixels_to_tensor, images.values())), graph.sites)


def export_encoder(model: Any, side: int, package: Path, protection: Protection = UNPROTECTED) -> Path:
    config = model.config
    specs = encoder_functions(config.vision, config.text.hidden_size, ExportPlan((side,), 128, 16))
    write_package(package, converted_encoder(model, specs, None, protection), f"encode_{side}", LABELS)
    return package


@dataclass(frozen=True)
class Reference:
    """Image tokens (T, H) in float32, and with each op rounded to fp16's precision."""

    tokens: NDArray[np.float32]
    rounded: NDArray[np.float32]


def reference(model: Any, pixels: Pixels) -> Reference:
    tensor = pixels_to_tensor(pixels)
    with torch.no_grad():
        tokens = model.encode_image(tensor)[0].numpy()
        with RoundEachOp():  # type: ignore[no-untyped-call]
            rounded = model.encode_image(tensor)[0].numpy()
    return Reference(tokens, rounded)


@dataclass(frozen=True)
class Outcome:
    """One picture through a package."""

    psnr: float
    snr: float
    loss: float
    peak: float

    def __str__(self) -> str:
        return f"PSNR {self.psnr:.1f} dB, SNR {self.snr:.1f} dB, loss {self.loss:.1f} dB, peak {self.peak:,.0f}"


def outcome(package: MILModel, pixels: Pixels, wanted: Reference) -> Outcome:
    peak = 0.0

    def keep(name: str, op: str, value: Any) -> None:
        nonlocal peak
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel() and not only_moves(op):
            least, most = (float(end) for end in torch.aminmax(value))
            peak = max(peak, math.inf if math.isnan(most) else max(-least, most))

    tokens = package.predict({"image": Image.fromarray(pixels)}, None, hook=keep)["imageFeatures"]
    found = np.asarray(tokens, np.float32)[0]
    snr = snr_db(wanted.tokens, found)
    return Outcome(psnr_db(wanted.tokens, found), snr, snr_db(wanted.tokens, wanted.rounded) - snr, peak)


def broken(name: str, found: Outcome, *, photo: bool, accumulate: bool) -> list[str]:
    """The limits that an outcome misses."""
    values = {"every.peak": found.peak}
    if accumulate:
        values["accumulate.psnr_db"] = found.psnr
    else:
        values |= {"photo.psnr_db" if photo else "hostile.psnr_db": found.psnr, "fp16.snr_loss_db": found.loss}
    return [f"{name}: {key} {value:.4g}" for key, value in values.items() if not LIMITS[key].holds(value)]
