"""Packages and manifests that are damaged: a named error or red rows, never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_builds import Builds, audited
from package_edits import MODEL, WEIGHTS, constant, find, manifest, operations, program

from fastvlm.errors import BuildError, FastVLMError, PackageError

LANGUAGE = "LanguageModel.mlpackage"


def cut_weights(package: Path) -> None:
    path = package / WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_weights(package: Path) -> None:
    (package / WEIGHTS).unlink()


def cut_model(package: Path) -> None:
    path = package / MODEL
    path.write_bytes(path.read_bytes()[:5000])


def no_function(package: Path) -> None:
    with program(package) as spec:
        del spec.mlProgram.functions["decode"]


def wrong_offset(package: Path) -> None:
    with program(package) as spec:
        name = "layers_0_mlp_up_proj_weight_to_fp16"
        value = constant(spec, "decode", name).attributes["val"]
        value.blobFileValue.offset += 64


def wrong_type(package: Path) -> None:
    with program(package) as spec:
        value = constant(spec, "prefill", "layers_0_mlp_up_proj_weight_to_fp16").attributes["val"]
        value.type.tensorType.dimensions[0].constant.size = 1 << 40


def no_result(package: Path) -> None:
    with program(package) as spec:
        del find(spec, "decode", "silu").outputs[:]


def no_constant(package: Path) -> None:
    with program(package) as spec:
        constant(spec, "decode", "layers_1_mlp_up_proj_weight_to_fp16").attributes["val"].ClearField("value")


@pytest.mark.parametrize(
    "damage",
    [cut_weights, no_weights, cut_model, no_function, wrong_offset, wrong_type, no_result, no_constant],
    ids=lambda damage: damage.__name__,
)
def test_a_package_that_cannot_be_read(builds: Builds, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    pair = builds.edited("gpu", tmp_path, lambda build: damage(build / LANGUAGE))
    with pytest.raises(PackageError) as error:
        audited(pair)
    assert len(str(error.value)) > 20


def no_inputs(op: Any) -> None:
    op.inputs.clear()


def twice(op: Any) -> None:
    for argument in op.inputs.values():
        argument.arguments.add().CopyFrom(argument.arguments[0])


@pytest.mark.parametrize("damage", [no_inputs, twice], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(
    "kind",
    ["layer_norm", "concat", "slice_by_index", "linear", "reshape", "matmul", "softmax", "slice_update", "split"],
)
def test_an_op_without_its_arguments(builds: Builds, tmp_path: Path, kind: str, damage: Callable[[Any], None]) -> None:
    def edit(build: Path) -> None:
        with program(build / LANGUAGE) as spec:
            damage(find(spec, "decode", kind, 1))

    rows = audited(builds.edited("gpu", tmp_path, edit))
    assert not rows["audit.unexplained"].passed


def test_constants_of_other_kinds(builds: Builds, tmp_path: Path) -> None:
    """Each kind of argument becomes a string."""

    def edit(build: Path) -> None:
        with program(build / LANGUAGE) as spec:
            for op in operations(spec, "decode"):
                value = op.attributes["val"] if op.type == "const" else None
                if value is not None and value.WhichOneof("value") == "immediateValue":
                    value.type.tensorType.dataType = 2
                    value.immediateValue.tensor.strings.values[:] = ["?"]

    rows = audited(builds.edited("gpu", tmp_path, edit))
    assert rows["audit.differing_constants"].value > 50


@pytest.mark.parametrize("seed", range(12))
def test_random_bytes(builds: Builds, tmp_path: Path, seed: int) -> None:
    """A few bytes of the program anywhere; whatever it then says, it is read or refused."""
    random = np.random.default_rng(seed)

    def edit(build: Path) -> None:
        path = build / LANGUAGE / MODEL
        content = np.frombuffer(path.read_bytes(), np.uint8).copy()
        places = random.integers(0, content.size, 4)
        content[places] = random.integers(0, 256, 4, dtype=np.uint8)
        path.write_bytes(content.tobytes())

    with suppress(FastVLMError):
        assert audited(builds.edited("int4" if seed % 2 else "gpu", tmp_path, edit))


@pytest.mark.parametrize("shape", [None, "x", [], ["8"], [7, 1], [0], [1 << 60], 8])
def test_a_state_without_a_shape(builds: Builds, tmp_path: Path, shape: Any) -> None:
    def edit(build: Path) -> None:
        with manifest(build) as content:
            content["functions"]["language"][0]["state"]["shape"] = shape

    with pytest.raises(BuildError, match="expected two rows for each layer; export the build again"):
        audited(builds.edited("gpu", tmp_path, edit))
