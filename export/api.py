"""`export.export`: a checkpoint becomes a build folder, published whole or not at all.

Everything runs on one thread, so that the same checkpoint gives the same bytes whatever the number of cores.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.apple_app import refusal
from export.build import BuildWriter
from export.choice import cautions, intended, measured, smallest, unused
from export.formats import ANE, check_format
from export.graph_memory import graphs_forgotten
from export.onnx.plan import OnnxPlan, make_onnx_plan
from export.onnx.space import onnx_bytes
from export.plan import ExportPlan, make_plan
from export.precheck import check_weights
from export.protection import UNPROTECTED, Protection
from export.ranges.kept import kept_protection
from export.ready_prompts import fitting_prompts
from export.sizes import check_files
from export.space import check_space, needed_bytes, part_bytes
from export.written import check_written
from fastvlm.build import COREML, ONNX
from fastvlm.errors import UsageError
from fastvlm.hashes import FileHash
from fastvlm.progress import SILENT, Progress
from fastvlm.publish import check_apart, check_output, kept_bytes, staged_folder
from fastvlm.scratch import temporary_in
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.checkpoint.hub import on_disk
from fastvlm_ref.checkpoint.opening import folder_of
from fastvlm_ref.checkpoint.source import Source
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.samples import Sample, samples_in, shipped_samples
from fastvlm_ref.threads import one_thread


@one_thread()
def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    image_sizes: Sequence[int] = (),
    context: int | None = None,
    query_length: int = 64,
    only: str | None = None,
    target: str | None = None,
    max_file_size: int | None = None,
    quantize: str | Path | None = None,
    calibration: str | Path | None = None,
    purpose: str | None = None,
    format: str = COREML,
    image_rule: str | None = None,
    template: str | None = None,
    system: str | None = None,
    base: str | Path | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Exports a checkpoint to Core ML, or with `format` "onnx" to ONNX, and returns the build folder.

    `image_sizes` N in pixels (none: the checkpoint's own), `context` C (none: 2048) and `query_length` Q in positions,
    `only` "encoder" or "language", `target` "ane" (none) or "gpu", `max_file_size` in bytes of a language model's
    weight file (none: 1 GB for "ane", any for "gpu"), `quantize` a scheme's name or a recipe's file
    (docs/compression.md), `calibration` a folder of pictures to measure on (none: the shipped ones). `purpose`
    "apple-app" makes the encoder that Apple's sample app takes, and that alone (docs/apple-app.md). ONNX has targets
    and schemes of its own, "cpu" and "fp32" where none is named (`export.onnx.plan`).
    Raises UsageError and OutputError before the checkpoint is read, CheckpointError while it is, TensorError for NaN or
    infinity among the weights, OutputError for a full disk and UsageError for a recipe that does not fit before the
    first conversion, PackageError when the converter did not make what the contract says. Nothing is left behind on
    failure; an interrupt leaves the finished packages, which the same call takes over, byte for byte.
    """
    check_format(
        format, image_sizes=image_sizes, context=context, query_length=query_length, only=only, target=target,
        max_file_size=max_file_size, quantize=quantize, calibration=calibration, purpose=purpose,
    )  # fmt: skip
    place = check_output(output, overwrite)  # before gigabytes are fetched
    reading = [*(() if base is None else ("--base", str(base))), *(("--allow-pickle",) if allow_pickle else ())]
    typed = shlex.join([str(checkpoint), *reading])
    checkpoint, base = on_disk(checkpoint, progress), None if base is None else on_disk(base, progress)
    check_apart(place, [folder_of(path) for path in (checkpoint, base) if path is not None])
    model = load_checkpoint(
        checkpoint, stream=True, base=base, allow_pickle=allow_pickle, image_rule=image_rule, template=template,
        system=system, progress=progress,
    )  # fmt: skip
    return export_model(
        model, output, image_sizes=image_sizes, context=context, query_length=query_length, only=only,
        target=target, max_file_size=max_file_size, quantize=quantize, calibration=calibration, purpose=purpose,
        format=format, overwrite=overwrite, progress=progress, typed=typed,
    )  # fmt: skip


@one_thread()
def export_model(
    model: FastVLM,
    output: str | Path,
    *,
    image_sizes: Sequence[int] = (),
    context: int | None = None,
    query_length: int = 64,
    only: str | None = None,
    target: str | None = None,
    max_file_size: int | None = None,
    quantize: str | Path | None = None,
    calibration: str | Path | None = None,
    purpose: str | None = None,
    format: str = COREML,
    overwrite: bool = False,
    progress: Progress = SILENT,
    protection: Protection | None = None,
    typed: str | None = None,
) -> Path:
    """As `export`, for a model that `load_checkpoint` returned.

    `protection` takes the place of what a kept scan of this checkpoint asks for; `typed` is how the user names it on
    the command line, options of reading it included (none: its id).
    """
    if model.source is None or model.tokenizer is None:
        raise UsageError("this model has no source or no tokenizer; read it with load_checkpoint")
    check_format(
        format, image_sizes=image_sizes, context=context, query_length=query_length, only=only, target=target,
        max_file_size=max_file_size, quantize=quantize, calibration=calibration, purpose=purpose,
    )  # fmt: skip
    order = _Order(output, overwrite, calibration, protection, typed, progress)
    if format == ONNX:
        asked = make_onnx_plan(model.config, image_sizes, context, query_length, only, target, quantize)
        return _export_onnx(model, asked, order)
    plan = make_plan(model.config, image_sizes, context, query_length, only, target or ANE, max_file_size, purpose)
    return _export_coreml(model, plan, quantize, order)


