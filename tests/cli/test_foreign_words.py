"""What a stranger's build, package and folder name say is shown, and nothing of it obeyed."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typed import Run

from fastvlm.cli import _with_command
from fastvlm.commands.options import say, show_json
from fastvlm.commands.verify import _show_selftest
from fastvlm.errors import MissingBase
from validation.bundle_selftest import SelfTestResult

EVIL = "red\x1b[31m\x9b2J\u202enekort\u2028\rline"
PACKAGE = "VisionEncoder.mlpackage"
MODEL = "Data/com.apple.CoreML/model.mlmodel"


@pytest.fixture(scope="module")
def foreign_build(exported_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole build whose manifest, and the description of whose encoder, hold orders for a terminal."""
    from coremltools.proto import Model_pb2

    build = tmp_path_factory.mktemp("foreign") / "build\x1b[2J"
    shutil.copytree(exported_tiny, build)
    manifest = json.loads((build / "manifest.json").read_text())
    manifest |= {"licence": EVIL, "assumed": [EVIL]}
    manifest["source"] |= {"id": EVIL, "revision": None}
    (build / "manifest.json").write_text(json.dumps(manifest))
    spec = Model_pb2.Model()
    spec.ParseFromString((build / PACKAGE / MODEL).read_bytes())
    spec.description.metadata.license = EVIL
    spec.description.metadata.userDefined[EVIL] = EVIL
    spec.description.functions[0].input[0].shortDescription = EVIL
    (build / PACKAGE / MODEL).write_bytes(spec.SerializeToString())
    return build


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("command", [("inspect", ""), ("inspect", PACKAGE), ("lint", PACKAGE), ("validate", "")])
def test_a_terminal_obeys_nothing(
    run: Run, foreign_build: Path, command: tuple[str, str], options: tuple[str, ...]
) -> None:
    result = run(command[0], foreign_build / command[1], *options)
    shown = result.stdout + result.stderr
    assert result.exit_code in (0, 2), shown
    assert "Error: internal" not in shown
    assert not {sign for sign in shown if not sign.isprintable()} - {"\n"}
    if command[0] == "inspect":
        assert "red" in result.stdout
        assert "31m" in result.stdout


def test_what_a_command_says_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for err in (False, True):
        say(EVIL + "\nError: forged", err=err)
    said = "red\\x1b[31m\\x9b2J\\u202enekort\\u2028\\rline\\nError: forged\n"
    assert capsys.readouterr() == (said, said)


def test_the_answer_of_a_self_test_keeps_its_lines_and_its_script(capsys: pytest.CaptureFixture[str]) -> None:
    _show_selftest(SelfTestResult("mil", (), "1. می\u200cخواهم\n2. \x1b[2J\nError: forged", 1))
    said = "mil: 1. می\u200cخواهم\n  2. \\x1b[2J\n  Error: forged (ties: 1)"
    assert capsys.readouterr().out.strip().endswith(said)


def test_the_next_step_can_be_typed(run: Run, exported_tiny: Path, tmp_path: Path) -> None:
    """A folder of a name that has signs which nobody sees, as of an emoji or in Persian."""
    build = tmp_path / "\u2764\ufe0f \u0645\u06cc\u200c\u062e"
    build.symlink_to(exported_tiny)
    last = run("inspect", str(build)).stderr.splitlines()[-1]
    assert last.isprintable()
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {last}"], capture_output=True, check=True, text=True).stdout
    assert words.splitlines() == ["next:", "fastvlm", "validate", str(build)]


def test_the_command_that_lacks_an_option_can_be_typed() -> None:
    said = str(_with_command(MissingBase("a base is missing", ("--base", "X")), ["export", "a\u202fb"]))
    assert said == r"a base is missing; type: fastvlm export 'a'$'\xe2\x80\xaf''b' --base X"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_spelled(exported_tiny: Path, tmp_path: Path, encoding: str) -> None:
    """Not an error: a pipe of Windows, or a terminal of an older locale."""
    build = tmp_path / "é 名前"
    shutil.copytree(exported_tiny, build)
    manifest = json.loads((build / "manifest.json").read_text())
    manifest["source"] |= {"id": "名前 😀"}
    (build / "manifest.json").write_text(json.dumps(manifest))
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", "from fastvlm.cli import main; main()", "inspect", str(build)]
    root = Path(__file__).parents[2]
    table, document = (
        subprocess.run([*command, *more], cwd=root, env=environment, capture_output=True, check=True)
        for more in ((), ("--json",))
    )
    shown = "é 名前" if encoding == "utf-8" else "é \\u540d\\u524d"
    assert table.stdout.decode(encoding).splitlines()[0].endswith(shown)
    assert json.loads(document.stdout.decode(encoding))["manifest"]["source"]["id"] == "名前 😀"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_document_is_the_same_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"é": "名前 😀\u200d\n"}
    written = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")
    monkeypatch.setattr("sys.stdout", written)
    show_json(content)
    written.flush()
    said = written.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert json.loads(said) == content
