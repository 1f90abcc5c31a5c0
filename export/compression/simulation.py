"""The reference model with the weights of a compressed build: what compression does to answers, in PyTorch.

The head gets a weight of its own where the checkpoint ties it to the embedding table, as in a build.
It does not know what the answers are measured by.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

from export.compression.calibration import Statistics
from export.compression.schemes import Scheme
from export.compression.sensitivity import dequantised
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.threads import one_thread


@one_thread()
@torch.no_grad()
def simulated(model: FastVLM, choice: Mapping[str, Scheme], statistics: Statistics | None = None) -> FastVLM:
    """Returns a copy of a model held in memory whose decoder's linear layers named in `choice` are dequantised.

    `statistics` gives each its importance; without them all input channels weigh the same.
    """
    made = copy.deepcopy(model, {id(kept): kept for kept in (model.tokenizer, model.source)})
    for layer, scheme in choice.items():
        module = cast(nn.Linear, made.decoder.get_submodule(layer))
        importance = None if statistics is None else statistics.importance(layer)
        module.weight = nn.Parameter(dequantised(layer, module.weight, scheme, importance), requires_grad=False)
    return made
