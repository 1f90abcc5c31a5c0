"""docs/reliability.md holds what the suites counted (docs/reliability.json), and nothing that must not be."""

from __future__ import annotations

import json
from pathlib import Path

from generated_pages import generator_of
from ordeal import BAD


def test_the_page_is_what_is_generated(root: Path) -> None:
    page = (root / "docs" / "reliability.md").read_text("utf-8")
    assert generator_of("reliability").render(page) == page


def test_no_count_is_of_what_must_not_be(root: Path) -> None:
    counts = json.loads((root / "docs" / "reliability.json").read_text("utf-8"))
    assert len(counts) > 15
    for row, sizes in counts.items():
        for record in sizes.values():
            assert not set(record["kinds"]) & set(BAD), row
            assert record["tried"] == sum(record["kinds"].values()), row


def test_every_row_was_seen_red(root: Path) -> None:
    generator = generator_of("reliability")
    counts = json.loads((root / "docs" / "reliability.json").read_text("utf-8"))
    assert set(generator.RED) == set(counts)
    for row in counts:
        for test in generator.red_tests(row):
            file, _, name = test.partition("::")
            assert f"def {name}(" in (root / "tests" / "hostile" / file).read_text("utf-8"), test
