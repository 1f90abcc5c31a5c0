"""No line of a command's output is begun by a stranger: each text of a build, package, bundle and report holds one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import onnx
import pytest
from click.testing import CliRunner
from test_hostile_found import put

from fastvlm.cli import cli

FORGED = "x)\nError: forged\nverdict: forged, all limits hold\n\rnext: forged\u2028Error: forged\u0085verdict: forged"
FIRST = ("Error:", "verdict", "next:", "note:")
PACKAGE = "LanguageModel.mlpackage"
MODEL = "Data/com.apple.CoreML/model.mlmodel"


def typed(*words: object) -> click.testing.Result:
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="fastvlm")


def forged(*words: object) -> list[str]:
    """The lines of a command that a stranger began."""
    result = typed(*words)
    assert result.exit_code in (0, 1, 2), (words, result.output, result.exception)
    begins = ("forged", *(f"{begin} forged" for begin in FIRST))
    shown = result.output.splitlines()  # at every kind of line end that there is
    return [line for line in shown if f"{line[:2].lstrip()}{line[2:]}".startswith(begins)]  # columns lie further in


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all texts; of a list that of its first item's alone."""
    if isinstance(value, str):
        yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    ):
        yield from leaves(inner, (*path, str(key)))


def forge(content: Any, path: tuple[str, ...]) -> None:
    *way, last = path
    for key in way:
        content = content[int(key)] if isinstance(content, list) else content[key]
    key = int(last) if isinstance(content, list) else last
    content[key] += FORGED


def each_forged(file: Path, show: Callable[[], list[str]]) -> dict[tuple[str, ...], list[str]]:
    """What is forged by each text of a JSON file alone, of those that are alike by one; the file is then as it was."""
    whole = file.read_bytes()
    found: dict[tuple[str, ...], list[str]] = {}
    alike = {(path[0], path[-1], "outputs" in path): path for path in leaves(json.loads(whole))}
    for path in alike.values():
        content = json.loads(whole)
        forge(content, path)
        file.write_text(json.dumps(content))
        found[path] = show()
    file.write_bytes(whole)
    return found


@pytest.fixture
def build(exported_tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported_tiny, tmp_path / "build"))


def test_no_text_of_a_manifest_begins_a_line(build: Path) -> None:
    commands = ("inspect", "fit")
    found = each_forged(build / "manifest.json", lambda: [line for name in commands for line in forged(name, build)])
    assert len(found) > 20
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_no_text_of_a_manifest_that_is_run_begins_a_line(build: Path, tmp_path: Path) -> None:
    """And none of the report of it, of which each text is forged in turn."""
    manifest = json.loads((build / "manifest.json").read_text())
    for path in (("licence",), ("source", "layout"), ("source", "files", "README.md", "sha256")):
        forge(manifest, path)
    function = manifest["functions"]["encoder"]["encode_256"]
    function["outputs"][0]["dtype"] += FORGED
    (build / "manifest.json").write_text(json.dumps(manifest))
    report = tmp_path / "report.json"
    words = ("validate", build, "--reference", "tiny", "--steps", 1, "--report", report)
    assert forged(*words) == []
    assert report.is_file()
    found = each_forged(report, lambda: forged("report", report, "-o", tmp_path / "again.json"))
    assert {path: lines for path, lines in found.items() if lines} == {}


# Of a package's description: where a stranger's words may stand
def of_packages() -> dict[str, Callable[[Any], None]]:
    def text(of: Callable[[Any], Any], field: str) -> Callable[[Any], None]:
        return lambda spec: setattr(of(spec), field, getattr(of(spec), field) + FORGED)

    def whole(spec: Any) -> Any:
        return spec.description

    def function(spec: Any) -> Any:
        return spec.description.functions[0]

    changes = {
        f"metadata {name}": text(lambda spec: spec.description.metadata, name)
        for name in ("author", "license", "versionString", "shortDescription")
    }
    changes["default function"] = text(whole, "defaultFunctionName")
    for name in ("input", "output", "state"):
        for field in ("name", "shortDescription"):
            changes[f"{name} {field}"] = text(lambda spec, name=name: getattr(function(spec), name)[0], field)
    changes["function name"] = text(function, "name")
    changes["op"] = lambda spec: setattr(_op(spec), "type", _op(spec).type + FORGED)
    changes["opset"] = lambda spec: setattr(_function(spec), "opset", FORGED)
    changes["user's key"] = lambda spec: spec.description.metadata.userDefined.update({FORGED: FORGED})
    return changes


def _function(spec: Any) -> Any:
    return spec.mlProgram.functions[sorted(spec.mlProgram.functions)[0]]


def _op(spec: Any) -> Any:
    (block,) = _function(spec).block_specializations.values()
    return block.operations[-1]


def test_no_text_of_a_package_begins_a_line(build: Path) -> None:
    from coremltools.proto import Model_pb2

    file = build / PACKAGE / MODEL
    whole = file.read_bytes()
    found: dict[str, list[str]] = {}
    for name, change in of_packages().items():
        spec = Model_pb2.Model()
        spec.ParseFromString(whole)
        change(spec)
        file.write_bytes(spec.SerializeToString())
        commands = (("inspect", build / PACKAGE), ("lint", build / PACKAGE), ("inspect", build))
        found[name] = [line for words in commands for line in forged(*words)]
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_no_word_of_an_onnx_file_begins_a_line(onnx_tiny: Path, tmp_path: Path) -> None:
    build = Path(shutil.copytree(onnx_tiny, tmp_path / "build"))
    name = "LanguageModel.onnx"
    model = onnx.load(build / name, load_external_data=False)
    lengths = [length for port in model.graph.input for length in port.type.tensor_type.shape.dim if length.dim_param]
    assert lengths
    for length in lengths:
        length.dim_param = FORGED
    data = model.SerializeToString()
    (build / name).write_bytes(data)
    manifest = json.loads((build / "manifest.json").read_text())
    manifest["files"][name] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (build / "manifest.json").write_text(json.dumps(manifest))
    assert forged("inspect", build) == []
    assert "x)\\nError: forged" in typed("inspect", build).output


def test_no_text_of_a_bundle_begins_a_line(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    found: dict[tuple[str, ...], list[str]] = {}
    for file in sorted(bundle.glob("*.json")):
        found |= {
            (file.name, *path): lines for path, lines in each_forged(file, lambda: forged("verify", bundle)).items()
        }
    assert len(found) > 20
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_the_suite_can_fail(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastvlm.terminal.printable", lambda text, most=None: text)
    monkeypatch.setattr("fastvlm.commands.inspect.printable", lambda text, most=None: text)
    put(build / "manifest.json", "licence", FORGED)
    assert len(forged("inspect", build)) == 3
