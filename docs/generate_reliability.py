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
# The tests of a row that take a check away, or plant the fault that it stands against, and see the row red.
RED: dict[str, dict[str, tuple[str, ...]]] = {
    "a build's manifest: fields × commands": {"manifest_fields": ("without_its_check_a_field_is_red",)},
    "50 exports in one process": {
        "repeat": (
            "what_is_left_is_seen",
            "growth_into_memory_that_was_free_is_seen",
            "graphs_that_torch_keeps_are_seen",
        )
    },
    "8 exports to one place": {"crowd": ("the_suite_sees_what_is_broken",)},
    "damaged packages / ONNX: ONNX": {
        "onnx": ("a_load_that_ends_its_process", "a_load_that_does_not_end"),
        "checks": ("without_each_check_its_attack_is_taken", "without_each_limit_its_attack_is_taken"),
        "room": ("a_run_gets_what_is_free_and_no_more",),
    },
    "damaged packages / ONNX: packages": {
        "packages": ("without_a_check_the_row_is_red",),
        "checks": ("without_each_check_its_attack_is_taken", "without_each_limit_its_attack_is_taken"),
        "work": ("without_the_limit_each_of_them_hangs",),
        "room": ("a_run_gets_what_is_free_and_no_more",),
        "build_limits": ("a_number_is_taken_without_its_limit",),
    },
    "disk full, read-only, no permission": {"disk": ("the_suite_sees_what_is_broken",)},
    "each tensor changed, hf": {"tensors": ("without_the_comparison_a_change_passes",)},
    "each tensor changed, mlx": {"tensors": ("without_the_comparison_a_change_passes",)},
    "each tensor transposed, ±1, dropped, renamed, retyped": {
        "tensors": ("without_the_comparison_a_change_passes", "an_error_that_does_not_say_which_is_seen"),
    },
    "header lies": {"header": ("without_its_check_a_lie_passes",)},
    "hostile config.json": {"config": ("a_reader_that_follows_a_name_is_seen", "without_its_check_a_config_passes")},
    "hostile recipes": {"regressions": ("without_its_limit_a_recipe_is_red",)},
    "images: bombs, cut, flipped, orientations, modes": {
        "picture_checks": ("without_one_of_its_checks_the_row_is_red",)
    },
    "kill −9": {"kill": ("the_suite_sees_what_is_broken",)},
    "links, FIFO, device, swap during read × readers": {
        "links": (
            "where_links_are_followed_swaps_lead_out",
            "where_anything_is_taken_for_a_file_reading_has_no_end",
            "where_opening_waits_a_pipe_hangs",
        ),
    },
    "malicious pickles": {"pickle": ("without_the_checks_a_trap_runs",)},
    "mutated adapters": {"adapter": ("without_its_handling_damage_is_seen",)},
    "mutated or cut checkpoints": {"checkpoint": ("without_its_check_damage_is_seen",)},
    "paths (.., absolute, NUL, NFC/NFD twins, …) × readers": {"paths": ("without_the_allow_list_names_lead_out",)},
    "pickles that lie": {"pickle": ("without_its_check_a_lie_passes",)},
    "planted NaN/Inf/65,520": {"values": ("a_scan_that_sees_less_is_seen",)},
    "prompts: limit−1, limit, limit+1, 10 MB, control tokens by every split": {
        "prompts": ("without_its_checks_the_row_is_red", "without_a_limit_the_row_is_red"),
    },
    "same input, other environment": {"repeat": ("an_environment_that_shows_is_seen",)},
    "tokenizer.json: the longest prompt by its costliest steps": {
        "long_prompts": ("without_the_bound_the_row_is_red",)
    },
    "tokenizer.json: random changes of two": {"tokenizers": ("without_the_check_the_library_ends_the_process",)},
}


def render(page: str) -> str:
    """The page with its table made anew."""
    counts = json.loads(COUNTS.read_text("utf-8")) if COUNTS.is_file() else {}
    reds = [(name, ", ".join(f"`{test}`" for test in red_tests(name))) for name in sorted(counts)]
    return filled(
        page, [("counts", table(HEAD, list(rows(counts)))), ("reds", table(("row", "red in (tests/hostile/)"), reds))]
    )


def red_tests(row: str) -> list[str]:
    """The tests that see a row red, as `test_hostile_FILE.py::test_NAME`."""
    return [f"test_hostile_{file}.py::test_{name}" for file, names in RED[row].items() for name in names]


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
