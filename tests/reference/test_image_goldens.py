"""Pixels of the golden pictures, byte for byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from golden_pictures import NAMES, golden_picture
from PIL import Image

from fastvlm_ref.image import open_image, preprocess

GOLDENS = Path(__file__).parents[1] / "data/goldens"
GOLDEN_ROWS = json.loads((GOLDENS / "preprocess.json").read_text())


def check_golden(picture: Image.Image, row: dict[str, object]) -> None:
    pixels = preprocess(picture, row["size"], row["strategy"])
    assert pixels.shape == (row["size"], row["size"], 3)
    assert pixels.dtype == np.uint8
    assert pixels.mean() == pytest.approx(row["mean"])
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == row["sha256_rgb_uint8_hwc"]


@pytest.mark.parametrize("row", GOLDEN_ROWS, ids=lambda row: f"{row['image']}-{row['size']}")
def test_golden_bytes(row: dict[str, object], goldens: Path) -> None:
    """Every row, in any clone: from the file where it travels with the tests, else from the picture drawn again."""
    path = goldens / row["image"]
    check_golden(open_image(path) if path.exists() else golden_picture(row["image"]), row)


@pytest.mark.parametrize("row", GOLDEN_ROWS, ids=lambda row: f"{row['image']}-{row['size']}")
def test_golden_bytes_of_the_reference_s_own_files(row: dict[str, object], shared_goldens: Path) -> None:
    check_golden(open_image(shared_goldens / row["image"]), row)


@pytest.mark.parametrize("name", [name for name in NAMES if (GOLDENS / name).exists()])
def test_golden_pictures_are_drawn_as_they_were(name: str, goldens: Path) -> None:
    assert np.array_equal(np.asarray(golden_picture(name)), np.asarray(Image.open(goldens / name)))


def test_goldens_travel_with_the_tests(goldens: Path) -> None:
    assert sum((goldens / name).exists() for name in NAMES) >= 3
    assert {row["image"] for row in GOLDEN_ROWS} == set(NAMES)
