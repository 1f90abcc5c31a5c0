"""`fastvlm train`: the embedded checkpoint from nothing, a fine-tune of any checkpoint, or a checkpoint's accuracy."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastvlm.commands import options
from fastvlm.errors import UsageError
from fastvlm.terminal import TerminalProgress

if TYPE_CHECKING:
    from fastvlm_ref.training.evaluate import Report


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
        _evaluate(evaluate, questions, as_json)
        return
    if output is None:
        raise UsageError("nothing to write to: give -o DIR to train, or --evaluate CHECKPOINT to measure")
    if (checkpoint is None) != (data is None):
        raise UsageError("a fine-tune needs both --checkpoint CHECKPOINT and --data FILE.jsonl")
    place = Path(output).expanduser()
    state = Path(work).expanduser() if work else place.with_name(place.name + ".work")
    _train(place, state, checkpoint, data, overwrite, asked)


def _train(
    place: Path, state: Path, checkpoint: str | None, data: str | None, overwrite: bool, asked: dict[str, Any]
) -> None:
    from fastvlm.publish import check_output, staged_folder
    from fastvlm_ref.training.saving import is_trained

    check_output(place, overwrite, is_trained)  # before the hours that follow
    from fastvlm_ref.training.replicas import leave_threads_to_replicas

    leave_threads_to_replicas()
    progress = TerminalProgress()
    progress.note(f"the run's state and curve.jsonl are kept in {state}; type the same command to go on after a stop")
    if checkpoint is not None and data is not None:
        from fastvlm_ref.training import finetune

        stage = finetune.finetune_stage(asked["stage"] or "stage3", asked["steps"], asked["batch"], asked["rate"])
        model = finetune.finetune(
            checkpoint, Path(data).expanduser(), state, stage=stage, image_size=asked["image_size"], progress=progress
        )
        with staged_folder(place, overwrite, is_trained) as folder:
            finetune.write_finetuned(model, folder)
        options.next_step(f"fastvlm run {shlex.quote(str(place))} IMAGE PROMPT")
        return
    _refuse(asked)
    from fastvlm_ref.training import recipe

    model = recipe.run_recipe(state, progress=progress)
    with staged_folder(place, overwrite, is_trained) as folder:
        recipe.write_checkpoint(model, state, folder)
    options.next_step(f"fastvlm train --evaluate {shlex.quote(str(place))}")


def _refuse(asked: dict[str, Any]) -> None:
    """The recipe's numbers are fixed: other numbers would make another checkpoint under the same name."""
    given = [f"--{name.replace('_', '-')}" for name, value in asked.items() if value is not None]
    if given:
        raise UsageError(
            f"{', '.join(given)}: for a fine-tune alone; training from nothing follows the committed recipe"
        )


def _evaluate(checkpoint: str, questions: int, as_json: bool) -> None:
    from fastvlm_ref.checkpoint import load_checkpoint
    from fastvlm_ref.training.evaluate import report

    progress = TerminalProgress()
    model = load_checkpoint(checkpoint, progress=progress)
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
