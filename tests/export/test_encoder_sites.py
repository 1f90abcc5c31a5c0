"""Which tensors share a scale, which exponent a range asks for, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tensor_watch import peaks_of

from export.encoder import EncoderGraph
from export.encoder_sites import LARGEST_EXPONENT, encoder_exponents, needed
from export.protection import LARGEST_STORED, Protection
from fastvlm.errors import TensorError, UsageError

STREAM = (
    "network.9 convolution", "network.10.0.token_mixer.proj.conv convolution",
    "network.10.0.convffn.fc2.conv convolution", "network.10.0 add", "network.10.0 add.2",
)  # fmt: skip


def test_sites_of_the_small_model(model: Any) -> None:
    """Three in the stem, three per RepMixer stage, two per down-sampling, six per attention stage, four at the end."""
    sites = EncoderGraph(model).sites
    assert len(sites) == 3 + 3 * 3 + 4 * 2 + 2 * 6 + 4
    assert sites["network.8.2"] == ("network.8.2.conv convolution",)
    assert sites["network.9"] == STREAM
    assert sites["network.10.0.token_mixer.q"][1] == "network.10.0.token_mixer matmul"


NOT_LARGER = {"gelu", "relu", "matmul.2", "softmax", "sigmoid"}  # than what they read


def test_every_large_op_belongs_to_a_site(model: Any) -> None:
    """Whatever a graph computes is held by a site, but for what cannot be larger than that, and the safe forms."""
    graph = EncoderGraph(model)
    held = {tensor for tensors in graph.sites.values() for tensor in tensors}
    rest = set(peaks_of(graph, torch.rand(1, 3, 64, 64))) - held
    rest = {name for name in rest if not name.rpartition(" ")[0].endswith((".norm", ".se"))}
    rest = {name for name in rest if name.rpartition(" ")[2] not in NOT_LARGER}
    assert rest == {"projector_2 convolution"}  # what the graph gives, unscaled


def test_a_graph_gives_all_names_that_its_exponents_need(model: Any) -> None:
    graph = EncoderGraph(model)
    peaks = peaks_of(graph, torch.rand(1, 3, 64, 64))
    assert encoder_exponents(peaks, graph.sites) == {}
    peaks["network.10.0 add"] = 70_000.0
    peaks["network.10.0.token_mixer matmul"] = 16_385.0
    assert encoder_exponents(peaks, graph.sites) == {"network.9": 3, "network.10.0.token_mixer.q": 1}


@pytest.mark.parametrize(
    ("peak", "exponent"),
    [
        (0.0, 0), (1.0, 0), (LARGEST_STORED, 0), (math.nextafter(LARGEST_STORED, math.inf), 1), (2 * LARGEST_STORED, 1),
        (math.nextafter(4 * LARGEST_STORED, math.inf), 3), (252_866.0, 4), (411_537.0, 5),
    ],
)  # fmt: skip
def test_the_smallest_exponent_is_taken(peak: float, exponent: int) -> None:
    assert needed(peak) == exponent
    assert peak * 2.0**-exponent <= LARGEST_STORED
    assert exponent == 0 or peak * 2.0 ** (1 - exponent) > LARGEST_STORED


@pytest.mark.parametrize("peak", [math.nan, math.inf, 2.0 * LARGEST_STORED * 2**LARGEST_EXPONENT])
def test_what_fp16_cannot_carry_is_refused(peak: float) -> None:
    with pytest.raises(
        TensorError, match=r"at network.9 \(.*\); expected at most 2,097,152: the checkpoint is damaged"
    ):
        encoder_exponents({"a convolution": 1.0, "b add": peak}, {"network.9": ("a convolution", "b add")})


def test_a_tensor_that_was_not_measured_is_named() -> None:
    with pytest.raises(UsageError, match="no range was measured of b add in the encoder; scan the checkpoint again"):
        encoder_exponents({"a convolution": 1.0}, {"network.9": ("a convolution", "b add")})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"network.99": 1, "network.9": 2}, r"for \['network.99'\], expected 0 to 7 for sites of this checkpoint"),
        ({"network.9": -1}, r"for \{'network.9': -1\}, expected 0 to 7"),
        ({"network.9": 8}, r"for \{'network.9': 8\}, expected 0 to 7"),
    ],
)
def test_exponents_that_a_graph_cannot_use_are_refused(model: Any, given: dict[str, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        EncoderGraph(model, Protection(encoder=given))
