"""What a chip does in a second, by the table of `fastvlm.devices`; where it has no figure, a rule, said aloud.

The Neural Engine:
- peak: Apple's TOPS. Up to A16 and M3 they are taken as fp16 operations (M1 was measured at 12 TFLOP/s, Apple says
  11); from A17 Pro and M4 on Apple counts int8, and fp16 is half of it (M4 was measured at 19, Apple says 38). Where
  somebody measured less (M3 10 to 16.8 by the size of the ops, M4 Pro 12.6 with small ones: maderix/ANE#3) the peak
  stays: which part of it is reached is the efficiency, and that is fitted to Apple's number of an M1 Max;
- bandwidth: what the engine was measured to read weights with; else the smaller of M1's share of its memory's
  bandwidth (90 %) and what the engines of base chips were measured to read (63 GB/s, the median);
- on the chip: what a generation was measured to hold, else the nearest older one; of M1 Pro and Max twice M1's, which
  nobody measured (`check.encoder_if` says what hangs on it);
- a call: the floor that was measured on M1 and M5. Ops inside a program cost nothing beside it;
- which compressed weights it reads as they are stored and which it makes fp16 first (ane-guide, chapter 7).
The GPU: its cores' fp16 rate, the memory's bandwidth, and a time for each decoder layer and call (`check.py`).
It knows no ops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from fastvlm.devices import CHIPS, ENGINES, GUIDE, PREDICTED, UNVERIFIED, Chip, Figure

COUNTS_INT8 = ("H16", "H17", "H18")  # whose TOPS Apple counts in int8
CALL_SECONDS = {"H13": 0.23e-3, "H17": 0.11e-3}  # of one call, by the first engine that has it: GUIDE, chapter 18
WORKING_SETS_FROM = f"{GUIDE}: chapters 9 and 12"
BASE = ("M1", "M2", "M3", "M4", "M5")  # whose engines were all measured beside their memories
_BY_NAME = {chip.name: chip for chip in CHIPS}
_ORDER = {engine.name: at for at, engine in enumerate(ENGINES)}


@dataclass(frozen=True)
class Speeds:
    """Of one engine. flops and bandwidth: a second, before any efficiency; call, layer: seconds of each.

    on_chip: bytes of an activation that stays there, None where caches are taken to hold them all; folded: forms of
    weights that are made fp16 before they are read; assumed: one sentence for each figure that the table lacks.
    """

    flops: float
    bandwidth: float
    on_chip: int | None
    call: float
    layer: float
    folded: frozenset[str]
    assumed: tuple[str, ...]


def engine_speeds(chip: Chip) -> Speeds:
    """Returns the Neural Engine's."""
    assumed: list[str] = []
    return Speeds(
        flops=_engine_flops(chip, assumed) * 1e12,
        bandwidth=_engine_bandwidth(chip, assumed) * 1e9,
        on_chip=_on_chip(chip, assumed),
        call=_from(CALL_SECONDS, chip.engine.name),
        layer=0.0,
        folded=folded(chip.engine.name),
        assumed=tuple(assumed),
    )


def gpu_speeds(chip: Chip, layer: float) -> Speeds:
    """Returns the GPU's; layer: seconds that each decoder layer costs at each call (`check.py`)."""
    assumed: list[str] = []
    peak = _figure(chip, lambda each: each.gpu_tflops, "TFLOP/s", "GPU", assumed)
    memory = _memory(chip, assumed)
    return Speeds(peak * 1e12, memory * 1e9, None, 0.0, layer, frozenset(), tuple(assumed))


def folded(engine: str) -> frozenset[str]:
    """Returns which forms of compressed weights an engine makes fp16 before it reads them.

    int8 streams from H14 on, int4 blocks from H15, palettes everywhere. The linter's rule `scales-fold` says the same.
    """
    at = _ORDER[engine]
    forms = {"channel": "H14", "block": "H15"}
    return frozenset(form for form, first in forms.items() if at < _ORDER[first])


