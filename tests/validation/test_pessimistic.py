"""The trained checkpoint on a device that adds in fp16: every package gives numbers, and close ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastvlm.build import read_build
from validation.engine import PackageEngine
from validation.metrics import snr_db

# What: least SNR in dB beside the same package in precision "fp32", and as measured. 10 dB are three times the error.
LIMITS = {"smooth": (46.0, 56.4), "noise": (46.0, 59.9), "black": (46.0, 58.3), "logits": (43.0, 53.3)}
PRECISIONS = ("fp32", "fp16-accumulate")


def smooth(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    waves = [127 + 100 * np.sin(x / 37 + channel) * np.cos(y / 53) for channel in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


PICTURES: dict[str, Callable[[int], np.ndarray]] = {
    "smooth": smooth,
    "noise": lambda side: np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8),
    "black": lambda side: np.zeros((side, side, 3), np.uint8),
}


def check(name: str, exact: np.ndarray, pessimistic: np.ndarray) -> None:
    assert np.isfinite(pessimistic).all()
    assert LIMITS[name][0] < snr_db(exact, pessimistic) < LIMITS[name][0] + 30, "nearer would be another precision"


@pytest.mark.parametrize("name", list(PICTURES))
def test_the_encoder(exported_tiny: Path, name: str) -> None:
    build = read_build(exported_tiny)
    engines = [PackageEngine(build, precision=precision) for precision in PRECISIONS]
    exact, pessimistic = (engine.encode_image(PICTURES[name](engine.image_size)) for engine in engines)
    check(name, exact, pessimistic)


def test_the_decoder(exported_tiny: Path) -> None:
    build = read_build(exported_tiny)
    ids = np.random.default_rng(0).integers(0, build.vocab_size, 84).tolist()
    rows = []
    for precision in PRECISIONS:
        engine = PackageEngine(build, precision=precision)
        engine.reset()
        engine.prefill(engine.embed(ids[:70]))
        rows.append([engine.decode(engine.embed([one])) for one in ids[70:]])
    check("logits", *map(np.concatenate, rows))
