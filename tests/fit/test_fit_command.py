"""`fastvlm fit`: what it says, with which exit code, and what it asks to type next."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typed import Run

from fastvlm.devices import DEVICES, known_names
from validation.fit.check import in_a_line
from validation.fit.sizes import ACCEPTED

PHONE = "iPhone 15 Pro"
EXPORT = "fastvlm export apple/FastVLM-0.5B -o FastVLM-0.5B-int8 --quantize int8 --image-size 1024"
# Measured: 362 modules. torch alone is more than 1,000; a count holds on a busy machine where a time would not.
MODULES = 600


def test_a_size_on_a_device(run: Run) -> None:
    result = run("fit", "0.5b", "--device", "iphone-15 PRO")
    assert result.exit_code == 0, result.stderr
    assert f"0.5b on {PHONE}: everything estimated, nothing measured on a device" in result.stdout
    for scheme in ("fp16", "int8", "lut6", "lut4", "int4"):
        assert f"\n {scheme} " in result.stdout
    for word in ("an app may weigh 4.00 GB", "an app gets 3.00 GB, 6.00 GB entitled", "tokens/s", "(bandwidth)"):
        assert word in result.stdout
    # files 0.25 + 0.99 + 0.27 and what else there is; memory 0.25 + 0.99, a state of 25 MB, maps of 151 MB
    rows = [
        line.split() for line in result.stdout.splitlines() if line.startswith((" fp16    engine", " int8    engine"))
    ]
    assert [" ".join(row) for row in rows[:2]] == [
        "fp16 engine 1.52 GB 0.25 GB 0.99 GB 0.27 GB 1.42 GB yes",
        "int8 engine 0.89 GB 0.25 GB 0.50 GB 0.14 GB 0.92 GB yes",
    ]
    assert f"\n  {EXPORT}\n" in result.stdout
    assert result.stderr == f"next: {EXPORT}\n"


def test_what_had_to_be_assumed_is_said(run: Run) -> None:
    said = run("fit", "vicuna-7b", "--device", "iPhone 12").stdout
    assert "assumed: nobody released a FastVLM of vicuna-7b" in said
    assert "assumed: nobody measured what A14's engine reads" in said
    assert "unknown for iPhone 12; what iPhone 12 mini with 4 GB was measured to give" in said


def test_what_only_the_user_knows_is_asked_for(run: Run) -> None:
    said = run("fit", "vicuna-7b", "--device", PHONE).stderr
    assert said.startswith("next: fastvlm export CHECKPOINT -o vicuna-7b-lut4 ")
    assert said.endswith(", where CHECKPOINT is yours\n")


def test_small_builds_are_told_in_mb(run: Run, exported_tiny: Path) -> None:
    said = run("fit", exported_tiny, "--device", PHONE).stdout
    assert "0.00 GB" not in said
    assert " 3.4 MB " in said


def test_without_a_device_each_has_a_line(run: Run) -> None:
    result = run("fit", "1.5b")
    assert result.exit_code == 0, result.stderr
    assert "on every device of the table" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith(" MacBook Pro M1 Pro ")]
    assert "16 GB" in line
    assert result.stderr == f"next: fastvlm fit 1.5b --device '{PHONE}'\n"


@pytest.mark.parametrize("words", [("0.5b",), ("7b", "--device", "iPhone 12"), ("tiny", "--device", PHONE)])
def test_every_answer_says_how_wrong_it_may_be(run: Run, words: tuple[str, ...]) -> None:
    assert run("fit", *words).stdout.splitlines()[-1] == in_a_line()


def test_where_nothing_fits(run: Run) -> None:
    result = run("fit", "7b", "--device", "iPhone 12")
    assert result.exit_code == 0
    assert "nothing fits" in result.stdout
    assert "fastvlm export" not in result.stdout
    assert result.stderr == "next: fastvlm fit 7b, for the devices that it does fit\n"


def test_several_image_sizes(run: Run) -> None:
    result = run("fit", "0.5b", "--device", PHONE, "--image-size", "512", "--image-size", "1024", "--context", "4096")
    assert result.exit_code == 0, result.stderr
    for side, tokens in ((512, 64), (1024, 256)):
        assert f"images of {side}×{side}: {tokens} tokens, 30 of text, context 4096" in result.stdout
    assert result.stderr.endswith("--image-size 512 --image-size 1024 --context 4096\n")


@pytest.mark.parametrize(
    ("words", "rows"), [(("--quantize", "lut6"), 1), (("--quantize", "int8"), 2), (("--target", "gpu"), 3)]
)
def test_one_scheme_or_one_target_alone(run: Run, words: tuple[str, ...], rows: int) -> None:
    report = json.loads(run("fit", "0.5b", "--device", PHONE, *words, "--json").stdout)
    assert len(report["devices"][0]["estimates"]) == rows


# --- JSON


def test_one_device_as_json(run: Run) -> None:
    result = run("fit", "0.5b", "--device", PHONE, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert list(report) == ["schema", "target", "devices", "check"]
    assert report["schema"] == "0.1"
    assert (report["target"]["kind"], report["target"]["vision"]["image_size"]) == ("size", 1024)
    (found,) = report["devices"]
    assert found["stands_for"] == [PHONE]
    assert found["command"] == EXPORT
    chosen = [each for each in found["estimates"] if found["recommended"].items() <= each.items()]
    assert len(chosen) == 1
    assert all(each["error"] is None or abs(each["error"]) < 2 for each in report["check"])


def keys(content: object, prefix: str = "") -> Iterator[str]:
    """The dotted names of a document; of a list, of its first."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield f"{prefix}{key}"
            yield from keys(value, f"{prefix}{key}.")
    elif isinstance(content, list) and content:
        yield from keys(content[0], prefix)


