"""`benchmarks/speed.py` runs: every figure that the documents take from it has a command that works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["open", "BUILD"], "coremltools imported: no"),
        pytest.param(
            ["decode", "BUILD", "tiny", "--past", "20", "--rounds", "1"], "package / reference", marks=pytest.mark.long
        ),
        pytest.param(["encoder", "BUILD", "tiny", "--rounds", "1"], "package / reference", marks=pytest.mark.long),
        pytest.param(["memory", "BUILD", "tiny"], "package / reference", marks=pytest.mark.long),
    ],
    ids=["open", "decode", "encoder", "memory"],
)
def test_the_benchmark_prints_its_figure(arguments: list[str], said: str, exported_tiny: Path) -> None:
    named = [str(exported_tiny) if word == "BUILD" else word for word in arguments]
    command = [sys.executable, "-P", str(ROOT / "benchmarks" / "speed.py"), *named, "--threads", "1"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
