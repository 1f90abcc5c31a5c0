"""The ready-made prompts of a build, held against what the reference's tokenizer and template make of their texts.

A host without a tokenizer puts these ids between the image tokens as they are: a wrong one is a wrong question, and
nothing that is executed here would show it. Which prompts there are is the checkpoint's choice and may change since;
but where any of its own fit into the context there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from export.plan import PARTS, ExportPlan
from export.ready_prompts import fitting_prompts
from fastvlm.manifest import is_older
from fastvlm.progress import SILENT
from fastvlm.prompts import NAME, EncodedPrompt, read_prompts
from fastvlm_ref.prompt import encode_prompt
from validation.audit.findings import CONSTANTS, Findings
from validation.differences import different
from validation.pair import Pair

SINCE = "0.3"  # the manifest's schema


def hold_prompts(pair: Pair, findings: Findings) -> None:
    """Counts every row of ids that is otherwise than an export of this checkpoint writes it; none before schema 0.3,
    nor of an encoder for an app.

    Raises BuildError for a file that holds no prompts.
    """
    build = pair.build
    if build.purpose is not None or (build.prompts is None and is_older(build.manifest, SINCE)):
        return
    findings.look(CONSTANTS)
    for words in different("prompts", build.manifest.get("prompts"), {"file": NAME}):
        findings.count(CONSTANTS, f"manifest.json: {words}")
    if build.prompts is None:
        return
    prompts = read_prompts(build.prompts)
    if not prompts and (fitting := fitting_prompts(pair.model, _plan(pair), SILENT)):
        findings.count(CONSTANTS, f"{NAME} holds no prompt, expected one at least: {fitting[0].title!r} fits")
    for prompt in prompts:
        findings.look(CONSTANTS, 2)
        for words in _differing(pair, prompt):
            findings.count(CONSTANTS, f"{NAME}: {prompt.title!r}: {words}")


def _plan(pair: Pair) -> ExportPlan:
    """What decides which prompts fit: a language model alone is made for the sizes that the checkpoint has."""
    build = pair.build
    sides = build.image_sizes or (pair.model.config.vision.image_size,)
    parts = tuple(part for part, there in zip(PARTS, (build.encoder, build.language), strict=True) if there)
    return replace(pair.plan, image_sizes=sides, parts=parts)


def _differing(pair: Pair, prompt: EncodedPrompt) -> Iterator[str]:
    assert pair.model.tokenizer is not None
    before, after = encode_prompt(pair.model.tokenizer, prompt.text, pair.model.config.prompt)
    yield from _first("ids_before_image", prompt.ids_before_image, before)
    yield from _first("ids_after_image", prompt.ids_after_image, after)


def _first(name: str, told: Sequence[int], wanted: Sequence[int]) -> Iterator[str]:
    """The first id that differs, or the number of them."""
    for place, (mine, theirs) in enumerate(zip(told, wanted, strict=False)):
        if mine != theirs:
            yield f"{name}[{place}] is {mine}, expected {theirs}"
            return
    if len(told) != len(wanted):
        yield f"{name} has {len(told)} ids, expected {len(wanted)}"
