"""What the commands do when all is well, and what they say when the answer is no."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from typed import Run

from fastvlm import doctor as doctor_module
from fastvlm.hashes import file_hash
from fastvlm_ref.engine import TorchEngine

# A manifest that can be read and of which nothing can be run.
REQUIRED = ("source", "model", "image", "prompt", "functions", "packages", "compression", "files")
WORDS = {"schema": "0.1", "fastvlm_version": "0.1.0", "licence": "unknown"}


def test_export_says_where_it_is_what_it_assumed_and_what_to_type_next(
    run: Run, small_checkpoint: Path, tmp_path: Path
) -> None:
    result = run("export", small_checkpoint, "-o", tmp_path / "out dir", "--only", "encoder")
    assert result.exit_code == 0
    assert result.stdout == f"build folder: {tmp_path / 'out dir'}\n"
    assert result.stderr.splitlines()[-1] == f"next: fastvlm inspect '{tmp_path / 'out dir'}'"
    assert (tmp_path / "out dir" / "VisionEncoder.mlpackage").is_dir()
    assert not (tmp_path / "out dir" / "LanguageModel.mlpackage").exists()
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assumed = json.loads((tmp_path / "out dir" / "manifest.json").read_text())["assumed"]
    assert assumed
    assert [text for text in assumed if f"note: {text}" not in notes] == []


@pytest.mark.parametrize("name", ["export", "validate", "run"])
def test_loading_libraries_is_a_stage(
    run: Run, heard: Any, tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """torch takes seconds to import: a terminal shows that something happens, before anything else can be told."""
    monkeypatch.setattr(f"fastvlm.commands.{name}.TerminalProgress", lambda **_: heard)
    (tmp_path / "manifest.json").write_text(json.dumps({key: {} for key in REQUIRED} | WORDS))
    words = {"export": ("absent", "-o", tmp_path / "out"), "validate": (tmp_path,), "run": ("absent", picture, "What?")}
    assert run(name, *words[name]).exit_code == 2
    assert list(heard.stages) == ["Loading libraries"]


def test_run_answers_alike_from_checkpoint_and_build(
    run: Run, small_checkpoint: Path, build: Path, picture: Path
) -> None:
    targets = (small_checkpoint, build)
    torch_answer, mil_answer = (run("run", target, picture, "What?", "--max-new-tokens", 8) for target in targets)
    assert (torch_answer.exit_code, mil_answer.exit_code) == (0, 0)
    assert torch_answer.stdout.strip()
    assert torch_answer.stdout == mil_answer.stdout
    times = torch_answer.stderr.splitlines()[-2]
    assert times.startswith("torch: first token after ")
    stages = ("picture", "encoder", "prefill", "first token", "decode")
    assert [stage for stage in stages if f"{stage} " not in times] == []
    assert torch_answer.stderr.splitlines()[-1].startswith("next: fastvlm export ")
    assert mil_answer.stderr.splitlines()[-1].startswith("next: fastvlm validate ")


def test_run_streams_its_answer(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is out before the next token is computed: every step but the first begins with what the last one said."""
    shown, before_step = [], []
    echo, decode = click.echo, TorchEngine.decode

    def heard(message: object = None, **options: Any) -> None:
        shown.append(str(message or "") * (not options.get("err")))
        echo(message, **options)

    def watched(engine: TorchEngine, row: Any) -> Any:
        before_step.append("".join(shown))
        return decode(engine, row)

    monkeypatch.setattr(click, "echo", heard)
    monkeypatch.setattr(TorchEngine, "decode", watched)
    picture = tiny / "pictures" / "shapes.png"
    result = run("run", "tiny", picture, "Describe the picture.", "--max-new-tokens", 12)
    assert result.exit_code == 0, result.stderr
    assert len(before_step) == 12
    assert before_step[0] == ""
    assert all(result.stdout.startswith(text) for text in before_step)
    assert len(set(before_step)) == 12, "each token of this answer is a word, shown before the next is computed"


def test_run_draws_by_its_seed(run: Run, small_checkpoint: Path, picture: Path) -> None:
    def answer(seed: int) -> str:
        words = ("--temperature", 2, "--top-p", 0.9, "--seed", seed, "--max-new-tokens", 12, "--json")
        return str(json.loads(run("run", small_checkpoint, picture, "What?", *words).stdout)["text"])

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(4)}) > 1


def test_run_as_json(run: Run, build: Path, picture: Path) -> None:
    content = json.loads(run("run", build, picture, "What?", "--max-new-tokens", 4, "--json").stdout)
    assert content["backend"] == "mil"
    assert set(content["seconds"]) == {"picture", "encoder", "prefill", "first_token", "decode"}


