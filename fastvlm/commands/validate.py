"""`fastvlm validate`: does a build compute what its checkpoint computes? Exit code 1 when it does not."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from fastvlm.commands import options
from fastvlm.commands.apple_app import app_step
from fastvlm.terminal import TerminalProgress, lines, new_console

if TYPE_CHECKING:
    from rich.console import Console

    from validation.verdict import Verdict


@click.command(short_help="Compare a build with the checkpoint it was made from.")
@click.argument("build", callback=options.filled)
@options.reference
@click.option(
    "--images", metavar="DIR", callback=options.filled,
    help="Pictures to compare on. Default: the three that are shipped.",
)  # fmt: skip
@click.option(
    "--questions", metavar="FILE", callback=options.filled,
    help='Your own task: a .jsonl file, each line {"image": path, "prompt": text, "answer": text}, where the path is '
    "relative to the file and the true answer may be left out. The first four are compared step by step, of all others "
    "the answers alone.",
)  # fmt: skip
@click.option(
    "--other-reference", is_flag=True,
    help="Compare also with a checkpoint that the build was not made from. Such a comparison cannot pass.",
)  # fmt: skip
@click.option(
    "--backend", type=click.Choice(["mil", "coreml", "onnx"]),
    help="Who executes the build: this project's runtime on any machine (mil, the default for packages), Core ML on a "
    "Mac, or onnxruntime (for ONNX files).",
)  # fmt: skip
@options.compute_units
@click.option(
    "--steps", type=click.IntRange(1, 256), metavar="N",  # validation.steps.MOST
    help="Greedy tokens that are compared for each question. Default: 64; 8 for a model that is compared layer by "
    "layer, because it takes more than half of the memory.",
)  # fmt: skip
@click.option(
    "--report", metavar="FILE", callback=options.filled,
    help="Also write a page to look at (FILE.html), or its data (FILE.json): pictures with both answers, token by "
    "token, error by block, sizes, every limit. Small copies of the pictures are in it.",
)  # fmt: skip
@options.source_options
@options.as_json
@options.debug
def validate(build: str, as_json: bool, report: str | None, **asked: Any) -> None:
    """Execute the packages of BUILD, compare them with PyTorch on the checkpoint, and write the verdict into BUILD.

    Writes validation.json (every limit with its value, every step whose token differs) and, when every limit holds,
    selftest/, by which a device can be tested. Exit code 1 when a limit is missed: nothing calls such a build good.
    """
    from fastvlm.manifest import read_manifest

    read_manifest(build)  # before the seconds that the import below takes
    if report is not None:
        from validation.html_report import check_place

        check_place(report, (build, asked["reference"]))
    progress = TerminalProgress()
    with progress.stage("Loading libraries"):
        from validation import validate as compare

    verdict = compare(build, progress=progress, report=report, **asked)
    if as_json:
        _show_json(verdict)
    else:
        show_verdict(verdict, new_console())
        word = "FAILED" if verdict.word == "failed" else verdict.word
        options.say(f"verdict: {word}, {verdict.extent} ({verdict.path})")
    if report is not None:
        options.say(f"report: {report}", err=True)
    if not verdict.holds:
        options.say(f"Error: {_missed(verdict)}", err=True)
    options.next_step(_next(build, verdict))
    if not verdict.holds:
        raise click.exceptions.Exit(1)


def _next(build: str, verdict: Verdict) -> str:
    from fastvlm.manifest import is_onnx

    quoted = shlex.quote(build)
    if not verdict.reference.is_source:
        return options.validation_of(build)
    if verdict.passed and (step := app_step(build)):
        return step
    if verdict.passed and is_onnx(build):
        return f'fastvlm run {quoted} IMAGE "PROMPT"'
    if verdict.passed:
        return f"fastvlm bundle {quoted} -o BUNDLE" if verdict.answers else f"fastvlm inspect {quoted}"
    if any(finding.cured for finding in verdict.findings):
        return "fastvlm scan CHECKPOINT, then fastvlm export CHECKPOINT again: some value does not fit fp16"
    return "fastvlm export CHECKPOINT again; if that build fails too, report it with its validation.json"


def show_verdict(verdict: Verdict, console: Console) -> None:
    """Prints the answers of both sides beside each other, then every limit with its worst value, rung by rung."""
    from rich.table import Table

    from validation.verdict import in_order

    caption = verdict.score.in_words() if verdict.answers else None
    ours = "ONNX" if verdict.backend == "onnx" else "Core ML"
    answers = Table("picture", "question", f"{ours} (executed here)", "PyTorch", "", title="Answers", caption=caption)
    for row in verdict.answers:
        words = map(lines, (row.prompt, row.coreml, row.pytorch))
        answers.add_row(row.image, *words, "same" if row.same else "DIFFERENT")
    if verdict.answers:
        console.print(answers)
    if verdict.differing_steps:
        console.print(_steps(verdict))
    limits = Table(title="How far apart they are")
    for head in ("", "quantity", "worst value", "limit", ""):
        limits.add_column(head, no_wrap=True)
    rung = ""
    for measured in in_order(verdict.rows):
        if measured.limit.rung != rung:
            limits.add_section()
        shown = "" if measured.limit.rung == rung else measured.limit.rung
        rung, word = measured.limit.rung, "ok" if measured.passed else "MISSED"
        limits.add_row(shown, measured.limit.key, _shown(measured.value), measured.limit.words, word)
    console.print(limits)
    missed = [row for row in in_order(verdict.rows) if not row.passed]
    for each in missed:
        console.print(f"missed, {each.limit.rung}: {each.limit.key} = {_shown(each.value)} ({each.subject})")
    for finding in verdict.findings:
        console.print(f"where it begins, {finding}")
    if verdict.not_measured:
        console.print(
            f"not measured here (another backend, or a part that the build lacks): {', '.join(verdict.not_measured)}"
        )
    if not verdict.reference.is_source:
        names = ", ".join(verdict.reference.differing[:5])
        console.print(f"the reference is not what this build was made from ({names} differ)")


def _steps(verdict: Verdict) -> str:
    """How many tokens differ; all of them are in validation.json."""
    ties = sum(step.step.tie for step in verdict.differing_steps)
    count = len(verdict.differing_steps)
    return f"tokens that differ: {count}, {ties} of them ties (differing_steps in {verdict.path.name})"


def _shown(value: float) -> str:
    """A count as a count, anything else to three digits."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.3g}"


def _missed(verdict: Verdict) -> str:
    from validation.verdict import in_order

    missed = [row for row in in_order(verdict.rows) if not row.passed]
    if not missed:
        lacking = ", ".join(verdict.lacking) or "everything"
        return f"not measured, though it should have been: {lacking}; this build is not good, do not ship it"
    first = missed[0]
    begins = f"{first.limit.key} = {_shown(first.value)}, limit {first.limit.words} ({first.subject})"
    advice = "this build is not good, do not ship it" if verdict.reference.is_source else "beside another checkpoint"
    return f"limits missed: {len(missed)}, the lowest by rung {first.limit.rung}, {begins}; {advice}"


def _show_json(verdict: Verdict) -> None:
    from fastvlm.manifest import dump

    options.show_document(dump(verdict.as_json()).decode())
