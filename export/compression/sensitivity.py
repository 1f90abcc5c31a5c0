"""How much compressing each linear layer alone disturbs the model: a layer-by-layer pass, as `calibration`'s.

Notable choices:
- a layer's noise is what reaches the residual stream behind its decoder layer, relative to the stream there,
  ‖y(Q) − y‖² / ‖y‖²: attention and activations are in it, and what follows sees the stream normed. Relative to what
  the layer adds, ‖y − x‖², it says nothing about the logits (benchmarks/sensitivity.py: log correlation with the KL of
  the embedded checkpoint −0.2, so 0.6): the first layer adds nearly all that there is, the next ones little;
- the ratio is taken per position and averaged: the first position's massive activations (arXiv 2402.17762), thousands
  of times the others', would otherwise be the only ones that count;
- the head is measured on its logits; its table is read in blocks of rows, so that (V, H) is never whole in memory;
- statistics and noises come from one pass, because reading a 7B checkpoint twice costs as much as running it.
It does not know what a scheme does, nor who chooses among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.compression.blocks import block_rows, in_order, row_blocks
from export.compression.calibration import HEAD, LINEARS, Statistics, Visit, causal, embedded, statistics, walk
from export.compression.codes import compress, dense
from export.compression.schemes import SCHEMES, Scheme
from export.compression.table import Candidate, Row, Table, decibels
from fastvlm.errors import TensorError, UsageError
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint.stream import stored
from fastvlm_ref.model.decoder import Decoder
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.samples import Sample
from fastvlm_ref.threads import one_thread

CANDIDATES: Mapping[str, tuple[str, ...]] = {"ane": ("int8", "lut6", "lut4"), "gpu": ("int8", "int4")}
# Positions whose MLP runs once for each linear layer and scheme. With 64, one scheme in one decoder layer of 7B takes a
# busy core 12 s (int8) to 26 s (lut6), compressing included; 270 would add four times as many runs of the MLP.
MOST_COMPARED = 64


def candidates(target: str) -> tuple[Scheme, ...]:
    """Returns the schemes that `mixed` chooses among on `target`, "ane" or "gpu"."""
    return tuple(SCHEMES[name] for name in CANDIDATES[target])


@one_thread()
@torch.no_grad()
def measure(
    model: FastVLM,
    samples: Sequence[Sample],
    schemes: Sequence[Scheme],
    progress: Progress = SILENT,
    head_rows: int | None = None,
) -> tuple[Statistics, Table]:
    """Returns the statistics of `calibrate`, and for every linear layer of the decoder the noise of every scheme.

    head_rows: with how many rows the head is stored, V and zeros; None for V. A scheme that does not fit a layer's
    shape is no candidate there. Raises what `calibrate` raises, and UsageError
    for a layer that no scheme fits.
    """
    states = embedded(model, samples, progress)
    picks = compared([state.shape[1] for state in states])
    found: dict[str, Tensor] = {}
    rows: list[Row] = []
    with progress.stage("Measuring sensitivity", model.config.text.layers + 1) as advance:
        for visit in walk(model.decoder, states):
            found.update(visit.mean_squares)
            known = Statistics(visit.mean_squares, 0, 0, 0)
            rows += _rows(Probe(visit, picks), schemes, known)
            states = list(visit.after)
            advance(1)
        known = statistics(model, found, states)
        rows.append(_head_row(model.decoder, picked(states, picks), schemes, known.importance(HEAD), head_rows))
        advance(1)
    return known, Table(tuple(rows))


def compared(lengths: Sequence[int]) -> list[Tensor]:
    """Returns for samples of S positions which are compared, int64 (P,): evenly spaced over all, the very last too."""
    total = sum(lengths)
    places = torch.linspace(0, total - 1, min(total, MOST_COMPARED), dtype=torch.float64).round().long()
    ends = torch.tensor(lengths).cumsum(0)
    return [
        places[(places >= end - length) & (places < end)] - (end - length)
        for length, end in zip(lengths, ends, strict=True)
    ]


def dequantised(name: str, weight: Tensor, scheme: Scheme, importance: Tensor | None) -> Tensor:
    """Returns what a weight (n, K) is after compression, float32.

    Raises TensorError where the weight holds NaN or infinity.
    """
    if not bool(torch.isfinite(weight).all()):
        raise TensorError(f"decoder.{name} holds NaN or infinity; fetch the checkpoint again")
    weights = importance if scheme.weighted else None
    blocks = weight.split(block_rows(weight.shape[1]))
    return torch.cat(list(in_order(lambda rows: dense(scheme, compress(scheme, rows.float(), weights)), blocks)))


class Probe:
    """A decoder layer's outputs at the compared positions, P of all samples together."""

    def __init__(self, visit: Visit, picks: Sequence[Tensor]) -> None:
        self.visit, self.picks = visit, picks
        self.undisturbed = self.attended()
        self.reference = self.leaving(self.undisturbed)
        self.signal = power(self.reference)

    def attended(self) -> Tensor:
        """The residual stream behind attention (P, H); all positions attend, the compared ones are returned."""
        layer = self.visit.layer
        found = []
        for x, rope, pick in zip(self.visit.before, self.visit.ropes, self.picks, strict=True):
            if len(pick):
                mixed = layer.self_attn(layer.input_layernorm(x), rope, causal(x), None, self.visit.index)
                found.append((x + mixed)[0, pick])
        return torch.cat(found)

    def leaving(self, attended: Tensor) -> Tensor:
        """What leaves the layer (P, H)."""
        layer = self.visit.layer
        out: Tensor = attended + layer.mlp(layer.post_attention_layernorm(attended))
        return out

    def noise(self, linear: str, weight: Tensor) -> Tensor:
        """Returns ‖y(Q) − y‖² when `linear` has another weight (n, K), float64 (P,)."""
        with _replaced(cast(nn.Linear, self.visit.layer.get_submodule(linear)), weight):
            attended = self.attended() if linear.startswith("self_attn") else self.undisturbed
            return power(self.leaving(attended) - self.reference)

    def ratio(self, linear: str, weight: Tensor) -> float:
        """Returns the mean noise-to-signal ratio of the same."""
        return mean_ratio(f"{self.visit.name}.{linear}", self.noise(linear, weight), self.signal)


