"""The table of the reference's own limits: near enough to what was measured, and a check that can fail."""

from __future__ import annotations

import pytest
import torch
from reference_limits import LIMITS, ROWS, check

from validation.limits import Limit


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.quantity)
def test_headroom(row: Limit) -> None:
    assert row.reason
    assert row.holds(row.measured)
    assert 10 <= abs(row.measured - row.limit) <= 20


def test_faults_lie_below_every_limit() -> None:
    faults = [row.limit for row in ROWS if row.bound == "max"]
    assert max(faults) < min(row.limit for row in ROWS if row.bound == "min")


@pytest.mark.parametrize(("error", "held"), [(1e-6, True), (1e-4, False), (float("nan"), False)])
def test_the_check_fails_beyond_its_limit(error: float, held: bool, capsys: pytest.CaptureFixture[str]) -> None:
    expected = torch.ones(2, 3)
    found = expected.clone()
    found[1, 2] += error
    if held:
        check("cached", expected, found, "here")
    else:
        with pytest.raises(AssertionError):
            check("cached", expected, found, "here")
    assert f"limit {LIMITS['cached'].words}" in (shown := capsys.readouterr().out)
    assert "at (1, 2)" in shown
