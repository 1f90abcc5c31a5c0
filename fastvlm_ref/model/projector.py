"""The projector: two linear layers with an exact GELU between (`mlp2x_gelu`), features -> H.

Source: LLaVA `multimodal_projector/builder.py`; the indices 0 and 2 are the checkpoint's names.
"""

from __future__ import annotations

from torch import nn


def projector(features: int, hidden: int) -> nn.Sequential:
    """Returns the module (B, T, features) -> (B, T, hidden)."""
    return nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden))
