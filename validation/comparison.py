"""`fastvlm validate`: does this build compute what its checkpoint computes?

Order of things: the files against the manifest, the reference against the manifest's source, then encoder, decoder
and whole answers, each picture by picture. Everything runs on one thread, because torch's convolutions give other
bytes on two, and what is stored must be the same for the same build.
A failed verdict is written too, and removes an older `selftest/`: nothing calls that build good any more.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastvlm.errors import UsageError
from fastvlm.hashes import sha256_file
from fastvlm.manifest import check_files, dump, read_manifest
from fastvlm.progress import SILENT, Progress
from fastvlm.publish import replace_file
from fastvlm_ref import load_checkpoint
from fastvlm_ref.engine import TorchEngine
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt
from validation.engine import PackageEngine
from validation.limits import Measurement, worst
from validation.parity import DecoderParity, EncoderParity, compare_decoder, compare_encoder, splice
from validation.samples import Sample, samples_in, shipped_samples
from validation.selftest import FOLDER as SELFTEST
from validation.selftest import work_example, write_selftest
from validation.session import build_session
from validation.verdict import FILE, AnswerRow, Verdict

STEPS = 32


def validate(
    build: str | Path, reference: str | Path | None = None, *, images: str | Path | None = None, backend: str = "mil",
    steps: int = STEPS, progress: Progress = SILENT, **checkpoint_options: Any,
) -> Verdict:
    """Compares a build folder with its checkpoint and writes `validation.json` (and `selftest/` when it passes).

    `reference` may be left out for builds of the embedded checkpoint. `images` is a folder of pictures to use in
    place of the shipped ones. Raises BuildError (files missing or changed), UsageError (a reference that is not the
    build's source), and whatever loading the checkpoint raises.
    """
    build = Path(build)
    manifest = read_manifest(build)
    check_files(build, manifest)
    samples = shipped_samples() if images is None else samples_in(Path(images))
    with _one_thread():
        model = _load_reference(manifest, reference, progress, checkpoint_options)
        comparison = Comparison(build, model, backend, steps, progress)
        verdict = comparison.run(samples)
        _publish(verdict, build, comparison, samples)
    return verdict


def _load_reference(
    manifest: dict[str, Any], reference: str | Path | None, progress: Progress, options: dict[str, Any]
) -> FastVLM:
    source = manifest["source"]
    if reference is None:
        if source["id"] != "tiny":
            raise UsageError(f"this build was made from {source['id']}; name that checkpoint: --reference CHECKPOINT")
        reference = "tiny"
    with progress.stage("loading the reference"):
        model = load_checkpoint(reference, image_rule=manifest["image"]["rule"], **options)
    found, expected = model.source.files(), source["files"]
    if found != expected:
        different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise UsageError(
            f"{reference} is not what this build was made from ({', '.join(different[:5])} differ); "
            f"give the checkpoint {source['id']} it was exported from, or export again"
        )
    return model


@dataclass
class Comparison:
    """One run of the comparison: a build, its reference, and everything measured so far."""

    build: Path
    model: FastVLM
    backend: str
    steps: int
    progress: Progress

    def __post_init__(self) -> None:
        self.manifest = read_manifest(self.build)
        self.session = build_session(self.build, self.backend)
        self.package: PackageEngine = self.session.engine
        self.reference = TorchEngine(self.model, context=self.package.context)
        self.encoder: dict[str, EncoderParity] = {}
        self.language: dict[str, DecoderParity] = {}
        self.answers: dict[str, DecoderParity] = {}
        self.features: dict[str, NDArray[np.float32]] = {}
        self.peaks = self.package.watch_peaks() if self.backend == "mil" else {}

    def run(self, samples: list[Sample]) -> Verdict:
        """Measures everything and returns the verdict."""
        self._compare_encoders(samples)
        rows = tuple(self._compare_texts(samples))
        return Verdict(
            tuple(self._measurements(samples)), rows, self.backend, self.steps,
            sha256_file(self.build / "manifest.json"),
            {name: row["sha256"] for name, row in self.manifest["source"]["files"].items()},
            self.build / FILE,
        )

    def _compare_encoders(self, samples: list[Sample]) -> None:
        pictures = {sample.name: sample.picture for sample in samples}
        sizes = self.manifest["image"]["sizes"]
        with self.progress.stage("comparing encoders", len(pictures) * len(sizes)) as advance:
            for size in sizes:
                for name, path in pictures.items():
                    self._compare_encoder(name, path, size)
                    advance(1)

    def _compare_encoder(self, name: str, path: Path, size: int) -> None:
        pixels = preprocess(open_image(path), size, self.manifest["image"]["rule"])
        parity, features = compare_encoder(self.model, self.package, pixels)
        self.encoder[f"{name} at {size}"] = parity
        if size == self.package.image_size:
            self.features[name] = features

    def _compare_texts(self, samples: list[Sample]) -> Iterator[AnswerRow]:
        with self.progress.stage("comparing answers", len(samples)) as advance:
            for sample in samples:
                yield self._compare_text(sample)
                advance(1)

    def _compare_text(self, sample: Sample) -> AnswerRow:
        name = f"{sample.name}: {sample.prompt}"
        ids = self.ids(sample.prompt)
        features = self.features[sample.name]
        reference = splice(self.reference, ids, features)
        self.language[name] = self._decode(reference, reference)
        own = splice(self.package, ids, self.package.encode_image(self.pixels(sample)))
        self.answers[name] = self._decode(reference, own)
        coreml = self.session.answer(sample.picture, sample.prompt, self.steps).text
        pytorch = self.model.tokenizer.decode(self._without_stop(self.answers[name].reference_ids))
        return AnswerRow(sample.name, sample.prompt, coreml, pytorch, sample.answer)

    def _decode(self, reference: NDArray[np.float32], package: NDArray[np.float32]) -> DecoderParity:
        stop_ids = self.model.config.prompt.stop_ids
        return compare_decoder(self.reference, self.package, (reference, package), stop_ids, self.steps)

    def _without_stop(self, ids: list[int]) -> list[int]:
        return [i for i in ids if i not in self.model.config.prompt.stop_ids]

    def ids(self, prompt: str) -> tuple[list[int], list[int]]:
        """Returns the checkpoint's ids before and after the image."""
        return encode_prompt(self.model.tokenizer, prompt, self.session.prompt)

    def pixels(self, sample: Sample) -> NDArray[np.uint8]:
        """Returns the sample's RGB bytes (N, N, 3) at the package's default size."""
        return preprocess(open_image(sample.picture), self.package.image_size, self.manifest["image"]["rule"])

    def _measurements(self, samples: list[Sample]) -> Iterator[Measurement]:
        yield worst("encoder.psnr_db", {name: row.psnr_db for name, row in self.encoder.items()})
        yield worst("encoder.snr_loss_db", {name: row.snr_loss_db for name, row in self.encoder.items()})
        for part, peak in self.peaks.items():
            yield worst(f"{part}.peak", {"every op": peak})
        yield worst("language.kl", {name: max(row.kl) for name, row in self.language.items()})
        yield worst("language.logit_error", {name: max(row.logit_error) for name, row in self.language.items()})
        yield worst("language.divergences", {name: row.divergences for name, row in self.language.items()})
        yield worst("answer.divergences", {name: row.divergences for name, row in self.answers.items()})
        yield worst("embeddings.max_error", {"all rows": self._embedding_error()})
        yield worst("prompt.differing_ids", {sample.prompt: self._differing_ids(sample.prompt) for sample in samples})

    def _embedding_error(self) -> float:
        expected = self.model.decoder.embed_tokens.weight.detach().numpy().astype(np.float16).astype(np.float32)
        return float(np.abs(expected - self.package.embeddings.table).max())

    def _differing_ids(self, prompt: str) -> float:
        build = encode_prompt(self.session.tokenizer, prompt, self.session.prompt)
        checkpoint = self.ids(prompt)
        return float(sum(a != b for a, b in zip(build, checkpoint, strict=True)))


def _publish(verdict: Verdict, build: Path, comparison: Comparison, samples: list[Sample]) -> None:
    """Writes validation.json last, so that a passed verdict never stands beside a self-test of another build."""
    if verdict.passed:
        first = samples[0]
        test = work_example(
            comparison.reference, first.prompt, comparison.pixels(first), comparison.features[first.name],
            comparison.ids(first.prompt), comparison.model.config.prompt.stop_ids, comparison.steps,
        )
        write_selftest(build, test)
    elif (build / SELFTEST).is_dir():
        shutil.rmtree(build / SELFTEST)
    replace_file(verdict.path, dump(verdict.as_json()))


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
