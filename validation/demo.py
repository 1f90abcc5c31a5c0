"""`make demo`: the whole job on the embedded checkpoint, as a user would type it.

It calls the functions behind `fastvlm export` and `fastvlm validate`, so what it shows is what they do. The build goes
to the folder given (build/tiny by default) and replaces an older one of this tool's making.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from export import export
from fastvlm.commands.validate import show_verdict
from fastvlm.errors import FastVLMError
from fastvlm.terminal import TerminalProgress
from validation.judging import validate
from validation.report import write_report
from validation.samples import shipped_samples

DEFAULT = Path("build/tiny")


def main(build: Path = DEFAULT) -> int:
    """Exports, validates, shows; returns 0 when every limit holds, else 1."""
    console = Console(soft_wrap=True, highlight=False)
    progress = TerminalProgress()
    console.print("The embedded checkpoint: to Core ML, executed from its files, held against PyTorch.")
    export("tiny", build, overwrite=True, progress=progress)
    verdict = validate(build, progress=progress)
    show_verdict(verdict, console)
    report = write_report(verdict, build.parent / f"{build.name}-report.md")
    console.print(f"build folder: {build}\nreport:       {report}")
    if not verdict.passed:
        print("Error: a limit was missed; this build is not good, do not ship it", file=sys.stderr)
        return 1
    sample = shipped_samples()[0]
    console.print(f'next: .venv/bin/fastvlm run {build} {sample.picture} "{sample.prompt}"')
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT))
    except FastVLMError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
