"""Core ML's surface against coremltools' stand-in: answers, units, plans, remote devices, and every way it can fail."""

from __future__ import annotations

import inspect
import os
import shutil
import stat
import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coreml_standin
import numpy as np
import pytest

from export import export
from fastvlm.build import COMPUTE_UNITS, STATE, read_build
from fastvlm.errors import ExecutionError, MissingDependency, PackageError, ProcessError, UsageError
from fastvlm.hashes import list_tree, sha256_file
from fastvlm_ref.samples import shipped_samples
from validation import validate
from validation.backends import open_package
from validation.coreml import here
from validation.coreml.placement import FunctionPlan, OpPlace
from validation.coreml.plan import plans_of, rows_of, with_default
from validation.coreml.predictor import CoreMLPredictor
from validation.coreml.remote import DeviceBench, connected_devices
from validation.coreml.units import NAMES
from validation.engine import PackageEngine
from validation.mil import MILModel
from validation.mil.package import parse_spec
from validation.session import open_session

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def said(exported_tiny: Path) -> str:
    """What the MIL runtime answers."""
    sample = shipped_samples()[0]
    return open_session(exported_tiny).answer(sample.picture, sample.prompt, 16).text


def test_a_mac_answers_as_the_runtime_does(mac: Any, exported_tiny: Path, tmp_path: Path, said: str) -> None:
    sample = shipped_samples()[0]
    session = open_session(exported_tiny, "coreml")
    assert session.answer(sample.picture, sample.prompt, 16).text == said
    assert coreml_standin.opened == [
        ("VisionEncoder.mlpackage", "encode_256", "CPU_AND_NE"), ("LanguageModel.mlpackage", "decode", "CPU_AND_NE"),
        ("LanguageModel.mlpackage", "prefill", "CPU_AND_NE"),
    ]  # fmt: skip
    coreml_standin.opened.clear()
    copy = Path(shutil.copytree(exported_tiny, tmp_path / "copy"))
    verdict = validate(copy, backend="coreml", compute_units="cpuOnly", steps=2)
    assert verdict.passed
    assert {units for _, _, units in coreml_standin.opened} == {"CPU_ONLY"}
    assert verdict.as_json()["compute_units"] == "cpuOnly"
    inside = ("encoder_blocks.snr_loss_db", "language_blocks.snr_loss_db", "blocks.unmatched")
    assert set(verdict.not_measured) == {*inside, "encoder.peak", "language.peak"}, "Core ML does not show it"


@pytest.mark.long
def test_a_chain_for_the_gpu_runs_there(mac: Any, tmp_path: Path, said: str) -> None:
    sample = shipped_samples()[0]
    built = export("tiny", tmp_path / "chain", target="gpu", max_file_size=1_500_000)
    assert open_session(built, "coreml").answer(sample.picture, sample.prompt, 16).text == said
    language = {(name, units) for name, _, units in coreml_standin.opened if name.startswith("Language")}
    assert len(language) == 4
    assert {units for _, units in language} == {"CPU_AND_GPU"}


def test_a_system_without_core_ml_is_told_so(exported_tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "system", lambda: "linux")
    build = read_build(exported_tiny)
    assert build.encoder is not None
    asked = (
        lambda: open_session(exported_tiny, "coreml"),
        lambda: validate(exported_tiny, backend="coreml"),
        lambda: plans_of(build.encoder, ["encode_256"], "all"),
        connected_devices,
    )
    for ask in asked:
        with pytest.raises(MissingDependency, match=r"needs macOS, this machine is linux; .*"):
            ask()


def test_an_old_mac_is_told_what_it_needs(mac: pytest.MonkeyPatch, exported_tiny: Path, exported_app: Path) -> None:
    mac.setattr(here, "macos_version", lambda: (14, 7, 1))
    with pytest.raises(MissingDependency, match=r"needs macOS 15, this machine has 14\.7\.1"):
        PackageEngine(read_build(exported_tiny), "coreml")
    PackageEngine(read_build(exported_app), "coreml").encoder(256)


def test_a_coremltools_without_its_own_part_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import coremltools

    monkeypatch.setattr(coremltools.models.model, "_MLModelProxy", None)  # as it is on Linux
    with pytest.raises(MissingDependency, match="install it again"):
        here.library()


