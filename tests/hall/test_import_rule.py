"""The one-way rule of the rooms, read from the imports themselves."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARIES = {
    "fastvlm": set(),
    "fastvlm_ref": {"torch", "numpy", "PIL", "pillow_heif", "safetensors", "tokenizers", "huggingface_hub"},
    "export": {"torch", "numpy", "coremltools", "onnx", "tqdm", "yaml"},
    # click for demo.py, which types the commands for the user; tokenizers for bundle_host, which knows no other room
    "validation": {
        "torch", "numpy", "PIL", "tokenizers", "google", "coremltools", "onnx", "onnxruntime", "jinja2", "matplotlib",
        "click", "ray", "pyarrow",
    },
    "ios_bundle": set(),
}  # fmt: skip
ROOMS_SEEN = {
    "fastvlm": {"fastvlm"},
    "fastvlm_ref": {"fastvlm", "fastvlm_ref"},
    "export": {"fastvlm", "fastvlm_ref", "export"},
    "validation": {"fastvlm", "fastvlm_ref", "export", "validation"},
    "ios_bundle": {"fastvlm", "ios_bundle"},
}
TERMINAL_FILES = ("cli.py", "terminal.py", "commands/")


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """(top-level package, whether it is imported when the module is) for every import of `source`."""
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    while waiting:
        node, early = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], early) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is meant"
            yield (node.module or "").split(".")[0], early
        else:
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            waiting += [(child, early and not is_function and not is_typing) for child in ast.iter_child_nodes(node)]


def violations(room: str, file: str, source: str) -> list[str]:
    """What `file` (relative to its room) may not import."""
    allowed = set(sys.stdlib_module_names) | LIBRARIES[room] | ROOMS_SEEN[room]
    command = room == "fastvlm" and file.startswith(TERMINAL_FILES)
    found = []
    for name, early in imports(source):
        late_room = file.startswith("commands/") and not early and name in LIBRARIES
        if name in allowed or (command and (name == "click" or (name == "rich" and not early) or late_room)):
            continue
        found.append(f"{room}/{file} imports {name}{' at once' if early else ''}")
    return found


def test_rooms_import_one_way(root: Path) -> None:
    found = [
        problem
        for room in LIBRARIES
        for path in sorted((root / room).rglob("*.py"))
        for problem in violations(room, path.relative_to(root / room).as_posix(), path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("room", "file", "source"),
    [
        ("fastvlm", "manifest.py", "import numpy"),
        ("fastvlm", "manifest.py", "import click"),
        ("fastvlm", "publish.py", "def f():\n    from fastvlm_ref import config"),
        ("fastvlm", "commands/run.py", "import fastvlm_ref"),
        ("fastvlm", "commands/run.py", "import rich"),
        ("fastvlm", "cli.py", "def f():\n    import torch"),
        ("fastvlm_ref", "config.py", "def f():\n    import coremltools as ct"),
        ("fastvlm_ref", "config.py", "from export.plan import ExportPlan"),
        ("export", "plan.py", "from validation.mil import MILModel"),
        ("ios_bundle", "__init__.py", "import torch"),
        ("ios_bundle", "__init__.py", "import export"),
        ("validation", "engine.py", "import transformers"),
    ],
)
def test_violations_are_found(room: str, file: str, source: str) -> None:
    assert violations(room, file, source)


def test_allowed_imports_are_not() -> None:
    inside = "import click\ndef f():\n    import validation.session\n    import rich"
    assert not violations("fastvlm", "commands/run.py", inside)
    assert not violations("validation", "engine.py", "import export.contract, torch, json")
