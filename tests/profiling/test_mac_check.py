"""`make mac-check` against coremltools' stand-in: what it finds, what it tells, and what it never tells."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import coreml_standin
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fastvlm.build import COMPUTE_UNITS
from fastvlm.errors import BuildError, ProcessError
from fastvlm.manifest import NAME, read_manifest, write_manifest
from validation.coreml.placement import FunctionPlan, OpPlace
from validation.lint.checking import lint, predictions
from validation.mac_check import __main__ as command
from validation.mac_check import checking
from validation.mac_check.answers import AnswerBench, difference, selftest
from validation.mac_check.beside_lint import Beside, beside_lint
from validation.mac_check.checking import lint_device
from validation.mac_check.report import read_report
from validation.machine import Machine

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = ("cpuAndNeuralEngine",)  # choices are alike to the check; the whole one takes all of them


@pytest.fixture
def check(mac: Any, in_process: None, validated_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the check in this process on builds that are there already; gives the result and the report's file."""
    monkeypatch.setattr(checking, "RUNS", 1)
    monkeypatch.setattr("validation.profiling.contender.COMPUTE_UNITS", FEW)
    monkeypatch.setattr(checking, "validated_tiny", lambda folder, progress: validated_tiny)
    report = tmp_path / "somebody" / "device-report.json"
    report.parent.mkdir()

    def run(*words: object) -> tuple[Result, Path]:
        return CliRunner().invoke(command.main, ["-o", str(report), *map(str, words)]), report

    return run


def test_core_ml_that_computes_the_same_is_found_the_same(check: Any, validated_tiny: Path) -> None:
    shown, file = check()
    assert shown.exit_code == 0, shown.output
    content = read_report(file)
    (build,) = content["builds"]
    assert set(build["differences"]) == set(FEW)
    for each in build["differences"].values():
        assert each["tokens"]["psnr_db"] == each["logits"]["snr_db"] == "inf"
        assert each["steps"] == len(
            json.loads((validated_tiny / "selftest" / "selftest.json").read_text())["greedy_ids"]
        )
        assert each["differing_steps"] == []
    assert build["placement"]["judged_for"] == "MacBook Air M2"
    assert build["placement"]["rules"] == [
        {"rule": "stays", "agree": 690, "differ": 0, "untold": 0, "differing": {}},
        {"rule": "integer", "agree": 22, "differ": 0, "untold": 0, "differing": {}},
    ]
    assert [each["name"] for each in build["profile"]["contenders"]][:2] == ["mil", f"coreml {FEW[0]}"]
    assert build["placement"]["engine_ops"] > 690
    assert "same ids" in shown.stdout
    assert "\ntiny: ane build, 4 layers of 192:\n" in shown.stdout
    assert " LanguageModel.mlpackage prefill: ops neuralEngine 95.34 %, cpu 4.661 %\n" in shown.stdout
    assert f"\nreport: {file}; it names neither you nor" in shown.stdout
    assert "\n    integer          agree 22, differ 0, untold 0\n" in shown.stdout


