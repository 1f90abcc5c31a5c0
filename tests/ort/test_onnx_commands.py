"""A checkpoint becomes ONNX files that are run, validated, profiled and looked at like any other build."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "cli"))

from onnx_builds import edit_manifest
from typed import typed

from export import export
from export.api import export_model
from export.onnx.schemes import VARIANTS
from fastvlm.build import ONNX, read_build
from fastvlm.commands import options
from fastvlm.commands.inspect import _verdict as verdict_of
from fastvlm.errors import BuildError, UsageError
from fastvlm.manifest import find_changes
from fastvlm.verdict_file import selftest_hashes
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.samples import shipped_samples
from validation import validate
from validation.limits.onnx import ROWS, onnx_limits
from validation.verdict import Verdict

TALE = "a blue square, a red triangle, a green ring and the word milk"


@pytest.fixture(scope="session")
def onnx_builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded checkpoint in every variant; never written to but by `verdicts`."""
    folder = tmp_path_factory.mktemp("onnx-builds")
    return {name: export("tiny", folder / name, format="onnx", quantize=name) for name in VARIANTS}


@pytest.fixture(scope="session")
def verdicts(onnx_builds: dict[str, Path]) -> dict[str, Verdict]:
    """What validation says of each."""
    return {name: validate(build) for name, build in onnx_builds.items()}


