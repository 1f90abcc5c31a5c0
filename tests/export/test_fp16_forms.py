"""Norm and pooling at their worst inputs, in an fp16 that rounds every op and sums one value at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from small_export import snr
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from export.norms import LARGEST_SUM, ChannelNorm, SafeChannelNorm, headroom
from export.pooling import POOL_POWER, safe_mean
from fastvlm_ref.config import LARGEST_SIDE
from fastvlm_ref.model.attention import LayerNormChannel

LARGEST = 65_504.0
EPS = 1e-5


class Half(TorchDispatchMode):
    """Every op returns fp16 numbers held in float32; a mean is a sum of fp16 additions, divided at its end.

    flush: numbers below 2^−14 are 0. worst: the largest magnitude of any result, partial sums among them; NaN is inf.
    """

    def __init__(self, flush: bool = False) -> None:
        super().__init__()
        self.flush, self.worst = flush, 0.0

    def rounded(self, value: Tensor) -> Tensor:
        value = value.half().float()
        if self.flush:
            value = torch.where(value.abs() < 2.0**-14, torch.zeros_like(value), value)
        self.worst = max(self.worst, float(value.abs().nan_to_num(torch.inf, torch.inf).max()))
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ != "mean":
            out: Tensor = func(*args, **(kwargs or {}))
            return self.rounded(out)
        (axis,) = args[1]
        total = torch.zeros_like(args[0].narrow(axis, 0, 1))
        for part in args[0].split(1, axis):
            total = self.rounded(total + part)
        return self.rounded(total / args[0].shape[axis])


@contextmanager
def half(flush: bool = False) -> Iterator[Half]:
    with torch.no_grad(), Half(flush) as mode:
        yield mode


def rows(channels: int) -> dict[str, Tensor]:
    """Inputs (1, C, 1, 4) that a norm may meet at worst."""
    generator = torch.Generator().manual_seed(channels)
    noise = torch.randn(1, channels, 1, 4, generator=generator)
    signs = torch.tensor([1.0, -1.0]).repeat(channels // 2).reshape(1, -1, 1, 1).expand(noise.shape)
    spike = noise.clone()
    spike[0, channels // 3] = LARGEST
    return {
        "all the largest": torch.full_like(noise, LARGEST),
        "all the most negative": torch.full_like(noise, -LARGEST),
        "alternating": LARGEST * signs,
        "half of them": LARGEST * (signs + 1) / 2,
        "one spike": spike,
        "zeros": torch.zeros_like(noise),
        "the smallest number": torch.full_like(noise, 2.0**-24) * signs,
        "one step apart": 1024 + (signs + 1) / 2,
        "noise": noise,
        "large noise": (noise * 15_000).clamp(-LARGEST, LARGEST),
    }


@pytest.mark.parametrize("channels", [64, 768, 1536, 2048])
@pytest.mark.parametrize("flush", [False, True])
def test_the_safe_norm_stays_in_fp16(channels: int, flush: bool) -> None:
    """Nothing but the input itself is beyond 32,768, nothing is NaN, whatever the units."""
    x = torch.cat(list(rows(channels).values()), -1).half().float()
    for exponent in (0, 4, 7):
        norm = SafeChannelNorm(EPS, channels, exponent)
        with half(flush) as seen:
            found = norm(x)
        assert torch.isfinite(found).all()
        assert found.abs().max() <= channels**0.5 * 1.1
        assert found[..., list(rows(2)).index("zeros") * 4].abs().max() == 0
        assert seen.worst == LARGEST  # abs(x)
    with half(flush) as seen:
        norm((x / 2).clamp(-16_384, 16_384))
    assert seen.worst <= LARGEST_SUM * 1.004


def test_the_bounds_are_reached() -> None:
    """The sums come within a factor of two of what is written beside them, so the bounds are not idle."""
    norm = SafeChannelNorm(EPS, 1536)
    assert norm.power == 2
    with half() as seen:
        norm(torch.tensor([1.0, -1.0]).repeat(768).reshape(1, -1, 1, 1) * 20_000)
    assert 24_576 * 0.99 <= seen.worst <= 24_576 * 1.01


@pytest.mark.parametrize("channels", [1, 2, 64, 768, 1536, 2048, 8192, 32768])
def test_headroom_is_the_largest(channels: int) -> None:
    power = headroom(channels)
    assert channels * 4.0**power <= LARGEST_SUM < channels * 4.0 ** (power + 1)


@pytest.mark.parametrize("name", ["alternating", "half of them", "one spike", "large noise"])
def test_the_old_form_leaves_fp16(name: str) -> None:
    """In plain ops; what keeps it right in a package is that they are fused into one."""
    x = rows(768)[name].half().float()
    with half() as seen:
        found = ChannelNorm(EPS, 768)(x)
    assert seen.worst == torch.inf
    assert not torch.isfinite(found).all() or found.abs().max() == 0


@pytest.mark.parametrize(("channels", "limit"), [(64, 39.0), (768, 36.0), (1536, 30.0)])
def test_the_safe_norm_is_right(channels: int, limit: float) -> None:
    """Against float64, ten dB below the worst measured (50.0, 47.7, 41.3 dB). Long sums of fp16 additions cost most."""
    reference = LayerNormChannel(channels).double()
    found = {}
    for name in ("noise", "large noise", "one spike"):
        x = rows(channels)[name].half()
        with half():
            found[name] = SafeChannelNorm(EPS, channels)(x.float())
        value = snr(reference(x.double()).detach(), found[name])
        print(f"{name}: {value:.1f} dB")
        assert value >= limit


def test_a_wrong_eps_is_seen() -> None:
    """The units of eps follow the exponent; without that a small input is normed by 4^e times as much."""
    x = rows(64)["noise"] * 1e-3
    right = SafeChannelNorm(EPS, 64, 4)(x * 2.0**-4)
    assert snr(LayerNormChannel(64)(x).detach(), right) > 100
    assert snr(LayerNormChannel(64)(x).detach(), SafeChannelNorm(EPS, 64)(x * 2.0**-4)) < 10


SIDE = LARGEST_SIDE // 64


def maps() -> dict[str, Tensor]:
    noise = torch.randn(1, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return {
        "all the largest": torch.full((1, 2, SIDE, SIDE), LARGEST),
        "all the most negative": torch.full((1, 2, SIDE, SIDE), -LARGEST),
        "as large as is stored": torch.full((1, 2, SIDE, SIDE), 32_768.0),
        "noise": noise + 0.5,
        "zeros": torch.zeros(1, 2, SIDE, SIDE),
    }


@pytest.mark.parametrize("name", maps())
def test_the_safe_mean_stays_in_fp16(name: str) -> None:
    x = maps()[name].half().float()
    with half() as seen:
        found = safe_mean(x) * 2.0**POOL_POWER
    assert seen.worst <= max(float(x.abs().max()), 1.0)
    exact = x.double().mean((2, 3), keepdim=True)
    assert (found - exact).abs().max() <= 0.02 * exact.abs().max() + 2.0**-19


def test_the_plain_mean_leaves_fp16() -> None:
    def plain(x: Tensor) -> Tensor:
        return x.mean(3, keepdim=True).mean(2, keepdim=True)

    overflows: Callable[[Tensor], bool] = lambda x: not torch.isfinite(run(plain, x)).all()  # noqa: E731
    assert overflows(torch.full((1, 1, 2, 2), LARGEST))
    assert overflows(torch.full((1, 1, 18, 18), 8_192.0))
    assert not overflows(torch.full((1, 1, 18, 18), 2_048.0))


def run(form: Callable[[Tensor], Tensor] | nn.Module, x: Tensor) -> Tensor:
    with half():
        return form(x)


def test_what_pooling_costs_in_small_values() -> None:
    """Below 2^−8 the scaled value is subnormal: an error of 2^−19 at most, and 2^−8 where an engine flushes."""
    x = torch.linspace(0, 2.0**-8, 1000).half().float().reshape(1, 1000, 1, 1)
    for flush, bound in ((False, 2.0**-19), (True, 2.0**-8)):
        with half(flush):
            found = safe_mean(x) * 2.0**POOL_POWER
        assert (found - x).abs().max() <= bound