def test_validate_says_yes_and_writes_it_down(run: Run, build: Path, small_checkpoint: Path, picture: Path) -> None:
    result = run("validate", build, "--reference", small_checkpoint, "--images", picture.parent, "--steps", 8)
    assert result.exit_code == 0, result.stderr
    assert "encoder.psnr_db" in result.stdout
    assert json.loads((build / "validation.json").read_text())["verdict"] == "passed"
    assert (build / "selftest").is_dir()
    assert "validated    passed" in run("inspect", build).stdout


@pytest.fixture
def questions(picture: Path) -> Path:
    """Six questions about one picture, of which the true answers are unknown but for one."""
    path = picture.parent.parent / "questions.jsonl"
    rows = [{"image": "pictures/red.png", "prompt": f"What is {number}?"} for number in range(6)]
    path.write_text("\n".join(json.dumps(row) for row in [*rows[:5], {**rows[5], "answer": "red"}]))
    return path


def test_validate_on_a_user_s_own_questions(run: Run, build: Path, small_checkpoint: Path, questions: Path) -> None:
    words = ("validate", build, "--reference", small_checkpoint, "--questions", questions, "--steps", 8)
    result = run(*words)
    assert result.exit_code == 0, result.stderr
    assert "note: the first 4 questions are compared in full, of the other 2 the answers alone" in result.stderr
    said = " ".join(result.stdout.split())
    # its answers are noise, in which a tie is soon found: free answers need not be the same
    assert re.search(
        r"agree on [4-6] of 6; of 1 with a known answer the build has 0 right, PyTorch 0; compared in", said
    )
    table = result.stdout[result.stdout.index("How far apart") :]
    places = [table.index(rung) for rung in ("constants", "network", "tokens")]
    assert places == sorted(places)
    told = json.loads(run(*words, "--json").stdout)
    assert told == json.loads((build / "validation.json").read_text())
    assert (told["questions"]["count"], told["questions"]["in_full"]) == (6, 4)


def test_validate_beside_another_checkpoint(run: Run, build: Path, checkpoint: Path, picture: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "unheard_of": 1}))
    words = ("validate", build, "--reference", checkpoint, "--images", picture.parent, "--steps", 8)
    assert run(*words).exit_code == 2
    result = run(*words, "--other-reference")
    assert result.exit_code == 0, result.stderr
    assert "the reference is not what this build was made from (config.json differ)" in result.stdout
    assert "verdict: compared" in result.stdout
    assert result.stderr.splitlines()[-1].startswith(f"next: fastvlm validate {build} --reference CHECKPOINT")
    assert "validated    compared" in run("inspect", build).stdout
    flip_signs(build)
    result = run(*words, "--other-reference")
    assert result.exit_code == 1
    assert re.search(
        r"Error: limits missed: \d+, the lowest by rung constants, .*; beside another checkpoint", result.stderr
    )


