"""One bundle answers: bytes → image tokens, rows of embeddings → logits → ids, greedily, in static chunks."""

from collections.abc import Generator, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastvlm.errors import BundleError, ExecutionError, PromptError
from validation.bundle_host.bundle import Bundle
from validation.bundle_host.picture import Pixels, open_photo, square
from validation.bundle_host.prompt import Prompt

Rows = NDArray[np.float16]
Steps = Generator[NDArray[np.float32], int | None, None]


class Host(Bundle):
    """A bundle that is run, with pictures of `size`, or of the first size that it holds."""

    def __init__(self, folder: str | Path, backend: str = "mil", size: int | None = None) -> None:
        super().__init__(folder, backend)
        get, self.prompt = self.get, Prompt(self)
        self.size = size or get("profiles.0.image_size", int, 1, 4096)
        self.query = get("language.prefill_chunk_size", int, 1, 1 << 16)
        most = min(1 << 20, (1 << 24) // self.query)  # a mask has Q·C values
        self.context = get("language.max_context_length", int, 1, most)
        self.vocabulary = get("language.vocab_size", int)
        self.width, self.theta = get("language.head_dim", int, 2, 1024), get("language.rope_theta", float, 1, 1e30)
        self.masked, stages = get("language.mask_value", float, -65504, -1), get("language.chain", list)
        self.stages = [f"language.chain.{n}" for n in range(len(stages))]
        dtype, rows = get("embedding.dtype", str), get("embedding.rows", int)
        self.table = self._mapped("embedding.file", dtype, rows, get("embedding.width", int))
        self.scales = self._mapped("embedding.scales.file", "float16", rows, 1) if dtype == "int8" else None

    def _mapped(self, key: str, dtype: str, rows: int, width: int) -> NDArray[Any]:
        with self.open(name := self.get(key, str), 1 << 40) as file:
            if (found := file.seek(0, 2)) != rows * width * {"float16": 2, "int8": 1}.get(dtype, 0):
                raise BundleError(f"{name} has {found} bytes, not {rows} × {width} of {dtype}; copy the bundle again")
            return np.memmap(file, dtype, "r", shape=(rows, width))

    def features(self, pixels: Pixels) -> Rows:
        """Returns image tokens (T, H) of bytes (N, N, 3)."""
        encode = self.function("assets.vision", f"encode_{len(pixels)}").predict
        (tokens,) = encode({"image": Image.fromarray(pixels)}).values()
        return np.asarray(tokens, np.float16).reshape(tokens.shape[1:])

    def embed(self, ids: Sequence[int]) -> Rows:
        """Returns rows (S, H) of ids (S,): as they are stored, or int8 codes times the row's scale."""
        if not all(type(id_) is int and 0 <= id_ < len(self.table) for id_ in ids):  # −1 would be the last row
            raise BundleError(f"{ids!r:.60} are no ids of {len(self.table)} rows; make the bundle again")
        rows = np.asarray(self.table[list(ids)])
        return rows if self.scales is None else (rows * self.scales[list(ids)].astype(np.float32)).astype(np.float16)

    def rope(self, position: int, query: int) -> tuple[Rows, Rows]:
        """Returns cosines and sines [1, 1, Q, D] from `position` on: angles in float32, only the tables are rounded."""
        steps = np.float32(self.theta) ** -(np.arange(0, self.width, 2, dtype=np.float32) / np.float32(self.width))
        angles = np.tile(np.arange(position, position + query, dtype=np.float32)[:, None] * steps, 2)[None, None]
        return np.cos(angles).astype(np.float16), np.sin(angles).astype(np.float16)

    def mask(self, position: int, rows: int, query: int) -> Rows:
        """Returns [1, 1, Q, C]: row i sees positions ≤ position + i, a padded row what the last real row sees."""
        last = position + np.minimum(np.arange(query), rows - 1)
        return np.where(np.arange(self.context) <= last[:, None], 0, self.masked).astype(np.float16)[None, None]

    def call(self, name: str, position: int, rows: Rows) -> dict[str, Any]:
        """Returns what "prefill" takes that fills positions with real rows (≤ Q, H), or "decode" with one."""
        query = self.query if name == "prefill" else 1
        given = dict(zip(("ropeCos", "ropeSin"), self.rope(position, query), strict=True))
        given |= {"causalMask": self.mask(position, len(rows), query), "position": np.array([position], np.int32)}
        return given | {"inputsEmbeds": rows[np.minimum(np.arange(query), len(rows) - 1)][None]}  # zeros become NaN

    def chain(self, name: str, position: int, rows: Rows, states: dict[str, Any]) -> NDArray[np.float32]:
        """Makes one call of all assets, which fill `states`; returns logits (V,), of "prefill" none."""
        given, logits = self.call(name, position, rows), [np.zeros(0, np.float32)]
        for stage in self.stages:
            if name in self.get(f"{stage}.functions", dict):  # a head alone has no prefill
                taken = {key: given.get(key) for key in self.all(f"{stage}.functions.{name}.inputs", str, ".name")}
                outputs = self.function(f"{stage}.asset", name).predict(taken, states.get(stage))
                given["inputsEmbeds"] = outputs.get(self.get("language.hidden", str), given["inputsEmbeds"])
                logits += [np.ravel(outputs[key]) for key in self.all(f"{stage}.logits", str) if key in outputs]
        return np.concatenate(logits, dtype=np.float32)[: self.vocabulary]

    def steps(self, pixels: Pixels, ids: tuple[list[int], list[int]], most: int) -> Steps:
        """Yields logits (V,) of `most` steps behind ids, image, ids; each follows the id sent, or the likeliest."""
        try:
            rows = np.concatenate((self.embed(ids[0]), self.features(pixels), self.embed(ids[1])))
        except ValueError as error:
            raise BundleError(f"tokenizer, table and encoder do not fit ({error}); make the bundle again") from error
        if len(rows) + most > self.context:
            raise PromptError(f"{len(rows)} positions and an answer of {most} exceed {self.context}; shorten either")
        kept, position = [stage for stage in self.stages if "state" in self.get(stage, dict)], 0
        states = {stage: self.function(f"{stage}.asset", "decode").make_state() for stage in kept}
        while position < len(rows) - 1:  # all but the last are prefilled
            fits = position + self.query <= self.context
            real = rows[position : min(position + self.query, len(rows) - 1) if fits else position + 1]
            self.chain("prefill" if fits else "decode", position, real, states)
            position += len(real)
        for place in range(position, position + most):
            logits = self.chain("decode", place, rows[-1:], states)
            if (numbers := int(np.isfinite(logits).sum())) != self.vocabulary:
                raise ExecutionError(f"{numbers} of {self.vocabulary} logits are numbers; the packages are damaged")
            sent = yield logits
            rows = self.embed([int(logits.argmax()) if sent is None else sent])

    def answer(self, photo: str | Path, text: str, most: int = 256) -> Iterator[str]:
        """Yields the answer, at most `most` ids, in pieces."""
        pixels = square(open_photo(photo), self.size, self.get("vision.image_strategy", str))
        ids = (int(logits.argmax()) for logits in self.steps(pixels, self.prompt.ids(text), most))
        yield from self.prompt.text(takewhile(lambda id_: id_ not in self.prompt.stops, ids))
