"""The record of `coremltools_suite.py` as tables for docs/mil-runtime.md.

A family is a test class of the torch suite, a file of the MIL suite. Families of which every row passed are listed,
the others have a line in the table; below it stand the reasons, with how many rows have each.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

COLUMNS = ("passed", "failed", "not convertible", "not compared", "torch", "skipped", "out of time")
BEGIN, END = "<!-- written by benchmarks/coremltools_suite.py: {} -->", "<!-- end of {} -->"
STFT = "TestSTFT"

Rows = dict[str, dict[str, Any]]

_HALF_TORCH = re.compile(r"'mlprogram', 'fp16'")
_HALF_MIL = re.compile(r"fp16|float16")


# What is behind an outcome whose message does not say it: test -> reason.
EXPLAINED = {
    "test_linear_fp16": "torch's reference rounds to fp16, 2e-4 off the exact product; the program is float32",
    "test_batchnorm_fp16_weight_with_fp32_param": "torch's reference rounds to fp16; the program is float32",
    "test_gather_nd_int16_indices": "the numbers agree; then it wants int16 indices, which only fp16 programs get",
    "test_stack_dynamic_range_dim": "expects Core ML to refuse, by its default length, what is right at the given one",
    "test_nms_corner_case_iou_equal_threshold": "boxes overlap by exactly the threshold, which the op keeps by its"
    " documentation (IoU > threshold); the test says that Core ML drops them from iOS17 on",
    "test_bmm_with_fp16_inputs": "needs torch's mps device",
    "TestCropResize::test_builder_to_backend_ios16": "expects 7.899 at 1e-4 for a value that is 7.9",
    "TestCropResize::test_builder_to_backend_ios17": "expects 7.899 at 1e-4 for a value that is 7.9",
    "TestCropResize::test_builder_to_backend_smoke": "a normalised box of (2, 2, 1, 1); the documentation wants [0, 1]",
    "TestResample::test_builder_to_backend_smoke": "the numbers agree; then it wants casts that the program lacks",
    "TestScatter::test_ios17_invalid_indices": "expects a wrong answer for indices that the op calls undefined",
    "test_cosine_similarity": "the converter bounds the product of the norms by eps, as torch once did, not each norm",
    "TestRandn::test_randn": "compares two generators' numbers; its own tolerance of 100 is tightened here",
    "test_batchnorm_dynamic_stress": "torch 2.13 refuses a running mean without a variance",
}
SILENT_SKIP = "a combination of parameters that the test leaves out"


def is_half(row: str) -> bool:
    """Whether a row's program computes with fp16 numbers: by its backend, in the MIL suite also by its parameters."""
    return bool((_HALF_TORCH if "/frontend/torch/" in row else _HALF_MIL).search(row))


def suite_of(row: str) -> str:
    """Which suite, and which rows of it, a row's id belongs to."""
    suite = "torch" if "/frontend/torch/" in row else "mil"
    return f"{suite} fp16" if is_half(row) else suite


def family_of(row: str) -> str:
    """The test class of a torch row, opset and file of a MIL row."""
    path, *rest = row.split("[")[0].split("::")
    if "/frontend/torch/" in row:
        return rest[0].removeprefix("Test")
    folder, file = path.split("/")[-2:]
    return f"{folder} {file.removeprefix('test_').removesuffix('.py')}"


def summary(results: Rows) -> dict[str, str]:
    """Suite -> its text."""
    suites: dict[str, Rows] = defaultdict(dict)
    collected: dict[str, int] = {}
    for row, result in results.items():
        if row.startswith("rows of "):
            collected[row.removeprefix("rows of ")] = result["rows"]
        else:
            suites[suite_of(row)][row] = result
    return {name: _suite_text(rows, collected.get(name)) for name, rows in suites.items()}


