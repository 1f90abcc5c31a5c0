"""The script that compiles a bundle's models on a Mac, run by every sh that is here, with a stand-in for Xcode.

The stand-in takes the arguments that `coremlcompiler compile` takes and writes what it writes (STEM.mlmodelc with
coremldata.bin); that the real one does so is known from what others publish, not from here.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastvlm.hashes import sha256_bytes
from fastvlm.manifest import dump
from ios_bundle.compile_script import SCRIPT

SHELLS = [words for words in (["sh"], ["dash"], ["bash", "--posix"]) if shutil.which(words[0])]
NEEDED = ("cat", "cmp", "cp", "mkdir", "mv", "rm", "sed", "sh", "sort")  # nothing else may be on the PATH
PATH = "scripts/compile_models.sh"
STEMS = ("LanguageModel-1of2", "LanguageModel-2of2", "VisionEncoder")

XCRUN = r"""#!/bin/sh
for word in "$@"; do printf '[%s]' "$word"; done >>"$XCRUN_LOG"
echo >>"$XCRUN_LOG"
case "$1 $2" in
    "--find coremlcompiler") exit "${NO_COMPILER:-0}" ;;
    "coremlcompiler compile") ;;
    *) exit 64 ;;
esac
stem=${3##*/}
stem=${stem%.mlpackage}
"""
COMPILES = """
mkdir "$4/$stem.mlmodelc" "$4/$stem.mlmodelc/weights"
cat "$3/Data/weight.bin" >"$4/$stem.mlmodelc/weights/weight.bin"
echo compiled >"$4/$stem.mlmodelc/coremldata.bin"
echo "$4/$stem.mlmodelc/coremldata.bin"
"""


@dataclass
class Mac:
    """A folder of tools that is all of the PATH, and the log of what the stand-in for xcrun was called with."""

    tools: Path
    log: Path

    def xcrun(self, rest: str) -> None:
        path = self.tools / "xcrun"
        path.write_text(XCRUN + rest)
        path.chmod(0o755)

    def compiled(self) -> list[str]:
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        return [call for call in calls if call.startswith("[coremlcompiler]")]

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": str(self.tools), "XCRUN_LOG": str(self.log), **more}


@pytest.fixture
def mac(tmp_path: Path) -> Mac:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found, name
        (tools / name).symlink_to(found)
    made = Mac(tools, tmp_path / "xcrun.log")
    made.xcrun(COMPILES)
    return made


def fill(bundle: Path, version: bytes = b"1") -> Path:
    """A bundle of three packages, as small as can be."""
    files = {"metadata.json": b"{}\n", "embeddings/embed.bin": b"rows", "tokenizer/tokenizer.json": version}
    for stem in STEMS:
        files[f"models/{stem}.mlpackage/Manifest.json"] = b"{}"
        files[f"models/{stem}.mlpackage/Data/weight.bin"] = stem.encode()
    files[PATH] = SCRIPT
    for name, content in files.items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(content)
    (bundle / PATH).chmod(0o755)
    hashes = {name: {"sha256": sha256_bytes(content), "bytes": len(content)} for name, content in files.items()}
    (bundle / "checksums.json").write_bytes(dump({"schema": "0.1", "files": hashes, "tree": "0" * 64}))
    return bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return fill(tmp_path / "some where" / "FastVLM 0.5B")


@pytest.fixture(params=SHELLS, ids=lambda words: words[0])
def shell(request: pytest.FixtureRequest) -> list[str]:
    """Each shell by its full path, because the PATH of the script is its own."""
    name, *options = request.param
    return [str(shutil.which(name)), *options]


def run(
    shell: list[str], bundle: Path, mac: Mac, *words: str | Path, cwd: Path | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    command = [*shell, str(bundle / PATH), *map(str, words)]
    environment = mac.environment(**more)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(result: subprocess.CompletedProcess[str], out: Path, *said: str, code: int = 2) -> None:
    """The script ended with `code` and one error line that says `said`, and left neither OUT nor OUT.partial."""
    assert result.returncode == code, result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("error: ")], result.stderr
    assert all(word in result.stderr for word in said), result.stderr
    assert not os.path.lexists(out)
    assert not os.path.lexists(f"{out}.partial")


def test_out_is_the_bundle_with_compiled_models(shell: list[str], bundle: Path, mac: Mac, tmp_path: Path) -> None:
    before, out = contents(bundle), tmp_path / "my app" / "the models"
    out.parent.mkdir()
    result = run(shell, bundle, mac, out)
    assert (result.returncode, result.stderr) == (0, "")
    expected = {name: content for name, content in before.items() if not name.startswith("models/")}
    for stem in STEMS:
        expected[f"models/{stem}.mlmodelc/coremldata.bin"] = b"compiled\n"
        expected[f"models/{stem}.mlmodelc/weights/weight.bin"] = stem.encode()
    assert contents(out) == expected
    assert os.access(out / PATH, os.X_OK)
    assert contents(bundle) == before
    packages = [f"[coremlcompiler][compile][{bundle}/models/{stem}.mlpackage][{out}.partial/models]" for stem in STEMS]
    assert mac.compiled() == packages
    assert not os.path.lexists(f"{out}.partial")


def test_options_go_to_the_compiler_as_they_are(shell: list[str], bundle: Path, mac: Mac, tmp_path: Path) -> None:
    options = ("--platform", "ios", "--deployment-target", "18.0", "a b")
    assert run(shell, bundle, mac, tmp_path / "out", *options).returncode == 0
    assert len(mac.compiled()) == len(STEMS)
    assert all(call.endswith("[--platform][ios][--deployment-target][18.0][a b]") for call in mac.compiled())


@pytest.mark.parametrize("given", ["out", "./out", "deep/../out/", "out//"])
def test_out_may_be_relative(shell: list[str], bundle: Path, mac: Mac, tmp_path: Path, given: str) -> None:
    (tmp_path / "deep").mkdir()
    assert run(shell, bundle, mac, given, cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "checksums.json").read_bytes() == (bundle / "checksums.json").read_bytes()


def test_it_runs_from_its_own_folder_and_by_its_own_name(bundle: Path, mac: Mac, tmp_path: Path) -> None:
    here = bundle / "scripts"
    for number, command in enumerate((["sh", "compile_models.sh"], ["./compile_models.sh"])):
        words = [*command, str(tmp_path / f"out{number}")]
        subprocess.run(words, cwd=here, env=mac.environment(), check=True, capture_output=True)
        assert (tmp_path / f"out{number}" / "models" / "VisionEncoder.mlmodelc").is_dir()


@pytest.mark.parametrize("words", [[], [""], ["-h"], ["--help"]])
def test_wrong_words_are_answered_with_the_usage(shell: list[str], bundle: Path, mac: Mac, words: list[str]) -> None:
    result = run(shell, bundle, mac, *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: scripts/compile_models.sh OUT [OPTION ...]\n")


def test_what_is_there_already_stays_as_it_is(shell: list[str], bundle: Path, mac: Mac, tmp_path: Path) -> None:
    folder, file, link = tmp_path / "folder", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    (folder / "mine").write_text("kept")
    file.write_text("kept")
    link.symlink_to(tmp_path / "nowhere")
    for out in (folder, file, link):
        result = run(shell, bundle, mac, out)
        assert (result.returncode, mac.compiled()) == (2, [])
        assert f"error: {out} is there already" in result.stderr
    assert (contents(folder), file.read_text(), link.is_symlink()) == ({"mine": b"kept"}, "kept", True)


def test_remains_of_a_killed_run_are_named_and_kept(shell: list[str], bundle: Path, mac: Mac, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "mine").write_text("kept")
    result = run(shell, bundle, mac, tmp_path / "out")
    assert result.returncode == 2
    assert f"error: {partial} cannot be made" in result.stderr
    assert contents(partial) == {"mine": b"kept"}


def test_out_inside_the_bundle_or_nowhere_is_refused(shell: list[str], bundle: Path, mac: Mac, tmp_path: Path) -> None:
    inside, nowhere = bundle / "models" / "out", tmp_path / "no" / "out"
    refused(run(shell, bundle, mac, inside), inside, "is inside the bundle")
    refused(run(shell, bundle, mac, nowhere), nowhere, f"{nowhere.parent} is no folder")
    link = tmp_path / "link"
    link.symlink_to(bundle)
    refused(run(shell, bundle, mac, link / "out"), bundle / "out", "is inside the bundle")


def test_a_mac_without_xcode_is_told_so(shell: list[str], bundle: Path, mac: Mac, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(run(shell, bundle, mac, out, NO_COMPILER="72"), out, "xcrun finds no coremlcompiler", "xcode-select")
    (mac.tools / "xcrun").unlink()
    refused(run(shell, bundle, mac, out), out, "there is no xcrun")


def test_every_missing_package_is_named(shell: list[str], bundle: Path, mac: Mac, tmp_path: Path) -> None:
    shutil.rmtree(bundle / "models" / "VisionEncoder.mlpackage")
    (bundle / "models" / "LanguageModel-2of2.mlpackage" / "Manifest.json").unlink()
    names = ("models/VisionEncoder.mlpackage", "models/LanguageModel-2of2.mlpackage")
    refused(run(shell, bundle, mac, tmp_path / "out"), tmp_path / "out", *names)
    assert mac.compiled() == []


@pytest.mark.parametrize(("checksums", "said"), [(None, "holds no checksums.json"), ("{}", "names no package")])
def test_a_folder_that_is_no_bundle_is_refused(
    shell: list[str], bundle: Path, mac: Mac, tmp_path: Path, checksums: str | None, said: str
) -> None:
    (bundle / "checksums.json").unlink()
    if checksums is not None:
        (bundle / "checksums.json").write_text(checksums)
    refused(run(shell, bundle, mac, tmp_path / "out"), tmp_path / "out", said)


FAILURES = {
    "the compiler fails half-way": (f'[ "$stem" != VisionEncoder ] || exit 7{COMPILES}', "coremlcompiler failed on"),
    "the compiler writes nothing": ("exit 0", "wrote no models/LanguageModel-1of2.mlmodelc"),
    "the compiler leaves half a model": ('mkdir "$4/$stem.mlmodelc"', "wrote no models/LanguageModel-1of2.mlmodelc"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_leaves_nothing(shell: list[str], bundle: Path, mac: Mac, tmp_path: Path, case: str) -> None:
    before, (compiler, said) = contents(bundle), FAILURES[case]
    mac.xcrun(compiler)
    refused(run(shell, bundle, mac, tmp_path / "out"), tmp_path / "out", said, code=1)
    assert contents(bundle) == before


def test_a_copy_that_fails_leaves_nothing(shell: list[str], bundle: Path, mac: Mac, tmp_path: Path) -> None:
    (mac.tools / "cp").unlink()
    (mac.tools / "cp").write_text("#!/bin/sh\necho 'error: no space left' >&2\nexit 3\n")
    (mac.tools / "cp").chmod(0o755)
    refused(run(shell, bundle, mac, tmp_path / "out"), tmp_path / "out", "no space left", code=3)
    assert mac.compiled() == []


def test_out_that_comes_meanwhile_is_not_mixed_in(shell: list[str], bundle: Path, mac: Mac, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mac.xcrun(f'{COMPILES}\nmkdir "{out}" 2>/dev/null || :\n')
    result = run(shell, bundle, mac, out)
    assert result.returncode == 2
    assert f"error: {out} has come meanwhile" in result.stderr
    assert contents(out) == {}
    assert not os.path.lexists(f"{out}.partial")


def opened_by_a_reader(fifo: Path, process: subprocess.Popen[bytes]) -> int:
    """The fifo, opened to write, which it can only be when a program below `process` reads from it."""
    while process.poll() is None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.01)
    raise AssertionError("the script ended before its compiler began")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_run_that_is_stopped_leaves_nothing(
    shell: list[str], bundle: Path, mac: Mac, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    """Stopped as Xcode or a terminal does it, with the compiler at work: the signal goes to the whole group."""
    if signal.getsignal(sent) is signal.SIG_IGN:
        pytest.skip("what a process starts with ignored, its sh cannot trap")
    out, work = tmp_path / "out", tmp_path / "work"
    os.mkfifo(work)
    mac.xcrun(f'cat "{work}"\n')
    command = [*shell, str(bundle / PATH), str(out)]
    with subprocess.Popen(
        command, env=mac.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        feed = opened_by_a_reader(work, process)
        assert Path(f"{out}.partial").is_dir()
        os.killpg(process.pid, sent)
        process.communicate(timeout=60)
        os.close(feed)
    assert process.returncode == code
    assert not os.path.lexists(out)
    assert not os.path.lexists(f"{out}.partial")


def run_script_phase() -> str:
    """The five lines that the script's header gives for a Run Script phase."""
    found = re.search(r"#     bundle=.*?\n#\n", SCRIPT.decode(), re.DOTALL)
    assert found
    return "\n".join(line.removeprefix("#").strip() for line in found.group().splitlines()[:-1]) + "\n"


def test_the_run_script_phase_compiles_only_what_is_new(shell: list[str], mac: Mac, tmp_path: Path) -> None:
    bundle = fill(tmp_path / "my project" / "FastVLM")
    resources = tmp_path / "build products" / "My App.app"
    resources.mkdir(parents=True)
    settings = {"SRCROOT": str(bundle.parent), "TARGET_BUILD_DIR": str(resources.parent)}
    settings["UNLOCALIZED_RESOURCES_FOLDER_PATH"] = resources.name
    environment = mac.environment(**settings)

    def build() -> int:
        subprocess.run([*shell, "-e", "-c", run_script_phase()], env=environment, check=True, capture_output=True)
        return len(mac.compiled())

    assert (build(), build()) == (3, 3)
    fill(bundle, version=b"2")
    assert (build(), build()) == (6, 6)
    assert (resources / "FastVLM" / "tokenizer" / "tokenizer.json").read_bytes() == b"2"


def test_the_text_is_ascii_with_plain_line_ends() -> None:
    assert re.fullmatch(rb"#!/bin/sh\n(?:[ -~]*\n)*", SCRIPT)