def _rows(probe: Probe, schemes: Sequence[Scheme], known: Statistics) -> Iterator[Row]:
    for linear in LINEARS:
        layer = f"{probe.visit.name}.{linear}"
        weight = cast(nn.Linear, probe.visit.layer.get_submodule(linear)).weight
        ratios = {
            scheme: probe.ratio(linear, dequantised(layer, weight, scheme, known.importance(layer)))
            for scheme in _fitting(layer, weight.shape, schemes)
        }
        yield _as_row(layer, weight.shape, ratios)


def _head_row(
    decoder: Decoder, leaving: Tensor, schemes: Sequence[Scheme], importance: Tensor, stored_rows: int | None
) -> Row:
    (height, width), pieces = stored(decoder, f"{HEAD}.weight")
    shape = (stored_rows or height, width)
    fitting = _fitting(HEAD, shape, schemes)
    hidden = decoder.norm(leaving)  # (P, H)
    signal = torch.zeros(len(hidden), dtype=torch.float64)
    noises = {scheme: torch.zeros_like(signal) for scheme in fitting}
    for rows in row_blocks(pieces(), width):
        signal += power(hidden @ rows.T)
        for scheme, noise in noises.items():
            filled = F.pad(rows, (0, 0, 0, -len(rows) % scheme.group)) if scheme.kind == "palette" else rows
            noise += power(hidden @ (dequantised(HEAD, filled, scheme, importance)[: len(rows)] - rows).T)
    ratios = {scheme: mean_ratio(HEAD, noise, signal) for scheme, noise in noises.items()}
    return _as_row(HEAD, shape, ratios)


def power(x: Tensor) -> Tensor:
    """Returns the sum of squares of each row of (P, …), float64 (P,)."""
    return x.double().square().sum(-1)


def mean_ratio(layer: str, noise: Tensor, signal: Tensor) -> float:
    """Returns the mean of noise / signal, float64 (P,), over the positions where there is a signal."""
    heard = signal > 0.0
    ratio = float((noise[heard] / signal[heard]).mean()) if bool(heard.any()) else 0.0
    if not 0.0 <= ratio < float("inf"):
        raise TensorError(f"decoder.{layer} gives NaN or infinity when it is compressed; fetch the checkpoint again")
    return ratio


def picked(states: Sequence[Tensor], picks: Sequence[Tensor]) -> Tensor:
    """Returns the compared positions (P, H) of hidden states (1, S, H)."""
    return torch.cat([state[0, pick] for state, pick in zip(states, picks, strict=True)])


def _fitting(layer: str, shape: tuple[int, ...], schemes: Sequence[Scheme]) -> list[Scheme]:
    problems = {scheme: scheme.problem(shape) for scheme in schemes}
    fitting = [scheme for scheme, problem in problems.items() if problem is None]
    if not fitting:
        told = "; ".join(f"{scheme.name}: {problem}" for scheme, problem in problems.items())
        raise UsageError(f"no scheme fits {layer} of shape {list(shape)} ({told}); export without --quantize mixed")
    return fitting


def _as_row(layer: str, shape: tuple[int, ...], ratios: Mapping[Scheme, float]) -> Row:
    height, width = shape
    made = (Candidate(scheme, scheme.bytes((height, width)), decibels(ratio)) for scheme, ratio in ratios.items())
    return Row(layer, (height, width), tuple(made))


@contextmanager
def _replaced(module: nn.Linear, weight: Tensor) -> Iterator[None]:
    """Gives a layer another weight for the length of a `with` block."""
    own = module.weight
    module.weight = nn.Parameter(weight, requires_grad=False)
    try:
        yield
    finally:
        module.weight = own
