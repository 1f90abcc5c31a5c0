"""`fastvlm run`: one question about one picture, answered by a build or by a checkpoint."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from fastvlm.commands import options
from fastvlm.terminal import TerminalProgress

if TYPE_CHECKING:
    from validation.session import Answer


@click.command(short_help="Ask a build or a checkpoint about a picture.")
@click.argument("target", metavar="BUILD_OR_CHECKPOINT", callback=options.filled)
@click.argument("image", callback=options.filled)
@click.argument("prompt")
@options.backend
@options.compute_units
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: the likeliest token each time.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Draw from this share of the probability.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same answer.")
@options.image_size
@options.context
@options.checkpoint_options
@options.as_json
@options.debug
def run(
    target: str, image: str, prompt: str, max_new_tokens: int, temperature: float, top_p: float, seed: int,
    as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Ask about a picture: IMAGE is a file, PROMPT the question. The answer streams to stdout, times go to stderr.

    A checkpoint is computed by PyTorch. A build is computed from its .mlpackage files: by this project's own runtime
    on any machine (mil), or by Core ML on a Mac (coreml).
    """
    options.check_image(image)  # before the seconds that the imports below take
    progress = TerminalProgress(transient=True)  # finished bars would stand between the answer's lines
    with progress.stage("Loading libraries"):
        from fastvlm_ref.sampling import Sampling
        from validation.session import open_session

    sampling = Sampling(temperature, top_p, seed)
    session = open_session(target, progress=progress, **asked)
    show = None if as_json else lambda piece: click.echo(piece, nl=False)
    answer = session.answer(image, prompt, max_new_tokens, sampling=sampling, on_text=show, progress=progress)
    if as_json:
        click.echo(_json(answer))
        return
    click.echo()
    _show_times(answer)
    if answer.backend == "torch":
        options.next_step(f"fastvlm export {shlex.quote(target)} -o BUILD")
    else:
        options.next_step(options.validation_of(target))


def _stages(answer: Answer) -> dict[str, float]:
    """Seconds per stage, in the order in which they happen."""
    times = answer.timings
    return {
        "picture": times.preprocess, "encoder": times.encode, "prefill": times.prefill,
        "first token": times.first_token, "decode": sum(times.decode),
    }  # fmt: skip


def _show_times(answer: Answer) -> None:
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in _stages(answer).items())
    speed = answer.timings.tokens_per_second
    decoding = "" if speed is None else f", {speed:.1f} tokens/s"
    click.echo(
        f"{answer.backend}: first token after {answer.timings.time_to_first_token:.2f} s{decoding} ({stages}; "
        f"{answer.timings.prompt_positions} prompt positions)",
        err=True,
    )


def _json(answer: Answer) -> str:
    import json

    seconds = {name.replace(" ", "_"): round(value, 4) for name, value in _stages(answer).items()}
    content = {"text": answer.text, "backend": answer.backend, "seconds": seconds}
    return json.dumps(content, ensure_ascii=False, indent=1)
