"""What is estimated, before any device: files, state, and the ops of each stage, of a model to be or of a build.

It knows no chips but for the forms of weights that an engine folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fastvlm.app_limits import state_bytes
from fastvlm_ref.config import TextConfig, VisionConfig
from validation.fit.decoder import decode_work, prefill_work
from validation.fit.files import QUERY, Files, files_of
from validation.fit.sizes import Sizes
from validation.fit.stored import stored_as
from validation.fit.tower import tower_work
from validation.fit.work import Work

Works = tuple[Work, ...]


@dataclass(frozen=True)
class Parts:
    """One scheme for one target. state: bytes of the KV cache; prefill: the ops of one call of `query` rows."""

    files: Files
    state: int
    encode: Works
    prefill: Works
    decode: Works
    query: int

    def held(self, encoder: frozenset[str], language: frozenset[str]) -> int:
        """Bytes of all weights where encoder and language model run on engines that make those forms fp16."""
        return self.files.weights + _unfolded(self.encode, encoder) + _unfolded(self.decode, language)


def parts_of(sizes: Sizes, side: int, context: int, scheme: str | Path, target: str) -> Parts:
    """Returns what there would be; of a build what there is, whatever scheme, context and target are asked for.

    Raises UsageError for a scheme that target or shapes cannot have, and for a layer larger than a file may be.
    """
    built = sizes.built
    if built is None:
        return _planned(sizes.vision, sizes.text, side, context, scheme, target)
    works = built.works
    return Parts(built.files, built.state, works[f"encode_{side}"], works["prefill"], works["decode"], built.query)


def _unfolded(works: Works, folded: frozenset[str]) -> int:
    """Bytes by which the weights of ops grow when the forms `folded` become fp16."""
    return sum(work.count * (weights.read(folded) - weights.stored) for work in works for weights in work.weights)


@lru_cache(maxsize=256)
def _planned(
    vision: VisionConfig, text: TextConfig, side: int, context: int, scheme: str | Path, target: str
) -> Parts:  # fmt: skip
    stored = stored_as(scheme, target, vision, text)
    return Parts(
        files_of(vision, text, stored, target),
        state_bytes([(2 * text.layers, text.kv_width, context)]),
        tuple(tower_work(vision, text.hidden_size, side, stored.weights)),
        tuple(prefill_work(text, QUERY, context, target, stored.weights)),
        tuple(decode_work(text, context, target, stored.weights)),
        QUERY,
    )