def test_ids_are_held_to_the_mil_runtime_s(
    check: Any, validated_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to those that lead: of a tie both backends may choose another one than the self-test has."""
    copy = Path(shutil.copytree(validated_tiny, tmp_path / "copy"))
    file = copy / "selftest" / "selftest.json"
    content = json.loads(file.read_text())
    content["greedy_ids"][2] += 1
    file.write_text(json.dumps(content))
    monkeypatch.setattr(checking, "validated_tiny", lambda folder, progress: copy)
    shown, report = check()
    assert shown.exit_code == 0, shown.output
    assert read_report(report)["builds"][0]["differences"][FEW[0]]["differing_steps"] == []


def test_a_mac_whose_engine_does_not_answer_is_told_so(check: Any, exported_app: Path, mac: pytest.MonkeyPatch) -> None:
    mac.setattr(checking, "validated_tiny", lambda folder, progress: exported_app)
    mac.setattr(coreml_standin.MLComputePlan, "_preferred", lambda *_: coreml_standin.MLCPUComputeDevice())
    shown, file = check()
    assert shown.exit_code == 0
    assert "no op is on the Neural Engine" in shown.stdout
    placement = read_report(file)["builds"][0]["placement"]
    assert placement["engine_ops"] == 0
    assert placement["rules"][0]["differ"] > 100, "which contradicts nothing"


def test_an_encoder_alone_has_no_ids_to_be_the_same(check: Any, exported_app: Path, monkeypatch: Any) -> None:
    """And packages are opened only once more, however many runs there are."""
    monkeypatch.setattr(checking, "validated_tiny", lambda folder, progress: exported_app)
    monkeypatch.setattr(checking, "RUNS", 2)
    shown, file = check()
    assert shown.exit_code == 0, shown.output
    assert " dB SNR\n" in shown.stdout
    assert "same ids" not in shown.stdout
    (build,) = read_report(file)["builds"]
    assert build["differences"][FEW[0]]["logits"] is None
    counts = {row["stage"]: row["runs"]["count"] for row in build["profile"]["contenders"][1]["stages"]}
    assert counts == {"load_encoder": 1, "load_encoder_core_ml": 1, "preprocess": 2, "encode": 2}


@pytest.mark.long
def test_a_build_of_one_s_own_is_checked_beside_it(check: Any, exported_tiny: Path, tmp_path: Path) -> None:
    """One that was never validated has no self-test: the MIL runtime's own ids lead."""
    own = Path(shutil.copytree(exported_tiny, tmp_path / "alices-secret-model"))
    manifest = read_manifest(own)
    manifest["source"]["id"] = "alices-secret-checkpoint"
    write_manifest(own / NAME, manifest)
    shown, file = check(own)
    assert shown.exit_code == 0, shown.output
    first, second = read_report(file)["builds"]
    assert second["differences"][FEW[0]]["steps"] == 16
    assert first["what"]["manifest_sha256"] != second["what"]["manifest_sha256"]
    text = file.read_text("utf-8")
    for word in ("alice", "secret", getpass.getuser(), platform.node(), str(Path.home()), str(tmp_path), "/tmp"):
        assert not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), word
    machine = {"model": "Mac14,2", "chip": "Apple M2", "system": "macOS 15.5"}
    told = json.loads(text)["machine"]
    assert set(told) == {*machine, "architecture", "cores", "memory_gb"}, "no serial number, no name"
    assert {key: told[key] for key in machine} == machine
    assert set(json.loads(text)) == {"schema", "date", "fastvlm", "coremltools", "machine", "builds"}


def test_noise_is_measured_and_another_token_is_a_miss(check: Any, mac: pytest.MonkeyPatch) -> None:
    mac.setenv("COREML_STANDIN", "noise")
    shown, file = check()
    found = read_report(file)["builds"][0]["differences"][FEW[0]]
    assert 0 < found["tokens"]["snr_db"] < 30
    assert found["logits"]["kl"] > 0
    assert found["differing_steps"]
    assert shown.exit_code == 1
    assert f"Error: {FEW[0]}: another token than the MIL runtime's at step" in shown.stderr


def test_a_rule_that_a_plan_contradicts_is_told(check: Any, mac: pytest.MonkeyPatch) -> None:
    mac.setenv("COREML_STANDIN", "cpu softmax")
    shown, file = check()
    stays = read_report(file)["builds"][0]["placement"]["rules"][0]
    assert stays["differ"] == stays["differing"]["softmax"] > 0
    assert f"differ {stays['differ']} (softmax {stays['differ']})" in shown.stdout
    assert shown.exit_code == 0, "a finding about the rules, not about the build"


def test_a_choice_that_fails_is_told_and_the_others_go_on(check: Any, mac: pytest.MonkeyPatch) -> None:
    mac.setenv("COREML_STANDIN", "refuse predict decode")
    shown, file = check()
    assert shown.exit_code == 1
    build = read_report(file)["builds"][0]
    assert build["differences"] == {}
    failures = build["profile"]["failures"]
    assert [failure["contender"] for failure in failures] == [f"coreml {units}" for units in FEW]
    assert {failure["stage"] for failure in failures} == {"first_token"}
    assert f"Error: tiny, coreml {FEW[0]}, at stage first_token: Core ML cannot run decode of Language" in shown.stderr


@pytest.mark.long
def test_the_whole_check_in_real_processes(mac: Any, tmp_path: Path) -> None:
    """The export, the validation, five processes that measure and eight that plan."""
    report = tmp_path / "device-report.json"
    shown = CliRunner().invoke(command.main, ["-o", str(report)])
    assert shown.exit_code == 0, shown.output
    assert set(read_report(report)["builds"][0]["differences"]) == set(COMPUTE_UNITS)


