"""`benchmarks/work_prices.py` runs, and what it prints as charged is what a call spends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from validation.mil.work import ARGUMENT, FUNCTION, PLAIN, STEP

ROOT = Path(__file__).resolve().parents[2]
SIDE = 256


def ran(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "work_prices.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_op_stands_beside_its_price() -> None:
    done = ran("--side", str(SIDE), "--rounds", "1", "--ops", "sin")
    assert done.returncode == 0, done.stderr
    first, head, *rows, last = done.stdout.splitlines()
    assert head.split() == ["op", "ms", "charged", "taken", "/", "charged"]
    assert [row.split()[:2] for row in rows] == [[op, kind] for kind in ("float32", "fp16") for op in ("linear", "sin")]
    product, sines = (float(row.split()[3]) for row in rows[:2])
    assert rows[0].split()[2:] == [f"{product:.2f}", f"{product:.2f}", "1.00"]
    assert sines / product == pytest.approx(
        (2 * SIDE**2 * FUNCTION + STEP + 2 * ARGUMENT) / charge_of_a_product(), rel=0.1
    )
    assert first.startswith("linear float32: 2^36 multiplications take ")
    assert last.startswith("dearest: ")


def charge_of_a_product() -> int:
    """Of two maps, one of them a constant, which is read like the other."""
    return SIDE**3 + 3 * SIDE**2 * PLAIN + STEP + 3 * ARGUMENT


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--side", "24"), "--side takes multiples of 16 from 256 on"), (("--ops", "sine"), "invalid choice: 'sine'")],
)
def test_what_cannot_be_measured_is_refused(options: tuple[str, ...], said: str) -> None:
    done = ran(*options)
    assert done.returncode == 2
    assert said in done.stderr
