"""Does it fit, and how fast might it be? Sizes, memory and a roofline estimate for a device, before an export.

    sizes = sizes_of("0.5b")                                # or a checkpoint folder, a cached Hub id, a build folder
    estimate(sizes, "iPhone 15 Pro", "int8", 1024, 2048)    # -> Estimate: files, memory, first token, tokens a second

sizes.py, checkpoint.py, built.py       what a target is: its numbers, or a build's own files and ops
work.py, tower.py, decoder.py           FLOPs and bytes per op, in closed form; counted.py: of a build; parts.py: either
stored.py, files.py, memory.py          how weights are stored, what files that makes, what is held in memory
chips.py, timing.py                     what a chip does in a second, and what an op takes of it
published.py, check.py                  figures that others measured, and how far the estimate is from them
estimating.py, advice.py                all of it together, and what to export for a device; words.py: in which units

Nothing here was measured by this project. For a size no torch is imported and no model made.
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "Estimate": "validation.fit.estimating",
    "Sizes": "validation.fit.sizes",
    "estimate": "validation.fit.estimating",
    "sizes_of": "validation.fit.sizes",
}


def __getattr__(name: str) -> Any:
    """Loads public names when they are used."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'validation.fit' has no attribute {name!r}")
