"""Encoders written as ONNX, run by onnxruntime on one thread, and the limits that they are held to here.

The limits are on the embedded checkpoint and on seeded ones, in the form of `validation.limits`; each keeps 3 to 12
times headroom (10 to 22 dB) but fp32's and fp16's, which issue and design fix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from encoder_outliers import Pixels
from numpy.typing import NDArray

from export.onnx.encoder import EncoderForm, write_encoders
from export.protection import PROTECTED, Protection
from fastvlm_ref.image import pixels_to_tensor
from validation.limits import Limit
from validation.metrics import psnr_db, snr_db

ROWS = (
    Limit("fp32", "snr_db", "min", 100.0, 116.0, "float32 in another order of operations"),
    Limit("fp16", "psnr_db", "min", 60.0, 63.7, "weights, and what flows between ops, rounded to fp16; worst: frames"),
    Limit("tiny_int8", "psnr_db", "min", 45.0, 56.1, "weights and activations of eight bits, photos, trained weights"),
    Limit("frames_int8", "psnr_db", "min", 32.0, 43.2, "the same on frames that no camera takes"),
    Limit("small_int8", "psnr_db", "min", 34.0, 45.1, "five blocks of drawn weights"),
    Limit("deep_int8", "psnr_db", "min", 31.0, 42.3, "42 blocks of drawn weights, with outliers and without"),
)
LIMITS = {row.quantity: row for row in ROWS}


def value_of(limit: Limit, wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """The metric of a limit."""
    return {"snr_db": snr_db, "psnr_db": psnr_db}[limit.metric](wanted, found.astype(np.float32))


def check(quantity: str, wanted: NDArray[Any], found: NDArray[Any], subject: str = "") -> None:
    """Holds image tokens against a row; prints the value, which pytest shows when the row is missed."""
    limit = LIMITS[quantity]
    value = value_of(limit, wanted, found)
    print(f"{quantity} {subject}: {limit.metric} {value:.4g}, limit {limit.words}")
    assert limit.holds(value)


def write(model: Any, folder: Path, form: EncoderForm, *sides: int, protection: Protection = PROTECTED) -> Path:
    """Writes the encoder into a new folder and returns the path of its first model."""
    folder.mkdir(parents=True)
    written = write_encoders(model, sides, folder, form, protection)
    assert sorted(written.files) == sorted(path.name for path in folder.iterdir())
    return folder / written.models[sides[0]]


def run(model: Path, image: NDArray[Any], *, optimised: bool = True) -> NDArray[Any]:
    """Image tokens (1, T, H) of bytes (1, N, N, 3), or of pixels where the model takes those."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    tokens: NDArray[Any] = session.run(["imageFeatures"], {"image": image})[0]
    return tokens


def reference(model: Any, pixels: Pixels) -> NDArray[np.float32]:
    """Image tokens (1, T, H) of the PyTorch model."""
    with torch.no_grad():
        return np.asarray(model.encode_image(pixels_to_tensor(pixels)))