@pytest.mark.parametrize(
    ("backend", "units", "says"),
    [("mil", "all", "add --backend coreml"), ("coreml", "cpu", "known are cpuOnly"), (None, "all", "backend is torch")],
)
def test_compute_units_are_core_ml_s(mac: Any, tiny: Path, exported_tiny: Path, backend: str | None, units: str,
                                     says: str) -> None:  # fmt: skip
    with pytest.raises(UsageError, match=says):
        open_session(exported_tiny if backend else tiny, backend, compute_units=units)


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("refuse load encode_256", PackageError, "cannot load encode_256 of VisionEncoder.mlpackage on cpuAndNeural"),
        ("refuse predict encode_256", ExecutionError, "cannot run encode_256 .* Unable to compute the prediction"),
        ("refuse state", ExecutionError, "makes no state for decode .* Failed to create the state"),
    ],
)
def test_what_core_ml_refuses_is_a_named_error(
    mac: pytest.MonkeyPatch, exported_tiny: Path, fault: str, error: type[Exception], says: str
) -> None:
    mac.setenv("COREML_STANDIN", fault)
    sample = shipped_samples()[0]
    with pytest.raises(error, match=says):
        open_session(exported_tiny, "coreml").answer(sample.picture, sample.prompt, 1)


def without_files(package: Path) -> str:
    shutil.rmtree(package)
    return "encode_256"


def without_manifest(package: Path) -> str:
    (package / "Manifest.json").unlink()
    return "encode_256"


def cut(package: Path) -> str:
    os.truncate(package / "Data/com.apple.CoreML/model.mlmodel", 1000)
    return "encode_256"


def asked_for_another_function(package: Path) -> str:
    return "encode_512"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # on a Mac it warns first
@pytest.mark.parametrize("damage", [without_files, without_manifest, cut, asked_for_another_function])
def test_what_coremltools_cannot_open_is_a_named_error(mac: Any, tiny_build: Path, damage: Any) -> None:
    """The stand-in raises what the real class does, which reads a package on any system."""
    from coremltools.models import MLModel

    package = tiny_build / "VisionEncoder.mlpackage"
    function = damage(package)
    with pytest.raises(Exception) as real:
        MLModel(str(package), function_name=function)
    with pytest.raises(type(real.value)):
        coreml_standin.MLModel(str(package), function_name=function)
    ours = f"cannot open {function} of VisionEncoder.mlpackage on all: .*; export"
    with pytest.raises(PackageError, match=f"{ours}|VisionEncoder.mlpackage.*(found nothing|no Manifest|was cut)"):
        CoreMLPredictor(package, function, "all")


def test_an_input_that_a_package_does_not_take_is_a_named_error(mac: Any, exported_tiny: Path) -> None:
    predictor = CoreMLPredictor(exported_tiny / "VisionEncoder.mlpackage", "encode_256", "all")
    with pytest.raises(ExecutionError, match=r"cannot run encode_256 .* does not match"):
        predictor.predict({"picture": np.zeros(1, np.float32)})
    with pytest.raises(ExecutionError, match="'image' is NoneType, expected numbers or a picture"):
        predictor.predict({"image": None})


def test_what_is_handed_in_stays_as_it_is(mac: Any, exported_app: Path) -> None:
    """coremltools puts float32 in the place of fp16 inputs, in the caller's own dictionary."""
    data: dict[str, Any] = {"images": np.zeros((1, 3, 256, 256), np.float16)}
    encoder = PackageEngine(read_build(exported_app), "coreml").encoder(256)
    encoder.predict(data)
    assert data["images"].dtype == np.float16


def language_package(build: Path) -> Path:
    return read_build(build).language[0].package


def test_a_plan_tells_of_every_function(mac: Any, in_process: None, exported_tiny: Path) -> None:
    package = language_package(exported_tiny)
    before = {name: sha256_file(package / name) for name in list_tree(package)}
    prefill, decode = plans_of(package, ["prefill", "decode"], "all")
    assert {name: sha256_file(package / name) for name in list_tree(package)} == before
    assert (prefill.function, prefill.told, len(prefill.ops)) == ("prefill", 236, 236)
    assert (decode.function, decode.told) == ("decode", 275)
    assert decode.op_percent == {"neuralEngine": 96.0, "gpu": 0.0, "cpu": 4.0}
    assert sum(decode.cost_percent.values()) == pytest.approx(100)
    assert decode.as_json()["ops"] == 275


