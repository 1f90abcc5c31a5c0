"""Greedy transcripts of all samples with one decoder layer in memory at a time.

Notable choices:
- a pass reads every layer once and takes all samples through it, so that reading costs as much for eight samples as for
  one; there are as many passes as steps;
- the first pass takes a prompt in two calls, all rows but the last and then the last, as the engine does: products of
  other shapes would have other bits;
- samples go side by side, each on one thread.
The numbers are those of `validation.reference.transcribe`, bit for bit (a test compares). It does not know the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from export.ranges.side_by_side import side_by_side
from fastvlm.progress import SILENT, Advance, Progress
from fastvlm_ref.checkpoint import materialised
from fastvlm_ref.model.decoder import Decoder, DecoderLayer, surroundings
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.model.kv_cache import KVCache
from fastvlm_ref.threads import one_thread
from validation.layerwise.head import logits_of
from validation.reference import Rows, Transcript

# sample, position of the first row, module ("decoder.layers.5", "decoder.norm"), its result (1, S, H)
Seen = Callable[[int, int, str, Tensor], None]


def unseen(sample: int, position: int, module: str, result: Tensor) -> None:
    """Look at nothing."""


@dataclass
class _Run:
    """One sample's transcript as it grows; `rows` (1, S, H) go into the next pass, one call each."""

    number: int
    embeds: Rows
    steps: int
    cache: KVCache
    rows: list[Tensor]
    logits: list[Rows] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def through(self, layer: DecoderLayer, index: int, seen: Seen) -> None:
        """Takes the rows through one layer; they stand behind those of earlier passes."""
        past, after = self.cache.length, []
        for x in self.rows:
            rope, mask = surroundings(layer.self_attn.config, x, self.cache.length)
            # forward itself: the hooks of a call bring the weights and take them away, and here they are held already
            after.append(layer.forward(x, rope, mask, self.cache, index))
            seen(self.number, self.cache.length, f"decoder.layers.{index}", after[-1])
            self.cache.advance(x.shape[1])
        self.rows, self.cache.length = after, past

    def finish_pass(self, norm: nn.Module, seen: Seen) -> Tensor:
        """Counts the rows as done; returns the last one's final hidden state (1, 1, H)."""
        self.cache.advance(sum(x.shape[1] for x in self.rows))
        hidden: Tensor = norm(self.rows[-1])
        seen(self.number, self.cache.length - 1, "decoder.norm", hidden)
        return hidden

    def choose(self, logits: Rows, embed: nn.Module) -> None:
        """Takes the step's logits (V,), and the row of the token that they choose for the next pass."""
        self.logits.append(logits)
        self.ids.append(int(logits.argmax()))
        self.rows = [embed(torch.tensor([self.ids[-1:]]))]


@one_thread()
@torch.inference_mode()
def transcribe_all(
    model: FastVLM, embeds: Sequence[Rows], steps: Sequence[int], progress: Progress = SILENT, seen: Seen = unseen
) -> list[Transcript]:
    """Runs greedy tokens behind embeddings (S, H) of every sample, S ≥ 1, as many as `steps` says for each.

    The model may stream. `seen` is shown every layer's result; samples are on several
    threads, each sample on one at a time.
    """
    runs = [_begun(model, *sample) for sample in zip(range(len(embeds)), embeds, steps, strict=True)]
    passes = max(steps, default=0)
    with progress.stage("Reference, layer by layer", passes * (len(model.decoder.layers) + 1)) as advance:
        for done in range(passes):
            _pass(model.decoder, [run for run in runs if run.steps > done], advance, seen)
    return [Transcript(run.embeds, run.logits, run.ids) for run in runs]


def _begun(model: FastVLM, number: int, embeds: Rows, steps: int) -> _Run:
    whole = torch.from_numpy(np.ascontiguousarray(embeds))[None]
    rows = [part for part in (whole[:, :-1], whole[:, -1:]) if part.shape[1]]
    return _Run(number, embeds, steps, KVCache(model.config.text, len(embeds) + steps - 1), rows)


def _pass(decoder: Decoder, runs: Sequence[_Run], advance: Advance, seen: Seen) -> None:
    """One token for each run: every layer and the head are read once."""
    for index, layer in enumerate(cast(Sequence[DecoderLayer], decoder.layers)):
        with materialised(layer):
            list(side_by_side(partial(_through, layer, index, seen), runs, len(runs)))
        advance(1)
    hidden = [run.finish_pass(decoder.norm, seen) for run in runs]
    for run, logits in zip(runs, logits_of(decoder, hidden), strict=True):
        run.choose(logits, decoder.embed_tokens)
    advance(1)


@torch.inference_mode()  # of each thread
def _through(layer: DecoderLayer, index: int, seen: Seen, run: _Run) -> None:
    run.through(layer, index, seen)