@dataclass(frozen=True)
class _Order:
    """What is asked for alike in every format: the arguments of `export_model` of these names."""

    output: str | Path
    overwrite: bool
    calibration: str | Path | None
    protection: Protection | None
    typed: str | None
    progress: Progress

    def place(self, source: Source) -> Path:
        """Returns where the build goes; OutputError where nothing may be written, or the checkpoint lies."""
        place = check_output(self.output, self.overwrite)
        check_apart(place, [source.folder, source.base.folder if source.base else None])
        return place

    def samples(self) -> list[Sample]:
        """Returns the pictures to measure on."""
        return shipped_samples() if self.calibration is None else samples_in(Path(self.calibration), "--calibration")

    def protected(self, model: FastVLM, plan: ExportPlan, source: Source, files: Mapping[str, FileHash]) -> Protection:
        """Returns the protection that was given, or what a kept scan of this checkpoint asks for."""
        if self.protection is not None:
            return self.protection
        return kept_protection(model, plan, files, self.typed or shlex.quote(source.id), self.progress)


def _export_coreml(model: FastVLM, plan: ExportPlan, quantize: str | Path | None, order: _Order) -> Path:
    source, tokenizer, progress = model.source, model.tokenizer, order.progress
    assert source is not None
    assert tokenizer is not None
    _tell_of_context(model, plan, progress)
    if plan.purpose is not None and (problem := refusal(model.config.vision, plan.image_sizes[0])):
        progress.note(problem)
    place = order.place(source)
    prompts = fitting_prompts(model, plan, progress)
    samples = order.samples()
    intent = intended(model, plan, quantize)
    check_files(model.config.text, plan, smallest(intent, model, plan))
    parts = part_bytes(model, plan, intent)
    check_space(place, parts, kept_bytes(place))
    check_weights(model, plan, progress)
    files = source.files(progress)
    protection = order.protected(model, plan, source, files)
    compression = measured(intent, model, plan, samples, progress)
    check_files(model.config.text, plan, compression)  # `mixed` may have chosen more than the fewest bytes
    for note in (*unused(compression, plan, order.calibration is not None), *cautions(compression)):
        progress.note(note)
    needed = needed_bytes(parts)
    with (
        staged_folder(
            place, order.overwrite, progress=progress, resume=True, needed=needed, check=check_written
        ) as folder,
        temporary_in(folder),
        graphs_forgotten(),
    ):
        writer = BuildWriter(model, plan, folder, source, tokenizer, progress, compression, protection)
        writer.source_files, writer.prompts = files, prompts  # 15 GB are hashed once, a note is told once
        writer.write()
    return place


def _export_onnx(model: FastVLM, asked: OnnxPlan, order: _Order) -> Path:
    source, tokenizer, progress = model.source, model.tokenizer, order.progress
    assert source is not None
    assert tokenizer is not None
    _tell_of_context(model, asked.plan, progress)
    if order.calibration is not None and not (asked.plan.encoder and asked.encoder.eight_bits):
        progress.note("--calibration changes nothing here: encoders of int8 and int4 alone are measured on pictures")
    place = order.place(source)
    prompts = fitting_prompts(model, asked.plan, progress)
    samples = order.samples()
    parts = onnx_bytes(model, asked)
    check_space(place, parts)
    halves = asked.variant == "fp16"  # nothing else can overflow
    check_weights(model, asked.plan, progress, halves)
    files = source.files(progress)
    protection = UNPROTECTED if order.protection is None else order.protection
    if halves:
        protection = order.protected(model, asked.plan, source, files)
    needed = needed_bytes(parts)
    with (
        staged_folder(place, order.overwrite, progress=progress, needed=needed, check=check_written) as folder,
        temporary_in(folder),
    ):
        from export.onnx.build import OnnxWriter

        OnnxWriter(model, asked, folder, source, files, tokenizer, prompts, samples, protection, progress).write()
    return place


def _tell_of_context(model: FastVLM, plan: ExportPlan, progress: Progress) -> None:
    limit = model.config.text.max_positions
    if plan.language and plan.context > limit:
        progress.note(f"--context {plan.context} is more than the {limit} positions that this model was made for")
