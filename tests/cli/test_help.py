"""Help is fast, complete, and the reference page is what the commands say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fastvlm import __version__
from fastvlm.cli import COMMANDS, cli

# Measured: 151 modules, 0.18 s for the whole process; torch adds more than 1,000. A count holds on a busy machine.
MODULE_LIMIT = 300
HEAVY = {
    "torch",
    "coremltools",
    "numpy",
    "rich",
    "tokenizers",
    "safetensors",
    "PIL",
    "transformers",
    "google",
    "huggingface_hub",
}
REPORT = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))
"""


def modules_after(root: Path, statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `statement`."""
    command = [sys.executable, "-c", REPORT + statement]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "statement",
    ["import fastvlm", "import fastvlm.publish, fastvlm.manifest, fastvlm.doctor"]
    + [f"from fastvlm.cli import cli; cli.main({args})" for args in (["--help"], ["export", "--help"], ["--version"])],
)
def test_nothing_heavy_is_imported(root: Path, statement: str) -> None:
    modules = modules_after(root, statement)
    assert "fastvlm" in modules
    assert {name.split(".")[0] for name in modules} & HEAVY == set()
    assert len(modules) < MODULE_LIMIT


def test_the_count_sees_heavy_imports(root: Path) -> None:
    assert "numpy" in modules_after(root, "import fastvlm, numpy")


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    assert [name for name in COMMANDS if f"\n  {name} " not in result.output] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    command = cli.commands.get(name) or cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    options = [option for option in command.params if isinstance(option, click.Option)]
    unexplained = [option.name for option in options if not option.help]
    assert unexplained == []


def test_version() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"fastvlm {__version__}\n"


def test_reference_page_is_up_to_date(root: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate_cli", root / "docs" / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert (root / "docs" / "cli.md").read_text("utf-8") == generator.render(), "run: python docs/generate_cli.py"
