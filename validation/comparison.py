"""One run of the comparison: encoder, decoder and whole answers of a build against its reference, sample by sample.

It gathers the worst values and the answers; `validation.judging` says what they are held against and writes them down.
A build that was exported with `--only` is compared in the part that it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.build import Build
from fastvlm.progress import Progress
from fastvlm_ref.engine import TorchEngine
from fastvlm_ref.generate import check_budget
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt, prompt_record
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
        self, build: Build, model: FastVLM, tokenizer: Tokenizer, backend: str, steps: int, progress: Progress
    ) -> None:
        self.build, self.model, self.tokenizer, self.steps, self.progress = build, model, tokenizer, steps, progress
        self.session = build_session(build, backend, progress=progress)
        self.package = self.session.engine
        self.image_size = self.package.image_size or model.config.vision.image_size
        self.reference = TorchEngine(model, build.context, self.image_size)
        self.stop_ids = model.config.prompt.stop_ids
        self.peaks = self.package.watch_peaks() if backend == "mil" else {}
        self.encoder: dict[str, EncoderParity] = {}
        self.language: dict[str, DecoderParity] = {}
        self.whole: dict[str, DecoderParity] = {}
        self.differing_ids: dict[str, float] = {}

    def run(self, samples: Sequence[Sample]) -> tuple[tuple[Measurement, ...], tuple[AnswerRow, ...]]:
        """Measures everything; returns the worst value per limit, and the answers where the build can give any."""
        features = self._compare_encoders(samples)
        rows: list[AnswerRow] = []
        if self.build.language:
            with self.progress.stage("Comparing answers", len(samples)) as advance:
                for sample in samples:
                    rows += self._compare_answer(sample, *features[sample.picture])
                    advance(1)
        return tuple(self._measurements()), tuple(rows)

    def pixels(self, picture: Path, size: int) -> NDArray[np.uint8]:
        """Returns a picture's RGB bytes (N, N, 3) by the checkpoint's image rule."""
        return preprocess(open_image(picture), size, self.model.config.image_rule)

    def ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """Returns the ids before and after the image, as the checkpoint makes them."""
        return encode_prompt(self.tokenizer, prompt, self.model.config.prompt)

    def _compare_encoders(self, samples: Sequence[Sample]) -> dict[Path, tuple[Features, Features]]:
        """Returns, per picture at the default size, the image tokens (T, H) of the reference and of the build."""
        pictures = dict.fromkeys(sample.picture for sample in samples)
        found = {}
        sizes = self.build.image_sizes or (self.image_size,)  # without an encoder the reference's tokens serve both
        with self.progress.stage("Comparing image tokens", len(pictures) * len(sizes)) as advance:
            for size in sizes:
                for picture in pictures:
                    pair = self._compare_encoder(picture, size)
                    if size == self.image_size:
                        found[picture] = pair
                    advance(1)
        return found

    def _compare_encoder(self, picture: Path, size: int) -> tuple[Features, Features]:
        pixels = self.pixels(picture, size)
        if self.build.encoder is None:
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
        if self.build.encoder is None:
            return
        whole = self.whole[name] = self._decode(truth, splice(self.package, ids, own))
        yield AnswerRow(
            sample.name, sample.prompt, self._own_answer(sample, whole), self._text(whole.reference_ids), sample.answer
        )

    def _decode(self, reference: NDArray[np.float32], package: NDArray[np.float32]) -> DecoderParity:
        return compare_decoder(self.reference, self.package, (reference, package), self.steps_after(len(reference)))

    def steps_after(self, positions: int) -> int:
        """Returns how many steps fit behind a prompt; raises PromptError where not one does."""
        check_budget(positions, 1, self.build.context)
        return min(self.steps, self.build.context - positions)

    def _own_answer(self, sample: Sample, whole: DecoderParity) -> str:
        """What the build says when nobody leads it: the forced transcript, unless the two ever parted."""
        if whole.package_ids == whole.reference_ids:
            return self._text(whole.package_ids)
        return self.session.answer(sample.picture, sample.prompt, len(whole.package_ids)).text

    def _text(self, ids: list[int]) -> str:
        """The answer that ids (S,) spell: up to the first stop id."""
        return self.tokenizer.decode(list(takewhile(lambda i: i not in self.stop_ids, ids)))

    def _count_differing_ids(self, prompt: str) -> float:
        """Counts ids that the build's tokenizer and template make otherwise than the checkpoint's."""
        differing = 0
        built = encode_prompt(self.session.tokenizer, prompt, self.session.prompt)
        for mine, theirs in zip(built, self.ids(prompt), strict=True):
            differing += abs(len(mine) - len(theirs)) + sum(a != b for a, b in zip(mine, theirs, strict=False))
        return float(differing)

    def _count_differing_fields(self) -> float:
        """Counts what the manifest tells a runtime otherwise than the checkpoint would."""
        config, manifest = self.model.config, self.build.manifest
        model, rule = manifest["model"], self.build.image_rule
        told = [model.get("text"), model.get("vision"), rule, manifest["prompt"]]
        true = [asdict(config.text), asdict(config.vision), config.image_rule, prompt_record(config.prompt)]
        return float(sum(_plain(mine) != _plain(theirs) for mine, theirs in zip(told, true, strict=True)))

    def _embedding_error(self) -> float:
        table = self.model.decoder.embed_tokens.weight.detach().numpy()
        limit = np.finfo(np.float16).max  # what is beyond was saturated by the export, which reported it
        expected = np.clip(table, -limit, limit).astype(np.float16).astype(np.float32)
        return float(np.abs(expected - self.package.embeddings.table).max())

    def _measurements(self) -> Iterator[Measurement]:
        yield worst("manifest.differing_fields", {"model, image and prompt": self._count_differing_fields()})
        if self.encoder:
            yield worst("encoder.psnr_db", {name: row.psnr_db for name, row in self.encoder.items()})
            yield worst("encoder.snr_loss_db", {name: row.snr_loss_db for name, row in self.encoder.items()})
        if self.language:
            yield worst("language.kl", {name: row.mean_kl for name, row in self.language.items()})
            yield worst("language.kl_step", {name: max(row.kl) for name, row in self.language.items()})
            yield worst("language.logit_error", {name: max(row.logit_error) for name, row in self.language.items()})
            yield worst("language.divergences", {name: row.divergences for name, row in self.language.items()})
            yield worst("embeddings.max_error", {"all rows": self._embedding_error()})
            yield worst("prompt.differing_ids", self.differing_ids)
        if self.whole:
            yield worst("answer.kl", {name: row.mean_kl for name, row in self.whole.items()})
            yield worst("answer.logit_error", {name: max(row.logit_error) for name, row in self.whole.items()})
            yield worst("answer.divergences", {name: row.divergences for name, row in self.whole.items()})
        for part, peak in self.peaks.items():
            if self.build.language if part == "language" else self.build.encoder:
                yield worst(f"{part}.peak", {"every op": peak})


def _plain(value: Any) -> Any:
    """The value as JSON keeps it: tuples are lists."""
    return json.loads(json.dumps(value))
