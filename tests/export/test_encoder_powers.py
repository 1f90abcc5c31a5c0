"""Powers of two change nothing: in float32 a scaled encoder gives the bits of the plain one, inside up to the power.

What holds exactly: with safe forms off, for any exponents, tokens are equal bit for bit, and so is every result of a
convolution and of a sum times 2^−e. Convolutions, sums and the plain norm are made of products and sums, which powers
of two pass through (the norm's root is of 4^−e); `export.nonlinear` is exact by its construction; nothing here comes
near float32's own ends. With safe forms on the norm divides by a rounded root of the largest value, whose rounding
depends on the units: equal to the precision of float32, not to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from export_limits import check
from hypothesis import given, settings
from hypothesis import strategies as st
from small_export import small_model, snr
from torch import Tensor, nn

from export.encoder import EncoderGraph
from export.folding import LARGEST_FOLDED, SMALLEST_FOLDED, PowerConv, largest, rescaled
from export.protection import UNPROTECTED, Protection

pytestmark = pytest.mark.usefixtures("one_thread")  # a convolution's sums are then in one order
SITES = tuple(EncoderGraph(small_model()).sites)
exponents = st.fixed_dictionaries(dict.fromkeys(SITES, st.integers(0, 6)))


def pixels(side: int = 64) -> Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(side))


def scaled(model: Any, found: Mapping[str, int], safe_forms: bool = False) -> EncoderGraph:
    return EncoderGraph(model, Protection(safe_forms=safe_forms, encoder=found)).eval()


def results(graph: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """What every module of a graph returns."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, out: found.__setitem__(name, out)

    hooks = [module.register_forward_hook(keep(name)) for name, module in graph.named_modules()]
    with torch.no_grad():
        graph(image)
    for hook in hooks:
        hook.remove()
    return found


@given(exponents)
@settings(max_examples=15)
def test_tokens_are_the_same_bits(found: dict[str, int]) -> None:
    model, image = small_model(), pixels()
    with torch.no_grad():
        assert torch.equal(scaled(model, found)(image), scaled(model, {})(image))


def used(sites: Mapping[str, tuple[str, ...]], found: Mapping[str, int], site: str) -> int:
    """The exponent of a site; what stands before a layer scale of its own has at least that of its stream."""
    streams = [stream for stream, tensors in sites.items() if f"{site} mul" in tensors]
    return max(found[name] for name in (site, *streams))


@pytest.mark.parametrize("seed", range(4))
def test_everything_inside_is_the_same_bits_up_to_its_power(model: Any, tiny_model: Any, seed: int) -> None:
    """Every site's tensor that a module returns, of the seeded model and of the embedded checkpoint."""
    for each in (model, tiny_model):
        sites = EncoderGraph(each).sites
        drawn = torch.randint(0, 7, (len(sites),), generator=torch.Generator().manual_seed(seed)).tolist()
        found = dict(zip(sites, drawn, strict=True))
        plain, other = (results(scaled(each, chosen), pixels(128)) for chosen in ({}, found))
        compared = 0
        for site, tensors in sites.items():
            for module, op in (tensor.split() for tensor in tensors):
                # a block's first sum, and the scores, are not what their module returns
                if op == "convolution" or (op == "add" and f"{module} add.2" not in tensors) or op == "add.2":
                    assert torch.equal(other[module] * 2.0 ** used(sites, found, site), plain[module]), module
                    compared += 1
        assert compared > len(sites)
        assert torch.equal(other[""], plain[""])
        assert len(set(drawn)) > 3


def unfolded() -> Any:
    """The small model with layer scales at 1e-5, which stay ops of their own."""
    model = small_model()
    for name, value in model.named_parameters():
        if "layer_scale" in name:
            value.fill_(1e-5)
    return model


