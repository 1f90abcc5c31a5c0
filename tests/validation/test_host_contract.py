"""docs/host-contract.md tells what the host computes: its numbers are generated, its keys exist, its formulas hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from generated_pages import generator_of

from validation.bundle_host.picture import resample

POINTED = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
TOLERANCE = (
    0.03  # of a number that fp16 computes, or of 1; three digits are shown, another processor may round them otherwise
)


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/generate_host_contract.py."""
    return generator_of("host_contract")


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    """The page as it lies there."""
    return (root / "docs" / "host-contract.md").read_text("utf-8")


@pytest.fixture(scope="module")
def rendered(generator: ModuleType, page: str, tiny_bundle: Path) -> str:
    """The page with its numbers made anew."""
    made: str = generator.render(page, tiny_bundle)
    return made


def differences(page: str, rendered: str) -> list[str]:
    """What the two pages say otherwise: words and whole numbers exactly, numbers with a point within `TOLERANCE`."""
    if POINTED.sub("#", page) != POINTED.sub("#", rendered):
        lines = zip(page.splitlines(), rendered.splitlines(), strict=False)
        return [mine for mine, other in lines if POINTED.sub("#", mine) != POINTED.sub("#", other)] or ["lines"]
    pairs = (
        (float(mine), float(other))
        for mine, other in zip(POINTED.findall(page), POINTED.findall(rendered), strict=True)
    )
    return [f"{mine} and {other}" for mine, other in pairs if abs(mine - other) > TOLERANCE * max(1, abs(other))]


def test_the_page_is_up_to_date(page: str, rendered: str) -> None:
    assert differences(page, rendered) == [], "run: python docs/generate_host_contract.py"


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("[64, 376,", "[64, 377,"), ("49dece27", "49dece28"), ("N is 256", "N is 1024"), (" 1472677,", " 1472678,"),
        ("64: 16.5", "64: 17.5"), ("ropeCos 0.2666", "ropeCos 0.3666"), ("columns 0 … 38", "columns 0 … 39"),
        ("| `prefill` | 0 | 39 | 25 |", "| `prefill` | 0 | 40 | 24 |"),
    ],
)  # fmt: skip
def test_a_changed_number_is_told(right: str, wrong: str, page: str, rendered: str) -> None:
    assert right in page
    assert differences(page.replace(right, wrong, 1), rendered)


def test_every_key_that_the_page_names_is_there(page: str, tiny_bundle: Path) -> None:
    metadata = json.loads((tiny_bundle / "metadata.json").read_bytes())
    named = set(re.findall(r"`((?:assets|language|vision|prompt|embedding|profiles|bundle)[.\[][\w.\[\]]+)`", page))
    assert len(named) > 15
    missing = []
    for name in named - {"embedding.scales.file"}:  # of int8 alone
        held: Any = metadata
        for key in name.replace("[i]", ".0").split("."):
            held = held[int(key)] if isinstance(held, list) else held.get(key) if isinstance(held, dict) else None
        if held is None:
            missing.append(name)
    assert missing == []


@pytest.mark.parametrize(("source", "size"), [(641, 256), (386, 256), (100, 256), (1, 5), (7, 1)])
def test_the_formulas_of_the_page_make_the_host_s_bytes(source: int, size: int, generator: ModuleType) -> None:
    """The generator computes the weights as the page says it, in plain Python."""
    column = np.random.default_rng(source).integers(0, 256, (source, 1, 3), np.uint8)
    made = resample(column, 0, source, size, 0, size)
    for place in range(size):
        low, codes = generator.weights(place, source, size)
        sums = (1 << 21) + np.array(codes) @ column[low : low + len(codes), 0].astype(np.int64)
        assert np.array_equal(made[place, 0], np.clip(sums >> 22, 0, 255))
