"""docs/device-truth.md is what its generator makes, and says of each rule what reports say of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from generated_pages import generator_of

from fastvlm.errors import BuildError
from validation.lint.rules import RULES
from validation.mac_check.report import read_report
from validation.profiling.result import STAGES


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/generate_device_truth.py."""
    return generator_of("device_truth")


@pytest.fixture
def report() -> dict[str, Any]:
    """A report of one build on one choice."""
    rules = [
        {"rule": "stays", "agree": 690, "differ": 3, "untold": 0, "differing": {"softmax": 3}},
        {"rule": "integer", "agree": 22, "differ": 0, "untold": 0, "differing": {}},
        {"rule": "rank", "agree": 0, "differ": 0, "untold": 5, "differing": {}},
    ]
    difference = {
        "tokens": {"psnr_db": 71.2, "snr_db": 60.0, "max_error": 0.1}, "logits": {"snr_db": 44.5}, "steps": 16,
        "differing_steps": [3],
    }  # fmt: skip
    stages = [
        {"stage": "encode", "position": None, "first": 1.0, "runs": {"median": 0.0123}},
        {"stage": "decode", "position": 40, "first": 1.0, "runs": {"median": 0.002}},
        {"stage": "decode", "position": 512, "first": 1.0, "runs": {"median": 0.9}},
        {"stage": "first_token", "position": None, "first": 1.0, "runs": {"median": 0.003}},
        {"stage": "to_first_token", "position": None, "first": 1.0, "runs": {"median": 0.05}},
    ]
    build = {
        "what": {"layers": 4, "hidden_size": 192, "target": "ane", "compression": "fp16"},
        "differences": {"all": difference},
        "placement": {"judged_for": None, "engine_ops": 690, "rules": rules, "edge": {}},
        "profile": {"contenders": [{"compute_units": "all", "stages": stages}, {"compute_units": None, "stages": []}]},
    }
    machine = {"chip": "Apple M2", "system": "macOS 15.5"}
    return {"schema": "0.1", "date": "2026-01-31", "machine": machine, "builds": [build]}


def committed(root: Path) -> list[dict[str, Any]]:
    return [read_report(path) for path in sorted((root / "docs" / "device-reports").glob("*.json"))]


def test_the_page_is_up_to_date(generator: ModuleType, root: Path) -> None:
    page = (root / "docs" / "device-truth.md").read_text("utf-8")
    assert page == generator.render(committed(root)), "run: python docs/generate_device_truth.py"


def test_without_a_report_nobody_has_confirmed_anything(generator: ModuleType) -> None:
    page = generator.render([])
    assert [rule.id for rule in RULES if f"| `{rule.id}` |" not in page] == []
    assert "confirmed by Apple" not in page
    assert page.count("nobody yet") == len(RULES) + 1
    assert "Nobody has run it on a device yet." in page


def test_a_report_confirms_and_contradicts(generator: ModuleType, report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report))
    lines = generator.render([read_report(tmp_path / "report.json")]).splitlines()
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert "confirmed by Apple M2, macOS 15.5, 2026-01-31: 22 of 22 ops" in rows["integer"]
    assert "contradicted by Apple M2, macOS 15.5, 2026-01-31: 3 of 693 ops" in rows["stays"]
    assert "nobody yet" in rows["rank"], "what a plan does not tell confirms nothing"
    assert lines[-1].split(" | ")[3:] == [
        "4 layers of 192, ane, fp16", "all", "71.2 dB", "44.5 dB", "15 of 16", "12.3 ms", "50 ms", "2 ms |",
    ]  # fmt: skip
    assert lines[-3].split(" | ")[-3:] == ["encode", "to first token", "decode behind the prompt |"]


def test_a_machine_without_an_engine_that_answers_says_nothing_of_rules(
    generator: ModuleType, report: dict[str, Any]
) -> None:
    """There everything is on the CPU, so that every rule that says "leaves" would seem to be confirmed."""
    report["builds"][0]["placement"]["engine_ops"] = 0
    page = generator.render([report])
    assert "confirmed by Apple" not in page
    assert "contradicted by" not in page
    assert "| 71.2 dB |" in page, "its numbers and times count"


def test_a_build_without_language_model_has_no_ids(generator: ModuleType, report: dict[str, Any]) -> None:
    report["builds"][0]["differences"]["all"] |= {"logits": None, "steps": 0, "differing_steps": []}
    assert "| 71.2 dB |  |  | 12.3 ms |" in generator.render([report])


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("builds", 0, "what"), {"layers": 4}, "damaged device report (what)"),
        (("builds", 0, "differences", "all"), {}, "lacks a field of a device report ('steps')"),
        (("builds", 0, "differences", "all", "tokens"), {"psnr_db": None}, "damaged device report (differences)"),
        (("builds", 0, "placement", "engine_ops"), None, "damaged device report (placement.engine_ops)"),
        (("builds", 0, "placement", "rules", 0, "agree"), "7", "lacks a field of a device report"),
        (("builds", 0, "profile", "contenders"), [{}], "lacks a field of a device report ('compute_units')"),
        (("machine", "chip"), 7, "damaged device report (machine.chip)"),
        (("builds",), None, "lacks a field of a device report"),
    ],
)
def test_a_damaged_report_is_a_named_error(
    report: dict[str, Any], tmp_path: Path, path: tuple[Any, ...], value: Any, says: str
) -> None:
    inner: Any = report
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(BuildError, match=re.escape(says)):
        read_report(tmp_path / "report.json")


def test_the_page_on_profiles_names_every_stage_and_field(root: Path) -> None:
    from test_profile_command import SHAPE

    page = (root / "docs" / "profiling.md").read_text("utf-8")
    assert [stage for stage in STAGES if f"`{stage}`" not in page] == []
    named = set(re.findall(r"`(?:….)?(\w+)(?:\[\])?`", page))
    assert {key for keys in SHAPE.values() for key in keys} - named == set()
