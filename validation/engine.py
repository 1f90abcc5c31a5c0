"""A build folder as an engine: pixels and embeddings in, features and logits out, through `predict` alone.

It implements `fastvlm_ref.engine.Engine`, so that the loop that drives PyTorch drives the packages too. It knows
nothing of text. What goes into the language model is prepared by `validation.host`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fastvlm.errors import BuildError, UsageError
from fastvlm.manifest import read_manifest
from fastvlm.paths import contained
from validation.backends import check_backend, open_package
from validation.host import EmbeddingTable, causal_mask, pad_rows, plan_prefill, rope_tables


class PackageEngine:
    """The packages of a build folder, executed by one backend at one image size.

    `image_size` None takes the first exported; a size that was not exported is a UsageError that lists what is there.
    `precision` is the MIL runtime's ("fp16", "fp16-accumulate" or "fp32").
    """

    def __init__(
        self, build: Path, backend: str = "mil", image_size: int | None = None, precision: str = "fp16"
    ) -> None:
        check_backend(backend)
        self.build, self.backend, self.precision = build, backend, precision
        self.manifest = read_manifest(build / "manifest.json")
        sizes = self.manifest["image"]["sizes"]
        if image_size is not None and image_size not in sizes:
            raise UsageError(f"the build holds no encoder for --image-size {image_size}; it has {sizes}")
        self.image_size: int = image_size or (sizes[0] if sizes else 0)
        self.context: int = self.manifest["context"]
        self.query: int = self.manifest["query_length"]
        text = self.manifest["model"]["text"]
        self.head_dim, self.rope_theta = int(text["head_dim"]), float(text["rope_theta"])
        self._encoders: dict[int, Any] = {}
        self._functions: dict[str, Any] = {}
        self._embeddings: EmbeddingTable | None = None
        self.state: Any = None
        self.position = 0
        self.peaks: dict[str, float] | None = None

    def _open_part(self, part: str, function: str) -> Any:
        if not self.holds(part):
            raise BuildError(f"{self.build.name} holds no {part} package, it was exported with --only; export it whole")
        names = self.manifest["packages"][part]
        name = names if isinstance(names, str) else names[0]
        return open_package(contained(self.build, name), function, self.backend, self.precision)

    def holds(self, part: str) -> bool:
        """Returns whether the build has the package of "encoder" or "language"; --only leaves one out."""
        return bool(self.manifest["packages"].get(part))

    def function(self, name: str) -> Any:
        """Returns the predictor of `prefill` or `decode`, opened when it is first asked for."""
        if name not in self._functions:
            self._functions[name] = self._open_part("language", name)
        return self._functions[name]

    @property
    def embeddings(self) -> EmbeddingTable:
        """The build's embedding table; BuildError where the build has no language model."""
        if self._embeddings is None:
            table = self.manifest.get("embeddings")
            if table is None:
                raise BuildError(f"{self.build.name} holds no embedding table, it was exported with --only encoder")
            self._embeddings = EmbeddingTable(contained(self.build, table["file"]), table["rows"], table["width"])
        return self._embeddings

    def reset(self) -> None:
        """Forgets everything that was prefilled: a fresh state, position 0."""
        self.state = self.function("decode").make_state()
        self.position = 0

    def encode_image(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns image tokens float32 (T, H) of RGB bytes (N, N, 3); N chooses among the exported sizes."""
        encoder = self.encoder(pixels.shape[0])
        inputs = {"image": Image.fromarray(pixels)}
        features = self._predict("encoder", encoder, inputs)["imageFeatures"]
        tokens: NDArray[np.float32] = np.asarray(features, np.float32)[0]
        return tokens

    def encoder(self, size: int) -> Any:
        """Returns the predictor of `encode_<size>`, opened when it is first asked for."""
        if size not in self._encoders:
            self._encoders[size] = self._open_part("encoder", f"encode_{size}")
        return self._encoders[size]

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Returns embedding rows float32 (S, H) of ids (S,)."""
        return self.embeddings(ids).astype(np.float32)

    def prefill(self, embeds: NDArray[np.float32]) -> None:
        """Fills the cache with rows (S, H), in static chunks of Q and, at the end of the context, one by one."""
        for chunk in plan_prefill(len(embeds), past=self.position, query=self.query, context=self.context):
            rows = embeds[chunk.start : chunk.start + chunk.rows]
            self._call(chunk.function, rows, self.query if chunk.function == "prefill" else 1)

    def decode(self, embed: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns logits float32 (V,) after one more row (1, H)."""
        return np.asarray(self._call("decode", embed, 1)["logits"], np.float32).reshape(-1)

    def _call(self, function: str, rows: NDArray[np.float32], query: int) -> dict[str, Any]:
        if self.state is None:
            self.reset()
        cos, sin = rope_tables(self.position, query, self.head_dim, self.rope_theta)
        inputs = {
            "inputsEmbeds": pad_rows(rows, query),
            "ropeCos": cos,
            "ropeSin": sin,
            "causalMask": causal_mask(self.position, len(rows), query, self.context),
            "position": np.array([self.position], np.int32),
        }
        outputs = self._predict("language", self.function(function), inputs, self.state)
        self.position += len(rows)
        return outputs

    def watch_peaks(self) -> dict[str, float]:
        """From now on keeps the largest magnitude that any op of "encoder" and "language" returns; NaN counts as inf.

        Only the MIL runtime shows what happens inside a package; other backends raise UsageError.
        """
        if self.backend != "mil":
            raise UsageError(f"backend {self.backend} does not show the values inside a package; use --backend mil")
        self.peaks = {"encoder": 0.0, "language": 0.0}
        return self.peaks

    def _predict(self, part: str, predictor: Any, inputs: dict[str, Any], state: Any = None) -> dict[str, Any]:
        peaks = self.peaks
        if peaks is None:
            outputs: dict[str, Any] = predictor.predict(inputs, state)
            return outputs

        def keep(name: str, op: str, value: Any) -> None:
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                largest = float(value.abs().max())
                peaks[part] = max(peaks[part], largest if largest == largest else math.inf)

        watched: dict[str, Any] = predictor.predict(inputs, state, hook=keep)
        return watched
