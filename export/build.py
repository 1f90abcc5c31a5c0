"""The build folder: both packages, embedding table, tokenizer, prompts and the manifest that says how to run them.

Everything that a host must repeat is written once, into the manifest, from the same objects that made the graphs.
It writes into the folder it is given; staging and publishing are `export.api`'s. The packages and the embedding table
are parts (`fastvlm.parts`): what an interrupted run finished of the same things is taken over, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from export.choice import Compression
from export.chunks import Chunk, HeadSplit, chunks, head_split
from export.contract import SCALE, FunctionSpec, encoder_functions, language_functions
from export.convert import Converted
from export.embeddings import FILE as EMBEDDINGS
from export.embeddings import table_record, write_embeddings
from export.key_shift import shifts_keys
from export.language import LanguageConverter
from export.package import Labels, write_package
from export.parts_key import encoder_key, language_key
from export.plan import IOS_FILE, ExportPlan
from export.protection import PROTECTED, Protection
from export.quiet import import_coremltools
from export.ready_prompts import fitting_prompts
from export.side_files import manifest_head, write_licences, write_text_files
from export.sizes import LANGUAGE, language_bytes
from export.vision import converted_encoder
from fastvlm import __version__
from fastvlm.hashes import FileHash, hash_tree
from fastvlm.licences import licence_text
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.manifest import SCHEMA, write_manifest
from fastvlm.mlpackage import WEIGHT_FILE
from fastvlm.parts import RECORDS, Parts
from fastvlm.progress import Advance, Progress
from fastvlm.prompts import EncodedPrompt
from fastvlm_ref.checkpoint.source import Source, weight_hashes
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.tokenizer import Tokenizer

AUTHOR = f"fastvlm {__version__}"


@dataclass
class BuildWriter:
    """Writes one build of `model` as `plan` says into an empty folder."""

    model: FastVLM
    plan: ExportPlan
    folder: Path
    source: Source
    tokenizer: Tokenizer
    progress: Progress
    compression: Compression = field(default_factory=Compression)
    protection: Protection = PROTECTED
    saturated: dict[str, int] = field(default_factory=dict)

    def write(self) -> None:
        """Writes everything, the manifest last."""
        self.parts.want(self.made_of)
        with self.progress.stage("Loading coremltools"):
            import_coremltools()
        if self.plan.encoder:
            self.write_encoder()
        if self.plan.language:
            self.write_language()
            self.write_embeddings()
        text = {}
        if self.plan.purpose is None:  # an app has its own
            text = write_text_files(self.folder, self.tokenizer, self.prompts)
        write_licences(self.folder, self.source, self.model.config.licence, self.progress)
        write_manifest(self.folder / MANIFEST, self.manifest() | text)

    @cached_property
    def source_files(self) -> dict[str, FileHash]:
        """The checkpoint's files with their hashes."""
        return self.source.files(self.progress)

    @cached_property
    def prompts(self) -> tuple[EncodedPrompt, ...]:
        """The ready-made prompts with their ids."""
        return fitting_prompts(self.model, self.plan, self.progress)

    @cached_property
    def parts(self) -> Parts:
        """The packages and the embedding table, of which an interrupted run may have left some."""
        return Parts(self.folder, self.progress)

    @cached_property
    def made_of(self) -> dict[str, dict[str, Any]]:
        """What makes each part, by its name in the build."""
        model, plan, files = self.model, self.plan, self.source_files
        found = {}
        if plan.encoder:
            key = encoder_key(model, plan, files) | self.compression.key("encoder")
            found[plan.encoder_package] = key | {"protection": self.protection.encoder_key}
        if plan.language:
            key = language_key(model, plan, files) | {"protection": self.protection.language_key}
            found[EMBEDDINGS] = key | {"dtype": self.compression.embeddings}
            key |= self.compression.key("language")
            found |= {chunk.package: key | {"chunk": asdict(chunk)} for chunk in self.chunks}
        return found

    @property
    def encoder_specs(self) -> tuple[FunctionSpec, ...]:
        config = self.model.config
        return encoder_functions(config.vision, config.text.hidden_size, self.plan)

    def write_encoder(self) -> None:
        """Writes the encoder's package: one conversion, one function per size, one weight file."""
        specs, package = self.encoder_specs, self.plan.encoder_package
        labels = self.labels(_encoder_text(self.plan), specs)
        with self.progress.stage("Vision encoder", len(specs) + 1) as advance:  # each size, the hashes
            clamped = self.parts.make(
                package, self.made_of[package],
                lambda path: write_package(
                    path, self._encoder_functions(specs, advance), specs[0].name, labels,
                    self.compression.layers("encoder."),
                ),
            )  # fmt: skip
            advance(1)
        self._report(clamped)

    def _encoder_functions(self, specs: tuple[FunctionSpec, ...], advance: Advance) -> Iterator[Converted]:
        projector = self.plan.projector
        for function in converted_encoder(self.model, specs, self.compression, self.protection, projector=projector):
            yield function
            advance(1)

    def write_language(self) -> None:
        """Writes the language model: one package, or a chain of packages where a device takes no file that large."""
        with (
            LanguageConverter(self.model.decoder, self.plan, self.compression, self.protection) as converter,
            self.progress.stage("Language model", len(self.chunks)) as advance,
        ):
            for chunk in self.chunks:
                self._write_chunk(chunk, converter)
                advance(1)
        self._note_device_limits()

    def _write_chunk(self, chunk: Chunk, converter: LanguageConverter) -> None:
        specs = converter.functions(chunk)
        labels = self.labels(_chunk_text(chunk), specs)
        functions = (converter.convert(chunk, spec) for spec in specs)
        layers = self.compression.layers(*_prefixes(chunk))
        clamped = self.parts.make(
            chunk.package, self.made_of[chunk.package],
            lambda path: write_package(path, functions, "decode", labels, layers),
        )  # fmt: skip
        self._report(clamped)

    @cached_property
    def split(self) -> HeadSplit:
        """How the head is cut into outputs."""
        return head_split(self.model.config.text, self.plan.target)

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """The language model's packages, in order."""
        text = self.model.config.text
        shifts = shifts_keys(self.model.decoder, self.plan.context)
        return chunks(text, self.plan, language_bytes(text, self.plan, self.compression, shifts_keys=shifts))

    def _note_device_limits(self) -> None:
        """Tells where a file is larger than iOS is said to take; it still runs on a Mac."""
        sizes = {chunk.package: (self.folder / chunk.package / WEIGHT_FILE).stat().st_size for chunk in self.chunks}
        package, size = max(sizes.items(), key=lambda item: item[1])
        if size > IOS_FILE:
            self.progress.note(f"{package} holds {size / 1e9:.1f} GB in one program; iOS is said to take about 1 GB")

    def write_embeddings(self) -> None:
        """Writes embeddings.bin."""
        with self.progress.stage("Embedding table"):
            clamped = self.parts.make(
                EMBEDDINGS, self.made_of[EMBEDDINGS],
                lambda path: write_embeddings(path, self.model.decoder, self.compression.embeddings),
            )  # fmt: skip
        self._report(clamped)

    def _report(self, counts: dict[str, int]) -> None:
        for name in sorted(counts.keys() - self.saturated.keys()):
            self.progress.note(f"{name}: {counts[name]} values beyond 65,504 were clamped to what fp16 can hold")
        self.saturated |= counts

    def labels(self, text: str, specs: tuple[FunctionSpec, ...]) -> Labels:
        """Returns what Xcode shows of a package; the contract goes along for readers that have the package alone.

        The source is named by its weights' hashes: a folder's name would make other bytes of the same model.
        """
        contract = {spec.name: spec.as_json() for spec in specs}
        extra = {
            "fastvlm.schema": SCHEMA,
            "fastvlm.version": __version__,
            "fastvlm.source": json.dumps(weight_hashes(self.source_files), sort_keys=True),
            "fastvlm.contract": json.dumps(contract, sort_keys=True),
        }
        return Labels(
            f"{text} A derivative of the checkpoint whose weights have the SHA-256 under fastvlm.source.",
            AUTHOR,
            licence_text(self.model.config.licence),
            __version__,
            extra,
        )

    def manifest(self) -> dict[str, Any]:
        """Returns the manifest of what lies in the folder, but for the text's files; fields: docs/architecture.md."""
        plan, sizes = self.plan, self.plan.image_sizes if self.plan.encoder else ()
        scale = SCALE if plan.purpose is None else 1.0
        content: dict[str, Any] = {
            **manifest_head(self.model, self.source, self.source_files, sizes, scale),
            "context": plan.context,
            "query_length": plan.query_length,
            "target": plan.target,
            "functions": {},
            "packages": {},
            "compression": self.compression.as_json(plan.parts),
            "protection": self.protection.as_json(),
            "saturated": self.saturated,
        }
        if plan.purpose is not None:
            content["for"] = plan.purpose
        if plan.encoder:
            self._add_encoder(content)
        if plan.language:
            self._add_language(content)
        skip = (MANIFEST, RECORDS, *self.parts.names)
        files = hash_tree(self.folder, skip, "Hashing the build", self.progress) | self.parts.hashes
        return content | {"files": files}

    def _add_encoder(self, content: dict[str, Any]) -> None:
        content["packages"]["encoder"] = self.plan.encoder_package
        content["functions"]["encoder"] = {spec.name: spec.as_json() for spec in self.encoder_specs}

    def _add_language(self, content: dict[str, Any]) -> None:
        text = self.model.config.text
        content["packages"]["language"] = [chunk.package for chunk in self.chunks]
        content["functions"]["language"] = [
            stage_record(language_functions(text, self.plan, chunk, self.split)) for chunk in self.chunks
        ]
        content["embeddings"] = table_record(text, self.compression.embeddings)


