"""Writes the table of docs/reliability.md from what the hostile suites counted.

    python docs/generate_reliability.py [FOLDER]      # FOLDER: FASTVLM_RELIABILITY of a run; `make torture` does it

Counts of a run are taken into docs/reliability.json, which is committed; without FOLDER the page alone is made anew.
What stands between `<!-- NAME -->` and `<!-- /NAME -->` is generated; a test compares the two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pages import filled, table

ROOT = Path(__file__).resolve().parent.parent
PAGE, COUNTS = ROOT / "docs" / "reliability.md", ROOT / "docs" / "reliability.json"
HEAD = ("tried", "short", "long", "named", "loads or passes", "crash", "signal", "hang", "memory", "slowest", "also")
KINDS = ("named", "passed", "crash", "signal", "timeout", "memory")
FIXED = {"row", "tried", "kinds", "slowest"}


def render(page: str) -> str:
    """The page with its table made anew."""
    counts = json.loads(COUNTS.read_text("utf-8")) if COUNTS.is_file() else {}
    return filled(page, [("counts", table(HEAD, list(rows(counts))))])


def rows(counts: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """One line a suite, of its long run where there was one."""
    for name, sizes in sorted(counts.items()):
        most = sizes.get("long") or sizes["short"]
        tried = [f"{sizes[size]['tried']:,}" if size in sizes else "" for size in ("short", "long")]
        kinds = [f"{most['kinds'].get(kind, 0):,}" for kind in KINDS]
        also = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in most.items() if key not in FIXED)
        yield name, *tried, *kinds, f"{most['slowest']:.1f} s", also


def take(folder: Path) -> None:
    """Takes the counts of one run in; those of rows that it did not run stay."""
    counts = json.loads(COUNTS.read_text("utf-8")) if COUNTS.is_file() else {}
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text("utf-8"))
        size = file.name.split(".")[-2]
        counts.setdefault(record["row"], {})[size] = record
    COUNTS.write_text(json.dumps(counts, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        take(Path(sys.argv[1]))
    PAGE.write_text(render(PAGE.read_text("utf-8")), "utf-8")
