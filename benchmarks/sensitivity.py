"""Which measure of a layer's noise says what the logits lose: each layer of the embedded checkpoint compressed alone.

    python -P benchmarks/sensitivity.py [--scheme lut4] [--scenes 60]

`-P` keeps this folder off the path, where export.py would hide the package.

For every linear layer of the decoder: the noise that `export.compression.sensitivity` measures on the shipped pictures,
relative to the residual stream, beside the same relative to what the decoder layer adds, and the KL of the predictions
on unseen scenes. Then the correlation of each with the KL, of their logarithms. The head is left out of that: its noise
is measured on other things.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from export.compression.calibration import LINEARS, Statistics, Visit, embedded, walk
from export.compression.schemes import SCHEMES, Scheme
from export.compression.sensitivity import Probe, compared, dequantised, picked, power
from export.compression.simulation import simulated
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.samples import shipped_samples
from fastvlm_ref.threads import one_thread
from fastvlm_ref.training.held_out import held_out, kl, log_chances


@dataclass(frozen=True)
class Noise:
    """One layer, compressed alone: its weight (n, K), and its noise relative to the stream and to what is added."""

    layer: str
    weight: Tensor
    stream: float
    added: float


def noises(model: FastVLM, scheme: Scheme) -> Iterator[Noise]:
    """Both measures of every linear layer."""
    states = embedded(model, shipped_samples())
    picks = compared([state.shape[1] for state in states])
    for visit in walk(model.decoder, states):
        probe = Probe(visit, picks)
        added = power(probe.reference - picked(visit.before, picks))
        for linear in LINEARS:
            weight = _compressed(visit, linear, scheme)
            noise = probe.noise(linear, weight)
            ratios = (float((noise / signal).mean()) for signal in (probe.signal, added))
            yield Noise(f"{visit.name}.{linear}", weight, *ratios)


def _compressed(visit: Visit, linear: str, scheme: Scheme) -> Tensor:
    layer = f"{visit.name}.{linear}"
    importance = Statistics(visit.mean_squares, 0, 0, 0).importance(layer)
    return dequantised(layer, cast(nn.Linear, visit.layer.get_submodule(linear)).weight, scheme, importance)


def correlation(one: list[float], other: list[float]) -> float:
    """Pearson's, of the logarithms."""
    return float(torch.corrcoef(torch.tensor([one, other], dtype=torch.float64).log())[0, 1])


@one_thread()
@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scheme", choices=tuple(SCHEMES), default="lut4")
    parser.add_argument("--scenes", type=int, default=60)
    arguments = parser.parse_args()
    model = load_checkpoint("tiny")
    embeds = held_out(model, arguments.scenes)
    reference = log_chances(model.decoder, embeds)
    found = list(noises(model, SCHEMES[arguments.scheme]))
    losses = []
    print(f"{arguments.scheme} alone in               of stream    of added          KL")
    for row in found:
        other = simulated(model, {})
        cast(nn.Linear, other.decoder.get_submodule(row.layer)).weight = nn.Parameter(row.weight, requires_grad=False)
        losses.append(kl(reference, log_chances(other.decoder, embeds)))
        ratios = "".join(f"{10 * math.log10(ratio):>9.1f} dB" for ratio in (row.stream, row.added))
        print(f"{row.layer:<27}{ratios} {losses[-1]:>11.2e}")
    for name in ("stream", "added"):
        print(f"correlation with the KL, of {name}: {correlation([getattr(row, name) for row in found], losses):.2f}")


if __name__ == "__main__":
    main()