def _prefixes(chunk: Chunk) -> Iterator[str]:
    """How the names of the layers begin that a language package holds, as recipes call them."""
    yield from (f"{LANGUAGE}layers.{index}." for index in range(chunk.first, chunk.last))
    if chunk.parts:
        yield f"{LANGUAGE}lm_head"


def _encoder_text(plan: ExportPlan) -> str:
    """The sentence that Xcode shows of the encoder's package."""
    sizes = ", ".join(map(str, plan.image_sizes))
    if plan.purpose is None:
        return f"FastVLM vision encoder with projector: an RGB picture ({sizes} pixels a side) to image tokens."
    return f"FastVLM vision encoder without projector, for Apple's sample app: pixels ({sizes} a side) to image tokens."


def _chunk_text(chunk: Chunk) -> str:
    """The sentence that Xcode shows of a language package."""
    model = "FastVLM language model"
    if chunk.count == 1:
        return f"{model}: embeddings in, logits out; prefill all positions but the last, decode the last."
    layers = f"layers {chunk.first} to {chunk.last - 1}" if chunk.layers else "no layers"
    head = f", {len(chunk.parts)} outputs of the head" if chunk.parts else ""
    return f"{model}, package {chunk.number} of {chunk.count}: {layers}{head}."


def stage_record(specs: tuple[FunctionSpec, ...]) -> dict[str, Any]:
    """Returns the manifest's entry for one language package: its functions, and the state that they share."""
    entry = {spec.name: spec.as_json() for spec in specs}
    states = [spec.state.as_json() for spec in specs if spec.state is not None]
    return entry | {"state": states[0]} if states else entry
