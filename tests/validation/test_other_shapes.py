"""A package that gives another shape than the reference is a named error of `validate`: no crash, and never a pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from package_edits import constant, find, manifest, program
from row_faults import reseal

from fastvlm.cli import cli
from fastvlm.errors import PackageError
from fastvlm_ref.samples import shipped_samples
from validation import open_session, validate

pytestmark = pytest.mark.usefixtures("one_thread")


def channels_first(package: Path, function: str) -> None:
    """The last transpose of the encoder leaves tokens last: [1, H, T]."""
    with program(package) as spec:
        last = find(spec, function, "transpose", -1)
        order = constant(spec, function, last.inputs["perm"].arguments[0].name).attributes["val"]
        order.immediateValue.tensor.ints.values[:] = [0, 1, 2]


def tokens_last(build: Path) -> None:
    channels_first(build / "VisionEncoder.mlpackage", "encode_256")
    reseal(build)


def other_target(build: Path) -> None:
    with manifest(build) as content:
        content["target"] = "gpu"


def said(build: Path, *words: str) -> str:
    """What the command says as it refuses."""
    done = CliRunner().invoke(cli, ["validate", str(build), "--steps", "2", *words], prog_name="fastvlm")
    assert done.exit_code == 2, done.output
    assert not (build / "validation.json").exists()
    return done.stderr


def test_image_tokens_of_another_shape(tiny_build: Path) -> None:
    tokens_last(tiny_build)
    assert "VisionEncoder.mlpackage gives image tokens of shape [192, 16], expected [16, 192]" in said(tiny_build)
    with pytest.raises(PackageError, match=r"\[192, 16\], expected \[16, 192\]"):
        open_session(tiny_build).answer(shipped_samples()[0].picture, "What?", 2)


def test_those_of_the_encoder_for_an_app(app_build: Path) -> None:
    channels_first(app_build / "fastvithd.mlpackage", "main")
    reseal(app_build)
    assert "gives image tokens of shape [512, 16], the reference [16, 512]" in said(app_build)


def test_a_state_of_another_target(tiny_build: Path) -> None:
    other_target(tiny_build)
    words = said(tiny_build)
    assert "LanguageModel.mlpackage keeps a state of shape [8, 2, 32, 2048], expected [8, 2, 2048, 32]" in words


@pytest.mark.parametrize("fault", [tokens_last, other_target], ids=lambda fault: fault.__name__)
def test_layer_by_layer(tiny_build: Path, fault: Callable[[Path], None]) -> None:
    """Where there is no state beside the cache, the rungs below miss their limits."""
    fault(tiny_build)
    with suppress(PackageError):
        assert not validate(tiny_build, steps=2, layerwise=True).passed
