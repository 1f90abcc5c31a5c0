"""One run of the comparison: encoder, decoder and whole answers of a build against its reference, sample by sample.

The first samples are compared in full, step by step; of the others both sides answer freely and the answers alone are
compared, which is what a user's own questions are for. On the first sample the decoder's state is compared as well.
A build that was exported with `--only` is compared in the part that it has.
What was found is gathered here; `validation.judging` says what it is held against and writes it down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastvlm.build import ONNX
from fastvlm.errors import ExecutionError, PromptError
from fastvlm.progress import Progress
from fastvlm_ref.engine import TorchEngine
from fastvlm_ref.generate import check_budget
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.prompt import encode_prompt
from fastvlm_ref.samples import Sample
from fastvlm_ref.tokenizer import Tokenizer
from validation.engine import PackageEngine
from validation.findings import Findings
from validation.host_parity import (
    differing_bytes,
    differing_fields,
    differing_ids,
    differing_vocabulary,
    embedding_error,
)
from validation.limits import Measurement
from validation.pair import Pair
from validation.parity import DecoderParity, compare_decoder, compare_encoder
from validation.peaks import Peaks
from validation.questions import AnswerRow, DifferingStep
from validation.reference import Encoded, Transcript, encode, one_ahead, splice, transcribe
from validation.rungs import Example
from validation.session import Session, session_of
from validation.state_parity import Filled, compare_state, fill, rows_to_fill
from validation.stopwatch import Stopwatch

if TYPE_CHECKING:
    from validation.ort.engine import OrtEngine

Features = NDArray[np.float32]
Pixels = NDArray[np.uint8]
NO_ANSWER = "none: its values are no numbers"


@dataclass(frozen=True)
class Truth:
    """What the reference makes of one sample: image tokens by size, the transcript, and what its cache then holds."""

    encoded: Mapping[int, Encoded]
    transcript: Transcript | None
    filled: Filled | None


class Comparison:
    """A build and its reference side by side; `steps` greedy tokens per question."""

    def __init__(
        self, pair: Pair, tokenizer: Tokenizer, backend: str, steps: int, progress: Progress,
        compute_units: str | None = None,
    ) -> None:  # fmt: skip
        build, model = pair.build, pair.model
        self.pair, self.tokenizer, self.steps, self.progress = pair, tokenizer, steps, progress
        self.config, self.compute_units = model.config, compute_units
        with progress.stage("Opening the build"):
            self.package = self._engine(backend, compute_units)
            self._session = session_of(self.package) if build.language else None
        self.image_size = self.package.image_size or model.config.vision.image_size
        self.reference = TorchEngine(model, self._cached_positions(), self.image_size)
        self.stop_ids = self.config.prompt.stop_ids
        self.stopwatch = Stopwatch(self.package)
        self._packages = self.package if isinstance(self.package, PackageEngine) else None  # whose state can be read
        self.peaks = self._packages.watch_peaks() if self._packages and backend == "mil" else None
        self.found = Findings()
        self._names: dict[Path, str] = {}
        self._first: tuple[Sample, Truth] | None = None  # kept for the self-test

    def _engine(self, backend: str, compute_units: str | None) -> PackageEngine | OrtEngine:
        """The build as an engine; of ONNX files on one thread, as the reference: both give the same bytes each time."""
        if self.pair.build.format != ONNX:
            return PackageEngine(self.pair.build, backend, compute_units=compute_units)
        from validation.ort.engine import OrtEngine
        from validation.ort.settings import Settings

        return OrtEngine(self.pair.build, settings=Settings(threads=1))

    @property
    def onnx(self) -> OrtEngine | None:
        """The engine of a build of ONNX files; None for packages."""
        return None if isinstance(self.package, PackageEngine) else self.package

    @property
    def session(self) -> Session[Any]:
        """The build as something that answers; one with a language model alone is asked for it."""
        assert self._session is not None
        return self._session

    def _cached_positions(self) -> int:
        """For how many positions the reference's engine keeps keys and values."""
        return self.pair.build.context if self.pair.build.language else 1

    def run(self, samples: Sequence[Sample], in_full: int) -> tuple[list[Measurement], list[AnswerRow]]:
        """Measures everything; returns the worst value per limit, and the answers where the build can give any.

        The first `in_full` samples are compared step by step. Raises PromptError, before anything is computed, for
        prompts that do not fit into the context.
        """
        whole = self.pair.build.encoder is not None and bool(self.pair.build.language)
        self._name(samples)
        self._compare_prompts(samples)
        answers = list(self._compare_all(samples[:in_full]))
        answers += self._ask_all(samples[in_full:]) if whole else []
        self._compare_files()
        return self.found.measurements(self.pair.limits), answers

    def _name(self, samples: Sequence[Sample]) -> None:
        """Names every picture by its file, and pictures of one file name in several folders by their number as well."""
        pictures = list(dict.fromkeys(sample.picture for sample in samples))
        shared = Counter(picture.name for picture in pictures)
        for number, picture in enumerate(pictures, 1):
            more = f" (picture {number})" if shared[picture.name] > 1 else ""
            self._names[picture] = picture.name + more

    def name_of(self, sample: Sample) -> str:
        """How a sample's picture is called in what was found."""
        return self._names[sample.picture]

    def _compare_prompts(self, samples: Sequence[Sample]) -> None:
        tokens = self.reference.tokens_at(self.image_size)
        for sample in samples if self.pair.build.language else ():
            ids = self.ids(sample.prompt)
            try:
                self.steps_after(tokens + sum(map(len, ids)))
            except PromptError as error:
                raise PromptError(f"{self._names[sample.picture]}: {error}") from error
            self.found.add("prompt.differing_ids", sample.prompt, differing_ids(self.session, sample.prompt, ids))

    def _compare_all(self, samples: Sequence[Sample]) -> Iterator[AnswerRow]:
        with self.progress.stage("Comparing with PyTorch", len(samples)) as advance, one_ahead() as results:
            for sample, truth in zip(samples, results(self._truths(samples)), strict=True):
                self._first = self._first or (sample, truth)
                yield from self._compare(sample, truth)
                advance(1)

    def _ask_all(self, samples: Sequence[Sample]) -> Iterator[AnswerRow]:
        """Both sides answer as they would for a user."""
        if not samples:
            return
        with self.progress.stage("Asking both sides", len(samples)) as advance, one_ahead() as results:
            for sample, told in zip(samples, results(self._tellings(samples)), strict=True):
                yield AnswerRow(self._names[sample.picture], sample.prompt, self._answer(sample), told, sample.answer)
                advance(1)

    def _truths(self, samples: Sequence[Sample], with_state: bool = True) -> Iterator[Callable[[Event], Truth]]:
        """Yields per sample what the reference has to do for it; pictures are opened here, by the caller's thread."""
        sizes = self.pair.build.image_sizes or (self.image_size,)  # without an encoder the reference's serve both
        for number, sample in enumerate(samples):
            pixels = self._pixels(sample, tuple(dict.fromkeys((self.image_size, *sizes))))
            yield partial(self._truth, sample, pixels, with_state and bool(self._packages) and number == 0)

    def _truth(self, sample: Sample, pixels: Mapping[int, Pixels], with_state: bool, stopped: Event) -> Truth:
        encoded = {size: encode(self.tokens, picture, stopped) for size, picture in pixels.items()}
        if not self.pair.build.language:
            return Truth(encoded, None, None)
        embeds = splice(self.reference, self.ids(sample.prompt), encoded[self.image_size].tokens)
        transcript = self._transcribe(embeds, stopped)
        if not with_state:
            return Truth(encoded, transcript, None)
        rows = np.concatenate((embeds, self.reference.embed(transcript.ids[:-1])))
        filled = fill(self.pair.model.decoder, rows_to_fill(rows, self.pair.build.query), stopped)
        return Truth(encoded, transcript, filled)

    def tokens(self, pixels: Tensor) -> Tensor:
        """What the reference makes of pixels (1, 3, N, N) where the build's encoder has its result: (1, T, H)."""
        return self.pair.form.tokens(self.pair.model, pixels)

    def _transcribe(self, embeds: Features, stopped: Event) -> Transcript:
        return transcribe(self.reference, embeds, self.steps_after(len(embeds)), stopped)

    def _tellings(self, samples: Sequence[Sample]) -> Iterator[Callable[[Event], str]]:
        """Yields per sample what the reference has to do to answer it."""
        for sample in samples:
            yield partial(self._telling, sample, self._pixels(sample, (self.image_size,))[self.image_size])

    def _telling(self, sample: Sample, pixels: Pixels, stopped: Event) -> str:
        embeds = splice(self.reference, self.ids(sample.prompt), self.reference.encode_image(pixels))
        steps = self.steps_after(len(embeds))
        return self._text(transcribe(self.reference, embeds, steps, stopped, self.stop_ids).ids)

    def _compare(self, sample: Sample, truth: Truth) -> Iterator[AnswerRow]:
        """Compares the package with one sample's truth; yields the sample's answers, where the build can give any."""
        own: dict[int, Features] = {}
        for size, encoded in truth.encoded.items() if self.pair.build.encoder is not None else ():
            own[size] = self.stopwatch.encode_image(encoded.pixels)
            self.found.encoder[f"{self._names[sample.picture]} at {size}"] = compare_encoder(encoded, own[size])
        if truth.transcript is None:
            return
        name = f"{self._names[sample.picture]}: {sample.prompt}"
        self.found.language[name] = self._follow("language", truth.transcript, truth.transcript.embeds)
        if truth.filled is not None and self._packages is not None:
            self.found.state = compare_state(self.pair, self._packages, truth.filled)
        if self.pair.build.encoder is None:
            return
        embeds = splice(self.package, self.ids(sample.prompt), own[self.image_size])
        whole = self.found.answer[name] = self._follow("answer", truth.transcript, embeds)
        told = self._text(whole.reference_ids)
        # what the build says when nobody leads it is the forced transcript, unless the two ever parted
        said = told if whole.package_ids == whole.reference_ids else self._answer(sample)
        yield AnswerRow(self._names[sample.picture], sample.prompt, said, told, sample.answer)

    def _follow(self, quantity: str, transcript: Transcript, embeds: Features) -> DecoderParity:
        return compare_decoder(transcript, self.stopwatch, embeds, self.pair.limits[f"{quantity}.logit_error"])

    def _answer(self, sample: Sample) -> str:
        """What the build says to a question."""
        positions = self.package.tokens_at(self.image_size) + sum(map(len, self.ids(sample.prompt)))
        try:
            return self.session.answer(sample.picture, sample.prompt, self.steps_after(positions)).text
        except ExecutionError:  # NaN or infinity: the measurements tell where, and fail the build
            return NO_ANSWER

    def _compare_files(self) -> None:
        """What needs no sample: the manifest, the embedding table; and what was seen on the way, the largest values."""
        build, found = self.pair.build, self.found
        fields = differing_fields(self.config, self.tokenizer.bos, build)
        found.add("manifest.differing_fields", "; ".join(fields[:3]) or "model, image and prompt", len(fields))
        if build.language:
            size = self.config.text.vocab_size
            found.add(
                "tokenizer.differing_ids", "every id, and texts of many scripts",
                differing_vocabulary(self.session.tokenizer, self.tokenizer, size),
            )  # fmt: skip
            key, worst_rows = embedding_error(self._table(), self.package.embeddings)
            found.single[key] = dict(worst_rows)
        if self.peaks is not None:
            self._compare_peaks(self.peaks)

    def _compare_peaks(self, peaks: Peaks) -> None:
        for part, peak in peaks.parts.items():
            if self.pair.build.language if part == "language" else self.pair.build.encoder:
                first = peaks.beyond.get(part)
                self.found.add(f"{part}.peak", f"first in {first}" if first else "every op", peak)

    def _table(self) -> NDArray[np.float32]:
        """The checkpoint's embedding table (V, H), float32."""
        table: NDArray[np.float32] = self.pair.model.decoder.embed_tokens.weight.detach().numpy()
        return table

    def example(self) -> Example:
        """Returns the first sample that was compared, as the rungs below take it."""
        assert self._first is not None
        truth, sizes = self._first[1], self.pair.build.image_sizes
        pictures = [encoded.pixels for size, encoded in truth.encoded.items() if size in sizes]
        rows = truth.transcript.embeds if truth.transcript is not None else None
        return Example(pictures if self.pair.build.encoder is not None else [], rows)

    def work_out(self, sample: Sample) -> tuple[Encoded, Transcript]:
        """Returns the reference's numbers for a sample, of the comparison if it was the first one there."""
        if self._first is None or self._first[0] != sample:
            self._names.setdefault(sample.picture, sample.name)
            (task,) = self._truths([sample], with_state=False)
            self._first = (sample, task(Event()))
        truth = self._first[1]
        assert truth.transcript is not None
        return truth.encoded[self.image_size], truth.transcript

    def _pixels(self, sample: Sample, sizes: Sequence[int]) -> dict[int, Pixels]:
        """Returns a picture's RGB bytes (N, N, 3) by the checkpoint's image rule; counts what the build's gives."""
        picture = open_image(sample.picture, progress=self.progress)
        pixels = {size: preprocess(picture, size, self.config.image_rule) for size in sizes}
        for size in sizes if self.pair.build.encoder is not None else ():
            differing = differing_bytes(self.pair.build, picture, pixels[size])
            self.found.add("preprocess.differing_bytes", f"{self._names[sample.picture]} at {size}", differing)
        return pixels

    def ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """Returns the ids before and after the image, as the checkpoint makes them."""
        return encode_prompt(self.tokenizer, prompt, self.config.prompt)

    def steps_after(self, positions: int) -> int:
        """Returns how many steps fit behind a prompt; raises PromptError where not one does."""
        check_budget(positions, 1, self.pair.build.context)
        return min(self.steps, self.pair.build.context - positions)

    def _text(self, ids: Sequence[int]) -> str:
        """The answer that ids (S,) spell: up to the first stop id."""
        return self.tokenizer.decode(list(takewhile(lambda i: i not in self.stop_ids, ids)))

    def differing_steps(self) -> Iterator[DifferingStep]:
        """Gives every step at which the package's token was another."""
        for of, transcripts in (("language", self.found.language), ("answer", self.found.answer)):
            for name, parity in transcripts.items():
                for number, step in enumerate(parity.steps, 1):
                    if step.differs:
                        texts = (self.tokenizer.decode([i]) for i in (step.reference_id, step.package_id))
                        yield DifferingStep(of, name, number, step, *texts)
