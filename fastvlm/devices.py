"""The one table of phones, tablets and Macs: what `--device NAME` means in every command.

A device has a chip, a chip has a Neural Engine of one generation, and a generation has the limits that
`validation.lint` holds a program to. Every number is a `Figure` with its source, None where nobody has published one;
figures that nobody here could look up say so (`UNVERIFIED`). Nothing here was measured by this project.

Generations carry the names that Apple's own tools give them (H13 … H18). The public tables name them after phone chips
and do not agree: "16,384 up to A15, 65,536 from A16" counts compiler families, of which M3 is the third and M4 the
fourth. An iPhone 16 Pro is `h17p` and an iPhone 17 Pro `h18p` to Apple's compiler, and its numbers follow the device
identifier, so an iPhone 15 Pro (A17 Pro, iPhone16,1) is H16 like the M4, and A16 is H15 like the M3. Where that is
wrong for A16, the smaller limit is the safe one.

This file knows neither packages nor rules.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from fastvlm.errors import UsageError

UNVERIFIED = "unverified"
PREDICTED = "predicted"  # ends the source of a figure that somebody derived and nobody measured
GUIDE = "sbryngelson/ane-guide, arXiv 2606.22283"
BENCH = "Anemll/anemll-bench, Results.MD"
HOLLANCE = "hollance/neural-engine, page supported-devices"
ZOO = "john-rocky/coreai-model-zoo"
METAL = "philipturner/metal-benchmarks, README"
SIDEKICK = "Bean John, Sidekick, GPU.swift"
HMC = "hmc-tech.com, pages of GPUs"


@dataclass(frozen=True)
class Figure:
    """One number and where it comes from."""

    value: float
    source: str

    def as_json(self) -> dict[str, float | str]:
        """The same as plain data."""
        return {"value": self.value, "source": self.source}


@dataclass(frozen=True)
class Engine:
    """A generation of the Neural Engine, with the limits that its compiler enforces.

    axis: longest width, height and depth; channels: longest channel axis. kernel_width: of a convolution in fp16.
    working_set: bytes that stay on the chip. source says for all of them where they come from.
    """

    name: str
    chips: str
    axis: int
    channels: int
    kernel_width: int
    texture: bool  # resize, crop_resize, resample, affine and gather have hardware
    working_set: int | None
    source: str


# In order: each takes all that the one before takes ("operation superset", ane-guide chapter 12).
ENGINES = (
    Engine("H13", "A14, M1", 16_384, 65_536, 13, False, 2 << 20, f"{GUIDE}: chapter 17 and appendix A, measured on M1"),
    Engine("H14", "A15, M2", 16_384, 65_536, 13, True, None, f"{GUIDE}: chapter 12, measured on M2"),
    Engine("H15", "A16, M3", 16_384, 65_536, 13, True, None, f"{GUIDE}: predicted; M3 Ultra: ncdrone/rustane#13"),
    Engine("H16", "A17 Pro, M4", 65_536, 65_536, 15, True, None, f"{GUIDE}: chapter 12, predicted"),
    Engine("H17", "A18, A18 Pro, M5", 65_536, 65_536, 15, True, 4_720_000, f"{GUIDE}: chapter 12, measured on M5"),
    Engine("H18", "A19, A19 Pro", 65_536, 65_536, 15, True, None, f"{GUIDE}: chapter 34, predicted"),
)
_ENGINES = {engine.name: engine for engine in ENGINES}


@dataclass(frozen=True)
class Chip:
    """A chip: the speeds of its engine, its memory and its GPU.

    TFLOP/s are of fp16 products, the engine's as measured, the GPU's by its cores and clock; TOPS as Apple says.
    working_set: bytes that stay in the engine, where a chip has other than its generation (`Engine.working_set`).
    """

    name: str
    engine: Engine
    tops: Figure | None = None
    tflops: Figure | None = None
    engine_gbs: Figure | None = None  # GB/s at which the engine reads weights
    memory_gbs: Figure | None = None  # GB/s of the whole chip
    gpu_tflops: Figure | None = None
    working_set: Figure | None = None


def _tops(value: float) -> Figure:
    return Figure(value, HOLLANCE)


def _bench(value: float) -> Figure:
    return Figure(value, BENCH)


_ROWS = (
    Chip("A14", _ENGINES["H13"], _tops(11), memory_gbs=Figure(34, UNVERIFIED)),
    Chip("A15", _ENGINES["H14"], _tops(15.8), memory_gbs=Figure(34, UNVERIFIED)),
    Chip("A16", _ENGINES["H15"], _tops(17), memory_gbs=Figure(51.2, UNVERIFIED)),
    Chip("A17 Pro", _ENGINES["H16"], _tops(35), memory_gbs=Figure(51.2, UNVERIFIED)),
    Chip("A18", _ENGINES["H17"], _tops(35), memory_gbs=Figure(60, UNVERIFIED)),
    Chip("A18 Pro", _ENGINES["H17"], _tops(35), memory_gbs=Figure(60, UNVERIFIED)),
    Chip("A19", _ENGINES["H18"], memory_gbs=Figure(68.3, UNVERIFIED)),
    Chip("A19 Pro", _ENGINES["H18"], memory_gbs=Figure(76.8, UNVERIFIED)),
    Chip("M1", _ENGINES["H13"], _tops(11), Figure(12, f"{GUIDE}: chapter 9"), _bench(60.87), _bench(68)),
    Chip("M1 Pro", _ENGINES["H13"], _tops(11), None, _bench(54.90), _bench(200)),
    Chip("M1 Max", _ENGINES["H13"], _tops(11), None, _bench(54.62), _bench(400)),
    Chip("M2", _ENGINES["H14"], _tops(15.8), None, _bench(60.45), _bench(100)),
    Chip("M2 Pro", _ENGINES["H14"], _tops(15.8), None, _bench(61.93), _bench(200)),
    Chip("M2 Max", _ENGINES["H14"], _tops(15.8), None, _bench(62.01), _bench(400)),
    Chip("M3", _ENGINES["H15"], Figure(18, UNVERIFIED), None, _bench(63.10), _bench(100)),
    Chip("M3 Pro", _ENGINES["H15"], Figure(18, UNVERIFIED), memory_gbs=Figure(150, UNVERIFIED)),
    Chip("M3 Max", _ENGINES["H15"], Figure(18, UNVERIFIED), None, _bench(120.22), _bench(400)),
    Chip("M4", _ENGINES["H16"], _tops(38), Figure(19, "arXiv 2603.06728 (M4 Max)"), _bench(64.18), _bench(120)),
    Chip("M4 Pro", _ENGINES["H16"], _tops(38), None, _bench(126.36), _bench(273)),
    Chip("M4 Max", _ENGINES["H16"], _tops(38), Figure(19, "arXiv 2603.06728"), _bench(118.88), _bench(546)),
    Chip("M5", _ENGINES["H17"], None, Figure(18.8, f"{GUIDE}: chapter 9"), _bench(70.21), _bench(154)),
)
_GPU_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    (METAL, {"A14": 1.309, "A15": 1.71, "A16": 1.71, "M1": 2.617, "M1 Pro": 5.308, "M1 Max": 10.62, "M2": 3.579,
             "M2 Pro": 6.44, "M2 Max": 13.6}),
    (SIDEKICK, {"M3": 4.1, "M3 Pro": 7.4, "M3 Max": 16.2, "M4": 4.6, "M4 Pro": 9.2, "M4 Max": 18.4}),
    (HMC, {"A17 Pro": 2.15, "A18": 1.86}),
)  # fmt: skip
_GPUS = {name: Figure(value, source) for source, values in _GPU_TFLOPS for name, value in values.items()}
# An M1's engine has 4 cores, a Pro's and a Max's 8; only M1's was measured.
_TWICE = Figure(4 << 20, f"{GUIDE}: chapters 9 and 12; twice M1's, as its cores are; {PREDICTED}")
_WORKING_SETS = {"M1 Pro": _TWICE, "M1 Max": _TWICE}
CHIPS = tuple(
    replace(chip, gpu_tflops=_GPUS.get(chip.name), working_set=_WORKING_SETS.get(chip.name)) for chip in _ROWS
)
_CHIPS = {chip.name: chip for chip in CHIPS}


@dataclass(frozen=True)
class AppMemory:
    """GB that one app may use: by default, and with the entitlement increased-memory-limit."""

    default: Figure
    increased: Figure


@dataclass(frozen=True)
class Device:
    """A phone, a tablet or a Mac.

    memory_gb: every size that it is sold with. first_os, last_os: major versions of iOS, iPadOS or macOS that it came
    with, and that it ends with (None: it is still updated).
    """

    name: str
    kind: str  # "phone" | "tablet" | "mac"
    chip: Chip
    memory_gb: tuple[int, ...]
    memory_source: str
    first_os: int
    last_os: int | None = None
    app_memory: AppMemory | None = None

    @property
    def engine(self) -> Engine:
        """Its Neural Engine."""
        return self.chip.engine

    @property
    def system(self) -> str:
        """The name of its system: macOS or iOS (iPadOS has the same numbers)."""
        return "macOS" if self.kind == "mac" else "iOS"


_XCODE = "Xcode's files, as MacRumors reported them"
_PAGE = "simplymac.com, iPhone RAM size guide"


def _app(default: float, increased: float, source: str) -> AppMemory:
    return AppMemory(Figure(default, source), Figure(increased, source))


def _phone(name: str, chip: str, memory: int, first: int, source: str, app: AppMemory | None = None) -> Device:
    return Device(f"iPhone {name}", "phone", _CHIPS[chip], (memory,), source, first, None, app)


def _tablet(name: str, chip: str, memory: tuple[int, ...], first: int) -> Device:
    return Device(f"iPad {name}", "tablet", _CHIPS[chip], memory, UNVERIFIED, first)


def _mac(name: str, chip: str, memory: tuple[int, ...], first: int) -> Device:
    return Device(f"{name} {chip}", "mac", _CHIPS[chip], memory, UNVERIFIED, first)


DEVICES: tuple[Device, ...] = (
    _phone("12 mini", "A14", 4, 14, _PAGE, _app(2.1, 2.4, "allenai/OLMoE.swift#38")),
    _phone("12", "A14", 4, 14, _PAGE),
    _phone("12 Pro", "A14", 6, 14, _PAGE),
    _phone("12 Pro Max", "A14", 6, 14, _PAGE),
    _phone("13 mini", "A15", 4, 15, _PAGE),
    _phone("13", "A15", 4, 15, _PAGE),
    _phone("13 Pro", "A15", 6, 15, _PAGE, _app(3.1, 4.2, "a-ghorbani/pocketpal-ai#651")),
    _phone("13 Pro Max", "A15", 6, 15, _PAGE),
    _phone("SE 3", "A15", 4, 15, _PAGE),
    _phone("14", "A15", 6, 16, _PAGE),
    _phone("14 Plus", "A15", 6, 16, _PAGE),
    _phone("14 Pro", "A16", 6, 16, _PAGE),
    _phone("14 Pro Max", "A16", 6, 16, _PAGE),
    _phone("15", "A16", 6, 17, _XCODE),
    _phone("15 Plus", "A16", 6, 17, _XCODE),
    _phone("15 Pro", "A17 Pro", 8, 17, _XCODE, _app(3.0, 6.0, "introlab/rtabmap#1446")),
    _phone("15 Pro Max", "A17 Pro", 8, 17, _XCODE),
    _phone("16", "A18", 8, 18, _XCODE),
    _phone("16 Plus", "A18", 8, 18, _XCODE),
    _phone("16 Pro", "A18 Pro", 8, 18, _XCODE),
    _phone("16 Pro Max", "A18 Pro", 8, 18, _XCODE),
    _phone("16e", "A18", 8, 18, UNVERIFIED),
    _phone("17", "A19", 8, 26, UNVERIFIED),
    _phone("Air", "A19 Pro", 12, 26, UNVERIFIED),
    _phone("17 Pro", "A19 Pro", 12, 26, UNVERIFIED),
    _phone("17 Pro Max", "A19 Pro", 12, 26, UNVERIFIED),
    _tablet("10", "A14", (4,), 16),
    _tablet("Air 4", "A14", (4,), 14),
    _tablet("A16", "A16", (6,), 18),
    _tablet("mini 6", "A15", (4,), 15),
    _tablet("mini A17 Pro", "A17 Pro", (8,), 18),
    _tablet("Air M1", "M1", (8,), 15),
    _tablet("Air M2", "M2", (8,), 17),
    _tablet("Air M3", "M3", (8,), 18),
    _tablet("Pro M1", "M1", (8, 16), 14),
    _tablet("Pro M2", "M2", (8, 16), 16),
    _tablet("Pro M4", "M4", (8, 16), 17),
    _tablet("Pro M5", "M5", (12, 16), 26),
    _mac("MacBook Air", "M1", (8, 16), 11),
    _mac("MacBook Air", "M2", (8, 16, 24), 12),
    _mac("MacBook Air", "M3", (8, 16, 24), 14),
    _mac("MacBook Air", "M4", (16, 24, 32), 15),
    _mac("MacBook Pro", "M1", (8, 16), 11),
    _mac("MacBook Pro", "M1 Pro", (16, 32), 12),
    _mac("MacBook Pro", "M1 Max", (32, 64), 12),
    _mac("MacBook Pro", "M2", (8, 16, 24), 12),
    _mac("MacBook Pro", "M2 Pro", (16, 32), 13),
    _mac("MacBook Pro", "M2 Max", (32, 64, 96), 13),
    _mac("MacBook Pro", "M3", (8, 16, 24), 14),
    _mac("MacBook Pro", "M3 Pro", (18, 36), 14),
    _mac("MacBook Pro", "M3 Max", (36, 48, 64, 96, 128), 14),
    _mac("MacBook Pro", "M4", (16, 24, 32), 15),
    _mac("MacBook Pro", "M4 Pro", (24, 48), 15),
    _mac("MacBook Pro", "M4 Max", (36, 48, 64, 128), 15),
    _mac("MacBook Pro", "M5", (16, 24, 32), 26),
    _mac("Mac mini", "M1", (8, 16), 11),
    _mac("Mac mini", "M2", (8, 16, 24), 13),
    _mac("Mac mini", "M2 Pro", (16, 32), 13),
    _mac("Mac mini", "M4", (16, 24, 32), 15),
    _mac("Mac mini", "M4 Pro", (24, 48, 64), 15),
    _mac("iMac", "M1", (8, 16), 11),
    _mac("iMac", "M3", (8, 16, 24), 14),
    _mac("iMac", "M4", (16, 24, 32), 15),
    _mac("Mac Studio", "M1 Max", (32, 64), 12),
    _mac("Mac Studio", "M2 Max", (32, 64, 96), 13),
    _mac("Mac Studio", "M4 Max", (36, 48, 64, 128), 15),
)


def _key(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())


_BY_KEY = {_key(each.name): each for each in DEVICES}


def device(name: str) -> Device:
    """The device of that name; case, spaces, hyphens and brackets do not matter ("iphone15pro", "macbook-air (m2)").

    Raises UsageError that lists names near to it, and all that there are, where there is none.
    """
    key = _key(name)
    if key in _BY_KEY:
        return _BY_KEY[key]
    near = [_BY_KEY[each].name for each in difflib.get_close_matches(key, _BY_KEY, n=4, cutoff=0.55)]
    near += [each.name for each in DEVICES if key and key in _key(each.chip.name) and each.name not in near][:4]
    hint = f"; near to it: {', '.join(near)}" if near else ""
    raise UsageError(
        f"--device {name[:60]!r} is not in the table of {len(DEVICES)} devices{hint}; known: {known_names()}"
    )


def known_names() -> str:
    """Every name of the table in one line, what several begin with once: "iPhone 12 mini, 12, …; iPad 10, …"."""
    lines: dict[str, list[str]] = {}
    for each in DEVICES:
        line = each.name.removesuffix(f" {each.chip.name}") if each.kind == "mac" else each.name.partition(" ")[0]
        lines.setdefault(line, []).append(each.name.removeprefix(f"{line} "))
    return "; ".join(f"{line} {', '.join(names)}" for line, names in lines.items())
