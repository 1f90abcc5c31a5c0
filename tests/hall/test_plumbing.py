"""Files that say the same thing twice agree, and nothing committed knows the machine it was written on."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastvlm
from fastvlm.doctor import RANGES

# Put together from parts, so that this file does not find itself.
FORBIDDEN = [f"/{name}/" for name in ("root", "work", "home", "Users")]
FORBIDDEN += ["file:" + "//", "pypi" + ".org", "/opt/" + "wheels"]
TEXT = {".py", ".md", ".cfg", ".toml", ".txt", ".json", ".yml", ".yaml", ""}


def tracked(root: Path) -> list[Path]:
    if not (root / ".git").exists():
        pytest.skip("no git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout.decode()
    return [root / name for name in names.split("\0") if name and (root / name).is_file()]


def forbidden_in(files: list[Path], root: Path) -> Iterator[str]:
    for path in files:
        if path.suffix in TEXT:
            text = path.read_text("utf-8")
            yield from (f"{path.relative_to(root)} holds {word}" for word in FORBIDDEN if word in text)


def test_no_machine_in_tracked_files(root: Path) -> None:
    assert list(forbidden_in(tracked(root), root)) == []


def test_no_model_is_left_at_the_root(root: Path) -> None:
    """onnxruntime's shape inference, for one, leaves sym_shape_infer_temp.onnx wherever it is run."""
    models = {".onnx", ".data", ".npy", ".safetensors", ".mlpackage"}
    assert [path.name for path in tracked(root) if path.parent == root and path.suffix in models] == []


def test_a_machine_path_is_found(tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_text("see " + FORBIDDEN[0] + "x")
    assert list(forbidden_in([tmp_path / "bad.md"], tmp_path)) == [f"bad.md holds {FORBIDDEN[0]}"]


def requirements(text: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return dict(re.fullmatch(r"([A-Za-z0-9_-]+)(.*)", line).groups() for line in lines if line)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def metadata(root: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(root / "setup.cfg", "utf-8")
    return parser


def test_doctor_knows_the_ranges_of_the_metadata(metadata: configparser.ConfigParser) -> None:
    stated = requirements(metadata["options"]["install_requires"])
    assert stated == {name: f">={low}" + (f",<{high}" if high else "") for name, (low, high) in RANGES.items()}


def test_every_direct_dependency_is_pinned(root: Path, metadata: configparser.ConfigParser) -> None:
    pins = requirements((root / "constraints.txt").read_text("utf-8"))
    extras = metadata["options.extras_require"]
    direct = requirements("\n".join([metadata["options"]["install_requires"], *extras.values()]))
    assert sorted(direct) == sorted(pins)
    assert [name for name, pin in pins.items() if not re.fullmatch(r"==\d[\w.]*", pin)] == []
    assert pins["torch"] == "==2.13.0"


ROOMS = ("fastvlm", "fastvlm_ref", "export", "validation", "ios_bundle")
# Those whose names differ.
DISTRIBUTIONS = {"PIL": "pillow", "google": "protobuf", "pillow_heif": "pillow-heif", "yaml": "pyyaml"}


def imported(source: str) -> set[str]:
    """Top-level names that a file imports, also through pytest.importorskip and importlib.import_module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("importorskip", "import_module")):
            found |= {word.value for word in node.args[:1] if isinstance(word, ast.Constant)}
    return {name.split(".")[0] for name in found}


def undeclared(files: list[Path], declared: set[str]) -> list[str]:
    """What `files` import from outside the standard library, this project and `declared`."""
    own = {*ROOMS, "benchmarks", *(path.stem for path in files)}
    known = {*sys.stdlib_module_names, *own, *(name.replace("-", "_") for name in declared)}
    return [
        f"{path.name} imports {name}"
        for path in files
        for name in sorted(imported(path.read_text("utf-8")))
        if DISTRIBUTIONS.get(name, name).replace("-", "_") not in known
    ]


def test_whatever_is_imported_is_declared(root: Path, metadata: configparser.ConfigParser) -> None:
    required = set(requirements(metadata["options"]["install_requires"]))
    extras = {name: set(requirements(text)) for name, text in metadata["options.extras_require"].items()}
    rooms = [path for room in ROOMS for path in (root / room).rglob("*.py")]
    assert undeclared(rooms, required.union(*(extras[name] for name in ("heic", "ray", "parquet")))) == []
    around = [path for name in ("tests", "docs", "benchmarks") for path in (root / name).rglob("*.py")]
    known = required.union(*(extras[name] for name in ("heic", "test", "oracles", "bench")))
    assert undeclared(around, known) == []


@pytest.mark.parametrize(
    "source",
    ["import jinja3", "from jinja3.a import b", "def f():\n    import jinja3 as j", "importorskip('jinja3.a')"],
)
def test_an_undeclared_import_is_found(tmp_path: Path, source: str) -> None:
    (tmp_path / "it.py").write_text(f"import os, PIL, it\n{source}")
    assert undeclared([tmp_path / "it.py"], {"pillow"}) == ["it.py imports jinja3"]


def test_every_room_is_typed(root: Path) -> None:
    """Without the marker, a type checker takes whatever comes from an installed package for Any."""
    assert [room for room in ROOMS if not (root / room / "py.typed").is_file()] == []


def test_the_changelog_speaks_of_this_version(root: Path) -> None:
    assert f"## [{fastvlm.__version__}]" in (root / "CHANGELOG.md").read_text("utf-8")


def test_tests_import_nothing_from_a_conftest(root: Path) -> None:
    """There are several, and which one the name means depends on which tests were collected first."""
    found = re.compile(r"^\s*(from|import) conftest\b", re.MULTILINE)
    assert [path.name for path in (root / "tests").rglob("*.py") if found.search(path.read_text("utf-8"))] == []


def find_python(root: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the search with only `folder` and a few system tools on the PATH."""
    for tool in ("uname",):
        if not (folder / tool).exists():
            (folder / tool).symlink_to(f"/usr/bin/{tool}")
    variables = {"PATH": str(folder), **environment}
    command = ["/bin/sh", str(root / ".ci" / "find-python")]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


def fake(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(folder / name, 0o755)


def test_newest_python_that_really_runs_is_taken(root: Path, tmp_path: Path) -> None:
    fake(tmp_path, "python3.13", "exit 127")  # a version manager's shim for a Python that is not there
    fake(tmp_path, "python3.12", "exit 0")
    fake(tmp_path, "python3.11", "exit 0")
    assert find_python(root, tmp_path).stdout == "python3.12\n"
    assert find_python(root, tmp_path, PYTHON="python3.11").stdout == "python3.11\n"


@pytest.mark.parametrize("environment", [{}, {"PYTHON": "python3.9"}])
def test_no_python_is_one_line(root: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    result = find_python(root, tmp_path, **environment)
    assert result.returncode == 2
    assert re.fullmatch(r"Error: .*3\.11, 3\.12 or 3\.13.*\n", result.stderr)


def test_unsupported_platform_is_one_line(root: Path, tmp_path: Path) -> None:
    fake(tmp_path, "uname", '[ "$1" = -s ] && echo Linux || echo aarch64')
    result = find_python(root, tmp_path)
    assert result.returncode == 2
    assert re.fullmatch(r"Error: this is Linux aarch64; .*\n", result.stderr)
