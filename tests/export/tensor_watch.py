"""The largest magnitude of every tensor of a graph, as the scan itself sees it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.ranges.watch import OpWatch, named_calls


def peaks_of(graph: nn.Module, *inputs: Tensor) -> dict[str, float]:
    """The largest magnitude of every tensor of a graph over some inputs, by the scan's names."""
    found: dict[str, float] = {}
    with named_calls(graph), torch.no_grad():
        for each in inputs:
            with OpWatch() as watch:
                graph(each)
            for name, seen in watch.found.items():
                found[name] = max(found.get(name, 0.0), seen.peak)
    return found
