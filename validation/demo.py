"""`make demo`: the whole job on the embedded checkpoint, by the commands that a user would type.

Every command is shown before it runs, so that what happens here can be done again by hand with another checkpoint.
"""

from __future__ import annotations

import shlex
import sys

import click

from fastvlm.cli import cli
from fastvlm_ref.samples import shipped_samples

DEFAULT = "build/tiny"


def typed(*words: str) -> int:
    """Shows a command of `fastvlm`, runs it in this process, and returns its exit code."""
    click.secho(f"\n$ fastvlm {shlex.join(words)}", bold=True)
    try:
        cli.main(list(words), prog_name="fastvlm")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def main(build: str = DEFAULT) -> int:
    """Scans, exports, validates, asks, bundles, verifies; returns 0, or the code of the first that did not end well."""
    sample, bundle = shipped_samples()[0], f"{build}-bundle"
    report = f"{build}-report.html"
    code = typed("scan", "tiny") or typed("export", "tiny", "-o", build, "--overwrite")
    code = code or typed("validate", build, "--report", report)
    code = code or typed("run", build, str(sample.picture), sample.prompt)
    code = code or typed("bundle", build, "-o", bundle, "--overwrite") or typed("verify", bundle, "--run")
    if code == 0:
        click.echo(f"\nbuild folder: {build}\niOS bundle:   {bundle}\nreport:       {report}")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
