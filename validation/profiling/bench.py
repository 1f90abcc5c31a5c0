"""One contender at work: it loads a build's packages and runs all of its stages once each time that it is asked.

It lives in a child process (`validation.children`) and gives plain rows, [stage, position, seconds], so that what is
made of many runs is another file's business. Stages, in the order of an answer:

    load_encoder, load_language   packages opened and a state made, nothing run; `…_core_ml` is Core ML's own share
    preprocess, encode, prefill   photo to bytes, bytes to image tokens, all of the prompt but its last position
    first_token                   the decode step of the prompt's last position
    to_first_token                the sum of the four, of a build that has them all
    decode                        one token behind `position` filled positions, TOKENS of them in a row

The engine is put at each position without filling what lies before it: every shape is fixed, so a step costs the same
whatever the cache holds. It knows neither other contenders nor how often it is asked.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.build import Build, read_build
from fastvlm_ref.image import preprocess
from validation.backends import prepare
from validation.children import Tell
from validation.engine import PackageEngine
from validation.memory import peak_bytes
from validation.profiling.workload import TOKENS, photo, workload_of

Row = list[Any]  # stage, position or None, seconds
SHARE = "_core_ml"


class PackageBench:
    """A build on one backend; `build` is its folder, the rest as `PackageEngine` takes it."""

    def __init__(
        self, tell: Tell, build: str, backend: str, compute_units: str | None, image_size: int | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self.build: Build = read_build(build)
        self.backend, self.compute_units, self.image_size = backend, compute_units, image_size
        self._tell, self._clock = tell, clock
        prepare(backend)
        self.work = workload_of(self.build, image_size)
        self.picture = photo() if self.work.side else None
        self.engine: PackageEngine | None = None
        self.started_with = peak_bytes()

    def load(self) -> list[Row]:
        """Opens everything, for the first time or again; what was open before is dropped."""
        self.engine = None
        gc.collect()
        rows: list[Row] = []
        engine = PackageEngine(self.build, self.backend, self.image_size, compute_units=self.compute_units)
        if self.build.encoder is not None:
            with self._timed(rows, "load_encoder"):
                opened = [engine.encoder(self.work.side)]
            rows += _core_ml_share("load_encoder", opened)
        if self.build.language:
            with self._timed(rows, "load_language"):
                opened = engine.chain.open()
                engine.reset()
            rows += _core_ml_share("load_language", opened)
        self.engine = engine
        return rows

    def run(self) -> list[Row]:
        """Runs every stage that the build has, once."""
        rows: list[Row] = []
        tokens = self._look(rows) if self.picture is not None else None
        if self.build.language:
            self._answer(rows, tokens)
        return rows

    def memory(self) -> dict[str, int]:
        """Peaks of this process in bytes: before the first load, with libraries and photo, and until now."""
        return {"before_load": self.started_with, "peak": peak_bytes()}

    def plan(self) -> list[Row]:
        """Nothing: Core ML's plan can abort the process that asks for it, so another one asks (`coreml.plan`)."""
        return []

    def _look(self, rows: list[Row]) -> NDArray[np.float32]:
        assert self.picture is not None
        with self._timed(rows, "preprocess"):
            pixels = preprocess(self.picture, self.work.side, self.build.image_rule)
        with self._timed(rows, "encode"):
            return self._opened.encode_image(pixels)

    def _answer(self, rows: list[Row], tokens: NDArray[np.float32] | None) -> None:
        engine, work = self._opened, self.work
        if tokens is None:  # no encoder: rows of any ids stand for the picture
            tokens = engine.embed([i % self.build.vocab_size for i in range(work.tokens)])
        prompt = np.concatenate((engine.embed(work.before), tokens, engine.embed(work.after)))
        engine.reset()
        with self._timed(rows, "prefill"):
            engine.prefill(prompt[:-1])
        with self._timed(rows, "first_token"):
            token = int(engine.decode(prompt[-1:]).argmax())
        if self.picture is not None:  # without an encoder it would be another sum under the same name
            rows.append(["to_first_token", None, sum(row[2] for row in rows)])
        for position in work.positions:
            with self._timed(rows, "decode", position):
                for _ in range(TOKENS):
                    engine.position = position
                    token = int(engine.decode(engine.embed([token])).argmax())
            rows[-1][2] /= TOKENS

    @property
    def _opened(self) -> PackageEngine:
        assert self.engine is not None, "load comes first"
        return self.engine

    @contextmanager
    def _timed(self, rows: list[Row], stage: str, position: int | None = None) -> Iterator[None]:
        self._tell(stage if position is None else f"{stage} at {position}")
        start = self._clock()
        yield
        rows.append([stage, position, self._clock() - start])


def _core_ml_share(stage: str, opened: list[Any]) -> Iterator[Row]:
    """How much of a load was Core ML's own; the rest is compiling the package, which an app does not do.

    Nothing where it does not tell of every function: a part of the sum is no sum.
    """
    seconds = [getattr(predictor, "load_seconds", None) for predictor in opened]
    if None not in seconds:
        yield [stage + SHARE, None, sum(seconds)]
