"""Where in the encoder's graph a power of two can live, and which one a measured range asks for.

A *site* is a tensor, or several that must share a scale, stored as x · 2^−e: what a convolution writes and the GELU
behind it, or a stage's residual stream. Sites are named after the modules of `export.encoder.EncoderGraph`; a graph
tells its own (`EncoderGraph.sites`), since where a layer scale stays an op of its own there is one site more.

Tensors are named as a scan names what it measures: "<module path> <op>", the innermost module whose forward runs and
the op that returns the tensor, numbered from its second use on: "network.8.2 gelu", "network.7.0 add.2".
It knows neither modules nor weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from export.protection import LARGEST_STORED, power
from fastvlm.errors import TensorError, UsageError

# Activations of up to 2.1e6; the largest known are 2.5e5. Twice it, for scores of queries and keys, 2^14 is still a
# number of fp16.
LARGEST_EXPONENT = 7


@dataclass
class Site:
    """One scale: its name, its exponent e, and the names of the tensors that decide it.

    Those are the results of convolutions and sums. What GELU, a gate or a mean over weights makes of them is never
    larger.
    """

    name: str
    exponent: int = 0
    tensors: list[str] = field(default_factory=list)

    def holds(self, module: str, *ops: str) -> Site:
        """Adds tensors that `ops` of a module return; gives the site back."""
        self.tensors += [f"{module} {op}" for op in ops]
        return self


UNSCALED = Site("")  # what a graph takes and gives, and what comes out of a norm


class Sites:
    """The sites of one graph, gathered while it is built with the exponents that are given."""

    def __init__(self, exponents: Mapping[str, int]) -> None:
        self._exponents = exponents
        self._sites: dict[str, Site] = {}

    def add(self, name: str) -> Site:
        """Returns a new site of that name with its exponent, 0 where none is given."""
        assert name not in self._sites, name
        self._sites[name] = Site(name, self._exponents.get(name, 0))
        return self._sites[name]

    def finish(self) -> dict[str, tuple[str, ...]]:
        """Returns site -> tensors; UsageError where an exponent is given that this graph cannot use."""
        unknown = sorted(self._exponents.keys() - self._sites.keys())
        wrong = {name: e for name, e in self._exponents.items() if not 0 <= e <= LARGEST_EXPONENT}
        if unknown or wrong:
            raise UsageError(
                f"exponents are given for {unknown or wrong}, expected 0 to {LARGEST_EXPONENT} for sites of this "
                "checkpoint's encoder; scan the checkpoint again"
            )
        return {name: tuple(site.tensors) for name, site in self._sites.items()}


@dataclass(frozen=True)
class Place:
    """Where in a graph a module is built: its path, the graph's sites, and whether safe forms are wanted."""

    path: str
    sites: Sites
    safe_forms: bool

    def __truediv__(self, name: object) -> Place:
        return replace(self, path=f"{self.path}.{name}".lstrip("."))

    def site(self, *ops: str) -> Site:
        """Returns a new site named after this place, which holds what `ops` of this module return."""
        return self.sites.add(self.path).holds(self.path, *ops)


def encoder_exponents(peaks: Mapping[str, float], sites: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Returns the exponents that ranges ask for, site -> e, those that are 0 left out.

    peaks: the largest magnitude of every tensor of the float32 graph without exponents. sites: `EncoderGraph.sites`.
    UsageError where a site's tensor was not measured; TensorError where one is no number or too large to be carried.
    """
    found = {site: [_peak(peaks, tensor) for tensor in tensors] for site, tensors in sites.items()}
    exponents = {site: max(map(needed, values)) for site, values in found.items()}
    beyond = {site: max(found[site]) for site, exponent in exponents.items() if exponent > LARGEST_EXPONENT}
    if beyond:
        named = ", ".join(f"{site} ({peak:.3g})" for site, peak in beyond.items())
        raise TensorError(
            f"the encoder's activations reach what fp16 cannot carry, at {named}; expected at most "
            f"{LARGEST_STORED * 2**LARGEST_EXPONENT:,.0f}: the checkpoint is damaged or its training diverged"
        )
    return {site: exponent for site, exponent in exponents.items() if exponent}


def needed(peak: float) -> int:
    """Returns the smallest e ≥ 0 with peak · 2^−e ≤ LARGEST_STORED; one that is too large for what is no number."""
    return power(peak) if math.isfinite(peak) else LARGEST_EXPONENT + 1


def _peak(peaks: Mapping[str, float], tensor: str) -> float:
    if tensor not in peaks:
        raise UsageError(f"no range was measured of {tensor} in the encoder; scan the checkpoint again")
    return peaks[tensor]
