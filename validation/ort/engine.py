"""A build of ONNX files as an engine: the surface of `fastvlm_ref.engine.Engine`, computed by onnxruntime.

Files are opened when they are first needed, or all at once by `load`, and then serve every question. One conversation
at a time: a cache belongs to it. It knows nothing of text.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime import RunOptions

from fastvlm.build import COREML_EP, Build
from fastvlm.errors import ExecutionError, PackageError, UsageError
from fastvlm_ref.engine import LARGER_BUILD, Advice, check_rewind
from validation.host import EmbeddingTable
from validation.ort.calls import Calls
from validation.ort.language import MOST_ROWS, LanguageModel, check_decoder
from validation.ort.loading import Loaded, load
from validation.ort.opening import OnnxFile, Port, in_words, open_file
from validation.ort.probing import Prober
from validation.ort.providers import CPU, provider_names
from validation.ort.settings import Settings

IMAGE, FEATURES = "image", "imageFeatures"  # stated a second time, not taken from `export`: one holds the other


class OrtEngine:
    """The ONNX files of a build, run by the given providers (`validation.ort.providers`), in order of preference.

    `image_size` None takes the first exported. Raises UsageError for a size that was not exported and for an unknown
    provider, MissingDependency for one that is not installed.
    """

    def __init__(
        self, build: Build, image_size: int | None = None, providers: Sequence[str] = (CPU,),
        settings: Settings | None = None,
    ) -> None:  # fmt: skip
        provider_names(providers)
        if build.target == COREML_EP:
            raise UsageError(
                f"{build.folder} was made for onnxruntime's CoreML provider in an app, with fixed shapes and a cache "
                "that the app keeps; to run or validate it here, export without --target coreml-ep"
            )
        if image_size is not None and image_size not in build.encoders:
            raise _no_size(build, image_size)
        self.build, self.backend, self.providers = build, "onnx", tuple(providers)
        self.settings = settings or Settings()
        self.image_size: int = image_size or next(iter(build.encoders), 0)
        self.context = build.context
        self.advice = Advice(
            LARGER_BUILD,
            f"`fastvlm validate {shlex.quote(str(build.folder))}` tells whether the files are whole; export again "
            "without --quantize",
        )
        self.position = 0
        self._calls = Calls()
        self._prober: Prober | None = None  # one for all files while they are loaded
        self._encoders: dict[int, Loaded] = {}
        self._language: LanguageModel | None = None
        self._embeddings: EmbeddingTable | None = None

    def load(self) -> None:
        """Opens every file that a question needs now, so that the first one does not wait for it."""
        self.build.check_whole()
        self._prober = Prober()
        try:
            self.encoder(self.image_size)
            self.language  # noqa: B018
        finally:
            self._prober.close()
            self._prober = None
        self.embeddings  # noqa: B018

    def encoder(self, side: int) -> Loaded:
        """Returns the encoder for pictures of `side` pixels; UsageError where the build has none."""
        if self.build.encoder is None:
            raise self.build.missing("vision encoder")
        if side not in self.build.encoders:
            raise _no_size(self.build, side)
        if side not in self._encoders:
            file = open_file(self.build.encoders[side])
            self._check_encoder(file, side)
            self._encoders[side] = load(file, self.providers, self.settings, self._prober)
        return self._encoders[side]

    def _check_encoder(self, file: OnnxFile, side: int) -> None:
        """Raises PackageError where the file is not an encoder for pictures of that side."""
        tokens = self.tokens_at(side)
        takes = {IMAGE: Port(TensorProto.UINT8, (1, side, side, 3))}
        gives = file.outputs[FEATURES].shape if FEATURES in file.outputs else ()
        width = self.build.embeddings.width if self.build.embeddings else None
        if file.inputs != takes or len(gives) != 3 or gives[:2] != (1, tokens) or width not in (None, gives[2]):
            raise PackageError(
                f"{file.path} takes {in_words(file.inputs)} and gives {in_words(file.outputs)}, expected "
                f"{in_words(takes)} and {FEATURES} [1, {tokens}, {width or 'H'}] by manifest.json; export again"
            )

    @property
    def together(self) -> int:
        """Any prompt that one call takes comes back with its logits: the graph has its head for any number of rows."""
        return MOST_ROWS

    @property
    def language(self) -> LanguageModel:
        """The language model with its cache; BuildError where the build has none."""
        if not self.build.language:
            raise self.build.missing("language model")
        if self._language is None:
            if len(self.build.language) != 1:
                names = ", ".join(stage.package.name for stage in self.build.language)
                raise UsageError(
                    f"{self.build.folder} holds {names}: a language model of fixed shapes, for onnxruntime in an app; "
                    "export without --target to run it here"
                )
            file = open_file(self.build.language[0].package)
            check_decoder(file, self.build)
            self._language = LanguageModel(
                load(file, self.providers, self.settings, self._prober), self._calls, self.build
            )
        return self._language

    @property
    def embeddings(self) -> EmbeddingTable:
        """The build's embedding table; BuildError where the build has no language model."""
        table = self.build.embeddings
        if table is None:
            raise self.build.missing("language model")
        if self._embeddings is None:
            self._embeddings = EmbeddingTable(table.file, table.rows, table.width, table.dtype)
        return self._embeddings

    @property
    def cache_bytes(self) -> int:
        """What keys and values of the whole context take; 0 in a build without a language model."""
        return self.language.cache_bytes if self.build.language else 0

    def placement(self) -> dict[str, dict[str, int]]:
        """Returns how many nodes of each file that was opened run where: {"LanguageModel.onnx": {"cpu": 410}}."""
        opened = [*self._encoders.values(), *([self._language.loaded] if self._language else [])]
        return {loaded.file.path.name: loaded.placement() for loaded in opened}

    def stop(self) -> None:
        """Ends the running call soon, and every further one at once, with Stopped; from any thread, until `resume`."""
        self._calls.stop()

    def resume(self) -> None:
        """Takes calls again after `stop`; what was prefilled before is still there."""
        self._calls.resume()

    def tokens_at(self, side: int) -> int:
        """Returns T for an image of `side` pixels."""
        return self.build.tokens_at(side)

    def encode_image(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns image tokens float32 (T, H) of RGB bytes (N, N, 3); N chooses among the exported sizes."""
        if pixels.ndim != 3 or pixels.shape != (len(pixels), len(pixels), 3) or pixels.dtype != np.uint8:
            raise ExecutionError(f"pixels are {pixels.dtype} of shape {pixels.shape}; expected uint8 (N, N, 3)")
        encoder = self.encoder(len(pixels))
        given = {IMAGE: np.ascontiguousarray(pixels[None])}

        def call(options: RunOptions) -> Any:
            return encoder.session.run([FEATURES], given, options)[0]

        tokens = self._calls(encoder.file.path.name, call, shrink=True)
        return np.asarray(tokens[0], np.float32)

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Returns embedding rows float32 (S, H) of ids (S,)."""
        return self.embeddings(ids).astype(np.float32)

    def reset(self) -> None:
        """Forgets all positions; the buffers stay."""
        self.position = 0

    def rewind(self, position: int) -> None:
        """Forgets what lies behind the first `position` positions."""
        check_rewind(position, self.position)
        self.position = position

    def prefill(self, embeds: NDArray[np.float32]) -> None:
        """Fills the cache with rows (S, H), in calls of at most MOST_ROWS; what those before an error filled stays."""
        self.language.check_room(self.position, len(embeds))
        for start in range(0, len(embeds), MOST_ROWS):
            self._advance(embeds[start : start + MOST_ROWS])

    def decode(self, embeds: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits float32 (V,) after more rows (S, H), at most `together`, in one call."""
        return self._advance(embeds)

    def _advance(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = self.language(rows, self.position)
        self.position += len(rows)
        return logits


def _no_size(build: Build, side: int) -> UsageError:
    return UsageError(f"the build holds no encoder for --image-size {side}; it has {list(build.encoders)}")
