"""A build folder of ONNX files: encoder, language model, embedding table, tokenizer, prompts and the manifest.

The manifest is that of a Core ML build with `format: "onnx"`, with `packages.encoder` by image size. What an
interrupted run finished is not taken over: an export takes seconds for 0.5B and is bound by the disk for 7B.
It writes into the folder that it is given; staging and publishing are `export.api`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.embeddings import FILE as EMBEDDINGS
from export.embeddings import table_record, write_embeddings
from export.onnx.coreml_ep import DECODE, PREFILL, coreml_functions, write_coreml_language
from export.onnx.encoder import encoder_function, write_encoders
from export.onnx.language import FILE as LANGUAGE
from export.onnx.language import language_function, write_language
from export.onnx.plan import OnnxPlan
from export.onnx.schemes import VARIANTS
from export.protection import UNPROTECTED, Protection
from export.side_files import manifest_head, write_licences, write_text_files
from fastvlm.build import ONNX
from fastvlm.hashes import FileHash, hash_tree
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.manifest import write_manifest
from fastvlm.progress import Progress
from fastvlm.prompts import EncodedPrompt
from fastvlm_ref.checkpoint.source import Source
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.samples import Sample
from fastvlm_ref.tokenizer import Tokenizer


@dataclass
class OnnxWriter:
    """Writes one build of `model` as `plan` says into an empty folder; `samples` show int8 the encoder's channels."""

    model: FastVLM
    plan: OnnxPlan
    folder: Path
    source: Source
    source_files: Mapping[str, FileHash]
    tokenizer: Tokenizer
    prompts: Sequence[EncodedPrompt]
    samples: Sequence[Sample]
    protection: Protection
    progress: Progress
    _content: dict[str, Any] = field(default_factory=lambda: {"packages": {}, "functions": {}})
    _saturated: dict[str, int] = field(default_factory=dict)

    def write(self) -> None:
        """Writes everything, the manifest last."""
        plan = self.plan.plan
        if plan.encoder:
            self._write_encoder()
        if plan.language:
            self._write_language()
            self._write_embeddings()
        text = write_text_files(self.folder, self.tokenizer, self.prompts)
        write_licences(self.folder, self.source, self.model.config.licence, self.progress)
        write_manifest(self.folder / MANIFEST, self._manifest() | text)

    def _write_encoder(self) -> None:
        config, form, sizes = self.model.config, self.plan.encoder, self.plan.plan.image_sizes
        written = write_encoders(self.model, sizes, self.folder, form, self.protection, self.samples, self.progress)
        self._content["packages"]["encoder"] = {str(side): name for side, name in written.models.items()}
        specs = [encoder_function(config.vision, config.text.hidden_size, side, form) for side in sizes]
        self._content["functions"]["encoder"] = {spec.name: spec.as_json() for spec in specs}
        self._report(written.clamped)

    def _write_language(self) -> None:
        text, plan, variant = self.model.config.text, self.plan.plan, self.plan.variant
        decoder = self.model.decoder
        with self.progress.stage("Language model"):
            if self.plan.coreml:
                specs = coreml_functions(text, plan.context, plan.query_length, variant)
                files = [DECODE, PREFILL]
                clamped = write_coreml_language(
                    decoder, self.folder, plan.context, plan.query_length, variant, self.protection
                )  # fmt: skip
            else:
                specs, files = (language_function(text, plan.context, variant),), [LANGUAGE]
                clamped = write_language(decoder, self.folder / LANGUAGE, plan.context, variant, self.protection)
        self._content["packages"]["language"] = files
        self._content["functions"]["language"] = [{spec.name: spec.as_json()} for spec in specs]
        self._report(clamped)

    def _write_embeddings(self) -> None:
        dtype = VARIANTS[self.plan.variant].embeddings
        with self.progress.stage("Embedding table"):
            self._report(write_embeddings(self.folder / EMBEDDINGS, self.model.decoder, dtype))
        self._content["embeddings"] = table_record(self.model.config.text, dtype)

    def _report(self, counts: Mapping[str, int]) -> None:
        for name in sorted(counts.keys() - self._saturated.keys()):
            self.progress.note(f"{name}: {counts[name]} values beyond 65,504 were clamped to what fp16 can hold")
        self._saturated |= counts

    def _manifest(self) -> dict[str, Any]:
        plan, variant = self.plan.plan, self.plan.variant
        compression: dict[str, Any] = {"scheme": variant}
        if plan.language:
            compression["embeddings"] = VARIANTS[variant].embeddings
        protection = self.protection if VARIANTS[variant].halves else UNPROTECTED
        return {
            **manifest_head(self.model, self.source, self.source_files, plan.image_sizes if plan.encoder else ()),
            **self._content,
            "format": ONNX,
            "context": plan.context,
            "query_length": plan.query_length,
            "target": self.plan.target,
            "compression": compression,
            "protection": protection.as_json(),
            "saturated": self._saturated,
            "files": hash_tree(self.folder, (MANIFEST,), "Hashing the build", self.progress),
        }
