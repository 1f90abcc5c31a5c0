"""docs/ane.md says what the linter judges by: its tables are the data."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from generated_pages import generator_of

from fastvlm.devices import CHIPS, DEVICES
from validation.lint.rules import RULES
from validation.lint.support import SUPPORT


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/generate_ane.py."""
    return generator_of("ane")


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    """The page as it lies there."""
    return (root / "docs" / "ane.md").read_text("utf-8")


def test_the_page_is_up_to_date(generator: ModuleType, page: str) -> None:
    assert page == generator.render(page), "run: python docs/generate_ane.py"


@pytest.mark.parametrize("said", [RULES[0].says, RULES[-1].sources[0].title, "`matmul`", DEVICES[0].name, "65,536"])
def test_a_changed_page_is_told(generator: ModuleType, page: str, said: str) -> None:
    """In the generated tables, which stand behind the first rule."""
    begin = page.index("<!-- rules -->")
    changed = page[:begin] + page[begin:].replace(said, "otherwise", 1)
    assert changed != page
    assert generator.render(changed) == page


def test_nothing_is_left_out(page: str) -> None:
    begin = page.index("<!-- rules -->")
    missing = [rule.id for rule in RULES if f"| `{rule.id}` |" not in page[begin:]]
    missing += [name for name in SUPPORT if f"`{name}`" not in page[begin:]]
    missing += [chip.name for chip in CHIPS if f"| {chip.name} |" not in page[begin:]]
    missing += [each.name for each in DEVICES if f"{each.name} (" not in page[begin:]]
    assert missing == []
