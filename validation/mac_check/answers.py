"""One worked example through a build, as a device test would run it: image tokens, then logits led by known ids.

It is the build's self-test where it has one (`selftest/`, written by `validate`), else a shipped picture. The decoder
takes the image tokens of its own encoder, which is what a user gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.build import Build
from fastvlm.errors import BuildError, ImageError
from fastvlm.json_file import parse
from fastvlm.paths import contained, read_contained
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.samples import shipped_samples
from validation.metrics import kl_divergence, max_error, psnr_db, snr_db
from validation.profiling.bench import PackageBench
from validation.selftest import FOLDER

STEPS = 16
PICTURE = "picture.png"
MOST_BYTES = 16 << 20  # of selftest.json: ids of one example
SERVES = "validation.mac_check.answers:AnswerBench"


class AnswerBench(PackageBench):
    """A build on one backend, which is measured and asked."""

    def answer(self, file: str, ids: list[int] | None = None) -> list[int]:
        """Writes image tokens float32 (T, H) and logits float32 (steps, V) into an .npz file; returns the best ids.

        `ids` lead it, one behind each step but the last; None: its own best ones, STEPS of them.
        """
        self._tell("answer")
        known = selftest(self.build)
        parts: dict[str, NDArray[np.float32]] = {}
        if self.work.side:
            parts["tokens"] = self._opened.encode_image(_pixels(self.build, self.work.side, known))
        best: list[int] = []
        if self.build.language:
            parts["logits"] = np.stack(list(self._logits(parts.get("tokens"), known, ids)))
            best = [int(row.argmax()) for row in parts["logits"]]
        np.savez(file, **parts)  # type: ignore[arg-type]
        return best

    def _logits(
        self, tokens: NDArray[np.float32] | None, known: dict[str, Any] | None, ids: list[int] | None
    ) -> list[NDArray[np.float32]]:
        engine = self._opened
        before = known["ids_before_image"] if known else self.work.before
        after = known["ids_after_image"] if known else self.work.after
        rows = [engine.embed(before), engine.embed(after)]
        if tokens is not None:
            rows.insert(1, tokens)
        prompt = np.concatenate(rows)
        engine.reset()
        engine.prefill(prompt[:-1])
        found = [engine.decode(prompt[-1:])]
        room = self.build.context - len(prompt) + 1
        for step in range(1, min(STEPS if ids is None else len(ids), room)):
            led = int(found[-1].argmax()) if ids is None else ids[step - 1]
            found.append(engine.decode(engine.embed([led])))
        return found


def selftest(build: Build) -> dict[str, Any] | None:
    """Returns the content of a build's selftest.json, None where it has none; BuildError where it is damaged."""
    file = build.folder / FOLDER / "selftest.json"
    try:
        known = parse(read_contained(build.folder, f"{FOLDER}/{file.name}", MOST_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise BuildError(f"{file} is damaged ({error}); run `fastvlm validate` on the build again") from error
    try:
        for key in ("ids_before_image", "ids_after_image", "greedy_ids"):
            if not all(isinstance(i, int) and 0 <= i < build.vocab_size for i in known[key]):
                raise ValueError(f"{key} holds what is no id")
        open_image(contained(build.folder, f"{FOLDER}/{PICTURE}"))
    except (ImageError, OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(f"{file} is damaged ({error}); run `fastvlm validate` on the build again") from error
    return dict(known)


def _pixels(build: Build, side: int, known: dict[str, Any] | None) -> NDArray[np.uint8]:
    """RGB bytes (N, N, 3) of the self-test's picture where it has the side, else of the first shipped one."""
    if known is not None:
        pixels = np.asarray(open_image(contained(build.folder, f"{FOLDER}/{PICTURE}")))
        if pixels.shape == (side, side, 3):
            return pixels
    return preprocess(open_image(shipped_samples()[0].picture), side, build.image_rule)


@dataclass(frozen=True)
class Difference:
    """How far Core ML is from the MIL runtime. tokens, logits: metrics by name, None where the build has no such part.

    differing_steps: at which steps (from 1) Core ML's best id is another than the MIL runtime's; steps: how many.
    """

    tokens: dict[str, float] | None
    logits: dict[str, float] | None
    steps: int
    differing_steps: tuple[int, ...]


def difference(mil: Path, core_ml: Path, expected_ids: Sequence[int], ids: Sequence[int]) -> Difference:
    """Compares two answers, each with its file and its best ids: the MIL runtime's and Core ML's."""
    with np.load(mil) as expected, np.load(core_ml) as found:
        metrics = {
            part: {
                "snr_db": snr_db(expected[part], found[part]),
                "psnr_db": psnr_db(expected[part], found[part]),
                "max_error": max_error(expected[part], found[part]),
            }
            for part in expected.files
        }
        if "logits" in metrics:
            rows = zip(expected["logits"], found["logits"], strict=True)
            metrics["logits"]["kl"] = max(kl_divergence(mine, theirs) for mine, theirs in rows)
    other = tuple(step for step, (a, b) in enumerate(zip(expected_ids, ids, strict=True), 1) if a != b)
    return Difference(metrics.get("tokens"), metrics.get("logits"), len(ids), other)
