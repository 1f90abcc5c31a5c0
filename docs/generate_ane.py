"""Writes the tables of docs/ane.md from the data that the linter judges by: `python docs/generate_ane.py`.

What stands between `<!-- NAME -->` and `<!-- /NAME -->` is generated; the rest of the page is written by hand. A test
compares the two.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pages import filled, table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "ane.md"


def render(page: str) -> str:
    """The page with its tables made anew."""
    return filled(page, (("rules", rules()), ("ops", ops()), ("engines", engines()), ("devices", devices())))


def linked(sources: Iterable[object]) -> str:
    """Sources as links; those of this project lie beside the page."""
    from validation.lint.rule import Source

    given = [source for source in sources if isinstance(source, Source)]
    return ", ".join(f"[{source.title}]({source.url.removeprefix('docs/')})" for source in given)


def rules() -> Iterator[str]:
    """One row a rule, in the order of a report."""
    from validation.lint.rules import RULES

    yield from table(
        ("rule", "what it says", "verdict", "engines", "how sure", "sources"),
        (
            (f"`{rule.id}`", rule.says, rule.verdict.value, rule.engines, rule.confidence.value, linked(rule.sources))
            for rule in RULES
        ),
    )


def ops() -> Iterator[str]:
    """Ops that are known, those of one answer in one row."""
    from validation.lint.support import SUPPORT, Support

    answers: dict[Support, list[str]] = {}
    for name, answer in SUPPORT.items():
        answers.setdefault(answer, []).append(name)
    yield from table(
        ("taken", "ops", "note", "how sure", "sources"),
        (
            (
                "never" if answer.first is None else f"from {answer.first}", " ".join(f"`{name}`" for name in names),
                answer.note, answer.confidence.value, linked(answer.sources),
            )
            for answer, names in answers.items()
        ),
    )  # fmt: skip


def engines() -> Iterator[str]:
    """The generations with their limits, and the chips that have them."""
    from fastvlm.devices import ENGINES

    yield from table(
        ("engine", "chips", "longest axis", "channels", "kernel", "texture ops", "on the chip", "from"),
        (
            (
                each.name, each.chips, f"{each.axis:,}", f"{each.channels:,}", str(each.kernel_width),
                "yes" if each.texture else "no", f"{each.working_set / 1e6:.1f} MB" if each.working_set else "unknown",
                each.source,
            )
            for each in ENGINES
        ),
    )  # fmt: skip


def devices() -> Iterator[str]:
    """The chips with their speeds, and the devices that have them."""
    from fastvlm.devices import CHIPS, DEVICES, Device, Figure

    def figure(held: Figure | None) -> str:
        return "unknown" if held is None else f"{held.value:g}" + (" (?)" if held.source == "unverified" else "")

    def named(each: Device) -> str:
        held, app = "/".join(map(str, each.memory_gb)), each.app_memory
        return f"{each.name} ({held}{f', app {app.default.value:g} to {app.increased.value:g}' if app else ''})"

    yield from table(
        ("chip", "engine", "TOPS", "TFLOP/s measured", "engine GB/s", "memory GB/s", "devices (GB of memory)"),
        (
            (
                chip.name, chip.engine.name, figure(chip.tops), figure(chip.tflops), figure(chip.engine_gbs),
                figure(chip.memory_gbs), ", ".join(named(each) for each in DEVICES if each.chip == chip),
            )
            for chip in CHIPS
        ),
    )  # fmt: skip


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(render(PAGE.read_text("utf-8")), "utf-8")
