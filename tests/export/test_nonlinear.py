"""GELU, sigmoid and softmax of scaled tensors give the plain op's numbers: on every fp16 number, for every exponent."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from export.encoder_sites import LARGEST_EXPONENT
from export.nonlinear import gelu, sigmoid, softmax

EXPONENTS = range(1, LARGEST_EXPONENT + 1)
LARGEST = 65_504.0


def every_half() -> Tensor:
    """All 63,488 finite fp16 numbers, as float32."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return torch.from_numpy(bits[np.isfinite(bits)].astype(np.float32))


class Half(TorchDispatchMode):
    """Every op in float32, its result rounded to fp16 with its end; keeps the largest magnitude that was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if not isinstance(out, Tensor) or out.dtype != torch.float32:
            return out
        out = out.half().float()
        self.peak = max(self.peak, float(out.nan_to_num(torch.inf, torch.inf, -torch.inf).abs().max()))
        return out


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_gelu_in_float32_is_the_plain_op_at_another_scale(exponent: int) -> None:
    """Bit for bit (but for the sign of 0), on a million numbers up to 2^24 as well as on those of fp16."""
    more = torch.from_numpy(np.random.default_rng(exponent).uniform(-24, 24, 1_000_000).astype(np.float32))
    for y in (every_half(), torch.exp2(more.abs()) * more.sign()):
        assert torch.equal(gelu(y, exponent) * 2.0**exponent, F.gelu(y * 2.0**exponent))


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_gelu_in_fp16_rounds_once(exponent: int) -> None:
    """The exact gelu of fp16's own number, rounded to fp16, and once more where it is stored subnormal."""
    y = every_half()
    with Half() as half:
        found = gelu(y, exponent)
    plain = F.gelu(y * 2.0**exponent)
    held = plain.abs() < LARGEST  # elsewhere x itself is beyond fp16, and GELU(x) is x
    rounded = torch.where(held, plain.half().float(), plain) * 2.0**-exponent
    assert torch.equal(found, rounded.half().float())
    assert torch.equal(found[~held], y[~held])
    assert half.peak == LARGEST


def test_a_smaller_clamp_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 8 in units of x, y − c falls between two numbers of fp16 and may round away from y."""
    y = every_half()
    monkeypatch.setattr("export.nonlinear.GELU_CLAMP", 8 * 2.0**-4)
    with Half():
        found = gelu(y, 4)
    off = (found - y)[y > 1000] != 0
    assert off.any()


def test_a_scale_that_crosses_is_seen() -> None:
    y = torch.linspace(-1, 1, 101)
    assert (F.gelu(y) * 2 - F.gelu(y * 2)).abs().max() > 0.2


@pytest.mark.parametrize("exponent", EXPONENTS)
def test_sigmoid_is_the_plain_op(exponent: int) -> None:
    y = every_half()
    assert torch.equal(sigmoid(y, exponent), torch.sigmoid(y * 2.0**exponent))
    with Half() as half:
        found = sigmoid(y, exponent)
    assert torch.equal(found, torch.sigmoid(y * 2.0**exponent).half().float())
    assert half.peak <= LARGEST


def scores() -> Iterator[Tensor]:
    """Rows of scores as they are stored: mild, of every size, as far apart as fp16 goes, all equal."""
    generator = torch.Generator().manual_seed(0)
    yield torch.randn(64, 81, generator=generator)
    yield (
        torch.exp2(torch.rand(64, 81, generator=generator) * 30 - 14) * torch.randn(64, 81, generator=generator).sign()
    )
    yield torch.tensor([[LARGEST, -LARGEST, 0.0, LARGEST], [-LARGEST] * 4, [16_384.0, -16_384.0, 16_376.0, 0.0]])


@pytest.mark.parametrize("exponent", [*EXPONENTS, 2 * LARGEST_EXPONENT])
def test_softmax_is_the_plain_op(exponent: int) -> None:
    for y in (row.half().float() for row in scores()):
        assert torch.equal(softmax(y, exponent), torch.softmax(y * 2.0**exponent, -1))
        with Half():
            found = softmax(y, exponent)
        # y − max y rounds by 2⁻¹² of itself, which moves no weight by more than 2⁻¹² / e; the result rounds once more
        assert (found - torch.softmax(y * 2.0**exponent, -1)).abs().max() < 2**-11


@pytest.mark.parametrize("form", [gelu, sigmoid, softmax])
def test_without_an_exponent_the_op_is_plain(form: Callable[[Tensor, int], Tensor]) -> None:
    y, names = torch.ones(2, 3), []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Names():
        form(y, 0)
    assert names in (["gelu"], ["sigmoid"], ["_softmax"])