def _engine_flops(chip: Chip, assumed: list[str]) -> float:
    if chip.tops is None and chip.tflops is not None:
        return chip.tflops.value
    stated = _figure(chip, lambda each: each.tops, "TOPS", "engine", assumed)
    if chip.engine.name not in COUNTS_INT8:
        return stated
    assumed.append(f"fp16 on the engine of {chip.name}: half of Apple's {stated:g} TOPS, which are int8's")
    return stated / 2


def _engine_bandwidth(chip: Chip, assumed: list[str]) -> float:
    if chip.engine_gbs is not None:
        return chip.engine_gbs.value
    memory, share, cap = _memory(chip, assumed), _share(), _cap()
    found = min(share * memory, cap)
    why = f"{share:.0%} of its memory's, as M1's" if found < cap else "the median of the base Macs' engines"
    assumed.append(f"nobody measured what {chip.name}'s engine reads: {found:.3g} GB/s taken, {why}")
    return found


def _share() -> float:
    """Of its memory's bandwidth that M1's engine reads, the one that its memory holds back."""
    chip = _BY_NAME["M1"]
    assert chip.engine_gbs is not None
    assert chip.memory_gbs is not None
    return chip.engine_gbs.value / chip.memory_gbs.value


def _cap() -> float:
    return median(figure.value for name in BASE if (figure := _BY_NAME[name].engine_gbs) is not None)


def _memory(chip: Chip, assumed: list[str]) -> float:
    figure = chip.memory_gbs
    assert figure is not None, chip.name  # of every chip of the table, as a test says
    _tell_unverified(figure, chip, "GB/s", "memory", assumed)
    return figure.value


def _tell_unverified(figure: Figure, chip: Chip, what: str, part: str, assumed: list[str]) -> None:
    if figure.source == UNVERIFIED:
        assumed.append(f"{figure.value:g} {what} of {chip.name}'s {part} stand in the table unverified")


def _figure(chip: Chip, of: Callable[[Chip], Figure | None], what: str, part: str, assumed: list[str]) -> float:
    """A figure of the chip, else that of the nearest before it in its line (A or M), which is then told."""
    line = [each for each in CHIPS if each.name[0] == chip.name[0]]
    for each in reversed(line[: line.index(chip) + 1]):
        figure = of(each)
        if figure is not None and (each is chip or _same_tier(each, chip)):
            _tell_unverified(figure, each, what, part, assumed)
            if each is not chip:
                assumed.append(
                    f"nobody published {what} of {chip.name}'s {part}: {each.name}'s {figure.value:g} stand in"
                )
            return figure.value
    raise AssertionError(f"{chip.name} has no {what} of its {part}, nor one before it")


def _same_tier(before: Chip, chip: Chip) -> bool:
    """Whether one may stand in for the other: an M4 Max says nothing of an M5, an A18 all that there is of an A19."""
    return chip.name[0] == "A" or before.name.partition(" ")[2] == chip.name.partition(" ")[2]


def _on_chip(chip: Chip, assumed: list[str]) -> int:
    if chip.working_set is not None:
        own = chip.working_set
        if own.source.endswith(PREDICTED):
            assumed.append(f"nobody measured what stays in {chip.name}'s engine: {own.value / 1e6:.1f} MB predicted")
        return int(own.value)
    if chip.engine.working_set is not None:
        return chip.engine.working_set
    known = [each for each in ENGINES[: _ORDER[chip.engine.name]] if each.working_set is not None]
    assert known[-1].working_set is not None
    held = known[-1].working_set
    assumed.append(
        f"nobody measured what stays in {chip.name}'s engine: {held / 1e6:.1f} MB taken, as {known[-1].name}'s"
    )
    return held


def _from(values: dict[str, float], engine: str) -> float:
    """The value of the last entry that begins at or before an engine."""
    return [value for first, value in values.items() if _ORDER[first] <= _ORDER[engine]][-1]
