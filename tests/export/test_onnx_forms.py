"""The nonlinear ops with exponents as ONNX, beside `export.nonlinear`, over all magnitudes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from export.nonlinear import gelu, sigmoid, softmax
from export.norms import ChannelNorm
from export.onnx.forms import Forms
from export.onnx.graph import Graph
from export.pooling import safe_mean
from validation.metrics import snr_db

EXPONENTS = (0, 1, 5, 7)
Build = Callable[[Forms, str], str]


def computed(build: Build, x: NDArray[Any]) -> NDArray[Any]:
    """What onnxruntime makes of the ops that `build` adds, op by op."""
    graph = Graph("forms", None)
    kind = TensorProto.FLOAT if x.dtype == np.float32 else TensorProto.FLOAT16
    forms = Forms(graph, kind)
    graph.output(build(forms, graph.input("x", kind, x.shape)), "y", kind, ["n"] * x.ndim)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = graph.model(("test", "0"), "", {}).SerializeToString()
    found: NDArray[Any] = onnxruntime.InferenceSession(model, options).run(None, {"x": x})[0]
    return found


def wide(*shape: int) -> NDArray[np.float32]:
    """Values of both signs from 2⁻¹⁰ to 2¹⁴."""
    rng = np.random.default_rng(0)
    return (rng.choice([-1, 1], shape) * 2.0 ** rng.uniform(-10, 14, shape)).astype(np.float32)


def near(wanted: Tensor, found: NDArray[Any], least: float = 110.0) -> None:
    value = snr_db(np.asarray(wanted, np.float64), found.astype(np.float64))
    print(f"SNR {value:.1f} dB")
    assert value >= least


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_gelu(exponent: int) -> None:
    x = np.concatenate([wide(2000), np.linspace(-8, 8, 4001, dtype=np.float32)]) * np.float32(2.0**-exponent)
    found = computed(lambda forms, y: forms.gelu(y, exponent), x)
    near(gelu(torch.from_numpy(x), exponent), found)
    middle = np.abs(x * 2.0**exponent) < 8  # alone, without the large values beside them
    near(gelu(torch.from_numpy(x[middle]), exponent), found[middle], 100)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_sigmoid(exponent: int) -> None:
    x = wide(2000) * np.float32(2.0**-exponent)
    near(sigmoid(torch.from_numpy(x), exponent), computed(lambda forms, y: forms.sigmoid(y, exponent), x), 100)


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_softmax(exponent: int) -> None:
    x = wide(40, 50) * np.float32(2.0 ** (-exponent - 10))
    near(softmax(torch.from_numpy(x), exponent), computed(lambda forms, y: forms.softmax(y, exponent), x), 100)


@pytest.mark.parametrize("exponent", EXPONENTS[1:])
def test_no_form_leaves_fp16(exponent: int) -> None:
    """On every positive fp16 number up to what may be stored, op by op in fp16."""
    numbers = np.arange(1, np.float16(32_768).view(np.uint16), dtype=np.uint16).view(np.float16)
    for x in (numbers, -numbers):
        for build in (lambda forms, y: forms.gelu(y, exponent), lambda forms, y: forms.sigmoid(y, exponent)):
            assert np.isfinite(computed(build, x)).all()
        assert np.isfinite(computed(lambda forms, y: forms.softmax(y, exponent), x[None])).all()


def test_pooling_without_overflow() -> None:
    x = np.full((1, 2, 64, 64), 32_000, np.float16)
    found = computed(lambda forms, y: forms.pooled(y, safe=True), x)
    assert found.shape == (1, 2, 1, 1)
    assert found.ravel().tolist() == [500.0, 500.0]
    wanted = safe_mean(torch.from_numpy(wide(1, 8, 16, 16)))
    near(wanted, computed(lambda forms, y: forms.pooled(y, safe=True), wide(1, 8, 16, 16)))
    plain = computed(lambda forms, y: forms.pooled(y, safe=False), wide(1, 8, 16, 16))
    near(wanted * 64, plain)


def test_norm() -> None:
    rows = wide(1, 16, 48)
    found = computed(lambda forms, x: forms.norm(x, ChannelNorm(1e-5, 48), 48), rows)
    near(torch.nn.functional.layer_norm(torch.from_numpy(rows), (48,)), found)


def test_a_norm_of_large_fp16_rows_is_finite() -> None:
    """Squares beyond fp16: ONNX's LayerNormalization computes in float32 by definition."""
    rows = (wide(1, 16, 48) * 1.9).astype(np.float16)
    found = computed(lambda forms, x: forms.norm(x, ChannelNorm(1e-5, 48), 48), rows)
    wanted = torch.nn.functional.layer_norm(torch.from_numpy(rows.astype(np.float32)), (48,))
    near(wanted, found, 60)
