"""`fastvlm run`: questions about one picture, one after the other, answered by a checkpoint, a build or a bundle."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastvlm.commands import options
from fastvlm.errors import UsageError
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.quoting import printable, readable
from fastvlm.terminal import TerminalProgress

if TYPE_CHECKING:
    from validation.session import Answer

# What the options that a bundle has decided hold where nobody gave them; the others are None.
BUNDLE_OPTIONS = {"temperature": 0.0, "top_p": 1.0, "seed": 0, "allow_pickle": False, "providers": (), "then": ()}


@click.command(short_help="Ask a checkpoint, a build or a bundle about a picture.")
@click.argument("target", callback=options.filled)
@click.argument("image", callback=options.filled)
@click.argument("prompt", callback=options.text)
@click.option(
    "--then", multiple=True, metavar="PROMPT", callback=options.texts,
    help="A further question about the same picture, asked with those before it and their answers; repeatable. Only "
    "its own words are computed.",
)  # fmt: skip
@options.backend
@options.compute_units
@options.providers
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), metavar="N",
    help="Longest answer. Default: 256, or what a bundle says of its context.",
)  # fmt: skip
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: the likeliest token each time.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Draw from this share of the probability.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same answer.")
@options.image_size
@options.context
@options.checkpoint_options
@options.as_json
@options.debug
def run(
    target: str, image: str, prompt: str, then: tuple[str, ...], max_new_tokens: int | None, temperature: float,
    top_p: float, seed: int, as_json: bool, **asked: Any,
) -> None:  # fmt: skip
    """Ask about a picture: IMAGE is a file, PROMPT the question. The answer streams to stdout, times go to stderr.

    With --then several questions about the same picture, one after the other: an answer a line, in --json the turns.

    TARGET is a checkpoint, computed by PyTorch, or a build or an iOS bundle, computed from the .mlpackage files in it:
    by this project's own runtime on any machine (mil), or by Core ML on a Mac (coreml); ONNX files by onnxruntime. A
    bundle answers by what a phone has: greedily, one question, pictures are PNG or JPEG.
    """
    options.check_image(image)  # before the seconds that the imports below take
    progress = TerminalProgress(transient=True)  # finished bars would stand between the answer's lines
    if _is_bundle(target):
        asked |= {"then": then, "temperature": temperature, "top_p": top_p, "seed": seed}
        _ask_bundle(target, image, prompt, max_new_tokens, as_json, progress, **asked)
        return
    with progress.stage("Loading libraries"):
        from fastvlm_ref.sampling import Sampling
        from validation.session import open_session

    sampling = Sampling(temperature, top_p, seed)
    asked["providers"] = asked["providers"] or None
    session = open_session(target, progress=progress, **asked)
    show = None if as_json else lambda piece: click.echo(readable(piece), nl=False)
    conversation = session.converse(image, progress)
    most = max_new_tokens or 256
    conversation.check(prompt, then, most)
    answers: list[Answer] = []
    for text in (prompt, *then):
        if answers and not as_json:
            click.echo(f"> {readable(text)}", err=True)
        answers.append(session.turn(conversation, text, most, sampling=sampling, on_text=show, progress=progress))
        if not as_json:
            click.echo()
            _show_times(answers[-1])
    if as_json:
        options.show_json(_content((prompt, *then), answers, session.placement()))
        return
    for file, placed in session.placement().items():
        nodes = ", ".join(f"{count} nodes on {provider}" for provider, count in placed.items())
        options.say(f"  {printable(file)}: {nodes}", err=True)
    if session.backend == "torch":
        options.next_step(f"fastvlm export {shlex.quote(target)} -o BUILD")
    else:
        options.next_step(options.after_running(target))


def _is_bundle(target: str) -> bool:
    """Whether `target` is a folder with the one file that a bundle's runtime reads, and is neither of the others."""
    from ios_bundle.layout import METADATA

    folder = Path(target)
    return (folder / METADATA).is_file() and not any((folder / name).is_file() for name in (MANIFEST, "config.json"))


