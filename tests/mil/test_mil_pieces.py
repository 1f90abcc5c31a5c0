"""fp16 ops that raise and round piece by piece give what they give whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from validation.mil.ops import pieces
from validation.mil.registry import OPS

HALF = torch.float16


def halves(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(HALF)


def check_rounded_once(got: torch.Tensor, want: torch.Tensor) -> None:
    """One float32 sum, rounded once; its order may move it by one unit in the last place, and rarely does."""
    assert got.dtype == HALF
    assert got.shape == want.shape
    exact = want.to(HALF)
    assert (got == exact).float().mean() > 0.98
    unit = torch.maximum(exact.float().abs(), torch.tensor(2.0**-14)) * 2.0**-10
    assert ((got.float() - exact.float()).abs() <= unit).all()


CONVS: dict[str, Callable[[torch.Tensor], tuple[object, ...]]] = {
    "1x1": lambda w: (w, halves(24).float()),
    "without bias": lambda w: (w, None),
    "stride 2": lambda w: (w, None, (2, 2)),
    "padded": lambda w: (w, None, None, "custom", (1, 1, 1, 1)),
    "same": lambda w: (w, None, (1, 1), "same"),
    "groups": lambda w: (w[:, :4], None, None, "valid", None, None, 2),
    "3x3": lambda w: (w.expand(24, 8, 3, 3) / 3, None, None, "same"),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONVS)
def test_conv(name: str, layout: torch.memory_format) -> None:
    x = halves(2, 8, 36, 41).contiguous(memory_format=layout)  # 2952 pixels: two pieces and a rest
    arguments = CONVS[name](halves(24, 8, 1, 1, seed=1).float())
    conv = OPS["conv"]
    assert conv.pieced is not None
    check_rounded_once(conv.pieced(x, *arguments), conv.function(x.float(), *arguments))


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("batch", [(3,), (1, 3), ()])
def test_matmul(transposed: tuple[bool, bool], batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("validation.mil.ops.batched.LARGE", 1)
    left, right = halves(*batch, 33, 20), halves(*batch, 20, 17, seed=1)
    given = (left.mT if transposed[0] else left, right.mT if transposed[1] else right, *transposed)
    matmul = OPS["matmul"]
    assert matmul.pieced is not None
    check_rounded_once(matmul.pieced(*given), torch.matmul(left.float(), right.float()))


def test_matmul_that_broadcasts_is_not_taken_apart() -> None:
    matmul = OPS["matmul"]
    left, right = halves(3, 4, 300, 300), halves(300, 300)
    assert matmul.pieced is not None
    check_rounded_once(matmul.pieced(left, right), torch.matmul(left.float(), right.float()))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_raises_its_weight_in_parts(bias: bool) -> None:
    x, weight = halves(1, 5, 64), halves(2 * pieces.COLUMNS + 7, 64, seed=1)
    offset = halves(len(weight), seed=2) if bias else None
    want = F.linear(x.float(), weight.float(), None if offset is None else offset.float())
    check_rounded_once(OPS["linear"].function(x, weight, offset), want)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 7, 64), (2, 33, 1000), (4, 1, 2049)])
def test_softmax_of_fp16_is_float32s_rounded_once(shape: tuple[int, ...], axis: int) -> None:
    x = halves(*shape) * 6
    x[..., -1] = -10000.0  # a masked position
    x[0] = 60000.0
    want = torch.softmax(x.float(), axis).to(HALF)
    softmax = OPS["softmax"]
    assert softmax.pieced is not None
    assert torch.equal(softmax.pieced(x, axis), want)
