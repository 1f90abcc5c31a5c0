"""Programs on another torch device than the CPU: `meta`, which every torch has, computes shapes and types, no values.

A tensor that an op made on the CPU by mistake, or a constant left there, meets one on `meta` and torch refuses. Ops
that look at values (indices are checked) cannot run there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from mil_programs import build, cache_model

from fastvlm.errors import ExecutionError
from validation.mil import MILModel

PICTURE = ((1, 4, 9, 9), np.float32)
PROGRAMS: dict[str, tuple[Any, Any]] = {
    "constants": (lambda x: mb.add(x=x, y=np.ones((1, 4, 1, 1), np.float32)), PICTURE),
    "conv": (lambda x: mb.conv(x=x, weight=np.ones((2, 4, 3, 3), np.float32), pad_type="same"), PICTURE),
    "average pool": (lambda x: mb.avg_pool(
        x=x, kernel_sizes=[3, 3], strides=[2, 2], pad_type="same", exclude_padding_from_average=True), PICTURE),
    "resize": (lambda x: mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=2), PICTURE),
    "softplus": (lambda x: mb.softplus(x=x), PICTURE),
    "band part": (lambda x: mb.band_part(x=x, lower=1, upper=0), PICTURE),
    "one hot": (lambda x: mb.one_hot(indices=x, one_hot_vector_size=5), ((3,), np.int32)),
    "lstm": (lambda x: mb.lstm(
        x=x, initial_h=np.zeros((2, 3), np.float32), initial_c=np.zeros((2, 3), np.float32),
        weight_ih=np.ones((12, 4), np.float32), weight_hh=np.ones((12, 3), np.float32))[0], ((5, 2, 4), np.float32)),
    "random": (lambda x: mb.add(x=x, y=mb.random_normal(shape=[1, 4, 9, 9], seed=-1)), PICTURE),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_is_left_on_the_cpu(name: str) -> None:
    body, (shape, dtype) = PROGRAMS[name]
    built = build(body, [(shape, dtype)])
    expected = MILModel(built).predict_tensors({"x0": np.ones(shape, dtype)})
    seen: set[str] = set()
    found = MILModel(built, device="meta").predict_tensors(
        {"x0": np.ones(shape, dtype)}, hook=lambda name, op, value: seen.add(value.device.type)
    )
    assert seen == {"meta"}
    for output, value in found.items():
        assert (value.shape, value.dtype) == (expected[output].shape, expected[output].dtype)


def test_states_lie_on_the_device() -> None:
    state = MILModel(cache_model(4), device="meta").make_state()
    assert {box.tensor.device.type for box in state.boxes.values()} == {"meta"}


def test_functions_on_two_devices_share_a_package() -> None:
    """Constants are shared between the functions of a package, but not between devices."""
    here = MILModel(build(*_relu_of_a_constant()))
    there = MILModel(here.package, device="meta")
    x = {"x0": np.ones(PICTURE[0], np.float32)}
    for model, device in ((there, "meta"), (here, "cpu")):
        assert {value.device.type for value in model.predict_tensors(x).values()} == {device}


def _relu_of_a_constant() -> tuple[Any, list[Any]]:
    return lambda x: mb.relu(x=mb.mul(x=x, y=np.full((1, 4, 1, 1), 2, np.float32))), [PICTURE]


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "xpu"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    built = build(lambda x: mb.relu(x=x), [PICTURE])
    with pytest.raises(ExecutionError, match=f"device '{device}' cannot be used here"):
        MILModel(built, device=device)