@pytest.mark.parametrize(
    ("units", "device"),
    [("cpuOnly", "cpu"), ("cpuAndGPU", "gpu"), ("cpuAndNeuralEngine", "neuralEngine"), ("all", "neuralEngine")],
)
def test_a_plan_is_asked_for_with_the_units(
    mac: Any, in_process: None, exported_tiny: Path, units: str, device: str
) -> None:
    (plan,) = plans_of(exported_tiny / "VisionEncoder.mlpackage", ["encode_256"], units)
    assert {op.device for op in plan.ops} == {device}
    assert coreml_standin.planned == [NAMES[units]]


def test_shares_are_of_what_the_plan_tells() -> None:
    places = (("neuralEngine", 0.2), ("neuralEngine", 0.1), ("cpu", 0.3), ("gpu", None), (None, 0.4))
    plan = FunctionPlan("a", "b", tuple(OpPlace("conv", "x", device, cost) for device, cost in places))
    assert plan.told == 4
    assert plan.op_percent == {"neuralEngine": 50.0, "gpu": 25.0, "cpu": 25.0}
    assert plan.cost_percent == {"neuralEngine": pytest.approx(50), "gpu": 0, "cpu": pytest.approx(50)}
    untold = FunctionPlan("a", "b", (OpPlace("conv", "x", None, None),))
    assert (untold.op_percent, untold.cost_percent) == ({}, {})


def test_ops_inside_an_op_are_told_and_constants_are_not() -> None:
    def op(kind: str, name: str, *inner: Any) -> Any:
        outputs = [SimpleNamespace(name=name)] if name else []
        return SimpleNamespace(operator_name=f"ios18.{kind}", outputs=outputs, blocks=list(inner))

    inside = SimpleNamespace(operations=[op("const", "c"), op("add", "y")])
    block = SimpleNamespace(operations=[op("constexpr_lut_to_dense", "w"), op("cond", "x", inside), op("write", "")])
    program = SimpleNamespace(functions={"main": SimpleNamespace(block=block)})
    preferred = SimpleNamespace(preferred_compute_device=coreml_standin.MLGPUComputeDevice())
    plan = SimpleNamespace(
        model_structure=SimpleNamespace(program=program),
        get_compute_device_usage_for_mlprogram_operation=lambda op: None if op.blocks else preferred,
        get_estimated_cost_for_mlprogram_operation=lambda op: SimpleNamespace(weight=0.5) if op.blocks else None,
    )
    assert list(rows_of(plan, "main", coreml_standin.LIBRARY.models.compute_device)) == [
        ["cond", "x", None, 0.5], ["write", "write", "gpu", None], ["add", "y", "gpu", None],
    ]  # fmt: skip


def test_a_package_for_the_gpu_is_opened_there(mac: Any, exported_tiny: Path) -> None:
    package = language_package(exported_tiny)
    for given in ({"target": "gpu"}, {"target": "ane"}, {"target": "gpu", "compute_units": "all"}):
        open_package(package, "decode", "coreml", **given)
    assert [units for _, _, units in coreml_standin.opened] == ["CPU_AND_GPU", "CPU_AND_NE", "ALL"]


def test_a_plan_of_the_default_function_alone_is_no_plan_of_the_other(mac: Any, exported_tiny: Path) -> None:
    """Why each function is asked for in a package of its own."""
    package = language_package(exported_tiny)
    compiled = coreml_standin.MLComputePlan(package, coreml_standin.ComputeUnit.ALL)
    ops = compiled.model_structure.program.functions["prefill"].block.operations
    assert all(compiled.get_compute_device_usage_for_mlprogram_operation(op) is None for op in ops)


def test_the_copy_s_default_is_the_function(exported_tiny: Path, tmp_path: Path) -> None:
    package = language_package(exported_tiny)
    copy = with_default(package, "prefill", tmp_path)
    model = "Data/com.apple.CoreML/model.mlmodel"
    assert parse_spec(copy / model).description.defaultFunctionName == "prefill"
    assert parse_spec(package / model).description.defaultFunctionName == "decode"
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    assert (copy / weights).samefile(package / weights) or (copy / weights).stat().st_dev != package.stat().st_dev


