"""A build folder as an engine: pixels and embeddings in, features and logits out, through `predict` alone.

It implements `fastvlm_ref.engine.Engine`, so that the loop that drives PyTorch drives the packages too. It knows
nothing of text. What goes into the language model is prepared by `validation.host`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.build import Build
from fastvlm.errors import BuildError, PackageError, PromptError, UsageError
from fastvlm_ref.engine import LARGER_BUILD, Advice, check_rewind
from validation.backends import check_backend, open_package
from validation.chain import Chain
from validation.encoder_form import form_of
from validation.host import EmbeddingTable, LanguageInputs, plan_prefill
from validation.peaks import Peaks, Where


class PackageEngine:
    """The packages of a build folder, executed by one backend; each function is opened when it is first asked for.

    `image_size` None takes the first exported; a size that was not exported is a UsageError that lists what is there.
    `precision` is the MIL runtime's ("fp16", "fp16-accumulate" or "fp32"), `compute_units` Core ML's (None: those of
    the target that the build was made for).
    """

    together = 1

    def __init__(
        self, build: Build, backend: str = "mil", image_size: int | None = None, precision: str = "fp16",
        compute_units: str | None = None,
    ) -> None:  # fmt: skip
        check_backend(backend, compute_units, stateful=build.purpose is None)
        if image_size is not None and image_size not in build.image_sizes:
            raise UsageError(
                f"the build holds no encoder for --image-size {image_size}; it has {list(build.image_sizes)}"
            )
        self.build, self.backend, self.precision, self.compute_units = build, backend, precision, compute_units
        self.form = form_of(build)
        self.image_size: int = image_size or next(iter(build.image_sizes), 0)
        self.context = build.context
        self.advice = Advice(
            LARGER_BUILD,
            f"`fastvlm validate {shlex.quote(str(build.folder))}` tells whether the files are whole, "
            "`fastvlm scan CHECKPOINT` what leaves fp16; after a scan, export again",
        )
        self.peaks: Peaks | None = None
        self.states: list[Any] | None = None
        self.position = 0
        self._encoders: dict[int, Any] = {}
        self._chain = Chain(build.language, backend, precision, build.target, compute_units)
        self._embeddings: EmbeddingTable | None = None

    def encoder(self, size: int) -> Any:
        """Returns the predictor of the encoder's function of that size."""
        if self.build.encoder is None:
            raise self.build.missing("vision encoder")
        if size not in self._encoders:
            self._encoders[size] = self._open(self.build.encoder, self.form.function(size), self._encoders)
        return self._encoders[size]

    @property
    def chain(self) -> Chain:
        """The language model's packages; BuildError where the build has none."""
        if not self.build.language:
            raise self.build.missing("language model")
        return self._chain

    @property
    def embeddings(self) -> EmbeddingTable:
        """The build's embedding table; BuildError where the build has no language model."""
        if self.build.embeddings is None:
            raise self.build.missing("language model")
        if self._embeddings is None:
            table = self.build.embeddings
            self._embeddings = EmbeddingTable(table.file, table.rows, table.width, table.dtype)
        return self._embeddings

    def _open(self, package: Path, function: str, opened: Mapping[Any, Any]) -> Any:
        beside = next(iter(opened.values()), None)
        return open_package(package, function, self.backend, self.precision, beside, compute_units=self.compute_units)

    def reset(self) -> None:
        """Forgets everything that was prefilled: a fresh state, position 0."""
        self.states = self.chain.make_states()
        self.position = 0

    def rewind(self, position: int) -> None:
        """Forgets all but the first `position` positions: the mask hides what the states hold behind them."""
        check_rewind(position, self.position)
        self.position = position

    def tokens_at(self, side: int) -> int:
        """Returns T for an image of `side` pixels."""
        return (side // self.build.stride) ** 2

    def encode_image(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns image tokens float32 (T, H) of RGB bytes (N, N, 3); N chooses among the exported sizes.

        Those of an encoder without projector are the tower's own, (T, features). Raises PackageError for another shape.
        """
        encoder, side = self.encoder(pixels.shape[0]), pixels.shape[0]
        assert self.build.encoder is not None  # else there is no predictor
        where = self.build.encoder, self.form.function(side)
        features = self._predict("encoder", encoder, self.form.inputs(pixels), None, where)[self.form.gives]
        tokens: NDArray[np.float32] = np.asarray(features, np.float32)[0]
        if self.build.embeddings is not None and tokens.shape != self._wanted(side):
            raise PackageError(
                f"{self.build.encoder.name} gives image tokens of shape {list(tokens.shape)}, expected "
                f"{list(self._wanted(side))} by manifest.json; export the build again"
            )
        return tokens

    def _wanted(self, side: int) -> tuple[int, int]:
        """(T, H) of an image of `side` pixels where there is a language model to take them."""
        assert self.build.embeddings is not None
        return self.build.tokens_at(side), self.build.embeddings.width

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Returns embedding rows float32 (S, H) of ids (S,)."""
        return self.embeddings(ids).astype(np.float32)

    def prefill(self, embeds: NDArray[np.float32]) -> None:
        """Fills the cache with rows (S, H), in static chunks of Q and, at the end of the context, one by one."""
        query = self.build.query
        for chunk in plan_prefill(len(embeds), past=self.position, query=query, context=self.context):
            rows = embeds[chunk.start : chunk.start + chunk.rows]
            if chunk.function == "prefill":
                inputs = self._inputs(rows, query)
                self.chain.prefill(inputs, self._states(), partial(self._predict, "language"))
                self.position += len(rows)
            else:
                self.decode(rows)

    def decode(self, embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits float32 (V,) after one more row (1, H); PromptError, and nothing written, where none fits."""
        if len(embeds) != 1 or self.position >= self.context:
            raise PromptError(
                f"{self.position} positions are used and {len(embeds)} more do not fit into the context of "
                f"{self.context}, of which one at a time is decoded; shorten the prompt, or {LARGER_BUILD}"
            )
        inputs = self._inputs(embeds, 1)
        logits = self.chain.decode(inputs, self._states(), partial(self._predict, "language"))
        self.position += 1
        if len(logits) < self.build.vocab_size:
            raise BuildError(
                f"{self.build.folder} gives {len(logits)} logits for a vocabulary of {self.build.vocab_size}; "
                "export the build again"
            )
        return logits[: self.build.vocab_size]  # the last output of a head that is split has rows beyond V

    def read_states(self) -> list[NDArray[np.float16] | None]:
        """Returns what each package of the language model keeps, as `Chain.read_states`."""
        return self.chain.read_states(self._states())

    def _states(self) -> list[Any]:
        if self.states is None:
            self.reset()
        assert self.states is not None
        return self.states

    def _inputs(self, rows: NDArray[np.float32], query: int) -> dict[str, Any]:
        """What a function of `query` rows takes, for real rows (≤ Q, H) at the present position."""
        made = LanguageInputs(self.build.head_dim, self.build.rope_theta, self.context)
        return made.inputs(rows, self.position, query)

    def watch_peaks(self) -> Peaks:
        """From now on keeps the largest magnitude that any op of any package computes.

        Only the MIL runtime shows what happens inside a package; other backends raise UsageError.
        """
        if self.backend != "mil":
            raise UsageError(f"backend {self.backend} does not show the values inside a package; use --backend mil")
        self.peaks = Peaks()
        return self.peaks

    def _predict(
        self, part: str, predictor: Any, inputs: dict[str, Any], state: Any = None, where: Where = (Path(), "")
    ) -> dict[str, Any]:
        watching = {} if self.peaks is None else {"hook": partial(self.peaks.look, part, where)}
        outputs: dict[str, Any] = predictor.predict(inputs, state, **watching)
        return outputs
