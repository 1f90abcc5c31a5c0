"""One run of the comparison: encoder, decoder and whole answers of a build against its reference, sample by sample.

It gathers the worst values and the answers; `validation.judging` says what they are held against and writes them down.
A build that was exported with `--only` is compared in the part that it has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.build import Build
from fastvlm.errors import ExecutionError
from fastvlm.progress import Progress
from fastvlm_ref.engine import TorchEngine
from fastvlm_ref.generate import check_budget
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt, prompt_record
from fastvlm_ref.samples import Sample
from fastvlm_ref.tokenizer import Tokenizer
from validation.embeddings import table_error, worst_scaled_row
from validation.limits import Measurement, limits_of, worst
from validation.parity import DecoderParity, EncoderParity, compare_decoder, compare_encoder
from validation.reference import Encoded, Transcript, encode, one_ahead, splice, transcribe
from validation.session import build_session
from validation.verdict import AnswerRow

Features = NDArray[np.float32]
NO_ANSWER = "none: its values are no numbers"


@dataclass(frozen=True)
class Truth:
    """What the reference makes of one sample: image tokens by size, and the transcript."""

    encoded: Mapping[int, Encoded]
    transcript: Transcript | None


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
        self.limits = limits_of(build.manifest["compression"])
        self.peaks = self.package.watch_peaks() if backend == "mil" else {}
        self.encoder: dict[str, EncoderParity] = {}
        self.language: dict[str, DecoderParity] = {}
        self.whole: dict[str, DecoderParity] = {}
        self.differing_ids: dict[str, float] = {}
        self._first: tuple[Sample, Truth] | None = None  # kept for the self-test

    def run(self, samples: Sequence[Sample]) -> tuple[tuple[Measurement, ...], tuple[AnswerRow, ...]]:
        """Measures everything; returns the worst value per limit, and the answers where the build can give any."""
        rows: list[AnswerRow] = []
        with self.progress.stage("Comparing with PyTorch", len(samples)) as advance, one_ahead() as results:
            for sample, truth in zip(samples, results(self._truths(samples)), strict=True):
                self._first = self._first or (sample, truth)
                rows += self._compare(sample, truth)
                advance(1)
        return tuple(self._measurements()), tuple(rows)

    def _truths(self, samples: Sequence[Sample]) -> Iterator[Callable[[Event], Truth]]:
        """Yields per sample what the reference has to do for it; pictures are opened here, by the caller's thread."""
        sizes = self.build.image_sizes or (self.image_size,)  # without an encoder the reference's tokens serve both
        for sample in samples:
            pixels = {size: self.pixels(sample.picture, size) for size in dict.fromkeys((self.image_size, *sizes))}
            yield partial(self._truth, sample, pixels)

    def _truth(self, sample: Sample, pixels: Mapping[int, NDArray[np.uint8]], stopped: Event) -> Truth:
        encoded = {size: encode(self.model, picture, stopped) for size, picture in pixels.items()}
        if not self.build.language:
            return Truth(encoded, None)
        embeds = splice(self.reference, self.ids(sample.prompt), encoded[self.image_size].tokens)
        return Truth(encoded, transcribe(self.reference, embeds, self.steps_after(len(embeds)), stopped))

    def _compare(self, sample: Sample, truth: Truth) -> Iterator[AnswerRow]:
        """Compares the package with one sample's truth; yields the sample's answers, where the build can give any."""
        own: dict[int, Features] = {}
        for size, encoded in truth.encoded.items() if self.build.encoder is not None else ():
            own[size] = self.package.encode_image(encoded.pixels)
            self.encoder[f"{sample.picture.name} at {size}"] = compare_encoder(encoded, own[size])
        if truth.transcript is None:
            return
        name = f"{sample.name}: {sample.prompt}"
        self.differing_ids[sample.prompt] = self._count_differing_ids(sample.prompt)
        self.language[name] = self._compare_decoder("language", truth.transcript, truth.transcript.embeds)
        if self.build.encoder is None:
            return
        embeds = splice(self.package, self.ids(sample.prompt), own[self.image_size])
        whole = self.whole[name] = self._compare_decoder("answer", truth.transcript, embeds)
        yield AnswerRow(
            sample.name, sample.prompt, self._own_answer(sample, whole), self._text(whole.reference_ids), sample.answer
        )

    def _compare_decoder(self, quantity: str, transcript: Transcript, embeds: Features) -> DecoderParity:
        return compare_decoder(transcript, self.package, embeds, self.limits[f"{quantity}.logit_error"])

    def _worst(self, key: str, values: dict[str, float]) -> Measurement:
        return worst(key, values, self.limits)

    def work_out(self, sample: Sample) -> tuple[Encoded, Transcript]:
        """Returns the reference's numbers for a sample, of the comparison if it was the first one there."""
        if self._first is None or self._first[0] != sample:
            (task,) = self._truths([sample])
            self._first = (sample, task(Event()))
        truth = self._first[1]
        assert truth.transcript is not None
        return truth.encoded[self.image_size], truth.transcript

    def pixels(self, picture: Path, size: int) -> NDArray[np.uint8]:
        """Returns a picture's RGB bytes (N, N, 3) by the checkpoint's image rule."""
        return preprocess(open_image(picture, progress=self.progress), size, self.model.config.image_rule)

    def ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """Returns the ids before and after the image, as the checkpoint makes them."""
        return encode_prompt(self.tokenizer, prompt, self.model.config.prompt)

    def steps_after(self, positions: int) -> int:
        """Returns how many steps fit behind a prompt; raises PromptError where not one does."""
        check_budget(positions, 1, self.build.context)
        return min(self.steps, self.build.context - positions)

    def _own_answer(self, sample: Sample, whole: DecoderParity) -> str:
        """What the build says when nobody leads it: the forced transcript, unless the two ever parted."""
        if whole.package_ids == whole.reference_ids:
            return self._text(whole.package_ids)
        try:
            return self.session.answer(sample.picture, sample.prompt, len(whole.package_ids)).text
        except ExecutionError:  # NaN or infinity: the measurements tell where, and fail the build
            return NO_ANSWER

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

    def _embedding_error(self) -> Measurement:
        """How far the table's rows are from the checkpoint's: exact in fp16, the worst row where it has scales."""
        table, file = self.model.decoder.embed_tokens.weight.detach().numpy(), self.package.embeddings
        if file.scales is None:
            return self._worst("embeddings.max_error", {"all rows": table_error(table, file.table)})
        row, decibel = worst_scaled_row(table, file.table, file.scales)
        return self._worst("embeddings.row_snr_db", {f"row {row}": decibel})

    def _measurements(self) -> Iterator[Measurement]:
        yield worst(
            "manifest.differing_fields", {"model, image and prompt": self._count_differing_fields()}, self.limits
        )
        if self.encoder:
            yield self._worst("encoder.psnr_db", {name: row.psnr_db for name, row in self.encoder.items()})
            yield worst(
                "encoder.snr_loss_db", {name: row.snr_loss_db for name, row in self.encoder.items()}, self.limits
            )
        if self.language:
            yield self._worst("language.kl", {name: row.mean_kl for name, row in self.language.items()})
            yield self._worst("language.kl_step", {name: max(row.kl) for name, row in self.language.items()})
            yield worst(
                "language.logit_error", {name: max(row.logit_error) for name, row in self.language.items()}, self.limits
            )
            yield worst(
                "language.divergences", {name: row.divergences for name, row in self.language.items()}, self.limits
            )
            yield self._embedding_error()
            yield self._worst("prompt.differing_ids", self.differing_ids)
        if self.whole:
            yield self._worst("answer.kl", {name: row.mean_kl for name, row in self.whole.items()})
            yield worst(
                "answer.logit_error", {name: max(row.logit_error) for name, row in self.whole.items()}, self.limits
            )
            yield self._worst("answer.divergences", {name: row.divergences for name, row in self.whole.items()})
        for part, peak in self.peaks.items():
            if self.build.language if part == "language" else self.build.encoder:
                first = self.package.beyond.get(part)
                yield self._worst(f"{part}.peak", {f"first in {first}" if first else "every op": peak})


def _plain(value: Any) -> Any:
    """The value as JSON keeps it: tuples are lists."""
    return json.loads(json.dumps(value))