def test_a_copy_of_what_may_not_be_written_can_be_changed(tiny_build: Path, tmp_path: Path) -> None:
    package = language_package(tiny_build)
    inner = "Data/com.apple.CoreML"
    (package / inner).chmod(0o500)
    try:
        copy = with_default(package, "prefill", tmp_path)
        assert os.access(copy / inner, os.W_OK)
        assert (copy / inner).stat().st_mode & stat.S_IWUSR
    finally:
        (package / inner).chmod(0o700)
        (tmp_path / package.name / inner).chmod(0o700)


def test_a_plan_without_the_function_is_an_error(mac: Any, in_process: None, exported_tiny: Path) -> None:
    with pytest.raises(ExecutionError, match="no function encode_512"):
        plans_of(language_package(exported_tiny), ["encode_512"], "all")


def test_a_plan_that_aborts_ends_its_child_alone(mac: pytest.MonkeyPatch, exported_tiny: Path, tmp_path: Path) -> None:
    """And nothing of what it compiled stays behind: gigabytes, of a large build."""
    mac.setenv("COREML_STANDIN", "abort plan")
    mac.setenv("TMPDIR", str(tmp_path))
    mac.setattr(tempfile, "tempdir", None)
    with pytest.raises(
        ProcessError, match=r"the compute plan of LanguageModel\.mlpackage on all ended .*2757"
    ) as caught:
        plans_of(language_package(exported_tiny), ["decode"], "all")
    assert (caught.value.ended, caught.value.stage) == ("SIGABRT", "planning decode")
    assert list(tmp_path.iterdir()) == []


def test_devices_are_listed_without_their_owners(mac: pytest.MonkeyPatch) -> None:
    (device,) = connected_devices()
    assert device.as_json() == {"udid": "00008130-STANDIN", "kind": "iphone", "os": "18.5", "state": "connected"}
    mac.setenv("COREML_STANDIN", "no devicectl")
    with pytest.raises(MissingDependency, match="install Xcode"):
        connected_devices()


def device_bench(build: Path, team: str = "TEAM", udid: str = "00008130-STANDIN") -> DeviceBench:
    return DeviceBench(lambda stage: None, str(build), "cpuAndGPU", None, udid, team)


def test_a_device_gives_what_its_tools_offer(mac: Any, exported_tiny: Path, exported_app: Path) -> None:
    bench = device_bench(exported_tiny)
    assert bench.load() == [["load_encoder_core_ml", None, 0.005], ["load_language_core_ml", None, 0.01]]
    assert bench.run() == [], "an image and a state are more than the tools take"
    assert bench.memory() == {}
    plan = {function: len(rows) for _, function, rows in bench.plan()}
    assert plan == {"encode_256": 203, "prefill": 236, "decode": 275}
    assert {units for _, _, units in coreml_standin.opened} == {"CPU_AND_GPU"}
    bench.close()
    app = device_bench(exported_app)
    assert app.load() == [["load_encoder_core_ml", None, 0.005]]
    assert app.run() == [["encode", None, 0.007]]
    app.close()


def test_a_device_drops_what_it_has_loaded_before_it_loads_again(mac: Any, exported_app: Path) -> None:
    bench = device_bench(exported_app)
    bench.load()
    first = weakref.ref(next(iter(bench._loaded.values())))
    heard = []
    bench._tell = lambda stage: heard.append((stage, first()))
    bench.load()
    assert heard == [("load main", None)]
    bench.close()


def test_what_a_device_does_not_tell_is_no_zero(mac: pytest.MonkeyPatch, exported_app: Path) -> None:
    mac.setenv("COREML_STANDIN", "untold")
    bench = device_bench(exported_app)
    assert bench.load() == []
    assert bench.run() == []
    bench.close()


def test_a_device_that_cannot_be_measured_is_a_named_error(mac: pytest.MonkeyPatch, exported_tiny: Path) -> None:
    with pytest.raises(UsageError, match="is not connected"):
        device_bench(exported_tiny, udid="another")
    with pytest.raises(ExecutionError, match="Signing requires a development team"):
        device_bench(exported_tiny, team="NONE")
    mac.setenv("COREML_STANDIN", "no signing")
    with pytest.raises(ExecutionError, match="Error Code 65"):
        device_bench(exported_tiny)


def parameters(function: Any) -> set[str]:
    return {name for name in inspect.signature(function).parameters if name not in ("self", "_", "cls")}


