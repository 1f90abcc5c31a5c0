"""The largest value inside a package is seen where it is computed, and NaN is never overlooked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fastvlm.build import read_build
from fastvlm.errors import UsageError
from validation.engine import PackageEngine
from validation.limits import worst


class Shows:
    """A predictor whose ops return the given values."""

    def __init__(self, *ops: tuple[str, torch.Tensor]) -> None:
        self.ops = ops

    def predict(self, inputs: object, state: object = None, *, hook: Any) -> dict[str, Any]:
        for op, value in self.ops:
            hook(op, op, value)
        return {}


@pytest.mark.parametrize(
    ("ops", "peak"),
    [
        ((("conv", torch.tensor([1.0, -40000.0]).half()), ("relu", torch.tensor([3.0]).half())), 40000.0),
        ((("linear", torch.tensor([[5.0]])), ("slice_update", torch.tensor([1e5]))), 5.0),  # moved, not computed
        ((("add", torch.tensor([1.0, math.nan])), ("add", torch.tensor([2.0]))), math.inf),
        ((("mul", torch.tensor([-math.inf])),), math.inf),
        ((("cast", torch.tensor([7], dtype=torch.int32)), ("conv", torch.empty(0))), 0.0),
    ],
)
def test_the_largest_computed_value_is_kept(
    exported_tiny: Any, ops: tuple[tuple[str, torch.Tensor], ...], peak: float
) -> None:
    engine = PackageEngine(read_build(exported_tiny))
    peaks = engine.watch_peaks()
    engine._predict("encoder", Shows(*ops), {})
    assert peaks.parts["encoder"] == pytest.approx(peak)
    assert worst("encoder.peak", {"every op": peak}).passed == (peak <= 32768)


def test_a_real_package_shows_its_values(exported_tiny: Any) -> None:
    engine = PackageEngine(read_build(exported_tiny))
    peaks = engine.watch_peaks()
    tokens = engine.encode_image(np.full((engine.image_size, engine.image_size, 3), 200, np.uint8))
    assert peaks.parts["encoder"] >= np.abs(tokens).max() > 0
    assert peaks.parts["language"] == 0.0


def test_core_ml_shows_nothing_inside(exported_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(UsageError, match="does not show the values inside"):
        PackageEngine(read_build(exported_tiny), "coreml").watch_peaks()
