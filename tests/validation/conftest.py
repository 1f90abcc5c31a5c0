"""Builds that several files compare, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from audit_builds import Builds
from made_once import made_once

from fastvlm_ref.checkpoint import load_checkpoint


@pytest.fixture(scope="session")
def builds(run_folder: Path) -> Builds:
    """Builds of every kind, each exported when it is first asked for; never written to (`Builds.edited` copies)."""
    return Builds(run_folder / "builds")


@pytest.fixture(scope="session")
def odd_build(run_folder: Path) -> Path:
    """A validated build of the embedded checkpoint that has all that `tiny_bundle` lacks, made once.

    A chain of which the last package is the head alone, int8 weights and embeddings, two sizes, the crop rule, and a
    context so short that a prompt can reach its end.
    """
    from export.api import export_model
    from validation import validate

    small = {"context": 128, "query_length": 16, "image_sizes": (256, 128)}

    def make(place: Path) -> None:
        model = load_checkpoint("tiny", image_rule="crop")
        export_model(model, place, **small, quantize="int8", max_file_size=410_000)
        assert validate(place, steps=8).passed

    return made_once(run_folder / "odd" / "build", make)


@pytest.fixture(scope="session")
def odd_bundle(odd_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The iOS bundle of `odd_build`; copy it to change it."""
    from ios_bundle import bundle

    return bundle(odd_build, tmp_path_factory.mktemp("odd-bundle") / "tiny")
