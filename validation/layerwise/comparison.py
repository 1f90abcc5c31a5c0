"""The comparison of a model that is larger than the memory: `validation.comparison`, in another order.

First the reference's image tokens and transcripts of all samples, then the package's logits for them, led by the
reference's tokens. What needs tokens that nobody knows beforehand cannot be had this way: free answers (an answer that
parts from the reference's is the one the package gives while it is led), and the state beside the reference's cache,
which `validation.op_parity` and the blocks compare layer by layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Any

from fastvlm_ref.checkpoint.stream import StreamedEmbedding
from fastvlm_ref.samples import Sample
from validation.comparison import Comparison, Features, Truth
from validation.layerwise.expected import announcement, expected_seconds, measured_pace, work_of
from validation.layerwise.packages import Known, Place, Rows, led, logits_of_all
from validation.layerwise.table import StreamedTable
from validation.layerwise.transcripts import transcribe_all
from validation.parity import DecoderParity, compare_encoder
from validation.questions import AnswerRow
from validation.reference import Encoded, Transcript, encode, splice


class LayerwiseComparison(Comparison):
    """A build and its reference side by side, a layer of one of them in memory at a time."""

    def _compare_all(self, samples: Sequence[Sample]) -> Iterator[AnswerRow]:
        truths, own = self._encode_all(samples)
        embeds = [
            splice(self.reference, self.ids(sample.prompt), truth[self.image_size].tokens)
            for sample, truth in zip(samples, truths, strict=True)
        ]
        steps = [self.steps_after(len(rows)) for rows in embeds]
        transcripts = transcribe_all(self.pair.model, embeds, steps, self.progress)
        self._first = (samples[0], Truth(truths[0], transcripts[0], None))
        followed = self._follow_all(samples, transcripts, own)
        for sample, transcript, parities in zip(samples, transcripts, followed, strict=True):
            yield from self._rows_of(sample, transcript, parities)

    def _cached_positions(self) -> int:
        """One: the engine only looks up rows here, and a cache for a whole context takes up to 2 GB."""
        return 1

    def announce(self, samples: Sequence[Sample]) -> None:
        """Says how long all rungs will take, before anything is read but the one layer that is timed."""
        tokens = self.reference.tokens_at(self.image_size)
        positions = [tokens + sum(map(len, self.ids(sample.prompt))) for sample in samples]
        sides = self.pair.build.image_sizes or (self.image_size,)
        pixels = len(samples) * sum(side * side for side in sides)
        runs = 1 + (self.pair.build.encoder is not None)
        work = work_of(self.config.text, positions, list(map(self.steps_after, positions)), pixels, runs)
        self.progress.note(announcement(work, expected_seconds(work, measured_pace(self.pair.model))))

    def _encode_all(self, samples: Sequence[Sample]) -> tuple[list[dict[int, Encoded]], list[dict[int, Features]]]:
        """The image tokens of both sides, by size, for every sample; a build without an encoder has none of its own."""
        truths: list[dict[int, Encoded]] = []
        own: list[dict[int, Features]] = []
        sizes = tuple(dict.fromkeys((self.image_size, *self.pair.build.image_sizes)))
        with self.progress.stage("Pictures", len(samples)) as advance:
            for sample in samples:
                pixels = self._pixels(sample, sizes)
                truths.append({size: encode(self.tokens, picture, Event()) for size, picture in pixels.items()})
                own.append({})
                for size, encoded in truths[-1].items() if self.pair.build.encoder is not None else ():
                    own[-1][size] = self.package.encode_image(encoded.pixels)
                    name = f"{self._names[sample.picture]} at {size}"
                    self.found.encoder[name] = compare_encoder(encoded, own[-1][size])
                advance(1)
        return truths, own

    def _follow_all(
        self, samples: Sequence[Sample], transcripts: Sequence[Transcript], own: Sequence[dict[int, Features]]
    ) -> Iterator[tuple[DecoderParity, ...]]:
        """Per sample, how the package follows the transcript: behind the reference's image tokens, and its own."""
        items: list[Known] = []
        for sample, transcript, features in zip(samples, transcripts, own, strict=True):
            starts = [transcript.embeds]
            if features:
                starts.append(splice(self.package, self.ids(sample.prompt), features[self.image_size]))
            items += [led(rows, transcript.ids, self.package.embed) for rows in starts]
        seen = self._look if self.peaks is not None else None
        logits = logits_of_all(
            self.pair.build, items, backend=self.package.backend, compute_units=self.compute_units, seen=seen,
            progress=self.progress,
        )  # fmt: skip
        each = len(items) // len(samples)
        for number, transcript in enumerate(transcripts):
            found = logits[number * each : (number + 1) * each]
            yield tuple(
                self._parity(quantity, transcript, rows)
                for quantity, rows in zip(("language", "answer")[:each], found, strict=True)
            )

    def _look(self, place: Place, name: str, op: str, value: Any) -> None:
        assert self.peaks is not None
        self.peaks.look("language", (place.package, place.chunk.function), name, op, value)

    def _parity(self, quantity: str, transcript: Transcript, logits: Rows) -> DecoderParity:
        parity = DecoderParity(self.pair.limits[f"{quantity}.logit_error"])
        for expected, found in zip(transcript.logits, logits, strict=True):
            parity.add(expected, found)
        return parity

    def _rows_of(
        self, sample: Sample, transcript: Transcript, parities: tuple[DecoderParity, ...]
    ) -> Iterator[AnswerRow]:
        name = f"{self._names[sample.picture]}: {sample.prompt}"
        self.found.language[name] = parities[0]
        if len(parities) > 1:
            whole = self.found.answer[name] = parities[1]
            said, told = self._text(whole.package_ids), self._text(transcript.ids)
            yield AnswerRow(self._names[sample.picture], sample.prompt, said, told, sample.answer)

    def _table(self) -> Any:
        table = self.pair.model.decoder.embed_tokens
        return StreamedTable(table) if isinstance(table, StreamedEmbedding) else super()._table()

    def _transcribe(self, embeds: Rows, _: Event) -> Transcript:
        """One transcript alone: the self-test's, of a build that was compared on other pictures."""
        (transcript,) = transcribe_all(self.pair.model, [embeds], [self.steps_after(len(embeds))], self.progress)
        return transcript
