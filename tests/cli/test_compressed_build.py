"""A compressed build of several packages, made and used by the commands: the table, the answers, the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typed import Run

from fastvlm.commands.compression import in_words


@pytest.mark.long
def test_a_mixed_chain_from_export_to_verdict(run: Run, tmp_path: Path, tiny: Path) -> None:
    build = tmp_path / "build"
    result = run("export", "tiny", "-o", build, "--quantize", "mixed", "--max-file-size", "900kB")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"build folder: {build}\n"
    manifest = json.loads((build / "manifest.json").read_text())
    record = manifest["compression"]
    assert len(manifest["packages"]["language"]) > 1
    (head,) = [row for row in record["sensitivity"]["layers"] if row["layer"] == "lm_head"]
    assert "Schemes, and noise in dB" in result.stderr
    assert f"lm_head: {head['scheme']} {head['noise_db'][head['scheme']]:.0f} dB" in result.stderr
    assert f"{record['sensitivity']['bits']:.2f} bits a weight, scales and palettes included" in result.stderr

    inspected = run("inspect", build)
    assert inspected.exit_code == 0
    counts = " + ".join(f"{count} {scheme}" for scheme, count in record["language"].items())
    assert f"compression  mixed: language {counts}, encoder fp16, embeddings int8" in inspected.stdout
    assert "constexpr_lut_to_dense" in inspected.stdout

    answered = run("run", build, tiny / "pictures" / "number.png", "Which number?", "--max-new-tokens", 4)
    assert answered.exit_code == 0, answered.stderr
    assert answered.stdout.strip()

    validated = run("validate", build)
    assert validated.exit_code == 0, validated.stdout + validated.stderr
    verdict = json.loads((build / "validation.json").read_text())
    assert verdict["verdict"] == "passed"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"scheme": "fp16"}, "fp16"),
        (
            {"scheme": "int8", "language": {"int8": 169}, "encoder": {}, "embeddings": "int8"},
            "int8: language 169 int8, encoder fp16, embeddings int8",
        ),
        ({"scheme": "mixed", "language": {"int8": 1, "lut4": 2}}, "mixed: language 1 int8 + 2 lut4"),
        ({"scheme": "recipe", "encoder": {"int8": 60}}, "recipe: encoder 60 int8"),
        ({"scheme": 5, "language": 7}, "5: language 7"),
    ],
)
def test_compression_in_words(record: dict[str, object], said: str) -> None:
    assert in_words(record) == said