@pytest.mark.skipif(sys.platform == "darwin", reason="there it runs")
def test_another_system_is_one_sentence(root: Path) -> None:
    asked = [sys.executable, "-m", "validation.mac_check"]
    done = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"Error: mac-check needs macOS, this machine is linux; .*\n", done.stderr)
    assert done.stdout == ""


def test_an_old_mac_is_told_what_it_needs(check: Any, mac: pytest.MonkeyPatch) -> None:
    mac.setattr("validation.coreml.here.macos_version", lambda: (14, 7))
    shown, _ = check()
    assert shown.exit_code == 2
    assert "mac-check needs macOS 15, this machine has 14.7" in shown.stderr


def test_a_build_that_is_none_is_refused(check: Any, tmp_path: Path) -> None:
    shown, file = check(tmp_path / "nothing")
    assert shown.exit_code == 2
    assert "is not a build folder" in shown.stderr
    assert not file.exists(), "half a report is none"


def without_tokenizer(build: Path) -> None:
    (build / "tokenizer" / "tokenizer.json").write_text("{")


def with_half_a_picture(build: Path) -> None:
    os.truncate(build / "selftest" / "picture.png", 100)


@pytest.mark.parametrize(
    ("damage", "says"), [(without_tokenizer, "is no tokenizer"), (with_half_a_picture, "selftest.json is damaged")]
)
def test_a_build_that_cannot_be_checked_is_refused_before_the_embedded_one_is(
    check: Any, validated_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, says: str
) -> None:
    monkeypatch.setattr(checking, "validated_tiny", lambda folder, progress: pytest.fail("it began"))
    copy = Path(shutil.copytree(validated_tiny, tmp_path / "copy"))
    damage(copy)
    shown, _ = check(copy)
    assert shown.exit_code == 2, shown.output
    assert says in shown.stderr


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("nowhere/report.json", "is no folder; choose another place"),
        ("mine.json", "is there and no device report"),
        (".", "is there and no device report"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_any_work(
    check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, says: str
) -> None:
    monkeypatch.setattr(checking, "validated_tiny", lambda folder, progress: pytest.fail("it began"))
    (tmp_path / "mine.json").write_text("{}")
    shown = CliRunner().invoke(command.main, ["-o", str(tmp_path / place)])
    assert shown.exit_code == 2, shown.output
    assert says in shown.stderr
    assert (tmp_path / "mine.json").read_text() == "{}"


def test_what_was_checked_is_written_where_the_next_build_fails(
    check: Any, exported_app: Path, exported_tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "validated_tiny", lambda folder, progress: exported_app)
    usual = checking.checked

    def checked(folder: Path, *given: Any) -> Any:
        if Path(folder) == exported_tiny:
            raise ProcessError("it ended", "encode", "SIGKILL")
        return usual(folder, *given)

    monkeypatch.setattr(checking, "checked", checked)
    shown, file = check(exported_tiny)
    assert shown.exit_code == 1
    assert shown.stderr.endswith(f"report, of the embedded checkpoint alone: {file}\nError: it ended\n")
    assert len(read_report(file)["builds"]) == 1
    assert shown.stdout == ""


def test_an_interrupt_is_no_verdict(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "checked", interrupted)
    shown, file = check()
    assert shown.exit_code == 130
    assert shown.stderr.endswith("Interrupted.\n")
    assert not file.exists()


def test_predictions_are_the_linter_s(exported_tiny: Path) -> None:
    package = exported_tiny / "LanguageModel.mlpackage"
    report = lint(package)
    told = predictions(package)
    for function in report.functions:
        leaving = {op.name: tuple(broken.rule for broken in op.rules) for op in function.leaving}
        found = told[function.name]
        assert {each.name: each.rules for each in found if each.verdict == "leaves"} == leaving
        assert len(found) == sum(kind.count for kind in function.kinds)


def test_ops_are_counted_with_the_rule_that_speaks_of_them(exported_tiny: Path) -> None:
    package = exported_tiny / "VisionEncoder.mlpackage"
    ops = predictions(package)["encode_256"]
    conv = next(op for op in ops if op.op == "conv")
    untold = next(op for op in ops if op.op == "softmax")
    places = {op.name: "neuralEngine" for op in ops} | {conv.name: "gpu", untold.name: None}
    plan = FunctionPlan(package.name, "encode_256", tuple(OpPlace("", name, at, None) for name, at in places.items()))
    (stays,), edge = beside_lint([package], [plan], None)
    at_edge = sum(op.verdict == "edge" for op in ops)
    assert (stays.rule, stays.agree, stays.untold) == ("stays", len(ops) - at_edge - 2, 1)
    assert stays.differing == {"conv": 1}
    assert edge == {"neuralEngine": at_edge}
    assert beside_lint([package], [], None) == ([Beside("stays")], {})


def test_ids_lead_the_steps_that_they_belong_to(validated_tiny: Path, tmp_path: Path) -> None:
    """The self-test's own answer, led by itself or by nobody."""
    bench = AnswerBench(lambda stage: None, str(validated_tiny), "mil", None, None)
    bench.load()
    known = selftest(bench.build)
    assert known is not None
    ids = known["greedy_ids"]
    assert bench.answer(str(tmp_path / "a.npz"), ids) == ids
    assert bench.answer(str(tmp_path / "b.npz"))[: len(ids)] == ids
    with np.load(tmp_path / "a.npz") as kept:
        assert kept["tokens"].shape == (bench.work.tokens, 192)
        assert kept["logits"].shape == (len(ids), bench.build.vocab_size)
        assert [int(row.argmax()) for row in kept["logits"]] == ids


def test_differences_are_between_the_two_files(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(mine, tokens=np.ones((4, 8), np.float32), logits=np.eye(3, 5, dtype=np.float32))
    np.savez(theirs, tokens=np.full((4, 8), 1.1, np.float32), logits=np.eye(3, 5, dtype=np.float32))
    assert difference(mine, mine, [0, 1, 2], [0, 1, 2]) == difference(theirs, theirs, [0, 1, 2], [0, 1, 2])
    other = np.eye(3, 5, dtype=np.float32)
    other[1, 1] = 2
    np.savez(tmp_path / "c.npz", tokens=np.ones((4, 8), np.float32), logits=other)
    apart = difference(mine, tmp_path / "c.npz", [0, 1, 2], [0, 1, 2]).logits
    assert apart is not None
    assert (apart["max_error"], apart["kl"] > 0) == (1, True), "the worst step counts"
    found = difference(mine, theirs, [0, 1, 2], [0, 4, 2])
    assert found.tokens is not None
    assert found.tokens["snr_db"] == pytest.approx(20, abs=0.01)
    assert found.logits is not None
    assert found.logits["kl"] == 0
    assert (found.steps, found.differing_steps) == (3, (2,))


@pytest.mark.parametrize(
    ("chip", "device"), [("Apple M2", "MacBook Air M2"), ("Apple M4 Max", "MacBook Pro M4 Max"), ("Apple M9", None)]
)
def test_the_linter_judges_by_this_chip(chip: str, device: str | None) -> None:
    assert lint_device(Machine("", chip, "macOS 15.5", "arm64", 8, 16.0)) == device


@pytest.mark.parametrize("damage", ["{", "[]", '{"greedy_ids": [1]}', '{"ids_before_image": "ab"}'])
def test_a_damaged_self_test_is_a_named_error(validated_tiny: Path, tmp_path: Path, damage: str) -> None:
    from fastvlm.build import read_build

    copy = Path(shutil.copytree(validated_tiny, tmp_path / "copy"))
    (copy / "selftest" / "selftest.json").write_text(damage)
    with pytest.raises(BuildError, match="is damaged"):
        selftest(read_build(copy))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no device report"), ("[]", "no device report"), ('{"schema": "0.1"}', "lacks a field"),
        ('{"schema": "1.0", "machine": {"chip": "", "system": ""}, "date": "", "builds": []}', "update fastvlm"),
        ('{"schema": "0.9", "machine": {"chip": "", "system": ""}, "date": 7, "builds": []}', "damaged device report"),
    ],
)  # fmt: skip
def test_what_is_no_report_is_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(BuildError, match=says):
        read_report(tmp_path / "report.json")
    with pytest.raises(BuildError, match="no device report"):
        read_report(tmp_path / "nothing")
