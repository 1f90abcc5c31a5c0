"""`python -m validation.mac_check [BUILD] [-o FILE]`: checks Core ML on this Mac and writes device-report.json.

Exit codes: 0 good, 1 a process ended or a token is another one, 2 this is no Mac, BUILD is no build, or the report
cannot be written there, 130 interrupted.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastvlm.errors import FastVLMError
from fastvlm.terminal import TerminalProgress
from validation.coreml import here
from validation.machine import this_machine

if TYPE_CHECKING:
    from validation.mac_check.report import Checked

INSTEAD = "on other systems `fastvlm validate` and `fastvlm lint` say what can be said without one"


@click.command()
@click.argument("build", required=False)
@click.option("-o", "--output", default="device-report.json", show_default=True, help="Where the report goes.")
def main(build: str | None, output: str) -> None:
    """Run the embedded checkpoint, and BUILD if one is named, through Core ML for each choice of compute units."""
    try:
        here.need_mac("mac-check", INSTEAD, (here.STATEFUL,))
        found = _check(build, Path(output))
    except FastVLMError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        sys.exit(130)  # click's own code for it says here that a token differs
    from validation.mac_check.showing import lines

    for each in found:
        click.echo("\n".join(lines(each)))
    click.echo(f"report: {output}; it names neither you nor this Mac's name or paths, so it can be handed on")
    problems = [problem for each in found for problem in each.problems]
    for problem in problems:
        click.echo(f"Error: {problem}", err=True)
    sys.exit(1 if problems else 0)


def _check(build: str | None, output: Path) -> list[Checked]:
    """Checks the embedded checkpoint and a build, and writes the report: of the former alone where the latter fails."""
    from validation.mac_check.checking import check_build, checked, validated_tiny
    from validation.mac_check.report import check_place, report_of, write_report

    check_place(output)
    here.library()
    if build is not None:
        check_build(build)
    machine, progress = this_machine(), TerminalProgress()
    found: list[Checked] = []
    with tempfile.TemporaryDirectory() as folder:
        asked = [validated_tiny(Path(folder), progress), *([Path(build)] if build is not None else [])]
        try:
            for each in asked:
                found.append(checked(each, machine, progress))
        except BaseException:
            if found:
                write_report(output, report_of(machine, found))
                click.echo(f"report, of the embedded checkpoint alone: {output}", err=True)
            raise
        write_report(output, report_of(machine, found))
    return found


if __name__ == "__main__":
    main()
