"""Opening packages: what is damaged, hostile or foreign is one named error, and nothing outside is opened."""

from __future__ import annotations

import gc
import json
import shutil
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from mil_programs import build

from fastvlm.errors import ExecutionError, PackageError, UnsupportedOp
from validation.mil import MILModel

ROOT = Path(__file__).parents[2]
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
MODEL = "Data/com.apple.CoreML/model.mlmodel"
TABLE = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float16)


def lookup_model() -> object:
    return build(lambda x0: mb.gather(x=TABLE, indices=x0, axis=0), [((3,), np.int32)], half=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packages") / "table.mlpackage"
    lookup_model().save(str(path))  # type: ignore[attr-defined]
    return path


@pytest.fixture
def package(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy.mlpackage"))


def predict(path: object, precision: str = "fp16") -> np.ndarray:
    model = MILModel(path, precision=precision)
    return next(iter(model.predict({"x0": np.array([3, 0, -1])}).values()))


@pytest.mark.parametrize("precision", ["fp16", "fp16-accumulate", "fp32"])
def test_reads_stored_weights(package: Path, precision: str) -> None:
    np.testing.assert_array_equal(predict(package, precision), TABLE[[3, 0, -1]])


def test_what_a_run_bound_is_given_back_without_the_garbage_collector(package: Path) -> None:
    """Hundreds of pieces of a program run one after the other, each with its own weights."""
    model = MILModel(package, precision="fp32")
    model.predict({"x0": np.array([3, 0, -1])})
    (held,) = (weakref.ref(tensor) for tensor in model.package.cache.values())
    gc.disable()
    try:
        del model
        assert held() is None
    finally:
        gc.enable()


def test_opens_specs_and_models_in_memory(package: Path) -> None:
    model = lookup_model()
    np.testing.assert_array_equal(predict(model), TABLE[[3, 0, -1]])
    spec = model.get_spec()  # type: ignore[attr-defined]
    again = MILModel(spec, weights=package / "Data/com.apple.CoreML/weights")
    np.testing.assert_array_equal(next(iter(again.predict({"x0": np.array([1, 2, 3])}).values())), TABLE[1:4])
    with pytest.raises(PackageError, match="weights folder"):
        predict(spec)


def test_weights_are_not_copied_before_use(package: Path) -> None:
    model = MILModel(package)
    (package / WEIGHTS).unlink()
    with pytest.raises(PackageError, match=r"weight\.bin"):
        model.predict({"x0": np.array([0, 0, 0])})


def cut_model(package: Path) -> None:
    (package / MODEL).write_bytes((package / MODEL).read_bytes()[:-100])


def garble_model(package: Path) -> None:
    (package / MODEL).write_bytes(b"\xff" * 300)


def cut_weights(package: Path) -> None:
    (package / WEIGHTS).write_bytes((package / WEIGHTS).read_bytes()[:-64])


def empty_weights(package: Path) -> None:
    (package / WEIGHTS).write_bytes(b"")


def patch_metadata(offset: int, layout: str, value: int) -> Callable[[Path], None]:
    def patch(package: Path) -> None:
        raw = bytearray((package / WEIGHTS).read_bytes())
        struct.pack_into(layout, raw, 64 + offset, value)
        (package / WEIGHTS).write_bytes(raw)

    return patch


def wrong_version(package: Path) -> None:
    raw = bytearray((package / WEIGHTS).read_bytes())
    struct.pack_into("<I", raw, 4, 9)
    (package / WEIGHTS).write_bytes(raw)


def no_manifest(package: Path) -> None:
    (package / "Manifest.json").unlink()


def bad_manifest(package: Path) -> None:
    (package / "Manifest.json").write_text("{")


def no_items(package: Path) -> None:
    (package / "Manifest.json").write_text("[]")


def rewrite_path(path: str) -> Callable[[Path], None]:
    def rewrite(package: Path) -> None:
        manifest = json.loads((package / "Manifest.json").read_text())
        manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = path
        (package / "Manifest.json").write_text(json.dumps(manifest))

    return rewrite


def link_out(package: Path) -> None:
    outside = package.parent / "outside.mlmodel"
    (package / MODEL).rename(outside)
    (package / MODEL).symlink_to(outside)


DAMAGE = {
    "model cut": (cut_model, "damaged or was cut|contradict|differ|defines"),
    "model garbled": (garble_model, "damaged or was cut"),
    "weights cut": (cut_weights, "it was cut"),
    "weights empty": (empty_weights, "weight file"),
    "storage version": (wrong_version, "storage version 9"),
    "sentinel": (patch_metadata(0, "<I", 7), "sentinel 0x00000007"),
    "dtype": (patch_metadata(4, "<I", 4), "stored dtype 4, the program declares fp16"),
    "size": (patch_metadata(8, "<Q", 2), "2 bytes stored"),
    "size beyond": (patch_metadata(8, "<Q", 2**63), "bytes stored"),
    "offset beyond": (patch_metadata(16, "<Q", 2**63), "it was cut"),
    "no manifest": (no_manifest, r"no Manifest\.json"),
    "bad manifest": (bad_manifest, "cannot be read as JSON"),
    "manifest without items": (no_items, "lists no items"),
    "absolute path": (rewrite_path("/etc/passwd"), "plain relative path"),
    "climbing path": (rewrite_path("../../../outside.mlmodel"), "plain relative path"),
    "missing model": (rewrite_path("com.apple.CoreML/other.mlmodel"), "is missing"),
    "link": (link_out, "is a link"),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_damage_is_named(package: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(package)
    with pytest.raises(PackageError, match=message) as caught:
        predict(package)
    assert "\n" not in str(caught.value)


def test_not_a_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="found nothing"):
        MILModel(tmp_path / "none.mlpackage")
    with pytest.raises(PackageError, match="cannot open a int"):
        MILModel(3)


def test_weight_file_names_are_contained(package: Path) -> None:
    spec = lookup_model().get_spec()  # type: ignore[attr-defined]
    function = spec.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        value = operation.attributes["val"] if operation.type == "const" else None
        if value is not None and value.WhichOneof("value") == "blobFileValue":
            value.blobFileValue.fileName = "@model_path/../../../../secret.bin"
    (package / MODEL).write_bytes(spec.SerializeToString())
    with pytest.raises(PackageError, match="plain relative path"):
        predict(package)


def test_every_unknown_op_is_listed_before_anything_runs() -> None:
    spec = build(lambda x0: mb.relu(x=mb.tanh(x=x0)), [((2,), np.float32)]).get_spec()
    function = spec.mlProgram.functions["main"]
    operations = function.block_specializations[function.opset].operations
    for operation in operations:
        operation.type = {"relu": "relu_9", "tanh": "tanh_9"}.get(operation.type, operation.type)
    with pytest.raises(UnsupportedOp, match=r"'main'.*tanh_9 \(position 0\); relu_9 \(position 1\)"):
        MILModel(spec)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"takes x0; missing: x0$"),
        ({"x0": np.zeros((2, 3), np.float32), "y": 1}, r"takes x0; unknown: y$"),
        ({"x0": np.zeros((3, 2), np.float32)}, r"shape \[3, 2\] given, expected fp32\[2, 3\]"),
        ({"x0": np.zeros((2, 3), np.complex64)}, "complex64 given"),
        ({"x0": "text"}, "given, expected fp32"),
    ],
)
def test_inputs_are_checked(given: dict[str, object], message: str) -> None:
    model = MILModel(build(lambda x0: mb.relu(x=x0), [((2, 3), np.float32)]))
    with pytest.raises(ExecutionError, match=message):
        model.predict(given)


