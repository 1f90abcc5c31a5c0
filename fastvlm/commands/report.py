"""`fastvlm report`: a report that a validation wrote, made again: with a profile's times, as a page or as its data."""

from __future__ import annotations

import json
import shlex
from typing import Any

import click

from fastvlm.commands import options

MOST_BYTES = 64 << 20  # of a profile


@click.command(short_help="Make a report's page again, with a profile's times; or print its data.")
@click.argument("report", callback=options.filled)
@click.option(
    "-o", "--output", metavar="FILE", callback=options.filled,
    help="The report to make: FILE.html, a page, or FILE.json, its data. May be REPORT itself.",
)  # fmt: skip
@click.option(
    "--profile", metavar="FILE", callback=options.filled,
    help="Times that `fastvlm profile BUILD --json` measured, in place of those that the validation itself took.",
)  # fmt: skip
@options.as_json
@options.debug
def report(report: str, output: str | None, profile: str | None, as_json: bool) -> None:
    """Make REPORT, which `fastvlm validate BUILD --report FILE` wrote (.html or .json), again without validating again.

    Its data is what it was: verdict, answers, errors, sizes. Only its times are replaced, by a profile of the same
    build, measured wherever you like.
    """
    from fastvlm.errors import UsageError
    from validation.html_report import check_place, read_report, with_profile, write_report

    if output is None and not as_json:
        raise UsageError("nothing is asked for; give -o FILE.html, -o FILE.json, or --json")
    if output is not None:
        check_place(output, option="-o")
    document = read_report(report)
    if profile is not None:
        document = with_profile(document, _read(profile), profile)
    if output is not None:
        write_report(document, output, option="-o")
        options.say(f"report: {output}", err=as_json)
    if as_json:
        from fastvlm.manifest import dump

        options.show_document(dump(document).decode())
    options.next_step(_next(report, output, profile))


def _read(path: str) -> Any:
    """What is in a profile's file; UsageError where it is no plain file or no JSON."""
    from fastvlm.errors import UsageError
    from fastvlm.json_file import counted
    from fastvlm.paths import open_followed

    try:
        with open_followed(path) as opened:
            data = opened.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UsageError(f"--profile {path} is larger than {MOST_BYTES >> 20} MiB, no profile is; name another")
        return json.loads(counted(data))
    except OSError as problem:
        raise UsageError(f"--profile {path} cannot be read ({problem.strerror}); check the path") from problem
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"--profile {path} is no JSON ({str(problem)[:80]}); expected a profile") from problem


def _next(report: str, output: str | None, profile: str | None) -> str:
    if output is None:
        return f"fastvlm report {shlex.quote(report)} -o FILE.html"
    return f"open {shlex.quote(output)} in a browser" if profile else "fastvlm profile BUILD --json > profile.json"
