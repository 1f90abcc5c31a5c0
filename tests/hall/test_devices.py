"""The one table of devices: every name is found however it is typed, and every number says where it comes from."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from fastvlm import devices
from fastvlm.devices import CHIPS, DEVICES, ENGINES, Figure, device, known_names
from fastvlm.errors import UsageError

LINES = ("iPhone", "iPad", "MacBook Air", "MacBook Pro", "Mac mini", "iMac", "Mac Studio")


@pytest.mark.parametrize("name", [each.name for each in DEVICES])
def test_every_device_is_found_by_its_name(name: str) -> None:
    for typed in (name, name.lower(), name.upper(), name.replace(" ", ""), name.replace(" ", "-"), f"  {name} "):
        assert device(typed).name == name


def test_names_are_told_apart() -> None:
    assert len({each.name for each in DEVICES}) == len(DEVICES)
    assert len({devices._key(each.name) for each in DEVICES}) == len(DEVICES)


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("iPhone 15 Por", "iPhone 15 Pro"),
        ("iphone15promax2", "iPhone 15 Pro Max"),
        ("macbook air", "MacBook Air M2"),
        ("M4", "iPad Pro M4"),
        ("toaster", "iPhone 12 mini, 12, 12 Pro"),
        ("", "Mac Studio M1 Max, M2 Max, M4 Max"),
        ("x" * 10_000, "iPad 10, Air 4, A16"),
    ],
)
def test_an_unknown_name_lists_what_is_near_and_all_that_are_known(typed: str, near: str) -> None:
    with pytest.raises(UsageError) as refused:
        device(typed)
    assert near in str(refused.value)
    assert f"table of {len(DEVICES)} devices" in str(refused.value)
    assert str(refused.value).endswith(f"known: {known_names()}")
    assert len(str(refused.value)) < 1200


def test_the_known_names_are_the_table() -> None:
    """Each line's word before each of its names gives every device, and nothing else."""
    found = []
    for line in known_names().split("; "):
        (word,) = [word for word in LINES if line.startswith(f"{word} ")]
        found += [f"{word} {name}" for name in line.removeprefix(f"{word} ").split(", ")]
    assert found == [each.name for each in DEVICES]


# TOPS as Apple says, GB/s of engine and memory: the numbers that `fit` reckons with, written down a second time
SPEEDS = {
    "A14": (11, None, 34), "A15": (15.8, None, 34), "A16": (17, None, 51.2), "A17 Pro": (35, None, 51.2),
    "A18": (35, None, 60), "A18 Pro": (35, None, 60), "A19": (None, None, 68.3), "A19 Pro": (None, None, 76.8),
    "M1": (11, 60.87, 68), "M1 Pro": (11, 54.90, 200), "M1 Max": (11, 54.62, 400),
    "M2": (15.8, 60.45, 100), "M2 Pro": (15.8, 61.93, 200), "M2 Max": (15.8, 62.01, 400),
    "M3": (18, 63.10, 100), "M3 Pro": (18, None, 150), "M3 Max": (18, 120.22, 400),
    "M4": (38, 64.18, 120), "M4 Pro": (38, 126.36, 273), "M4 Max": (38, 118.88, 546), "M5": (None, 70.21, 154),
}  # fmt: skip


def test_the_chips_speeds_are_the_published_ones() -> None:
    def value(figure: Figure | None) -> float | None:
        return None if figure is None else figure.value

    assert {chip.name: tuple(map(value, (chip.tops, chip.engine_gbs, chip.memory_gbs))) for chip in CHIPS} == SPEEDS
    limits = {each.name: each.app_memory for each in DEVICES if each.app_memory is not None}
    assert {name: (app.default.value, app.increased.value) for name, app in limits.items()} == {
        "iPhone 12 mini": (2.1, 2.4), "iPhone 13 Pro": (3.1, 4.2), "iPhone 15 Pro": (3.0, 6.0),
    }  # fmt: skip


def figures() -> list[tuple[str, Figure]]:
    found = [
        (f"{chip.name} {field}", figure)
        for chip in CHIPS
        for field in ("tops", "tflops", "engine_gbs", "memory_gbs", "gpu_tflops", "working_set")
        if (figure := getattr(chip, field)) is not None
    ]
    for each in DEVICES:
        if each.app_memory is not None:
            found += [(f"{each.name} app", each.app_memory.default), (f"{each.name} app+", each.app_memory.increased)]
    return found


def test_every_number_has_a_source_and_is_one() -> None:
    assert [name for name, figure in figures() if not figure.source or figure.value <= 0] == []
    assert [engine.name for engine in ENGINES if not engine.source] == []
    assert [each.name for each in DEVICES if not each.memory_source or not each.memory_gb] == []


def test_an_app_gets_less_than_there_is_and_more_with_the_entitlement() -> None:
    held = [each for each in DEVICES if each.app_memory is not None]
    assert held
    for each in held:
        assert each.app_memory is not None
        assert each.app_memory.default.value < each.app_memory.increased.value < max(each.memory_gb)


def test_later_engines_take_no_less() -> None:
    """The linter's verdict for every device rests on it: the oldest engine judges."""
    for before, after in itertools.pairwise(ENGINES):
        assert before.axis <= after.axis
        assert before.channels <= after.channels
        assert before.kernel_width <= after.kernel_width
        assert before.texture <= after.texture
        assert int(before.name[1:]) < int(after.name[1:])


@pytest.mark.parametrize(
    ("name", "chip", "axis", "memory"),
    [
        ("iPhone 12", "A14", 16_384, (4,)),
        ("iPhone 15", "A16", 16_384, (6,)),
        ("iPhone 15 Pro", "A17 Pro", 65_536, (8,)),
        ("iPhone 17 Pro", "A19 Pro", 65_536, (12,)),
        ("iPad Pro M4", "M4", 65_536, (8, 16)),
        ("MacBook Air M3", "M3", 16_384, (8, 16, 24)),
    ],
)
def test_rows(name: str, chip: str, axis: int, memory: tuple[int, ...]) -> None:
    found = device(name)
    assert (found.chip.name, found.engine.axis, found.memory_gb) == (chip, axis, memory)
    assert found.system == ("macOS" if found.kind == "mac" else "iOS")


def test_the_table_is_read_without_any_library(root: Path) -> None:
    """The hall is the standard library alone, and the answer to a name comes at once."""
    source = "import sys, fastvlm.devices; print(sorted({n.split('.')[0] for n in sys.modules} & {'numpy', 'torch'}))"
    done = subprocess.run([sys.executable, "-c", source], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