def _suite_text(rows: Rows, collected: int | None) -> str:
    families: dict[str, Counter[str]] = defaultdict(Counter)
    for row, result in rows.items():
        families[family_of(row)][result["outcome"]] += 1
    whole = {name: counts.total() for name, counts in families.items() if counts.total() == counts["passed"]}
    columns = [name for name in COLUMNS if any(counts[name] for counts in families.values())]
    lines = [*_shares(rows, collected), "", f"| family | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    for name, counts in sorted(families.items()):
        if name not in whole:
            lines.append(f"| {name} | {' | '.join(str(counts[column] or '') for column in columns)} |")
    for name, total in _totals(families):
        lines.append(f"| {name} | {' | '.join(str(total[column] or '') for column in columns)} |")
    passed = ", ".join(f"{name} {count}" for name, count in sorted(whole.items()))
    return "\n".join([*lines, "", f"Every row passed of: {passed}.", "", *_reasons(rows)])


def _totals(families: dict[str, Counter[str]]) -> list[tuple[str, Counter[str]]]:
    rest: Counter[str] = sum((counts for name, counts in families.items() if name != "STFT"), Counter())
    totals = [("all without STFT", rest)] if "STFT" in families else []
    return [*totals, ("all", sum(families.values(), Counter()))]


def _shares(rows: Rows, collected: int | None) -> list[str]:
    """How many rows ran, and how many of those that were converted and compared passed; also without test_stft."""
    lines = []
    for name, chosen in (("All", rows), ("Without test_stft", {k: v for k, v in rows.items() if STFT not in k})):
        if name != "All" and len(chosen) in (0, len(rows)):
            continue
        counts = Counter(result["outcome"] for result in chosen.values())
        compared = counts["passed"] + counts["failed"]
        quiet = sum(result.get("why") == "compares nothing" for result in chosen.values())
        of = f" of {collected:,}" if collected and name == "All" else ""
        share = f"{100 * counts['passed'] / max(compared, 1):.2f} %"
        lines.append(
            f"{name}: {len(chosen):,}{of} rows run; of {compared:,} converted {counts['passed']:,} passed ({share};"
            f" {quiet} of them compare nothing: they expect an error or look at the program)."
        )
    return lines


def _reasons(rows: Rows) -> list[str]:
    """One line per outcome, test function and reason."""
    reasons: Counter[tuple[str, str, str]] = Counter()
    for row, result in rows.items():
        if result["outcome"] == "passed":
            continue
        function = row.split("[")[0].split("::", 1)[1]
        mark = f"marked by the suite as expected to fail: {result['mark']}" if result.get("mark") else ""
        known = None
        if result["outcome"] != "skipped":
            known = EXPLAINED.get(function) or EXPLAINED.get(function.split("::")[1])
        reasons[result["outcome"], function, known or mark or _short(result.get("why", "")) or SILENT_SKIP] += 1
    lines = []
    for outcome in COLUMNS[1:]:
        chosen = sorted((key[1:], count) for key, count in reasons.items() if key[0] == outcome)
        if chosen:
            lines += [f"{outcome.capitalize()}:", ""]
            lines += [f"- {count} x `{function}`: {reason}" for (function, reason), count in chosen]
            lines.append("")
    return lines


def _short(why: str) -> str:
    """A reason without the numbers and values that differ from row to row."""
    text = re.sub(r"0x[0-9a-f]+", "...", why).replace("|", "/").replace("<", "&lt;")
    text = re.sub(r"(Skipped|AssertionError|RuntimeError|ExecutionError): ?", "", text)
    text = text.split(" Mismatched elements")[0].split(" ACTUAL")[0]
    return text[:150].rstrip()


def write_into(document: Path, texts: dict[str, str]) -> None:
    """Replace each suite's text between its markers; a suite without markers is an error."""
    content = document.read_text()
    for name, text in texts.items():
        begin, end = BEGIN.format(name), END.format(name)
        if begin not in content or end not in content:
            raise SystemExit(f"Error: {document} has no place for {name!r}; add the lines {begin} and {end}")
        head, tail = content.split(begin)[0], content.split(end, 1)[1]
        content = f"{head}{begin}\n\n{text}\n\n{end}{tail}"
    document.write_text(content)