def test_integer_inputs_refuse_floats_and_wide_values() -> None:
    model = MILModel(build(lambda x0: mb.add(x=x0, y=1), [((2,), np.int32)]))
    assert next(iter(model.predict({"x0": np.array([1, 2])}).values())).tolist() == [2, 3]
    with pytest.raises(ExecutionError, match="float64 given, expected int32"):
        model.predict({"x0": np.array([1.0, 2.0])})
    with pytest.raises(ExecutionError, match="do not fit int32"):
        model.predict({"x0": np.array([1, 2**40])})


def test_unknown_precision() -> None:
    with pytest.raises(ExecutionError, match="fp16-accumulate"):
        MILModel(lookup_model(), precision="fp8")


def test_hook_sees_every_op_and_changes_nothing() -> None:
    model = MILModel(build(lambda x0: mb.exp(x=mb.relu(x=x0)), [((2,), np.float32)]))
    seen: list[tuple[str, list[float]]] = []
    plain = model.predict({"x0": np.array([-1.0, 2.0])})
    hooked = model.predict(
        {"x0": np.array([-1.0, 2.0])}, hook=lambda name, kind, value: seen.append((kind, value.tolist()))
    )
    assert seen[0] == ("relu", [0.0, 2.0])
    assert [kind for kind, _ in seen] == ["relu", "exp"]
    assert {name: value.tolist() for name, value in plain.items()} == {n: v.tolist() for n, v in hooked.items()}


COEXISTENCE = """
import sys, resource
import numpy as np
from validation.mil import MILModel
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = MILModel(sys.argv[1])
first = list(model.predict({"x0": np.array([3, 0, 1])}).values())[0]
assert not any(name.split(".")[0] == "coremltools" for name in sys.modules), "coremltools was imported"
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
assert grown < 60, grown
import coremltools
loaded = coremltools.models.MLModel(sys.argv[1], skip_model_load=True)
assert type(loaded.get_spec()) is type(model.get_spec())
second = list(MILModel(loaded).predict({"x0": np.array([3, 0, 1])}).values())[0]
assert np.array_equal(first, second)
"""


def test_runs_without_coremltools_and_beside_it(package: Path) -> None:
    command = [sys.executable, "-c", COEXISTENCE, str(package)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_function_may_hand_its_input_back(tmp_path):
    """A block without operations: nothing to plan but its inputs and outputs."""
    import coremltools as ct
    import numpy as np
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    from validation.mil import MILModel

    @mb.program(input_specs=[mb.TensorSpec((2,), types.fp32)], opset_version=ct.target.iOS18)
    def program(x):
        return mb.identity(x=x, name="y")

    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    spec = model.get_spec()
    block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
    del block.operations[:]
    block.outputs[:] = ["x"]
    spec.description.output[0].name = "x"
    found = MILModel(spec).predict({"x": np.array([1, 2], np.float32)})
    assert found["x"].tolist() == [1, 2]