def flip_signs(build: Path) -> None:
    """Negates the largest tensor of the encoder and makes the manifest agree, so that only the numbers can tell."""
    name = "VisionEncoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray((build / name).read_bytes())
    headers = [struct.unpack_from("<IIQQ", data, start) for start in range(64, len(data) - 64, 64)]
    size, offset = max((size, offset) for sentinel, _, size, offset in headers if sentinel == 0xDEADBEEF)
    values = np.frombuffer(data, np.float16, count=size // 2, offset=offset)
    data[offset : offset + size] = (-values).tobytes()
    (build / name).write_bytes(data)
    manifest = json.loads((build / "manifest.json").read_text())
    manifest["files"][name] = file_hash(build / name)
    (build / "manifest.json").write_text(json.dumps(manifest))


def test_validate_says_no_with_exit_code_1(run: Run, build: Path, small_checkpoint: Path, picture: Path) -> None:
    flip_signs(build)
    result = run("validate", build, "--reference", small_checkpoint, "--images", picture.parent, "--steps", 8)
    assert result.exit_code == 1
    assert re.search(
        r"Error: limits missed: \d+, the lowest by rung constants, audit.differing_weights = ", result.stderr
    )
    assert re.search(r"missed, network: encoder\.psnr_db = .* \(.*\)", result.stdout)
    assert "where it begins, encode_" in result.stdout
    assert "fastvlm export CHECKPOINT again" in result.stderr.splitlines()[-1]
    assert json.loads((build / "validation.json").read_text())["verdict"] == "failed"
    assert not (build / "selftest").exists()
    assert "validated    failed" in run("inspect", build).stdout


def test_an_old_verdict_does_not_vouch_for_a_changed_manifest(run: Run, build: Path) -> None:
    (build / "validation.json").write_text(json.dumps({"verdict": "passed", "manifest_sha256": "0" * 64}))
    assert "validated    no: validation.json speaks of another manifest" in run("inspect", build).stdout
    (build / "validation.json").write_text("[")
    assert "validated    no: validation.json cannot be read" in run("inspect", build).stdout


def test_inspect_does_not_vouch_for_files_that_changed(run: Run, build: Path) -> None:
    verdict = {"verdict": "passed", "manifest_sha256": file_hash(build / "manifest.json")["sha256"]}
    (build / "validation.json").write_text(json.dumps(verdict))
    assert (
        "validated    passed (names and sizes of the files agree; they were not hashed here)"
        in run("inspect", build).stdout
    )
    with (build / "embeddings.bin").open("ab") as file:
        file.write(b"x")
    (build / "mine.txt").write_text("mine")
    (line,) = [line for line in run("inspect", build).stdout.splitlines() if line.startswith("  validated ")]
    assert line.startswith("  validated    no: the files have changed since (embeddings.bin: ")
    assert line.endswith(" and 1 more)")


def test_the_next_step_names_the_checkpoint_that_the_manifest_knows(run: Run, build: Path) -> None:
    last = run("inspect", build).stderr.splitlines()[-1]
    assert last == f"next: fastvlm validate {build} --reference CHECKPOINT, where CHECKPOINT is checkpoint"


def test_inspect_build_and_package_agree(run: Run, build: Path) -> None:
    whole = json.loads(run("inspect", build, "--json").stdout)
    alone = json.loads(run("inspect", build / "LanguageModel.mlpackage", "--json").stdout)
    (language,) = [package for package in whole["packages"] if package["name"] == "LanguageModel.mlpackage"]
    assert alone["packages"] == [language]
    assert language["default_function"] == "decode"
    assert [function["name"] for function in language["functions"]] == ["decode", "prefill"]
    assert language["functions"][0]["states"][0]["name"] == "kvCache"
    assert language["functions"][0]["ops"]["softmax"] == whole["manifest"]["model"]["text"]["layers"]
    encoder = whole["packages"][whole["packages"] != [language] and 0]
    assert {feature["kind"] for function in encoder["functions"] for feature in function["inputs"]} == {"image"}


def test_inspect_shows_the_contract(run: Run, build: Path) -> None:
    output = run("inspect", build).stdout
    for word in ("encode_128", "prefill", "decode", "kvCache", "iOS 18", "float16", "pad", "qwen_2", "fp16"):
        assert word in output


def test_inspect_counts_the_ready_made_prompts(run: Run, build: Path) -> None:
    def told() -> str:
        (line,) = [line for line in run("inspect", build).stdout.splitlines() if line.startswith("  ready-made ")]
        return line.removeprefix("  ready-made ").strip()

    assert told() == "8 prompts with ids"
    (build / "prompts.json").write_text("[")
    assert told().startswith(f"unknown: {build / 'prompts.json'} is not valid JSON")
    manifest = json.loads((build / "manifest.json").read_text())
    del manifest["prompts"]
    (build / "manifest.json").write_text(json.dumps(manifest | {"schema": "0.2"}))
    assert told() == "no prompts"


def test_doctor_says_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_module, "RANGES", {"click": ("1.0", "2"), "nosuch-package": ("1.0", None)})
    monkeypatch.setattr(doctor_module, "_LOADS", {"torch": "import nosuch_module"})
    result = run("doctor")
    assert result.exit_code == 1
    assert "Error: this machine lacks click, nosuch-package, torch loads;" in result.stderr
    assert "pip install -c constraints.txt 'click>=1.0,<2'" in result.stdout
    assert "No module named 'nosuch_module'" in result.stdout


@pytest.mark.parametrize(("memory", "status"), [(1.4e9, "absent"), (1.6e9, "ok"), (None, "absent")])
def test_doctor_tells_what_an_export_was_measured_to_take(
    monkeypatch: pytest.MonkeyPatch, root: Path, memory: float | None, status: str
) -> None:
    monkeypatch.setattr(doctor_module, "_memory", lambda: memory)
    found = next(finding for finding in doctor_module._resources() if finding.name == "memory")
    assert found.status == status
    assert ("1.5 GB" in found.advice) == (status == "absent")
    rows = (root / "docs/benchmarks.md").read_text("utf-8").splitlines()
    (row,) = [line for line in rows if line.startswith("| everything, fp16 |")]
    assert "| 1.52 (8.78) GB | 1.52 GB |" in row, "measured anew: change fastvlm/doctor.py too"


@pytest.mark.parametrize(("free", "status"), [(2.9e9, "absent"), (3.1e9, "ok")])
def test_doctor_tells_how_much_disk_a_build_takes(monkeypatch: pytest.MonkeyPatch, free: float, status: str) -> None:
    monkeypatch.setattr(doctor_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    found = next(finding for finding in doctor_module._resources() if finding.name == "disk")
    assert found.status == status
    assert ("1.5 GB" in found.advice) == (status == "absent")
