"""`fastvlm train`: the embedded checkpoint from nothing, a fine-tune of any checkpoint, or a checkpoint's accuracy."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fastvlm.commands import options
from fastvlm.errors import OutputError, UsageError
from fastvlm.terminal import TerminalProgress

if TYPE_CHECKING:
    from fastvlm_ref.training.evaluate import Report

READING = ("base", "allow_pickle", "image_rule", "template", "system")  # the options of `load_checkpoint`
NUMBERS = ("stage", "steps", "batch", "rate")
FROM_NOTHING = ("output", "work", "overwrite")
FINE_TUNE = (*FROM_NOTHING, "checkpoint", "data", "image_size", *NUMBERS, *READING)
MEASURE = ("evaluate", "questions", "as_json", *READING)


@click.command(short_help="Train the tiny checkpoint, fine-tune any, or measure one.")
@click.option("-o", "--output", metavar="DIR", help="Folder for the trained checkpoint (LLaVA layout).")
@click.option("--checkpoint", metavar="CHECKPOINT", help="Fine-tune this one; without it tiny is trained from nothing.")
@click.option("--data", metavar="FILE", help="Rows to fine-tune on: .jsonl of image, prompt, answer; or a folder.")
@click.option("--stage", metavar="NAME", help="Stage to train: stage1, stage1.5, stage2 or stage3 (fine-tuning).")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of the fine-tune. Default: the stage's.")
@click.option("--batch", type=click.IntRange(min=1), help="Rows a step. Default: the stage's.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate. Default: the stage's.")
@click.option("--work", metavar="DIR", help="Where the run's state is kept, to go on after a stop. Default: DIR.work.")
@click.option("--evaluate", metavar="CHECKPOINT", help="Train nothing: print its accuracy on unseen scenes.")
@click.option("--questions", type=click.IntRange(min=1), default=1000, show_default=True, help="Asked by --evaluate.")
@options.image_size
@options.checkpoint_options
@options.overwrite
@options.as_json
@options.debug
def train(
    output: str | None, checkpoint: str | None, data: str | None, evaluate: str | None, questions: int,
    overwrite: bool, as_json: bool, work: str | None, **asked: Any,
) -> None:  # fmt: skip
    """Train with the project's own loop.

    From nothing (`fastvlm train -o DIR`): the recipe of the embedded checkpoint, hours on two cores. A run that was
    stopped goes on from its work folder when the same command is typed again.

    Fine-tune (`--checkpoint CKPT --data FILE.jsonl -o DIR`): the same loop on rows of image, prompt and answer.

    Measure (`--evaluate CKPT`): share of exactly right answers per question form, seeing and with the picture black;
    exit code 1 where the limits of the embedded checkpoint are missed.
    """
    if evaluate is not None:
        _refuse_all_but(MEASURE, "--evaluate trains and writes nothing; leave it out")
        _evaluate(evaluate, questions, as_json, {name: asked[name] for name in READING})
        return
    if output is None:
        raise UsageError("nothing to write to: give -o DIR to train, or --evaluate CHECKPOINT to measure")
    if (checkpoint is None) != (data is None):
        raise UsageError("a fine-tune needs both --checkpoint CHECKPOINT and --data FILE.jsonl")
    place = Path(output).expanduser()
    if place.name in ("", ".."):  # ".", "..", "/": DIR.work needs the folder's own name
        place = place.resolve()
    state = Path(work).expanduser() if work else place.parent / f"{place.name}.work"
    if checkpoint is not None and data is not None:
        _refuse_all_but(FINE_TUNE, "for --evaluate alone")
        _fine_tune(place, state, checkpoint, Path(data).expanduser(), overwrite, asked)
    else:
        # The recipe's numbers are fixed: other numbers would make another checkpoint under the same name.
        _refuse_all_but(FROM_NOTHING, "not for training from nothing, which follows the committed recipe")
        _from_nothing(place, state, overwrite)


def _refuse_all_but(allowed: Collection[str], reason: str) -> None:
    """Raises UsageError that names every option that was typed and would have no effect."""
    context = click.get_current_context()
    given = [
        max(option.opts, key=len)
        for option in context.command.params
        if option.name not in (*allowed, "debug")
        and option.name is not None
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(f"{', '.join(given)}: {reason}")


def _fine_tune(place: Path, state: Path, checkpoint: str, data: Path, overwrite: bool, asked: dict[str, Any]) -> None:
    progress = TerminalProgress()
    with progress.stage("Loading libraries"):
        from fastvlm.publish import check_apart, staged_folder
        from fastvlm_ref.checkpoint.hub import on_disk
        from fastvlm_ref.checkpoint.opening import folder_of
        from fastvlm_ref.training import finetune
        from fastvlm_ref.training.saving import is_trained
    stage = finetune.finetune_stage(asked["stage"] or "stage3", asked["steps"], asked["batch"], asked["rate"])
    found = on_disk(checkpoint, progress)
    asked["base"] = None if asked["base"] is None else on_disk(asked["base"], progress)
    sources = [folder_of(path) for path in (found, asked["base"]) if path is not None]
    check_apart(place, sources)
    check_apart(state, sources, "--work", replaced=False)
    _check_places(place, state, overwrite, progress)
    model = finetune.finetune(
        found, data, state, stage=stage, image_size=asked["image_size"], progress=progress,
        **{name: asked[name] for name in READING},
    )  # fmt: skip
    with staged_folder(place, overwrite, is_trained, progress) as folder:
        finetune.write_finetuned(model, folder)
        lacking = shlex.join(finetune.unstated(model, folder))
    finetune.end_run(state, stage)
    if lacking:
        progress.note(f"the folder cannot state its conversation: give {lacking} wherever it is used")
    options.next_step(f"fastvlm run {shlex.quote(str(place))} IMAGE PROMPT {lacking}".rstrip())


def _from_nothing(place: Path, state: Path, overwrite: bool) -> None:
    progress = TerminalProgress()
    with progress.stage("Loading libraries"):
        from fastvlm.publish import staged_folder
        from fastvlm_ref.training import recipe
        from fastvlm_ref.training.saving import is_trained
    _check_places(place, state, overwrite, progress)
    model = recipe.run_recipe(state, progress=progress)
    with staged_folder(place, overwrite, is_trained, progress) as folder:
        recipe.write_checkpoint(model, state, folder)
    options.next_step(f"fastvlm train --evaluate {shlex.quote(str(place))}")


def _check_places(place: Path, state: Path, overwrite: bool, progress: TerminalProgress) -> None:
    """Decides before the hours that follow whether the result and the state may be written where they shall be."""
    from fastvlm.publish import check_output
    from fastvlm_ref.training.saving import is_trained

    real, work = check_output(place, overwrite, is_trained), state.resolve()
    if real == work or real in work.parents:
        raise OutputError(f"{work} lies in {real}, which is made whole at the end; choose another --work folder")
    if work.exists() and not work.is_dir():
        raise OutputError(f"{work} is a file, expected a folder or nothing there; choose another --work folder")
    progress.note(f"the run's state and curve.jsonl are kept in {state}; type the same command to go on after a stop")


def _evaluate(checkpoint: str, questions: int, as_json: bool, reading: dict[str, Any]) -> None:
    progress = TerminalProgress()
    with progress.stage("Loading libraries"):
        from fastvlm_ref.checkpoint import load_checkpoint
        from fastvlm_ref.training.evaluate import report

    model = load_checkpoint(checkpoint, progress=progress, **reading)
    assert model.tokenizer is not None  # load_checkpoint always sets it
    found = report(model, model.tokenizer, questions, progress=progress)
    click.echo(found.as_json() if as_json else _table(found))
    if not found.good:
        click.get_current_context().exit(1)
    if not as_json:
        options.next_step(f"fastvlm export {shlex.quote(checkpoint)} -o BUILD")


def _table(found: Report) -> str:
    lines = ["form        asked  right  black"]
    for form, (asked, seeing, black) in found.rows.items():
        lines.append(f"{form:<10} {asked:>6} {seeing:>6.1%} {black:>6.1%}")
    verdict = "; ".join(found.missed) or "all limits hold"
    return "\n".join([*lines, verdict])
