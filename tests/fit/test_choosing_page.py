"""docs/choosing.md says what `fastvlm fit` says: its tables are made by the same code."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from generated_pages import generator_of

from fastvlm.devices import CHIPS, DEVICES
from validation.fit.published import FIGURES
from validation.fit.sizes import SIZES


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/generate_choosing.py."""
    return generator_of("choosing")


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    """The page as it lies there."""
    return (root / "docs" / "choosing.md").read_text("utf-8")


def test_the_page_is_up_to_date(generator: ModuleType, page: str) -> None:
    assert page == generator.render(page), "run: python docs/generate_choosing.py"


@pytest.mark.parametrize(
    "part", ["devices", "schemes", "images", "contexts", "efficiencies", "chips", "check", "guess"]
)
def test_a_changed_table_is_told(generator: ModuleType, page: str, part: str) -> None:
    begin = page.index(f"<!-- {part} -->")
    row = re.compile(r"\d").search(page, begin)
    assert row is not None
    assert row.start() < page.index(f"<!-- /{part} -->")
    changed = f"{page[: row.start()]}otherwise{page[row.end() :]}"
    assert generator.render(changed) == page


def table(page: str, part: str) -> str:
    """What stands between the marks."""
    return page[page.index(f"<!-- {part} -->") : page.index(f"<!-- /{part} -->")]


def test_nothing_is_left_out(page: str) -> None:
    devices = table(page, "devices")
    missing = [each.name for each in DEVICES if each.name.partition(" ")[2] not in devices]
    missing += [chip.name for chip in CHIPS if f"| {chip.name} |" not in table(page, "chips")]
    missing += [figure.source for figure in FIGURES if figure.source not in table(page, "check")]
    missing += [name for name in SIZES if f"| {name} |" not in table(page, "schemes")]
    assert missing == []
