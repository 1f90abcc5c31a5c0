"""One run of the comparison: encoder, decoder and whole answers of a build against its reference, sample by sample.

It gathers the worst values and the answers; `validation.judging` says what they are held against and writes them down.
A build that was exported with `--only` is compared in the part that it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastvlm.progress import Progress
from fastvlm_ref.engine import TorchEngine
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.tokenizer import Tokenizer
from validation.limits import Measurement, worst
from validation.parity import DecoderParity, EncoderParity, compare_decoder, compare_encoder, splice
from validation.samples import Sample
from validation.session import build_session
from validation.verdict import AnswerRow

Features = NDArray[np.float32]


class Comparison:
    """A build and its reference side by side; `steps` greedy tokens per question."""

    def __init__(
        self, build: Path, model: FastVLM, tokenizer: Tokenizer, backend: str, steps: int, progress: Progress
    ) -> None:
        self.model, self.tokenizer, self.steps, self.progress = model, tokenizer, steps, progress
        self.session = build_session(build, backend, progress=progress)
        self.package = self.session.engine
        self.sizes: list[int] = self.package.manifest["image"]["sizes"]
        self.reference = TorchEngine(model, self.package.context, self.package.image_size)
        self.stop_ids = self.session.prompt.stop_ids
        self.peaks = self.package.watch_peaks() if backend == "mil" else {}
        self.encoder: dict[str, EncoderParity] = {}
        self.language: dict[str, DecoderParity] = {}
        self.whole: dict[str, DecoderParity] = {}
        self.differing_ids: dict[str, float] = {}

    def run(self, samples: Sequence[Sample]) -> tuple[tuple[Measurement, ...], tuple[AnswerRow, ...]]:
        """Measures everything; returns the worst value per limit, and the answers where the build can give any."""
        features = self._compare_encoders(samples)
        rows: list[AnswerRow] = []
        if self.package.holds("language"):
            with self.progress.stage("Comparing answers", len(samples)) as advance:
                for sample in samples:
                    rows += self._compare_answer(sample, *features[sample.picture])
                    advance(1)
        return tuple(self._measurements()), tuple(rows)

    def pixels(self, picture: Path, size: int) -> NDArray[np.uint8]:
        """Returns a picture's RGB bytes (N, N, 3) by the build's image rule."""
        return preprocess(open_image(picture), size, self.session.image_rule)

    def ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """Returns the ids before and after the image, as the checkpoint makes them."""
        return encode_prompt(self.tokenizer, prompt, self.model.config.prompt)

    def _compare_encoders(self, samples: Sequence[Sample]) -> dict[Path, tuple[Features, Features]]:
        """Returns, per picture at the default size, the image tokens (T, H) of the reference and of the build."""
        pictures = dict.fromkeys(sample.picture for sample in samples)
        found = {}
        with self.progress.stage("Comparing image tokens", len(pictures) * len(self.sizes)) as advance:
            for size in self.sizes:
                for picture in pictures:
                    pair = self._compare_encoder(picture, size)
                    if size == self.package.image_size:
                        found[picture] = pair
                    advance(1)
        return found

    def _compare_encoder(self, picture: Path, size: int) -> tuple[Features, Features]:
        pixels = self.pixels(picture, size)
        if not self.package.holds("encoder"):
            reference = self.reference.encode_image(pixels)
            return reference, reference
        parity, reference, actual = compare_encoder(self.model, self.package, pixels)
        self.encoder[f"{picture.name} at {size}"] = parity
        return reference, actual

    def _compare_answer(self, sample: Sample, reference: Features, own: Features) -> Iterator[AnswerRow]:
        name = f"{sample.name}: {sample.prompt}"
        ids = self.ids(sample.prompt)
        self.differing_ids[sample.prompt] = self._count_differing_ids(sample.prompt)
        truth = splice(self.reference, ids, reference)
        self.language[name] = self._decode(truth, truth)
        if not self.package.holds("encoder"):
            return
        whole = self.whole[name] = self._decode(truth, splice(self.package, ids, own))
        yield AnswerRow(
            sample.name, sample.prompt, self._own_answer(sample, whole), self._text(whole.reference_ids), sample.answer
        )

    def _decode(self, reference: NDArray[np.float32], package: NDArray[np.float32]) -> DecoderParity:
        return compare_decoder(self.reference, self.package, (reference, package), self.stop_ids, self.steps)

    def _own_answer(self, sample: Sample, whole: DecoderParity) -> str:
        """What the build says when nobody leads it: the forced transcript, unless the two ever parted."""
        if whole.package_ids == whole.reference_ids:
            return self._text(whole.package_ids)
        return self.session.answer(sample.picture, sample.prompt, self.steps).text

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i not in self.stop_ids])

    def _count_differing_ids(self, prompt: str) -> float:
        """Counts ids that the build's tokenizer and template make otherwise than the checkpoint's."""
        differing = 0
        built = encode_prompt(self.session.tokenizer, prompt, self.session.prompt)
        for mine, theirs in zip(built, self.ids(prompt), strict=True):
            differing += abs(len(mine) - len(theirs)) + sum(a != b for a, b in zip(mine, theirs, strict=False))
        return float(differing)

    def _embedding_error(self) -> float:
        table = self.model.decoder.embed_tokens.weight.detach().numpy()
        limit = np.finfo(np.float16).max  # what is beyond was saturated by the export, which reported it
        expected = np.clip(table, -limit, limit).astype(np.float16).astype(np.float32)
        return float(np.abs(expected - self.package.embeddings.table).max())

    def _measurements(self) -> Iterator[Measurement]:
        if self.encoder:
            yield worst("encoder.psnr_db", {name: row.psnr_db for name, row in self.encoder.items()})
            yield worst("encoder.snr_loss_db", {name: row.snr_loss_db for name, row in self.encoder.items()})
        if self.language:
            yield worst("language.kl", {name: max(row.kl) for name, row in self.language.items()})
            yield worst("language.logit_error", {name: max(row.logit_error) for name, row in self.language.items()})
            yield worst("language.divergences", {name: row.divergences for name, row in self.language.items()})
            yield worst("embeddings.max_error", {"all rows": self._embedding_error()})
            yield worst("prompt.differing_ids", self.differing_ids)
        if self.whole:
            yield worst("answer.divergences", {name: row.divergences for name, row in self.whole.items()})
        for part, peak in self.peaks.items():
            if self.package.holds(part):
                yield worst(f"{part}.peak", {"every op": peak})
