"""`make demo`: the whole job on the embedded checkpoint, as a user would type it, with the answers in a table.

It calls the same functions as the commands do (export, validate), so what it shows is what they do. The build goes to
the folder given (build/tiny by default) and replaces an older one of this tool's making.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from export import export
from fastvlm.errors import FastVLMError
from fastvlm.terminal import TerminalProgress
from validation.report import write_report
from validation.comparison import validate
from validation.verdict import Verdict

DEFAULT = Path("build/tiny")


def show(verdict: Verdict, console: Console) -> None:
    """Prints the answers beside each other, then every limit with its value."""
    answers = Table(title="What the .mlpackage files say, and what PyTorch says", title_justify="left")
    for column in ("picture", "question", "Core ML (executed here)", "PyTorch", ""):
        answers.add_column(column)
    for row in verdict.answers:
        answers.add_row(row.image, row.prompt, row.coreml, row.pytorch, "same" if row.same else "DIFFERENT")
    console.print(answers)
    limits = Table(title="How far apart they are", title_justify="left")
    for column in ("what", "worst value", "limit", ""):
        limits.add_column(column)
    for measured in verdict.rows:
        sign = "≥" if measured.limit.bound == "min" else "≤"
        verdict_word = "ok" if measured.passed else "MISSED"
        limits.add_row(measured.limit.key, f"{measured.value:.3g}", f"{sign} {measured.limit.limit:g}", verdict_word)
    console.print(limits)


def main(build: Path = DEFAULT) -> int:
    """Exports, validates, shows; returns 0 when every limit holds, else 1."""
    console = Console(soft_wrap=True)
    progress = TerminalProgress()
    export("tiny", build, overwrite=True, progress=progress)
    verdict = validate(build, progress=progress)
    show(verdict, console)
    report = write_report(verdict, build.parent / f"{build.name}-report.md")
    console.print(f"\nbuild folder: {build}\nreport: {report}")
    if not verdict.passed:
        console.print("Error: a limit was missed; this build is not good")
        return 1
    console.print(f'next: .venv/bin/fastvlm run {build} PICTURE "What colour is the circle?"')
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT))
    except FastVLMError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
