"""What to export for a device: the scheme that loses least of those that fit, where it answers sooner, as a command.

The rule: of what fits into memory and into an app, `int8` before `lut6`, `int4` and `lut4` (docs/compression.md says
what each loses; fp16 only where nothing else is asked about, since int8 loses hardly anything of it); of one scheme the
Neural Engine, unless an answer of 100 tokens is done sooner on the GPU by more than the estimate can be wrong. What
fits into memory alone may travel as a download.
It knows no arithmetic.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.compression.recipe import FP16
from fastvlm.devices import DEVICES, Device
from fastvlm.errors import UsageError
from fastvlm.quoting import typed
from validation.fit.estimating import ANSWER, CONTEXT, Estimate, estimate, target_of
from validation.fit.memory import FITS
from validation.fit.sizes import Sizes
from validation.fit.words import size

CHOICES = (
    (FP16, "ane"), ("int8", "ane"), ("lut6", "ane"), ("lut4", "ane"), (FP16, "gpu"), ("int8", "gpu"), ("int4", "gpu")
)  # fmt: skip
LOSING = ("int8", "lut6", "int4", "lut4", FP16)  # the first that fits is taken
SOONER = 1.33  # times, by which the GPU must be sooner: about the engine's errors; the GPU's are larger (check.py)
PLACES = {"ane": "the Neural Engine", "gpu": "the GPU"}
UNKNOWN = "CHECKPOINT"  # stands in a command for what nobody can know: where the weights are
DISTRUSTED = "4-bit palettes beside a state are reported to crash or to compute wrong numbers: try lut4 on the device"


@dataclass(frozen=True)
class Advice:
    """Everything about a target on one device.

    estimates: of every choice at every image size; refused: choices that there cannot be, each with the reason; best:
    what is recommended, at the largest image; command: how to make it, None where nothing fits or it is there already.
    """

    device: Device
    estimates: tuple[Estimate, ...]
    refused: tuple[str, ...]
    best: Estimate | None
    command: str | None
    why: str

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        best = None if self.best is None else {"scheme": self.best.scheme, "target": self.best.target}
        return {
            "device": self.device.name, "kind": self.device.kind, "chip": self.device.chip.name,
            "engine": self.device.engine.name, "memory_gb": list(self.device.memory_gb),
            "estimates": [each.as_json() for each in self.estimates], "refused": list(self.refused),
            "recommended": best, "command": self.command, "why": self.why,
        }  # fmt: skip


def advise(
    sizes: Sizes, device: Device, image_sizes: Sequence[int] = (), context: int | None = None,
    scheme: str | None = None, target: str | None = None,
) -> Advice:  # fmt: skip
    """Returns what `sizes` would be on `device`; scheme, target: those alone. Raises UsageError as `estimate`."""
    sides = tuple(dict.fromkeys(image_sizes)) or _own_sides(sizes)
    if sizes.built is not None:
        own = [estimate(sizes, device, scheme, side, context, target=target) for side in sides]
        return _of_build(sizes, device, own)
    found, refused = [], []
    for name, place in _asked(scheme, target):
        try:
            found += [estimate(sizes, device, name, side, context, target=place) for side in sides]
        except UsageError as problem:
            if scheme is not None or name == FP16:  # what was asked for, or what no scheme changes
                raise
            refused.append(f"{name} for {place}: {problem}")
    best, why = _best([each for each in found if each.image_size == max(sides)])
    command = None if best is None else export_command(sizes, best, sides)
    return Advice(device, tuple(found), tuple(refused), best, command, why)


def classes() -> tuple[tuple[Device, ...], ...]:
    """Returns the devices of the table, those together that nothing here tells apart: kind, chip and least memory."""
    found: dict[tuple[str, str, int], list[Device]] = {}
    for device in DEVICES:
        found.setdefault((device.kind, device.chip.name, min(device.memory_gb)), []).append(device)
    return tuple(tuple(devices) for devices in found.values())


def export_command(sizes: Sizes, best: Estimate, sides: Sequence[int]) -> str:
    """Returns the command that makes what was estimated; `CHECKPOINT` where only the user knows it."""
    checkpoint = sizes.checkpoint or UNKNOWN
    stem = _stem(sizes.checkpoint or sizes.name)
    words = ["fastvlm", "export", checkpoint, "-o", f"{stem}-{Path(best.scheme).stem}"]
    words += ["--quantize", best.scheme] if best.scheme != FP16 else []
    words += ["--target", best.target] if best.target != "ane" else []
    words += [word for side in sides for word in ("--image-size", str(side))]
    words += ["--context", str(best.context)] if best.context != CONTEXT else []
    return " ".join(map(quoted, words))


def _stem(name: str) -> str:
    """What an export is named after: the folder, or a Hub id without its owner and revision."""
    path = Path(name) if Path(name).exists() else Path(name.partition("@")[0])
    return path.name.strip(".") or "FastVLM"


def quoted(word: str) -> str:
    """Returns one word for a shell, of which a terminal shows every sign."""
    return typed(shlex.quote(word))


def _own_sides(sizes: Sizes) -> tuple[int, ...]:
    return sizes.built.image_sizes if sizes.built else (sizes.vision.image_size,)


def _asked(scheme: str | None, target: str | None) -> list[tuple[str, str]]:
    """The choices to look at; a scheme that is none of them, or a recipe's file, is one."""
    found = [choice for choice in CHOICES if scheme in (None, choice[0]) and target in (None, choice[1])]
    return found if found or scheme is None else [(scheme, target or target_of(scheme))]


