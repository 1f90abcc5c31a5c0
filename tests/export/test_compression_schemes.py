"""What each scheme can hold, and how many bytes that takes."""

from __future__ import annotations

import pytest

from export.compression.schemes import SCHEMES


@pytest.mark.parametrize(
    ("name", "shape", "size"),
    [
        ("int8", (896, 4864), 896 * 4864 + 2 * 896),
        ("int8", (64, 1, 7, 7), 64 * 49 + 2 * 64),
        ("int4", (896, 4864), 896 * 4864 // 2 + 896 * 152 * 2 + 896 * 152 // 2),
        ("int4", (3, 32), 48 + 6 + 2),  # three offsets take two bytes
        ("lut6", (896, 4864), 896 * 4864 * 6 // 8 + 28 * 64 * 2),
        ("lut4", (64, 3, 3, 3), 64 * 27 // 2 + 2 * 16 * 2),
    ],
)
def test_bytes(name: str, shape: tuple[int, ...], size: int) -> None:
    assert SCHEMES[name].problem(shape) is None
    assert SCHEMES[name].bytes(shape) == size


@pytest.mark.parametrize(
    ("name", "shape", "problem"),
    [
        ("int8", (64,), "has 1 axis, rows and inputs are needed"),
        ("int4", (64, 40), "has 40 inputs, not a multiple of 32"),
        ("int4", (64, 32, 3, 3), "has a kernel of 3×3, blocks need 1×1"),
        ("lut6", (40, 64), "has 40 rows, not a multiple of 32"),
        ("lut4", (40, 64, 1, 1), "has 40 rows, not a multiple of 32"),
    ],
)
def test_problems(name: str, shape: tuple[int, ...], problem: str) -> None:
    assert SCHEMES[name].problem(shape) == problem


def test_targets() -> None:
    assert {name: scheme.targets for name, scheme in SCHEMES.items()} == {
        "int8": ("ane", "gpu"), "int4": ("gpu",), "lut6": ("ane", "gpu"), "lut4": ("ane", "gpu"),
    }  # fmt: skip
    assert SCHEMES["lut4"].fits("ane")
    assert not SCHEMES["int4"].fits("ane")