@pytest.fixture
def int4(onnx_builds: dict[str, Path], tmp_path: Path) -> Path:
    """A build that this test may damage."""
    return Path(shutil.copytree(onnx_builds["int4"], tmp_path / "int4"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_passes_its_limits_as_they_were_measured(variant: str, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[variant]
    assert verdict.passed, [(row.limit.key, row.value) for row in verdict.rows if not row.passed]
    assert verdict.backend == "onnx"
    assert not verdict.lacking
    for row in verdict.rows:
        wanted = ROWS[variant].get(row.limit.key)
        if wanted is not None and row.limit.metric not in ("top5_overlap", "rank"):
            measured = wanted[1]
            near = abs(row.value - measured) <= 6 if row.limit.bound == "min" else row.value <= 3 * measured
            assert near, f"{row.limit.key} is {row.value}, and {measured} stands in the table"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_limit_has_headroom(variant: str) -> None:
    for key, (limit, measured) in ROWS[variant].items():
        if key.endswith("_db"):
            assert 10 <= measured - limit <= 30, key
        elif not key.endswith(("top5_overlap", "rank")):
            assert 3 <= limit / measured <= 15, key
    with pytest.raises(BuildError, match="expected one of fp32, fp16, int8, int4"):
        onnx_limits("lut4")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_manifest_says_what_lies_there(variant: str, onnx_builds: dict[str, Path]) -> None:
    build = read_build(onnx_builds[variant], (ONNX,))
    assert not find_changes(build.folder, build.manifest)
    assert build.encoders == {256: build.folder / "VisionEncoder.onnx"}
    assert [stage.package.name for stage in build.language] == ["LanguageModel.onnx"]
    assert build.embeddings is not None
    assert build.embeddings.dtype == {"fp32": "float32", "fp16": "float16"}.get(variant, "int8")
    inputs = build.manifest["functions"]["encoder"]["encode_256"]["inputs"]
    assert inputs == [{"name": "image", "kind": "tensor", "shape": [1, 256, 256, 3], "dtype": "uint8"}]
    assert build.manifest["compression"]["scheme"] == variant


def test_the_same_checkpoint_gives_the_same_files(onnx_builds: dict[str, Path], tmp_path: Path) -> None:
    again = export("tiny", tmp_path / "again", format="onnx", quantize="int8")
    for name in ("manifest.json", "VisionEncoder.onnx.data", "LanguageModel.onnx", "LanguageModel.onnx.data"):
        assert (again / name).read_bytes() == (onnx_builds["int8"] / name).read_bytes()


def test_a_wrong_weight_is_found(int4: Path) -> None:
    """The last quarter of the language model's weights, of which the head is most."""
    data = int4 / "LanguageModel.onnx.data"
    content = bytearray(data.read_bytes())
    begin = len(content) * 3 // 4
    content[begin:] = bytes(reversed(content[begin:]))
    data.write_bytes(content)
    with pytest.raises(BuildError, match=r"LanguageModel\.onnx\.data"):
        validate(int4, steps=4)
    manifest = json.loads((int4 / "manifest.json").read_text())
    from fastvlm.hashes import file_hash

    manifest["files"][data.name] = dict(file_hash(data))
    (int4 / "manifest.json").write_text(json.dumps(manifest))
    verdict = validate(int4, steps=4)
    assert not verdict.passed
    assert {"language.kl", "answer.kl"} <= {row.limit.key for row in verdict.rows if not row.passed}


def test_a_report_is_written_where_it_is_asked_for(int4: Path, tmp_path: Path) -> None:
    result = typed("validate", int4, "--steps", "1", "--report", tmp_path / "report.html")
    assert result.exit_code == 0, result.stderr
    assert f"report: {tmp_path / 'report.html'}" in result.stderr
    assert "ONNX" in result.stdout
    assert "Core ML" not in result.stdout
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "The ONNX files were executed by onnxruntime" in page
    assert "LanguageModel." in page


def test_run_answers_and_says_what_ran_where(onnx_builds: dict[str, Path]) -> None:
    sample = shipped_samples()[0]
    result = typed("run", onnx_builds["int8"], sample.picture, sample.prompt)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{TALE}\n"
    assert "onnx: first token after" in result.stderr
    for file in ("VisionEncoder.onnx", "LanguageModel.onnx"):
        assert f"  {file}: " in result.stderr
        assert " nodes on cpu" in result.stderr


def test_the_command_makes_and_looks_at_a_build(tmp_path: Path) -> None:
    build = tmp_path / "build"
    made = typed("export", "tiny", "--format", "onnx", "--image-size", "128", "--image-size", "192", "-o", build)
    assert made.exit_code == 0, made.stderr
    assert made.stderr.endswith(f"next: fastvlm validate {build}\n")
    seen = typed("inspect", build)
    assert seen.exit_code == 0, seen.stderr
    for text in ("VisionEncoder-192.onnx: ", "  in   image uint8 [1, 192, 192, 3]", "GroupQueryAttention 4"):
        assert text in seen.stdout
    content = json.loads(typed("inspect", build, "--json").stdout)
    assert [file["file"] for file in content["files"]] == [
        "VisionEncoder.onnx", "VisionEncoder-192.onnx", "LanguageModel.onnx",
    ]  # fmt: skip


def test_a_profile_beside_the_packages(onnx_builds: dict[str, Path], exported_tiny: Path) -> None:
    result = typed("profile", onnx_builds["int4"], exported_tiny, "--runs", "1", "--json")
    assert result.exit_code == 0, result.stderr
    contenders = json.loads(result.stdout)["contenders"]
    assert [each["backend"] for each in contenders] == ["onnx", "mil"]
    stages = [{row["stage"] for row in each["stages"]} for each in contenders]
    assert stages[0] == stages[1] >= {"load_language", "encode", "prefill", "first_token", "decode"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--quantize", "lut4"), "--quantize is 'lut4', expected one of fp32, fp16, int8, int4 with --format onnx"),
        (("--target", "ane"), "--target is 'ane', expected cpu or coreml-ep with --format onnx"),
        (("--max-file-size", "1GB"), "--max-file-size is for --format coreml"),
        (("--for", "apple-app"), "--for is for --format coreml"),
        (("--target", "coreml-ep", "--quantize", "int8"), "expected fp32 or fp16"),
        (("--image-size", "100"), "--image-size is 100, expected a multiple of 64"),
    ],
)
def test_what_onnx_cannot_have_is_refused_before_any_work(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = typed("export", "tiny", "--format", "onnx", *words, "-o", tmp_path / "build")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "build").exists()


def test_core_ml_has_no_target_of_onnx(tmp_path: Path) -> None:
    result = typed("export", "tiny", "--target", "cpu", "-o", tmp_path / "build")
    assert result.exit_code == 2
    assert "--target is 'cpu', expected ane or gpu with --format coreml" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bundle", "BUILD", "-o", "bundle"), "is a build of --format onnx"),
        (("lint", "BUILD"), "lint judges Core ML packages"),
        (("validate", "BUILD", "--backend", "mil"), "--backend mil does not run"),
        (("profile", "BUILD", "--backend", "mil"), "--backend mil does not run"),
        (("run", "BUILD", "PICTURE", "What?", "--backend", "mil"), "--backend mil does not run the ONNX files"),
        (("run", "BUILD", "PICTURE", "What?", "--provider", "cuda"), "has no provider cuda"),
        (("run", "BUILD", "PICTURE", "What?", "--provider", "abacus"), "provider 'abacus' is unknown"),
    ],
)
def test_what_onnx_files_are_not_for_is_said(
    words: tuple[str, ...], said: str, onnx_builds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    meant: dict[str, Any] = {"BUILD": onnx_builds["int4"], "PICTURE": shipped_samples()[0].picture}
    result = typed(*(meant.get(word, word) for word in words))
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_is_made_for_an_app_is_looked_at_and_not_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its encoder holds its weights, and is larger than what may be read of a file."""
    build = tmp_path / "build"
    made = typed("export", "tiny", "--format", "onnx", "--target", "coreml-ep", "--quantize", "fp16", "-o", build)
    assert made.exit_code == 0, made.stderr
    assert made.stderr.endswith("next: put its files into your app: docs/onnx.md says what they take and give\n")
    monkeypatch.setattr("validation.ort.opening.MOST_BYTES", 512 << 10)
    assert (build / "VisionEncoder.onnx").stat().st_size > 1 << 20
    seen = typed("inspect", build)
    assert seen.exit_code == 0, seen.stderr
    assert "  in   image float16 [1, 3, 256, 256]" in seen.stdout
    assert seen.stderr == "next: put its files into your app: docs/onnx.md says what they take and give\n"
    picture = shipped_samples()[0].picture
    for words in (("validate", build), ("run", build, picture, "What?"), ("profile", build, "--runs", "1")):
        result = typed(*words)
        assert result.exit_code == 2
        assert "was made for onnxruntime's CoreML provider in an app" in result.stderr


def test_an_estimate_is_refused_and_what_to_type_instead_is_said(int4: Path) -> None:
    """Nothing that `fit` rests on is about onnxruntime."""
    result = typed("fit", int4)
    assert result.exit_code == 2
    assert f"`fastvlm profile {int4}` measures onnxruntime where you type it" in result.stderr
    assert "`fastvlm fit tiny` says what the same model would be as Core ML" in result.stderr
    edit_manifest(int4, source={"id": "my-tune", "files": {}}, target="coreml-ep")
    result = typed("fit", int4)
    assert "`fastvlm fit CHECKPOINT`, where CHECKPOINT is 'my-tune', says" in result.stderr
    assert "profile" not in result.stderr


def test_the_step_behind_a_profile_is_another_one(int4: Path) -> None:
    (int4 / "validation.json").unlink(missing_ok=True)  # what a test before this one may have left
    assert options.after_profiling(str(int4)) == f"fastvlm validate {int4}"
    (int4 / "selftest").mkdir(exist_ok=True)
    (int4 / "selftest" / "selftest.json").write_text("{}")
    stated = {"verdict": "passed", "selftest": selftest_hashes(int4)}
    (int4 / "validation.json").write_text(json.dumps(stated))
    assert options.after_running(str(int4)) == f"fastvlm profile {int4}"
    assert options.after_profiling(str(int4)) == f'fastvlm run {int4} IMAGE "PROMPT"'


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_verdict_is_not_read_from_a_pipe(int4: Path) -> None:
    """Nobody might ever write into it; here somebody does, once for each look, so that who waits for it is seen."""
    verdict = int4 / "validation.json"
    (int4 / "selftest").mkdir(exist_ok=True)

    def piped() -> None:
        verdict.unlink(missing_ok=True)
        os.mkfifo(verdict)
        threading.Thread(target=tell, daemon=True).start()

    def tell() -> None:
        with contextlib.suppress(OSError):
            verdict.write_text(json.dumps({"verdict": "passed", "manifest_sha256": ""}))

    piped()
    assert options.after_running(str(int4)) == f"fastvlm validate {int4}"
    piped()
    manifest = json.loads((int4 / "manifest.json").read_text())
    assert verdict_of(int4, manifest) == "no: validation.json cannot be read (OSError)"


def test_where_it_ran_is_in_the_json(onnx_builds: dict[str, Path]) -> None:
    sample = shipped_samples()[1]
    content = json.loads(typed("run", onnx_builds["int8"], sample.picture, sample.prompt, "--json").stdout)
    assert {file: list(nodes) for file, nodes in content["nodes"].items()} == {
        "VisionEncoder.onnx": ["cpu"], "LanguageModel.onnx": ["cpu"],
    }  # fmt: skip


def test_what_changes_nothing_is_told(tmp_path: Path, tiny: Path, heard: Any) -> None:
    export(
        "tiny", tmp_path / "build", format="onnx", context=4096, calibration=tiny / "pictures", only="language",
        progress=heard,
    )  # fmt: skip
    assert [note for note in heard.notes if "--context 4096 is more than the" in note]
    assert [note for note in heard.notes if "--calibration changes nothing here" in note]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"format": "tflite"}, "expected coreml or onnx"),
        ({"format": "onnx", "max_file_size": 10**9}, "--max-file-size is for --format coreml"),
        ({"format": "onnx", "purpose": "apple-app"}, "--for is for --format coreml"),
        ({"quantize": "int8", "purpose": "apple-app"}, "--quantize int8"),
    ],
)
def test_a_loaded_model_is_held_to_the_same_options(asked: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        export_model(load_checkpoint("tiny"), tmp_path / "build", **asked)


def test_onnx_asked_of_packages_is_refused(exported_tiny: Path) -> None:
    for words in (("validate",), ("profile",)):
        result = typed(*words, exported_tiny, "--backend", "onnx")
        assert result.exit_code == 2
        assert "--backend onnx does not run" in result.stderr
    with pytest.raises(UsageError, match="expected coreml or onnx"):
        export("tiny", "nowhere", format="tflite")
