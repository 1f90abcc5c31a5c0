"""Writes the tables of docs/choosing.md with the code behind `fastvlm fit`: `python docs/generate_choosing.py`.

What stands between `<!-- NAME -->` and `<!-- /NAME -->` is generated; the rest of the page is written by hand. A test
compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pages import filled, table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "choosing.md"
SIZES = ("0.5b", "1.5b", "7b", "vicuna-7b")
IMAGES = (256, 512, 768, 1024, 1152, 1536)
IMAGES_ON = (("0.5b", "iPhone 13 Pro"), ("0.5b", "iPhone 15 Pro"), ("0.5b", "iPhone 17 Pro"), ("1.5b", "iPhone 15 Pro"))
CONTEXTS = (1024, 2048, 4096, 8192)
CONTEXT_ON = "iPhone 15 Pro"
STAYING = (2, 3, 4, 6, 8, 16)  # MiB in M1 Max's engine
WORDS = {"ane": "engine", "gpu": "GPU"}


def render(page: str) -> str:
    """The page with its tables made anew."""
    parts = (
        ("devices", devices()), ("schemes", schemes()), ("images", images()), ("contexts", contexts()),
        ("efficiencies", efficiencies()), ("chips", chips()), ("check", check()), ("guess", guess()),
    )  # fmt: skip
    return filled(page, parts)


def milliseconds(seconds: float) -> str:
    """Two digits, which is more than an estimate has."""
    return f"{float(f'{seconds * 1e3:.2g}'):g} ms" if seconds < 0.995 else f"{seconds:.2g} s"


def rate(value: float) -> str:
    """Tokens a second, in two digits."""
    return f"{float(f'{value:.2g}'):g}/s"


def gigabytes(count: int) -> str:
    """Bytes for a reader."""
    return f"{count / 1e9:.3g}" if count >= 10e9 else f"{count / 1e9:.2f}"


def devices() -> Iterator[str]:
    """One row a class of devices, one column a size."""
    from validation.fit.advice import advise, classes
    from validation.fit.sizes import sizes_of

    found = {name: sizes_of(name) for name in SIZES}
    rows = [
        (
            named(group),
            group[0].chip.name,
            f"{min(group[0].memory_gb)}",
            *(cell(advise(found[name], group[0])) for name in SIZES),
        )
        for group in classes()
    ]
    yield from table(("devices", "chip", "GB", *SIZES), rows)


def named(group: Iterable[Any]) -> str:
    """The names of devices that nothing tells apart, the common word once."""
    names = [device.name for device in group]
    first = names[0].split(" ")[0]
    return f"{names[0]}{''.join(f', {name.removeprefix(first).strip()}' for name in names[1:])}"


def cell(advice: Any) -> str:
    """What is recommended."""
    best = advice.best
    if best is None:
        return "–"
    notes = [] if best.memory.verdict == "yes" else ["entitled"]
    notes += [] if best.fits_app else ["download"]
    more = f" *{', '.join(notes)}*" if notes else ""
    return f"{best.scheme} {WORDS[best.target]}, {milliseconds(best.first_token)}, {rate(best.tokens_per_second)}{more}"


def schemes() -> Iterator[str]:
    """Files, packages and memory of every size in every scheme."""
    from fastvlm.app_limits import APP_LIMIT
    from validation.fit.advice import CHOICES
    from validation.fit.estimating import estimate
    from validation.fit.sizes import sizes_of

    rows = []
    for name in SIZES:
        sizes = sizes_of(name)
        for scheme, target in CHOICES:
            each = estimate(sizes, "MacBook Pro M4", scheme, target=target)
            files = each.files
            rows.append((
                name, scheme, WORDS[target], gigabytes(files.total), gigabytes(files.encoder),
                f"{gigabytes(sum(files.language))} in {len(files.language)}", gigabytes(files.embeddings),
                gigabytes(each.memory.need), "yes" if files.total <= APP_LIMIT else "no",
            ))  # fmt: skip
    heads = (
        "size",
        "scheme",
        "for",
        "files GB",
        "encoder",
        "language, packages",
        "embeddings",
        "memory GB",
        "an iOS app",
    )
    yield from table(heads, rows)


def images() -> Iterator[str]:
    """Tokens and first token at several image sizes."""
    from fastvlm.devices import device
    from validation.fit.advice import advise
    from validation.fit.sizes import sizes_of

    heads = ["image", "tokens", *(f"{size} on {name}" for size, name in IMAGES_ON)]
    rows = []
    for side in IMAGES:
        found = [advise(sizes_of(size), device(name), (side,)).best for size, name in IMAGES_ON]
        assert all(found)
        cells = [
            f"{milliseconds(b.first_token)}, of it encoder {milliseconds(b.stages[0].seconds)}" for b in found if b
        ]
        rows.append((f"{side}", f"{(side // 64) ** 2}", *cells))
    yield from table(heads, rows)


def contexts() -> Iterator[str]:
    """State and speed by context."""
    from validation.fit.estimating import estimate
    from validation.fit.sizes import sizes_of

    rows = []
    for context in CONTEXTS:
        found = [estimate(sizes_of(name), CONTEXT_ON, "int8", context=context) for name in SIZES[:2]]
        cells = [
            f"{each.memory.state / 1e6:.0f} MB, {milliseconds(each.first_token)}, {rate(each.tokens_per_second)}"
            for each in found
        ]
        rows.append((f"{context}", *cells))
    yield from table(("context", *(f"{name}: state, first token, tokens a second" for name in SIZES[:2])), rows)


def efficiencies() -> Iterator[str]:
    """What is fitted, with its value and the figures behind it."""
    from validation.fit.check import gpu_layer, reached
    from validation.fit.published import LLAMA, PAPER

    engine, gpu = reached("ane"), reached("gpu")
    yield from table(
        ("what", "value", "fitted to"),
        (
            (
                "products on the Neural Engine",
                f"{engine.compute:.0%} of the peak",
                f"FastViTHD at 256, 768, 1024 ({PAPER})",
            ),
            (
                "products on the GPU",
                f"{gpu.compute:.0%} of the peak",
                f"prefill of 256 rows of 0.5b, 1.5b, 7b ({PAPER})",
            ),
            ("bandwidth on the GPU", f"{gpu.bandwidth:.0%} of the memory's", f"fp16 and int4 ({LLAMA})"),
            ("a decoder layer at each call on the GPU", f"{gpu_layer() * 1e3:.2f} ms", "the same two"),
        ),
    )


def chips() -> Iterator[str]:
    """What is taken for each chip."""
    from fastvlm.devices import CHIPS
    from validation.fit.check import gpu_layer
    from validation.fit.chips import engine_speeds, gpu_speeds

    rows = []
    for chip in CHIPS:
        engine, gpu = engine_speeds(chip), gpu_speeds(chip, gpu_layer())
        assumed = dict.fromkeys((*engine.assumed, *gpu.assumed))
        assert engine.on_chip is not None
        rows.append((
            chip.name, f"{engine.flops / 1e12:.3g}", f"{engine.bandwidth / 1e9:.3g}", f"{engine.on_chip / 1e6:.1f}",
            f"{gpu.flops / 1e12:.3g}", f"{gpu.bandwidth / 1e9:.3g}", "; ".join(assumed) or "–",
        ))  # fmt: skip
    heads = ("chip", "engine TFLOP/s", "engine GB/s", "on the chip MB", "GPU TFLOP/s", "memory GB/s", "assumed")
    yield from table(heads, rows)


def check() -> Iterator[str]:
    """Every published figure beside the estimate."""
    from validation.fit.check import checks

    heads = ("what", "chip", "on", "published", "estimated", "error of the time", "fitted to it", "source")
    yield from table(heads, map(checked, checks()))


def checked(each: Any) -> Iterator[str]:
    """The cells of one published figure."""
    figure = each.figure
    yield from (figure.what, figure.chip, WORDS[figure.engine], f"{figure.value:g} {figure.unit}")
    yield f"{each.estimated:.3g}"
    yield "–" if each.error is None else f"{each.error:+.0%}".replace("-", "−")
    yield "no" if not each.fitted else "left out" if each.error is not None else "yes"
    yield figure.source


def guess() -> Iterator[str]:
    """The encoder's error, by the one number of its check that nobody measured."""
    from validation.fit.check import encoder_if

    rows = []
    for staying in STAYING:
        efficiency, error = encoder_if(staying << 20)
        told = f"{efficiency:.0%} of the peak{', which cannot be' if efficiency > 1 else ''}"
        rows.append((f"{(staying << 20) / 1e6:.1f} MB", told, f"{error:.0%}"))
    yield from table(("stays in M1 Max's engine", "products", "largest error of an encoder left out"), rows)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(render(PAGE.read_text("utf-8")), "utf-8")