def _ask_bundle(
    target: str, image: str, prompt: str, most: int | None, as_json: bool, progress: TerminalProgress, *,
    backend: str | None, image_size: int | None, **fixed: Any,
) -> None:  # fmt: skip
    """Answers by what the bundle holds alone; every option that a bundle has decided is refused by its name."""
    given = [name for name, value in fixed.items() if value != BUNDLE_OPTIONS.get(name)]
    if given or backend in ("torch", "onnx"):
        names = ", ".join("--" + name.replace("_", "-") for name in given) or f"--backend {backend}"
        raise UsageError(f"{names}: {target} is an iOS bundle, which answers greedily by what it holds; leave it out")
    with progress.stage("Loading libraries"):
        from validation.bundle_host.host import Host

    host = Host(target, backend or "mil", image_size)
    sizes = host.all("profiles", int, ".image_size")
    if host.size not in sizes:
        raise UsageError(f"{target} takes no pictures of --image-size {image_size}; it has {sizes}")
    if host.get("validation.verdict", str) != "passed":
        progress.note(f"{target} says of itself that it is unvalidated")
    most = most or host.get(f"profiles.{sizes.index(host.size)}.max_new_tokens", int)
    start = time.perf_counter()
    answer = host.answer(image, prompt, most)
    with progress.stage("Looking at the picture, reading the prompt"):
        first = next(answer, "")
    text, waited = "", time.perf_counter() - start
    for piece in chain([first], answer):
        text += piece
        if not as_json:
            click.echo(readable(piece), nl=False)
    seconds = {"first_piece": round(waited, 4), "all": round(time.perf_counter() - start, 4)}
    if as_json:
        content = {"text": text, "backend": host.backend, "seconds": seconds}
        options.show_json(content)
    else:
        click.echo()
        options.say(f"{host.backend}: first piece after {waited:.2f} s, all after {seconds['all']:.2f} s", err=True)
    tested = " --run" if "selftest" in host.get("files", dict) else ""
    options.next_step(f"fastvlm verify {shlex.quote(target)}{tested}")


def _stages(answer: Answer) -> dict[str, float]:
    """Seconds per stage, in the order in which they happen."""
    times = answer.timings
    return {
        "picture": times.preprocess, "encoder": times.encode, "prefill": times.prefill,
        "first token": times.first_token, "decode": sum(times.decode),
    }  # fmt: skip


def _show_times(answer: Answer) -> None:
    stages = _stages(answer)
    if stages["first token"] < 0.001:  # of ONNX files it is part of the prefill
        del stages["first token"]
    told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in stages.items())
    speed = answer.timings.tokens_per_second
    decoding = "" if speed is None else f", {speed:.1f} tokens/s"
    kept = f", {answer.kept} of them kept" if answer.kept else ""
    options.say(
        f"{answer.backend}: first token after {answer.timings.time_to_first_token:.2f} s{decoding} ({told}; "
        f"{answer.timings.prompt_positions} prompt positions{kept})",
        err=True,
    )


def _content(prompts: Sequence[str], answers: Sequence[Answer], placement: dict[str, dict[str, int]]) -> dict[str, Any]:
    """One answer as itself, several as the turns of a conversation."""
    turns = [_turn(*each) for each in zip(prompts, answers, strict=True)]
    content: dict[str, Any] = {"backend": answers[0].backend, "turns": turns}
    if len(answers) == 1:
        content = {"text": answers[0].text, "backend": answers[0].backend, "seconds": _seconds(answers[0])}
    content |= {"nodes": placement} if placement else {}
    return content


def _seconds(answer: Answer) -> dict[str, float]:
    return {name.replace(" ", "_"): round(value, 4) for name, value in _stages(answer).items()}


def _turn(prompt: str, answer: Answer) -> dict[str, Any]:
    """A question of a conversation with its answer; of its positions those before it were kept, not computed."""
    times = answer.timings
    return {
        "prompt": prompt, "text": answer.text,
        "seconds": _seconds(answer) | {"to_first_token": round(times.time_to_first_token, 4)},
        "prompt_positions": times.prompt_positions, "kept_positions": answer.kept,
    }  # fmt: skip