def test_the_page_names_every_key(run: Run, root: Path) -> None:
    report = json.loads(run("fit", "0.5b", "--device", PHONE, "--json").stdout)
    page = (root / "docs" / "choosing.md").read_text("utf-8")
    # vision and text are config.json's own
    own = [key for key in keys(report) if not key.startswith(("target.vision.", "target.text."))]
    assert len(own) > 40
    assert [key for key in own if f"`{key.rpartition('.')[2]}`" not in page.replace("[]`", "`")] == []


def test_every_device_as_json(run: Run) -> None:
    found = json.loads(run("fit", "0.5b", "--json").stdout)["devices"]
    assert sorted(name for each in found for name in each["stands_for"]) == sorted(each.name for each in DEVICES)


# --- errors


def refused(run: Run, *words: object) -> str:
    result = run("fit", *words)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert (result.exit_code, result.stdout) == (2, "")
    return line


def test_an_unknown_device_is_refused_with_names_near_to_it_and_all_that_are_known(run: Run) -> None:
    assert f"near to it: {PHONE}" in refused(run, "0.5b", "--device", "iPhone 15 Por")
    for asked in ("toaster", "iPhone 15 Por"):
        assert refused(run, "0.5b", "--device", asked).endswith(f"known: {known_names()}")
    assert "empty" in refused(run, "0.5b", "--device", "")


def test_an_unknown_target_is_told_what_is_accepted(run: Run, tmp_path: Path) -> None:
    assert ACCEPTED in refused(run, "0.6b")
    assert str(tmp_path) in refused(run, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in refused(run, tmp_path)
    refused(run, "")
    missing = refused(run, tmp_path / "missing")
    assert "no such folder" in missing
    assert ACCEPTED in missing


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--quantize", "int5"), "int5"),
        (("--quantize", "mixed"), "measures"),
        (("--quantize", "int4", "--target", "ane"), "gpu"),
        (("--image-size", "1000"), "960"),
        (("--image-size", "many"), "many"),
        (("--context", "100"), "128"),
        (("--target", "cpu"), "cpu"),
    ],
)
def test_what_no_export_takes(run: Run, words: tuple[str, ...], said: str) -> None:
    result = run("fit", "0.5b", "--device", PHONE, *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert run("fit", "0.5b", *words).exit_code == 2


# --- checkpoints and builds


def test_a_build_is_told_with_its_own_files(run: Run, exported_tiny: Path) -> None:
    result = run("fit", exported_tiny, "--device", PHONE)
    assert result.exit_code == 0, result.stderr
    assert "its own files; times estimated" in result.stdout
    assert result.stderr.startswith(f"next: fastvlm validate {exported_tiny}")


def test_a_name_cannot_steer_the_terminal(run: Run, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "red\x1b[31m\nline\u2764\ufe0f"
    folder.mkdir()
    shutil.copy(tiny / "config.json", folder)
    result = run("fit", folder, "--device", PHONE)
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    assert "red\\x1b[31m\\nline" in result.stdout
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {result.stderr}"], capture_output=True, text=True, check=True
    )
    assert f"\nexport\n{folder}\n" in words.stdout


def test_a_folder_with_a_space_is_one_word_of_the_next_command(run: Run, tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "my model")
    said = run("fit", folder, "--device", PHONE).stderr
    assert shlex.split(said)[:4] == ["next:", "fastvlm", "export", str(folder)]


@pytest.mark.parametrize("words", [("0.5b",), ("0.5b", "--device", PHONE, "--json")])
def test_no_model_is_built(root: Path, words: tuple[str, ...]) -> None:
    report = "import atexit, json, sys; atexit.register(lambda: print(json.dumps(list(sys.modules)), file=sys.stderr))"
    code = f"{report}\nfrom fastvlm.cli import cli\ncli.main(['fit', *{words!r}])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    modules = json.loads(done.stderr.splitlines()[-1])
    assert {"torch", "coremltools", "transformers", "tokenizers", "safetensors", "google"} & set(modules) == set()
    assert len(modules) < MODULES
