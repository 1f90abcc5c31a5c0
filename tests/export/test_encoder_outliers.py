"""A tower whose activations pass fp16's end is exported, and runs in fp16 as well as one whose do not.

The checkpoint is `fastvlm synth --outliers` of a tower about as deep as the official one and narrower (its activations
reach 4.1e5); tests/long/long_encoder_outliers.py does the same with the official size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_outliers import LIMITS, broken, exponents_for, export_encoder, frames, outcome, pictures, reference
from small_synthetic import DEEP, small
from tensor_watch import peaks_of

from export.encoder import EncoderGraph
from export.protection import LARGEST_STORED, Protection
from fastvlm_ref import load_checkpoint
from fastvlm_ref.image import pixels_to_tensor
from fastvlm_ref.synthetic.folder import Recipe, write_synthetic
from validation.mil import MILModel

pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = DEEP.image_size


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("hard") / "checkpoint"
    return load_checkpoint(write_synthetic(Recipe(small("0.5b", DEEP), outliers=True), folder))


@pytest.fixture(scope="module")
def images() -> Any:
    return pictures(SIDE) | frames(SIDE)


@pytest.fixture(scope="module")
def exponents(hard: Any, images: Any) -> dict[str, int]:
    return exponents_for(hard, images)


@pytest.fixture(scope="module")
def references(hard: Any, images: Any) -> Any:
    return {name: reference(hard, pixels) for name, pixels in images.items()}


@pytest.fixture(scope="module")
def packages(hard: Any, exponents: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    return {
        "protected": export_encoder(hard, SIDE, folder / "protected", Protection(encoder=exponents)),
        "unprotected": export_encoder(hard, SIDE, folder / "unprotected"),
    }


def test_the_exponents_are_those_of_the_last_stage(exponents: dict[str, int]) -> None:
    """Where the outliers are planted: what down-sampling writes, and the stream behind it."""
    assert exponents == {"network.8.2": 5, "network.9": 5}


def test_what_is_stored_is_within_its_limit(hard: Any, images: Any, exponents: dict[str, int]) -> None:
    """In float32, where every value of the scaled graph is the plain one's times its power."""
    graph = EncoderGraph(hard, Protection(encoder=exponents))
    tensors = [pixels_to_tensor(pixels) for pixels in images.values()]
    plain, scaled = (peaks_of(each, *tensors) for each in (EncoderGraph(hard), graph))
    assert max(plain.values()) > 65_504
    assert max(scaled[name] for site in graph.sites.values() for name in site) <= LARGEST_STORED
    assert max(scaled.values()) <= LARGEST_STORED


def test_float32_tokens_are_the_same_bits(hard: Any, images: Any, exponents: dict[str, int]) -> None:
    """With values far beyond GELU's clamp, which those of the seeded model are not."""
    graphs = [EncoderGraph(hard, Protection(safe_forms=False, encoder=found)) for found in ({}, exponents)]
    with torch.no_grad():
        for name in ("noise", "checkerboard", "shapes"):
            plain, scaled = (graph(pixels_to_tensor(images[name])) for graph in graphs)
            assert torch.equal(plain, scaled)


@pytest.mark.parametrize("precision", ["fp16", "fp16-accumulate"])
def test_limits_hold(packages: Any, images: Any, references: Any, precision: str) -> None:
    model, problems, photos = MILModel(packages["protected"], None, precision), [], pictures(SIDE)
    for name, pixels in images.items():
        found = outcome(model, pixels, references[name])
        print(f"{precision} {name}: {found}")
        problems += broken(name, found, photo=name in photos, accumulate=precision != "fp16")
    assert problems == []


@pytest.mark.parametrize("precision", ["fp16", "fp16-accumulate"])
def test_without_protection_every_limit_is_missed(packages: Any, images: Any, references: Any, precision: str) -> None:
    model, photos = MILModel(packages["unprotected"], None, precision), pictures(SIDE)
    for name in ("shapes", "noise", "black"):
        found = outcome(model, images[name], references[name])
        assert found.peak == math.inf
        missed = broken(name, found, photo=name in photos, accumulate=precision != "fp16")
        assert len(missed) == (3 if precision == "fp16" else 2)


@pytest.mark.long
def test_an_exponent_too_small_is_seen(hard: Any, images: Any, references: Any, exponents: Any, tmp_path: Path) -> None:
    """Scanned on photos alone the exponents are too small for a checkerboard."""
    photos = exponents_for(hard, pictures(SIDE))
    assert photos == {"network.8.2": 3, "network.9": 3}
    package = export_encoder(hard, SIDE, tmp_path / "package", Protection(encoder=photos))
    found = outcome(MILModel(package), images["checkerboard"], references["checkerboard"])
    assert not LIMITS["every.peak"].holds(found.peak)
