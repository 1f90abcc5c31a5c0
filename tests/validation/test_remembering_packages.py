"""A session over packages remembers as well: static chunks from any position on, on a state that is put back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastvlm.build import read_build
from fastvlm.errors import UsageError
from fastvlm_ref.remembering import Remembering
from fastvlm_ref.samples import shipped_samples
from validation import open_session
from validation.engine import PackageEngine
from validation.limits import LIMITS


class Stuck(PackageEngine):
    """A state that is put back to one position too many."""

    def rewind(self, position: int) -> None:
        super().rewind(position + (position == 70))


def logits(engine: PackageEngine | Remembering[PackageEngine], rows: np.ndarray) -> np.ndarray:
    engine.reset()
    engine.prefill(rows[:-1])
    return engine.decode(rows[-1:])


def same(expected: np.ndarray, found: np.ndarray) -> bool:
    """Whether logits differ by no more than those of a build and its checkpoint may; here they are the same bytes."""
    return LIMITS["language.logit_error"].holds(float(np.abs(found - expected).max() / expected.std()))


def test_logits_are_those_of_a_fresh_state(exported_tiny: Path, one_thread: None) -> None:
    fresh, engine, stuck = (kind(read_build(exported_tiny)) for kind in (PackageEngine, PackageEngine, Stuck))
    remembering, wrong = Remembering(engine), Remembering(stuck)
    ids, others = np.random.default_rng(100).integers(0, 500, (2, 100)).tolist()
    for asked, reused in ((ids, 0), (ids[:70] + others[:30], 70), (ids[:40], 39), (ids, 40)):
        rows = fresh.embed(asked)
        expected = logits(fresh, rows)
        assert same(expected, logits(remembering, rows))
        assert remembering.reused == reused
        assert same(expected, logits(wrong, rows)) == (reused != 70)


def test_only_what_was_filled(exported_tiny: Path) -> None:
    engine = PackageEngine(read_build(exported_tiny))
    engine.rewind(0)
    with pytest.raises(ValueError, match="cannot go back to position 1: 0 are filled"):
        engine.rewind(1)


def test_a_session_remembers(exported_tiny: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    encoded: list[int] = []
    encode = PackageEngine.encode_image
    monkeypatch.setattr(PackageEngine, "encode_image", lambda e, p: encoded.append(len(p)) or encode(e, p))
    session, sample = open_session(exported_tiny), shipped_samples()[0]
    texts = [session.answer(sample.picture, sample.prompt, 12).text for _ in range(2)]
    assert texts[0] == texts[1]
    assert encoded == [256]
    assert session.engine.reused > 16
    with pytest.raises(UsageError, match="--provider is onnxruntime's"):
        open_session(exported_tiny, providers=["cpu"])