def test_the_stand_in_is_called_as_coremltools_is(exported_tiny: Path) -> None:
    """Whatever the project gives the stand-in, the real class takes by that name; a renamed parameter is told here."""
    import coremltools
    from coremltools.models import compute_plan, model, utils
    from coremltools.models.ml_program.experimental import async_wrapper, remote_device

    assert {unit.name for unit in coreml_standin.ComputeUnit} == {unit.name for unit in coremltools.ComputeUnit}
    assert set(NAMES.values()) == {unit.name for unit in coremltools.ComputeUnit}
    assert tuple(NAMES) == COMPUTE_UNITS
    for mine, theirs in (
        (coreml_standin.MLModel, model.MLModel),
        (coreml_standin.MLComputePlan, compute_plan.MLComputePlan),
        (coreml_standin.Device, remote_device.Device),
        (coreml_standin.RemoteMLModelAsyncWrapper, async_wrapper.RemoteMLModelAsyncWrapper),
    ):
        for name, function in vars(mine).items():
            if not name.startswith("_") and callable(getattr(mine, name)):
                assert parameters(getattr(mine, name)) <= parameters(getattr(theirs, name)), f"{mine.__name__}.{name}"
                assert inspect.iscoroutinefunction(function) == inspect.iscoroutinefunction(getattr(theirs, name))
            elif isinstance(function, property):
                assert isinstance(inspect.getattr_static(theirs, name), property), name
    assert parameters(coreml_standin.MLModel.__init__) <= parameters(model.MLModel.__init__)
    remote = async_wrapper.RemoteMLModelAsyncWrapper.__init__
    assert parameters(coreml_standin.RemoteMLModelAsyncWrapper.__init__) <= parameters(remote)
    assert parameters(coreml_standin.compile_model) <= parameters(utils.compile_model)
    assert {field.name for field in remote_device.Device.__dataclass_fields__.values()} >= {
        "udid", "type", "os_version", "state", "name", "session",
    }  # fmt: skip
    assert hasattr(remote_device, "AppSigningCredentials")
    assert hasattr(remote_device, "_DeviceCtlError")
    assert issubclass(remote_device._AppBuilder.Error, Exception)
    for name in ("MLCPUComputeDevice", "MLGPUComputeDevice", "MLNeuralEngineComputeDevice"):
        assert hasattr(coremltools.models.compute_device, name)


def halves(model: MILModel) -> dict[str, np.ndarray]:
    """What a function takes: 0.5 everywhere, at position 3."""
    return {
        name: np.full([int(length or 1) for length in feature.shape], 0.5, np.float16)
        if feature.dtype == "fp16"
        else np.int32([3])
        for name, feature in model.inputs.items()
    }


def test_functions_live_in_a_process_of_their_own(apart: Any, exported_tiny: Path) -> None:
    """Both functions of the language model share one, and their states stay there."""
    package = language_package(exported_tiny)
    decode = open_package(package, "decode", "coreml")
    prefill = open_package(package, "prefill", "coreml", beside=decode)
    assert not coreml_standin.opened, "nothing was opened in this process"
    model = MILModel(package, "decode")
    ours, states = model.make_state(), [decode.make_state() for _ in range(2)]
    model.function("prefill").predict(halves(model.function("prefill")), ours)
    prefill.predict(halves(model.function("prefill")), states[0])
    expected, found = model.predict(halves(model), ours), decode.predict(halves(model), states[0])
    np.testing.assert_array_equal(found["logits"], expected["logits"])
    np.testing.assert_array_equal(states[0].read_state(STATE), ours.read_state(STATE))
    assert not states[1].read_state(STATE).any(), "a state of its own"
    states.pop()
    assert decode.predict(halves(model), states[0])


def test_what_ends_core_ml_ends_nothing_else(apart: pytest.MonkeyPatch, exported_tiny: Path) -> None:
    apart.setenv("COREML_STANDIN", "kill predict encode_256")
    encoder = CoreMLPredictor(exported_tiny / "VisionEncoder.mlpackage", "encode_256", "all")
    with pytest.raises(ProcessError, match=r"Core ML with VisionEncoder.mlpackage .*SIGKILL.* running encode_256"):
        encoder.predict({"image": np.zeros((256, 256, 3), np.uint8)})


def test_a_package_with_a_link_never_reaches_core_ml(apart: Any, tiny_build: Path) -> None:
    package = tiny_build / "VisionEncoder.mlpackage"
    (package / "more").symlink_to("/etc")
    with pytest.raises(PackageError, match="is a link"):
        CoreMLPredictor(package, "encode_256", "all")
