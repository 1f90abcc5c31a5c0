"""The report says what validation.json says, of every kind of verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastvlm.errors import BuildError
from fastvlm.manifest import dump
from validation.blocks import Finding
from validation.limits import LIMITS, Measurement
from validation.parity import Step
from validation.questions import AnswerRow, DifferingStep, score
from validation.report import write_report
from validation.verdict import ReferenceFiles, Verdict

ROWS = (Measurement(LIMITS["prompt.differing_ids"], 0, "What?"), Measurement(LIMITS["encoder.psnr_db"], 59, "a | b"))
ANSWERS = (AnswerRow("a.png", "What?", "a cat", "a dog", "a cat"),)
TIE = DifferingStep("answer", "a.png: What?", 7, Step(3, 5, 0.1, 0.02, 0.01, 1.0, 2, tie=True), " red", " \n")
PARTED = DifferingStep("language", "a.png: What?", 8, Step(3, 5, 0.1, 0.2, 0.6, 1.0, 2, tie=False), "x", "y")

BEGINS = Finding(
    "decode", "decoder.layers.2", "layers.2.mlp.up_proj", (0, 7, 0, 0), 3, 1.5, -1.5, 12.34, 65.4, 12.3, cured=False
)


def report(folder: Path, **changes: object) -> str:
    made = {
        "rows": ROWS, "answers": ANSWERS, "score": score(ANSWERS, 4), "differing_steps": (TIE, PARTED),
        "findings": (BEGINS,), "backend": "mil", "steps": 64, "pictures": 1, "not_measured": (), "lacking": (),
        "manifest_sha256": "1234",
        "reference": ReferenceFiles({"config.json": "abcd"}), "path": folder / "validation.json",
    }  # fmt: skip
    verdict = Verdict(**{**made, **changes})  # type: ignore[arg-type]
    verdict.path.write_bytes(dump(verdict.as_json()))
    return write_report(folder, folder / "report.md").read_text("utf-8")


def test_rows_stand_by_rung_and_differing_steps_are_listed(tmp_path: Path) -> None:
    text = report(tmp_path)
    assert "FAILED: at least one limit was missed" in text
    assert text.index("| network | encoder.psnr_db | 59.0 | ≥ 60 | **MISSED** | a \\| b |") < text.index(
        "| tokens | prompt."
    )
    assert "agree on 0 of 1; of 1 with a known answer the build has 1 right, PyTorch 0." in text
    assert '| answer | a.png: What? | 7 | " red" | " \\n" | 0.01 | 0.02 | tie |' in text
    assert '| language | a.png: What? | 8 | "x" | "y" | 0.6 | 0.2 | **divergence** |' in text
    assert "| decode | decoder.layers.2 | layers.2.mlp.up_proj | 1.5 | -1.5 | 12.3 | 65.4 | 12.3 | conversion |" in text
    assert "not what the build was made from" not in text


def test_beside_another_checkpoint_there_is_no_verdict(tmp_path: Path) -> None:
    reference = ReferenceFiles({"config.json": "abcd"}, ("config.json",))
    text = report(tmp_path, rows=ROWS[:1], reference=reference, differing_steps=())
    assert "**Verdict: none: the reference is not what the build was made from.**" in text
    assert "- not what the build was made from: `config.json` differs" in text
    assert "No token differs." in text


def test_a_verdict_of_an_older_version_is_named(tmp_path: Path) -> None:
    (tmp_path / "validation.json").write_text('{"verdict": "passed", "steps": 32, "backend": "mil"}')
    with pytest.raises(BuildError, match="run `fastvlm validate` first"):
        write_report(tmp_path, tmp_path / "report.md")
