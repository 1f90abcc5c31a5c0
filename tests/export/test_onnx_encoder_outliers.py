"""ONNX encoders of a checkpoint whose activations pass fp16's end: fp16 with exponents holds, int8 does not mind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_outliers import exponents_for, frames, pictures
from onnx_encoder_runs import LIMITS, check, reference, run, value_of, write
from small_synthetic import DEEP, small

from export.onnx.encoder import EncoderForm
from export.protection import Protection
from fastvlm_ref import load_checkpoint, threads
from fastvlm_ref.synthetic.folder import Recipe, write_synthetic

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = DEEP.image_size


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("hard") / "checkpoint"
    return load_checkpoint(write_synthetic(Recipe(small("0.5b", DEEP), outliers=True), folder))


@pytest.fixture(scope="module")
def images() -> Any:
    """One photo and the frames that reach furthest."""
    shown = pictures(SIDE) | frames(SIDE)
    return {name: shown[name] for name in ("shapes", "noise", "checkerboard", "white")}


@pytest.fixture(scope="module")
def references(hard: Any, images: Any) -> Any:
    with threads.one_thread():
        return {name: reference(hard, pixels) for name, pixels in images.items()}


@pytest.fixture(scope="module")
def exponents(hard: Any, images: Any) -> dict[str, int]:
    with threads.one_thread():
        return exponents_for(hard, images)


@pytest.mark.parametrize("coreml", [False, True])
def test_fp16_with_exponents(
    hard: Any, images: Any, references: Any, exponents: dict[str, int], tmp_path: Path, coreml: bool
) -> None:
    """Also op by op, where onnxruntime rounds to fp16 between any two ops."""
    assert exponents == {"network.8.2": 5, "network.9": 5}
    form = EncoderForm("fp16", coreml)
    path = write(hard, tmp_path / "fp16", form, SIDE, protection=Protection(encoder=exponents))
    for name, pixels in images.items():
        given = (pixels.transpose(2, 0, 1) / 255).astype(np.float16) if coreml else pixels
        for optimised in (True, False):
            check("fp16", references[name], run(path, given[None], optimised=optimised), name)


def test_fp16_without_them_fails(hard: Any, images: Any, references: Any, tmp_path: Path) -> None:
    path = write(hard, tmp_path / "fp16", EncoderForm("fp16"), SIDE)
    found = run(path, images["shapes"][None])
    assert not LIMITS["fp16"].holds(value_of(LIMITS["fp16"], references["shapes"], found))


def test_float32_and_int8_need_none(hard: Any, images: Any, references: Any, tmp_path: Path) -> None:
    for variant, quantity in (("fp32", "fp32"), ("int8", "deep_int8")):
        path = write(hard, tmp_path / variant, EncoderForm(variant), SIDE)
        for name, pixels in images.items():
            check(quantity, references[name], run(path, pixels[None]), name)
