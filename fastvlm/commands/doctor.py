"""`fastvlm doctor`: what this machine has, what it can and cannot do, and what to install."""

from __future__ import annotations

from dataclasses import asdict

import click

from fastvlm import __version__
from fastvlm.commands import options
from fastvlm.terminal import TerminalProgress


@click.command(short_help="Say what this machine can and cannot do.")
@options.as_json
@options.debug
def doctor(as_json: bool) -> None:
    """List versions, platform, memory, disk and optional parts, each with what to do when it is missing.

    `absent` is something this machine does without (Core ML prediction on Linux); `missing` must be put right, and
    the exit code is then 1.
    """
    from fastvlm.doctor import examine

    findings = examine(TerminalProgress())
    missing = [finding.name for finding in findings if finding.status == "missing"]
    if as_json:
        content = {"fastvlm": __version__, "good": not missing, "findings": [asdict(finding) for finding in findings]}
        options.show_json(content)
    else:
        click.echo(f"fastvlm {__version__}")
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            advice = f": {finding.advice}" if finding.advice else ""
            click.echo(f"  {finding.status:<8} {finding.name:<{width}}  {finding.found}{advice}")
    if missing:
        click.echo(f"Error: this machine lacks {', '.join(missing)}; do what stands beside each of them", err=True)
        options.next_step("fastvlm doctor")
        raise click.exceptions.Exit(1)
    options.next_step("fastvlm export tiny -o BUILD")
