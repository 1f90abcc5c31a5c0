"""The encoders of official sizes with planted outliers, at 1024: exported with exponents, they keep DESIGN's limits.

Not named test_*: it writes up to 16 GB and takes some minutes a size. `make long` runs it.
tests/export/test_encoder_outliers.py does the same with a small tower, and more.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from encoder_outliers import broken, exponents_for, export_encoder, frames, outcome, pictures, reference

from export.protection import Protection
from fastvlm_ref import load_checkpoint
from fastvlm_ref.synthetic.folder import Recipe, write_synthetic
from fastvlm_ref.synthetic.sizes import SIZES
from validation.mil import MILModel

SIDE = 1024


@pytest.fixture(scope="module", params=["0.5b", "1.5b", "7b"])
def hard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("hard") / "checkpoint"
    yield load_checkpoint(write_synthetic(Recipe(SIZES[request.param], outliers=True), folder), stream=True)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def images() -> Any:
    return {name: pixels for name, pixels in (pictures(SIDE) | frames(SIDE)).items() if name not in ("number", "wide")}


def test_the_official_size(hard: Any, images: Any, tmp_path: Path) -> None:
    """fp16 on every frame, fp16-accumulate on a photo and on the frame of the largest values; unprotected it fails."""
    found = exponents_for(hard, images)
    print(found)
    assert found.keys() == {"network.8.2", "network.9"}
    protected = export_encoder(hard, SIDE, tmp_path / "protected", Protection(encoder=found))
    plain = MILModel(export_encoder(hard, SIDE, tmp_path / "unprotected"))
    problems: list[str] = []
    for name, pixels in images.items():
        wanted, photo = reference(hard, pixels), name == "shapes"
        for precision in ("fp16", "fp16-accumulate") if photo or name == "checkerboard" else ("fp16",):
            result = outcome(MILModel(protected, None, precision), pixels, wanted)
            print(f"{precision} {name}: {result}", flush=True)
            problems += broken(name, result, photo=photo, accumulate=precision != "fp16")
        if photo:
            assert outcome(plain, pixels, wanted).peak == math.inf
    assert problems == []
