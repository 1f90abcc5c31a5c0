"""The yardstick rounds to fp16's precision, in fp16's range as fp16 does, and beyond it without overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from validation.rounding import RoundEachOp, RoundEachOpToBFloat16, to_half_precision


def test_within_the_range_it_is_fp16() -> None:
    """Subnormals, ties and signed zeros among them."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    values = torch.from_numpy(bits[np.abs(bits) < 65_504])
    assert len(values) > 80_000
    found = to_half_precision(values)
    assert torch.equal(found, values.half().float())
    assert torch.equal(found.signbit(), values.signbit())


@pytest.mark.parametrize("power", [1, 4, 40, 100])
def test_beyond_the_range_it_keeps_eleven_bits(power: int) -> None:
    """What is 2^power times as large rounds to 2^power times the same number; nothing small beside it changes."""
    values = torch.rand(10_000, generator=torch.Generator().manual_seed(power)) * 32_000 + 33_000
    values *= torch.tensor([1.0, -1.0]).repeat(5_000)
    assert torch.equal(to_half_precision(values * 2.0**power), (values / 2).half().float() * 2.0 ** (power + 1))
    mixed = torch.tensor([1.0 + 2**-11, 1e6, 2.0**-25])
    assert to_half_precision(mixed).tolist() == [1.0, 1e6 // 512 * 512, 0.0]


def test_what_is_no_number_stays_so() -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e9])
    found = to_half_precision(values)
    assert found[0].isnan()
    assert found[1:3].tolist() == [torch.inf, -torch.inf]


def test_ops_are_rounded_and_do_not_overflow() -> None:
    x = torch.tensor([[1000.0, 3.0]])
    with RoundEachOp():
        square, sine = x * x, torch.sin(x)
        view = square[:, :1]
    assert square.tolist() == [[999_936.0, 9.0]]
    assert torch.equal(sine, torch.sin(x).half().float())
    assert view.data_ptr() == square.data_ptr()


def test_the_same_to_bfloat16() -> None:
    x = torch.tensor([[1000.0, 3.0, 1e30]])
    with RoundEachOpToBFloat16():
        found, whole = x * 1.003, torch.arange(3)
    assert torch.equal(found, (x * 1.003).bfloat16().float())
    assert not torch.equal(found, x * 1.003)
    assert whole.dtype == torch.int64
