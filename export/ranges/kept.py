"""What an export makes of a scan that was made before: the exponents, and in words whatever is missing or not cured.

Nothing is scanned here: a scan takes minutes, and an export shall not do unasked what another command is for.
It knows no graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from export.plan import ExportPlan
from export.protection import PROTECTED, Protection
from export.ranges.cache import fingerprint, load
from export.ranges.decoder import CONTEXT
from export.ranges.exponents import SHIFTED_SCORES, asked_of
from export.ranges.result import DECODER, ENCODER, Ranges
from fastvlm import quoting
from fastvlm.exponents import exponents_in_words
from fastvlm.hashes import FileHash
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.model.fastvlm import FastVLM

# A scan by the command streams the decoder, and is not taken for one that is in memory, where it may have been changed.
HELD = "its decoder is in memory: scan it with export.ranges.scan.scan_model, or load it with stream=True"


def kept_protection(
    model: FastVLM, plan: ExportPlan, files: Mapping[str, FileHash], typed: str, progress: Progress = SILENT
) -> Protection:
    """Returns the exponents that the kept scan of this checkpoint asks for; without one, none.

    `files` is `Source.files()`, `typed` how the user names the checkpoint on a command line. Told to `progress.note`:
    that there is no scan, image sizes and keys that it did not see, and what no exponent cures. TensorError for values
    that fp16 cannot carry.
    """
    ranges = load(fingerprint(model, files), progress)
    if ranges is None:
        progress.note(
            "no scan of this checkpoint is kept: what its values reach is unknown, and none is scaled to fit fp16; "
            + (HELD if _held(model) else f"type: {scan_command(typed, plan.image_sizes if plan.encoder else ())}")
        )
        return PROTECTED
    if missing := _missing(ranges, plan):
        progress.note(
            f"the scan of this checkpoint saw pictures of {_listed(ranges.image_sizes)} pixels, none of "
            f"{_listed(missing)}, whose values it is taken to speak for; type: "
            f"{scan_command(typed, plan.image_sizes)}"
        )
    protection, problems = asked_of(_of_parts(ranges, plan), plan.context, plan.projector)
    if plan.language and plan.context > CONTEXT and _shifts(ranges):
        progress.note(
            f"the scan saw keys without the part of their biases that a context of {CONTEXT:,} leaves out; one of "
            f"{plan.context:,} leaves out another, and its scores may exceed what was seen: run `fastvlm validate`"
        )
    for problem in problems:
        progress.note(problem)
    if exponents := exponents_in_words(protection.as_json()):
        progress.note(f"as the scan asks, these are stored divided by powers of two: {exponents}")
    return replace(protection, scanned=ranges.image_sizes)


def scan_command(typed: str, sides: Sequence[int]) -> str:
    """Returns what to type for a scan that covers an export at `sides`."""
    return f"fastvlm scan {quoting.typed(typed)}{''.join(f' --image-size {side}' for side in sides)}"


def _of_parts(ranges: Ranges, plan: ExportPlan) -> Ranges:
    """What was found of the parts that are made: others ask for nothing."""
    encoder, decoder = (ranges.part(ENCODER) if plan.encoder else ()), (ranges.part(DECODER) if plan.language else ())
    sites = ranges.sites.items() if plan.encoder else ()
    made = {name: tensors for name, tensors in sites if plan.projector or not name.startswith("projector")}
    return replace(ranges, tensors=encoder + decoder, sites=made)


def _held(model: FastVLM) -> bool:
    """Whether the decoder's layers are in memory; the final norm always is."""
    return any(weight.device.type != "meta" for weight in model.decoder.layers.parameters())


def _shifts(ranges: Ranges) -> bool:
    """Whether keys of any layer go without a part of their bias."""
    return any(name.endswith(SHIFTED_SCORES) for name in ranges.peaks(DECODER))


def _missing(ranges: Ranges, plan: ExportPlan) -> list[int]:
    return [side for side in plan.image_sizes if plan.encoder and side not in ranges.image_sizes]


def _listed(sides: Sequence[int]) -> str:
    return ", ".join(map(str, sides))
