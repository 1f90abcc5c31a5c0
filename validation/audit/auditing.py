"""The audit of a build: every constant of every function against the checkpoint, and nothing in it unexplained.

Each function is walked as the reference runs it (`encoder`, `decoder`), which holds geometry, axes, eps, scales and
windows of the state against it; then every declared parameter is looked up by name and its numbers are compared,
those that several functions share once. Nothing is executed and no picture is needed.
What was found goes against the table of limits; a verdict is somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from export.contract import language_functions
from export.convert import constant_name
from export.embeddings import TABLE
from export.language import chunk_weight, graph_of
from export.parameters import GraphWeight, graph_weights
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.threads import one_thread
from validation.audit.decoder import DecoderWalk
from validation.audit.decoder_ane import AneWalk
from validation.audit.decoder_gpu import GpuWalk
from validation.audit.encoder import EncoderWalk
from validation.audit.findings import UNEXPLAINED, Findings
from validation.audit.interface import hold_interface
from validation.audit.labels import hold_labels
from validation.audit.prompts import hold_prompts
from validation.audit.provenance import hold_provenance
from validation.audit.schemes import compare, places, schemes_of
from validation.audit.told import hold_manifest, other_chain
from validation.audit.walk import Walk
from validation.counterparts.decoder import DecoderPart
from validation.limits import CODED, Measurement
from validation.pair import Pair
from validation.program.contents import Function, Program, Value

WALKS: dict[str, type[DecoderWalk]] = {"ane": AneWalk, "gpu": GpuWalk}


@dataclass(frozen=True)
class Job:
    """One function that a package must have: how it is walked, its parameters, and what each should hold."""

    package: Path
    name: str
    follow: Callable[[Walk], None]
    parameters: Sequence[str]
    weight: Callable[[str], GraphWeight]


@dataclass(frozen=True)
class Comparison:
    """One stored weight and what it should hold."""

    title: str
    value: Value
    weight: GraphWeight


def audit(pair: Pair, progress: Progress = SILENT) -> tuple[Measurement, ...]:
    """Returns what the audit of a build found, a measurement for each row; the subject is the first thing that differs.

    Takes seconds and a few hundred megabytes; a model that streams is read once, piece by piece. Raises PackageError
    for a package that cannot be read, BuildError for a manifest that no export writes, TensorError for a checkpoint
    whose weights are no numbers.
    """
    findings = Findings()
    schemes = schemes_of(pair.build.manifest["compression"])
    comparisons = list(_walked(pair, findings))
    total = sum(each.value.stored for each in comparisons)
    with progress.stage("Comparing every constant with the checkpoint", total) as advance, one_thread():
        for each in comparisons:
            compare(each.title, each.weight, each.value, schemes, findings)
            advance(each.value.stored)
    hold_interface(pair, findings)
    hold_labels(pair, findings)
    hold_prompts(pair, findings)
    saturable = {each.weight.name for each in comparisons} | ({f"decoder.{TABLE}"} if pair.build.language else set())
    hold_provenance(pair, saturable, findings)
    hold_manifest(pair, findings)  # last: the files say more than a field about them, and the first difference is told
    return tuple(findings.measurements({**CODED, **pair.limits}))


def _walked(pair: Pair, findings: Findings) -> Iterator[Comparison]:
    """Walks every function; gives every stored weight once."""
    done: set[tuple[Path, Hashable, str]] = set()
    for job, function in _functions(pair, findings):
        title = f"{job.package.name} {function.name}"
        walk = Walk(function, title, findings)
        job.follow(walk)
        walk.finish()
        walk.place = "its parameters"
        held = {value.name: value for op in function.ops for value in op.values if value.fixed and value.name}
        findings.look(UNEXPLAINED, len(job.parameters))
        for name in job.parameters:
            value = held.get(constant_name(name))
            if value is None or name not in walk.parameters:
                walk.missing(f"nothing reads {constant_name(name)}, which is declared")
                continue
            weight = job.weight(name)
            key = (job.package, places(value), weight.name)
            if key not in done:
                done.add(key)
                yield Comparison(f"{title}: {value.name}", value, weight)


def _functions(pair: Pair, findings: Findings) -> Iterator[tuple[Job, Function]]:
    """Gives every function that there must be; counts those that are missing, and those that nothing explains."""
    jobs = list(_jobs(pair))
    for job in jobs:
        found = _by_name(pair.program(job.package)).get(job.name)
        if found is None:
            findings.count(UNEXPLAINED, f"{job.package.name} has no function {job.name}")
        else:
            yield job, found
    for package in dict.fromkeys(job.package for job in jobs):
        expected = {job.name for job in jobs if job.package == package}
        for name in _by_name(pair.program(package)).keys() - expected:
            findings.count(UNEXPLAINED, f"{package.name} has a function {name}, expected {', '.join(sorted(expected))}")


def _jobs(pair: Pair) -> Iterator[Job]:
    build = pair.build
    if build.encoder is not None:
        graph, safe = pair.encoder_graph, pair.protection.safe_forms
        weights = graph_weights(graph, "vision_encoder")
        for side in build.image_sizes:

            def follow(walk: Walk, side: int = side) -> None:
                EncoderWalk(walk, pair.model, graph, pair.form, side, safe).run()

            yield Job(build.encoder, pair.form.function(side), follow, tuple(weights), weights.__getitem__)
    for package, part in pair.parts() if build.language and not other_chain(pair) else ():
        yield from _language_jobs(pair, package, part)


def _language_jobs(pair: Pair, package: Path, part: DecoderPart) -> Iterator[Job]:
    text, plan = pair.model.config.text, pair.plan
    weight = partial(chunk_weight, part.decoder, part.sizes, part.target, part.chunk, part.split)
    own = replace(text, layers=part.chunk.layers, vocab_size=part.split.rows, tied_head=False)
    for spec in language_functions(text, plan, part.chunk, part.split):
        query = spec.inputs[0].shape[1]
        sizes = replace(part.sizes, text=own, query=query, first=part.chunk.number == 1)
        with torch.device("meta"):  # parameters are asked for by name alone
            graph = graph_of(sizes, part.target, spec, part.chunk, part.split)
        names = tuple(name for name, _ in graph.named_parameters())

        def follow(
            walk: Walk, query: int = query, filling: bool = spec.name == "prefill" and part.chunk.filling
        ) -> None:
            WALKS[part.target](walk, part, query).run(filling)

        yield Job(package, spec.name, follow, names, weight)


def _by_name(program: Program) -> dict[str, Function]:
    return {function.name: function for function in program.functions}