def _of_build(sizes: Sizes, device: Device, own: Sequence[Estimate]) -> Advice:
    """A build's own scheme; where it does not fit, what to export in its place."""
    largest = max(own, key=lambda each: each.image_size)
    if largest.memory.fits and largest.fits_app:
        return Advice(device, tuple(own), (), largest, None, f"this build fits: {_sizes_in_words(largest)}")
    planned = advise(replace(sizes, built=None), device, [each.image_size for each in own], largest.context)
    why = f"this build does not fit: {'; '.join(_problems(largest))}. Exported anew: {planned.why}"
    return Advice(device, tuple(own), planned.refused, planned.best, planned.command, why)


def _best(found: Sequence[Estimate]) -> tuple[Estimate | None, str]:
    """What is recommended, and why; None and why nothing is."""
    held = [each for each in found if each.memory.fits]
    packed = [each for each in held if each.fits_app]
    for fitting in (packed, held):
        for scheme in (*LOSING, *(each.scheme for each in fitting)):
            same = sorted((each for each in fitting if each.scheme == scheme), key=_patience)
            if same:
                how = _how(scheme, {each.scheme for each in found}, {each.scheme for each in fitting})
                how += "" if fitting is packed else " into memory"
                return same[0], "; ".join(_in_words(same, how))
    smallest = min(found, key=lambda each: each.memory.need)
    problems = "; ".join(_problems(smallest))
    return None, (
        f"nothing fits: even {smallest.scheme} on {PLACES[smallest.target]} does not ({problems}); take a smaller "
        "checkpoint, a smaller --context or a device with more memory"
    )


def _how(scheme: str, asked: set[str], fitting: set[str]) -> str:
    """Why a scheme is taken; `fitting` are those that fit."""
    if len(asked) == 1:
        return "fits"
    if scheme == "int8" and FP16 in fitting:
        return "fits, as fp16 does: half of its bytes for next to no loss"
    return "loses least of what fits"


def _patience(each: Estimate) -> float:
    """Seconds of an answer, those on the GPU counted longer."""
    return each.answer * (SOONER if each.target == "gpu" else 1.0)


def _in_words(same: Sequence[Estimate], how: str) -> Iterator[str]:
    """Why the first of the estimates of one scheme, and what to know about it."""
    best = same[0]
    yield f"{best.scheme} on {PLACES[best.target]} {how}: {_sizes_in_words(best)}"
    if len(same) > 1:
        first, second = (f"{each.answer:.2g} s on {PLACES[each.target]}" for each in same[:2])
        yield f"an answer of {ANSWER} tokens takes {first}, {second}"
    if best.memory.verdict == "with increased-memory-limit":
        yield "the app needs the entitlement increased-memory-limit"
    if best.memory.verdict == "unknown":
        yield best.memory.basis
    if best.scheme == "lut4" and best.target == "ane":
        yield DISTRUSTED
    if not best.fits_app:
        yield "too large for an app: ship it as a download (`fastvlm bundle BUILD --for server`)"


def _sizes_in_words(each: Estimate) -> str:
    return f"{size(each.files.total)} of files (an app may have {size(each.app_limit)}), {_memory_in_words(each)}"


def _memory_in_words(each: Estimate) -> str:
    memory = each.memory
    if memory.limit is None or memory.increased is None:
        return f"{size(memory.need)} of memory"
    more = f", {size(memory.increased)} with the entitlement" if memory.increased != memory.limit else ""
    return f"{size(memory.need)} of memory (it gets {size(memory.limit)}{more})"


def _problems(each: Estimate) -> Iterator[str]:
    """What keeps it off the device."""
    if not each.memory.fits:
        tight = each.memory.verdict in FITS
        yield f"{_memory_in_words(each)}{', too little beside it for the app itself' if tight else ''}"
    if not each.fits_app:
        yield f"{size(each.files.total)} of files (an app may have {size(each.app_limit)})"
