"""Sessions: where they run is what was asked for, or an error with what is there and what to install."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.onnx.graph import IR_VERSION, OPSET, write_model
from fastvlm.errors import ExecutionError, MissingDependency, PackageError, UsageError
from validation.ort import cores, loading, providers
from validation.ort.loading import Loaded
from validation.ort.opening import open_file
from validation.ort.providers import PROVIDERS, Provider, provider_names
from validation.ort.settings import Settings, session_options

QUIET = Settings(threads=1, spin=False)


def write(folder: Path, *nodes: str, domain: str = "", dtype: int = TensorProto.FLOAT) -> Path:
    """A file of ops in a row, x to y."""
    x, y = (helper.make_tensor_value_info(name, dtype, [4]) for name in ("x0", f"x{len(nodes)}"))
    made = [helper.make_node(kind, [f"x{i}"], [f"x{i + 1}"], domain=domain) for i, kind in enumerate(nodes)]
    graph = helper.make_graph(made, "g", [x], [y])
    imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    write_model(helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION), folder / "m.onnx")
    return folder / "m.onnx"


def load(path: Path, words: Sequence[str] = ("cpu",), settings: Settings = QUIET) -> Loaded:
    return loading.load(open_file(path), words, settings)


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> str:
    """A provider that is installed everywhere and takes no node of any graph of ours."""
    monkeypatch.setitem(PROVIDERS, "azure", Provider("AzureExecutionProvider", "nothing"))
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CPU alone")
    return "azure"


def test_the_cpu(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, "Sin", "Cos", "Tan"))
    assert loaded.placement() == {"cpu": 3}
    options = loaded.session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["gpu"], UsageError, "'gpu' is unknown; known are cpu, coreml"),
        ([], UsageError, "providers are none"),
        (["cpu", "cpu"], UsageError, "cpu, cpu; expected one or more of .*, each once"),
        (["coreml", "cpu"], MissingDependency, r"no provider coreml \(CoreMLExecutionProvider\); it has cpu\. Install"),
        (["cuda"], MissingDependency, "pip install onnxruntime-gpu"),
    ],
)
def test_a_provider_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, words: list[str], error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(providers.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(error, match=message):
        provider_names(words)


def test_nothing_falls_back_to_the_cpu(tmp_path: Path, azure: str) -> None:
    """Neither where the CPU was not asked for, nor where it would do all the work of the other."""
    path = write(tmp_path, "Sin", "Cos")
    with pytest.raises(ExecutionError, match=r"does not take .* for azure .*fallback to CPU EP has been explicitly"):
        load(path, [azure])
    with pytest.raises(ExecutionError, match="azure takes none of its nodes"):
        load(path, [azure, "cpu"])


def test_a_provider_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """onnxruntime itself would print the error and try again with the CPU."""
    tried: list[object] = []

    def fail(_: object, names: object, *__: object) -> None:
        tried.append(names)
        raise RuntimeError("no driver")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(ExecutionError, match=r"does not take .*no driver"):
        load(write(tmp_path, "Sin"))
    assert tried == [["CPUExecutionProvider"]]
    assert capfd.readouterr() == ("", "")


def test_an_old_onnxruntime_cannot_tell(tmp_path: Path, azure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime.InferenceSession.__base__, "get_provider_graph_assignment_info")
    assert load(write(tmp_path, "Sin", "Cos")).placement() == {"cpu": 2}
    with pytest.raises(MissingDependency, match="cannot say which provider"):
        load(tmp_path / "m.onnx", [azure, "cpu"])


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: write(folder, "Nothing"),
        lambda folder: write(folder, "Mine", domain="com.microsoft"),
        lambda folder: write(folder, "Sin", dtype=TensorProto.STRING),
    ],
)
def test_what_onnxruntime_refuses(tmp_path: Path, make: Callable[[Path], Path], capfd: pytest.CaptureFixture) -> None:
    path = make(tmp_path)
    open_file(path)
    with pytest.raises(ExecutionError, match=r"onnxruntime does not take .*m\.onnx for cpu") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # its own log says nothing beside


def test_another_format_of_onnxruntimes(tmp_path: Path) -> None:
    path = write(tmp_path, "Sin")
    path.rename(tmp_path / "m.ort")
    with pytest.raises(PackageError, match=r"m\.ort .*expected a file that ends in \.onnx"):
        load(tmp_path / "m.ort")


def test_floats_are_used_where_they_lie(tmp_path: Path) -> None:
    """Weights as codes must be packed once; floats would only be held a second time."""
    file = open_file(write(tmp_path, "Sin"))

    def packs(settings: Settings = QUIET) -> str:
        return session_options(settings, file, alone=False).get_session_config_entry("session.disable_prepacking")

    assert (packs(), packs(Settings(pack=True))) == ("1", "0")
    file.ops["MatMulNBits"] += 1
    assert packs() == "0"


# Threads


def machine(folder: Path, siblings: dict[int, str], quota: str = "max 100000\n") -> tuple[Path, Path]:
    for cpu, text in siblings.items():
        (folder / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (folder / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(text + "\n")
    (folder / "cpu.max").write_text(quota)
    return folder, folder / "cpu.max"


@pytest.mark.parametrize(
    ("siblings", "quota", "allowed", "count"),
    [
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, "max 100000\n", {0, 1, 2, 3}, 2),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, "max 100000\n", {0, 2}, 1),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "max 100000\n", {0, 1, 2, 3}, 4),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "150000 100000\n", {0, 1, 2, 3}, 2),
        ({0: "0", 1: "1"}, "1000 100000\n", {0, 1}, 1),
        ({0: "0", 1: "1"}, "nonsense", {0, 1}, 2),
        ({}, "max 100000\n", {0, 1, 2}, 3),
    ],
)
def test_a_thread_for_each_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, siblings: dict[int, str], quota: str, allowed: set[int], count: int
) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: allowed, raising=False)
    assert cores.usable_cores(*machine(tmp_path, siblings, quota)) == count


def test_threads_without_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cores.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 8)
    assert cores.usable_cores() == 8
    monkeypatch.undo()
    assert 1 <= cores.usable_cores(tmp_path, tmp_path / "none") <= (cores.os.cpu_count() or 1)
