"""`fastvlm lint`: what it says, with which exit code, and what it asks to type next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typed import Run

ENCODER = "VisionEncoder.mlpackage"


def test_a_build_is_judged_package_by_package(run: Run, small_build: Path) -> None:
    result = run("lint", small_build)
    assert result.exit_code == 0, result.stderr
    assert "on every device of the table, judged by the limits of engine H13" in result.stdout
    for word in (ENCODER, "LanguageModel.mlpackage", "decode", "prefill", "100 % of", "image-scaling", "Apple says"):
        assert word in result.stdout
    assert result.stderr.splitlines()[-1].startswith(f"next: fastvlm validate {small_build} --reference CHECKPOINT")


def test_one_package_for_one_device_as_json(run: Run, small_build: Path) -> None:
    result = run("lint", small_build / ENCODER, "--device", "iphone-15 PRO", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["device"], report["engine"]) == ("iPhone 15 Pro", "H16")
    assert report["resident_percent"] == 100
    (package,) = report["packages"]
    assert package["name"] == ENCODER
    assert (
        package["weight_bytes"] == (small_build / ENCODER / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
    )
    named = {rule["id"]: rule for rule in report["rules"]}
    assert named["image-scaling"]["sources"]
    used = {group["rule"] for function in package["functions"] for group in function["groups"]}
    assert used == set(named)


def leaving_build(build: Path) -> Path:
    """The encoder asks for a range of sizes: all of it leaves."""
    from validation.mil.package import parse_spec

    path = build / ENCODER / "Data/com.apple.CoreML/model.mlmodel"
    spec = parse_spec(path)
    for function in spec.description.functions:
        for item in function.input:
            image = item.type.imageType
            image.imageSizeRange.widthRange.lowerBound, image.imageSizeRange.widthRange.upperBound = 64, 128
            image.imageSizeRange.heightRange.lowerBound, image.imageSizeRange.heightRange.upperBound = 64, 128
    path.write_bytes(spec.SerializeToString())
    return build


@pytest.mark.parametrize(("least", "code"), [(None, 0), ("0", 0), ("0.1", 1), ("100", 1)])
def test_min_resident_where_all_leaves(run: Run, build: Path, least: str | None, code: int) -> None:
    words = () if least is None else ("--min-resident", least)
    result = run("lint", leaving_build(build), *words)
    assert result.exit_code == code, result.stderr
    assert "leaves as a whole: flexible-range" in result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == ([f"Error: 0 % stays, at least {least} % was asked for"] if code else [])


@pytest.mark.parametrize("as_json", [False, True])
def test_min_resident_where_all_stays(run: Run, small_build: Path, as_json: bool) -> None:
    words = ("--json",) if as_json else ()
    assert run("lint", small_build, "--min-resident", "100", *words).exit_code == 0


@pytest.mark.parametrize("least", ["-1", "101", "most", "nan"])
def test_min_resident_is_a_percentage(run: Run, small_build: Path, least: str) -> None:
    result = run("lint", small_build, "--min-resident", least)
    assert result.exit_code == 2
    assert result.stdout == ""


def refused(run: Run, *words: object) -> str:
    result = run("lint", *words)
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert (result.exit_code, result.stdout) == (2, "")
    return line


def test_an_unknown_device_is_refused_with_names_near_to_it(run: Run, small_build: Path) -> None:
    assert "iPhone 15 Pro" in refused(run, small_build, "--device", "iPhone 15 Por")
    assert "empty" in refused(run, small_build, "--device", "")
    assert "known: iPhone 12 mini, 12, " in refused(run, small_build, "--device", "toaster")


def test_what_is_no_package(run: Run, build: Path, tmp_path: Path) -> None:
    assert "absent" in refused(run, tmp_path / "absent")
    assert "is a file" in refused(run, build / "manifest.json")
    empty = tmp_path / "Empty.mlpackage"
    empty.mkdir()
    assert "Manifest.json" in refused(run, empty)
    refused(run, "")


@pytest.mark.parametrize("kept", [0, 10, 1_000, -1])
def test_a_damaged_package(run: Run, build: Path, kept: int) -> None:
    path = build / ENCODER / "Data/com.apple.CoreML/model.mlmodel"
    path.write_bytes(path.read_bytes()[:kept])
    assert ENCODER in refused(run, build / ENCODER)


def test_a_package_without_its_weights(run: Run, build: Path) -> None:
    shutil.rmtree(build / ENCODER / "Data/com.apple.CoreML/weights")
    assert "weight.bin" in refused(run, build)


def test_names_from_a_package_cannot_steer_the_terminal(run: Run, build: Path) -> None:
    from validation.mil.package import parse_spec

    path = build / ENCODER / "Data/com.apple.CoreML/model.mlmodel"
    spec = parse_spec(path)
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            next(op for op in block.operations if op.type == "gelu").type = "\x1b[31mred\nline"
    path.write_bytes(spec.SerializeToString())
    result = run("lint", build / ENCODER)
    assert result.exit_code == 0, result.stderr
    assert "unknown-op" in result.stdout
    assert "\x1b" not in result.stdout
    assert "\\x1b[31mred\\nline" in result.stdout
