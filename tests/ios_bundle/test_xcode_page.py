"""docs/xcode.md names only keys and files that a bundle has, and repeats the script's and the device table's words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastvlm.devices import DEVICES
from ios_bundle.compile_script import SCRIPT

KEYS = {  # of metadata.json: each name that the page may write with a dot in it, by its first part
    "assets": {"main", "vision", "embedding"},
    "language": {"chain", "prefill_chunk_size", "max_context_length", "function_map", "mask_value"},
    "memory": {"need_bytes", "of", "basis", "device_classes"},
    "size": {"bytes", "app_limit_bytes", "fits_app"},
    "validation": {"verdict"},
    "bundle": {"schema", "fastvlm_version", "manifest_sha256"},
}
FILES = {  # and folders, each with a slash in it
    "models/STEM.mlmodelc", "models/STEM.mlpackage", "scripts/", "scripts/compile_models.sh", "selftest/selftest.json",
}  # fmt: skip
ENDINGS = (".json", ".sh", ".mlmodelc", ".mlpackage", ".bin", ".png", "/")


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs/xcode.md").read_text("utf-8")


def unknown_keys(page: str) -> list[str]:
    named = re.findall(r"`([a-z_]+)\.([a-z_]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    return [f"{first}.{key}" for first, key in named if key not in ("json", "sh") and key not in KEYS.get(first, ())]


def unknown_files(page: str) -> list[str]:
    words = re.findall(r"`([\w./-]+/[\w./-]*)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL))
    return [word for word in words if word.endswith(ENDINGS) and word != "FastVLM/" and word not in FILES]


def test_keys_and_files_are_those_of_a_bundle(page: str) -> None:
    assert unknown_keys(page) == []
    assert unknown_files(page) == []
    assert unknown_keys(page.replace("`size.fits_app`", "`size.fits`")) == ["size.fits"]
    assert unknown_files(page.replace("`selftest/selftest.json`", "`tests/selftest.json`")) == ["tests/selftest.json"]


def test_the_run_script_phase_is_the_one_in_the_script(page: str) -> None:
    header = [line[1:] for line in SCRIPT.decode("ascii").split("\n") if line.startswith("#     ")]
    phase = [
        line for line in header if not line.startswith(("     scripts/", "     Input", "     Output", "     Build"))
    ]
    assert len(phase) == 5
    assert "\n".join(line[1:] for line in phase) in page
    for field in ("Input Files", "Output Files"):
        listed = next(line for line in header if line.strip().startswith(field)).split()[-1]
        assert re.search(rf"{field}:\s+`{re.escape(listed)}`", page)


def test_the_memory_of_an_app_is_that_of_the_device_table(page: str) -> None:
    rows = [
        f"| {device.name} | {device.memory_gb[0]} GB | {device.app_memory.default.value:g} GB "
        f"| {device.app_memory.increased.value:g} GB | {device.app_memory.default.source} |"
        for device in DEVICES
        if device.app_memory is not None
    ]
    assert len(rows) == 3
    assert [line for line in page.split("\n") if line.startswith("| iPhone")] == rows


def test_the_page_stays_short_and_says_that_its_swift_was_not_compiled(page: str) -> None:
    assert page.count("\n") <= 200
    snippets = re.findall(r"```swift.*?```", page, re.DOTALL)
    assert snippets
    assert all("not compiled here" in text.lower() for text in snippets)
