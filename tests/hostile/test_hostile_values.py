"""A weight that is no number, or that fp16 cannot hold, is found wherever it was planted: name, first place, count."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from checkpoint_files import WEIGHTS, Files, folder_of, header_of, micro_files, with_header
from ordeal import Case, in_lines, size, tally, try_all

from export import precheck
from export.plan import ExportPlan
from export.precheck import BEYOND, check_weights
from fastvlm.errors import TensorError
from fastvlm.progress import Progress
from fastvlm_ref import load_checkpoint
from fastvlm_ref.checkpoint.layouts import own_names

PLAN = ExportPlan((64,), 64, 32)
NONE = (math.nan, -math.nan, math.inf, -math.inf)
LARGE = (BEYOND, -BEYOND, 65_536.0, -1e38)
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Notes(Progress):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def planted(number: int, kinds: dict[str, Files]) -> tuple[str, Files, str]:
    """Returns the case's name, its files with values planted, and the sentence that must locate them."""
    drawn = random.Random(f"planted {number}")
    dtype = drawn.choice(list(kinds))
    header, data = header_of(kinds[dtype][WEIGHTS])
    large = dtype != "F16" and drawn.random() < 0.5
    value = drawn.choice(LARGE if large else NONE)
    used = [name for name in header if name != "__metadata__" and not (large and "running_" in name)]
    name = drawn.choice(used)
    begin, end = header[name]["data_offsets"]
    bits = torch.tensor([value], dtype=DTYPES[dtype]).view(torch.int8).numpy().tobytes()
    values = (end - begin) // len(bits)
    places = sorted(drawn.sample(range(values), min(values, drawn.randrange(1, 6))))
    changed = bytearray(data)
    for place in places:
        changed[begin + place * len(bits) : begin + (place + 1) * len(bits)] = bits
    kind = precheck.TOO_LARGE if large else precheck.NO_NUMBERS
    where = f"({len(places):,} of {values:,} values, the first at flat index {places[0]})"
    said = f"{own_names([name])[name]} holds {kind} {where}"
    return f"{number}: {value} in {name}, {dtype}", {**kinds[dtype], WEIGHTS: with_header(header, bytes(changed))}, said


def located(number: int, kinds: dict[str, Files]) -> None:
    _, files, said = planted(number, kinds)
    notes = Notes()
    with folder_of(files) as folder:
        model = load_checkpoint(folder, stream=number % 2 == 0)
        try:
            check_weights(model, PLAN, notes)
        except TensorError as error:
            check(str(error), said)
            return
    assert notes.notes, "nothing was found"
    check(notes.notes[0], said)


def check(told: str, said: str) -> None:
    assert told.startswith(said), f"{told[:200]} is not {said}"


def cases(numbers: range, kinds: dict[str, Files]) -> list[Case]:
    def case(number: int) -> Callable[[], object]:
        return lambda: located(number, kinds)

    return [(planted(number, kinds)[0], case(number)) for number in numbers]


@pytest.fixture(scope="module")
def kinds() -> dict[str, Files]:
    found = {dtype: micro_files(dtype=dtype) for dtype in DTYPES}
    with folder_of(found["BF16"]) as folder:
        check_weights(load_checkpoint(folder), PLAN)
    return found


def test_every_planted_value_is_located(kinds: dict[str, Files]) -> None:
    outcomes = try_all(cases(range(size(200, 2000)), kinds))
    bad = tally("planted NaN/Inf/65,520", outcomes, located=sum(one.kind == "passed" for one in outcomes))
    assert bad == [], in_lines(bad)


def test_good_ones_say_nothing(kinds: dict[str, Files]) -> None:
    for files in kinds.values():
        notes = Notes()
        with folder_of(files) as folder:
            check_weights(load_checkpoint(folder, stream=True), PLAN, notes)
        assert notes.notes == []


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("all_below", lambda piece, _: bool(torch.isfinite(piece).all())),  # 65,520 is forgotten
        ("BEYOND", 65_537.0),
        ("all_below", lambda piece, limit: bool((piece.abs() >= limit).sum() == 0)),  # NaN is not at least anything
    ],
)
def test_a_scan_that_sees_less_is_seen(
    name: str, instead: object, kinds: dict[str, Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = cases(range(40), kinds)
    monkeypatch.setattr(precheck, name, instead)
    assert sum(not outcome.held for outcome in try_all(some)) > 2


def test_what_is_planted_is_what_fp16_cannot_hold() -> None:
    assert struct.unpack("<e", struct.pack("<e", 65_504))[0] == 65_504
    with np.errstate(over="ignore"):
        assert np.float16(np.float32(BEYOND)) == math.inf
        assert np.float16(np.nextafter(np.float32(BEYOND), np.float32(0))) == 65_504