@pytest.mark.parametrize("seed", range(4))
def test_layer_scales_that_are_not_folded(seed: int) -> None:
    model = unfolded()
    sites = EncoderGraph(model).sites
    assert {f"network.7.0.{part}" for part in ("token_mixer.proj", "convffn.fc2")} <= sites.keys()
    drawn = torch.randint(0, 7, (len(sites),), generator=torch.Generator().manual_seed(seed)).tolist()
    found = dict(zip(sites, drawn, strict=True))
    graph = scaled(model, found)
    with torch.no_grad():
        assert torch.equal(graph(pixels()), scaled(model, {})(pixels()))
    scales = [module.scale for module in graph.modules() if getattr(module, "scale", None) is not None]
    assert len(scales) == 7
    assert min(float(scale.min()) for scale in scales) >= float(torch.tensor(1e-5))  # none is made smaller


@pytest.mark.parametrize("seed", range(3))
def test_with_safe_forms_the_numbers_are_the_same(model: Any, tiny_model: Any, seed: int) -> None:
    for each in (model, tiny_model):
        sites = EncoderGraph(each).sites
        drawn = torch.randint(0, 7, (len(sites),), generator=torch.Generator().manual_seed(seed)).tolist()
        with torch.no_grad():
            found = scaled(each, dict(zip(sites, drawn, strict=True)), safe_forms=True)(pixels(128))
            check("graph", EncoderGraph(each, UNPROTECTED)(pixels(128)), found)


@pytest.mark.parametrize("site", ["network.8.2", "network.9", "network.7.0.token_mixer.q", "conv_exp.se.expand"])
def test_a_power_that_is_not_undone_is_seen(model: Any, site: str) -> None:
    """The comparison can fail: one convolution writes twice what it should."""
    graph = scaled(model, {site: 2})
    conv = {"network.8.2": "network.8.2.conv", "network.9": "network.9"}.get(site, site)
    with torch.no_grad():
        right = graph(pixels())
        module = graph.get_submodule(conv)
        module.weight, module.bias = nn.Parameter(2 * module.weight), nn.Parameter(2 * module.bias)  # type: ignore
        assert not torch.equal(graph(pixels()), right)
        assert snr(right, graph(pixels())) < 70


def conv_of(weight: Tensor) -> PowerConv:
    return PowerConv(weight.shape[1], weight.shape[0], 1).requires_grad_(False)


def filled(rows: list[float]) -> PowerConv:
    weight = (
        torch.tensor(rows)[:, None, None, None].repeat(1, 4, 1, 1) * torch.tensor([1.0, -0.5, 0.25, 1.0])[:, None, None]
    )
    conv = conv_of(weight)
    conv.weight.copy_(weight)
    return conv


@pytest.mark.parametrize(
    ("rows", "reads", "writes", "before", "after"),
    [
        ([0.5, 0.1], 0, 4, 1.0, 1.0),
        ([0.5, 0.1], 4, 0, 1.0, 1.0),
        ([0.5, 0.0], 0, 4, 1.0, 1.0),  # a channel of zeros loses nothing
        ([0.5, 2e-3], 0, 4, 2.0**-4, 1.0),  # 2e-3 · 2^−4 is where fp16 becomes coarse
        ([0.5, 2e-3], 4, 0, 1.0, 1.0),
        ([0.5, 2e-3], 4, 4, 1.0, 1.0),
        ([600.0, 0.1], 6, 0, 1.0, 2.0**6),  # 600 · 2^6 is more than half of fp16's end
        ([600.0, 0.1], 0, 6, 1.0, 1.0),
    ],
)
def test_a_power_that_weights_cannot_take_stays_an_op(
    rows: list[float], reads: int, writes: int, before: float, after: float
) -> None:
    conv = filled(rows)
    out: Any = rescaled(conv, reads, writes)
    assert (out.before, out.after) == (before, after)
    kept = largest(out.weight)[largest(conv.weight) > 0]
    plain = largest(conv.weight)[largest(conv.weight) > 0]
    assert (kept >= torch.minimum(plain, torch.tensor(SMALLEST_FOLDED))).all()
    assert (kept <= LARGEST_FOLDED).all()
    x = torch.randn(1, 4, 3, 3)
    with torch.no_grad():
        assert torch.equal(out(x * 2.0**-reads) * 2.0**writes, conv(x))


def test_what_is_not_scaled_is_not_copied() -> None:
    conv = filled([0.5, 0.1])
    assert rescaled(conv, 0, 0) is conv
    assert rescaled(conv, 3, 3).weight.data_ptr() == conv.weight.data_ptr()
