"""The options that several commands share, declared once, so that they are spelled and explained alike everywhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from fastvlm.build import COMPUTE_UNITS, COREML_EP, ONNX
from fastvlm.errors import FastVLMError, ImageError
from fastvlm.quoting import printable, quoted_json, typed

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class Settings:
    """What holds for the whole run of a command: travels in click's context."""

    debug: bool = False


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.ensure_object(Settings).debug |= value


debug = click.option(
    "--debug", is_flag=True, expose_value=False, is_eager=True, callback=_set_debug,
    help="Show the traceback of an error.",
)  # fmt: skip


def filled(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A callback for names of files and folders: an empty one would mean the current folder."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty, expected a name; check the variable it came from", context, parameter)
    return value


def all_filled(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """As `filled`, for an argument that is given several times."""
    for value in values:
        filled(context, parameter, value)
    return values


def digits(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A callback for a SHA-256 or its beginning: 8 to 64 hex digits; fewer might fit by chance, none fits all."""
    if value is not None and not re.fullmatch(r"[0-9a-fA-F]{8,64}", value):
        raise click.BadParameter(f"{value[:80]!r} is no hash, expected 8 to 64 hex digits", context, parameter)
    return value


def text(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A callback for words: bytes of the command line that are no UTF-8 are none."""
    try:
        (value or "").encode()
    except UnicodeEncodeError as problem:
        raise click.BadParameter("it is no text in UTF-8", context, parameter) from problem
    return value


def texts(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """As `text`, for an option that is given several times."""
    for value in values:
        text(context, parameter, value)
    return values


def check_image(image: str) -> None:
    """Raises ImageError for what can be known of a picture without decoding it: whether there is a file."""

    if not os.path.isfile(image):
        found = "a folder" if os.path.isdir(image) else "nothing"
        raise ImageError(f"{image}: expected an image file, found {found} there; check the path")


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def bytes_of(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A callback for sizes as people write them: 1GB, 750MB, 1.5 GiB, or a plain number of bytes."""
    if value is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([a-zA-Z]*)\s*", value)
    if found is None or found[2].lower() not in _UNITS:
        expected = "a number with B, kB, MB, GB or GiB, such as 1GB"
        raise click.BadParameter(f"{value!r} is no size, expected {expected}", context, parameter)
    return int(float(found[1]) * _UNITS[found[2].lower()])


as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
overwrite = click.option("--overwrite", is_flag=True, help="Replace an older result of this tool at the same place.")
context = click.option(
    "--context", type=click.IntRange(1, 1 << 20), metavar="C", help="Positions of the KV cache; default 2048."
)
only = click.option("--only", type=click.Choice(["encoder", "language"]), help="Make only one of the two packages.")
target = click.option(
    "--target", type=click.Choice(["ane", "gpu", "cpu", "coreml-ep"]),
    help="What the language model is made for: the Neural Engine (files up to 1 GB, a head in several outputs; the "
    "default) or the GPU (one file, one output). With --format onnx: cpu, onnxruntime's own kernels (the default), or "
    "coreml-ep, its CoreML provider.",
)  # fmt: skip
purpose = click.option(
    "--for", "purpose", type=click.Choice(["apple-app"]),
    help="Make the vision encoder that Apple's sample app takes, and that alone (docs/apple-app.md).",
)  # fmt: skip
max_file_size = click.option(
    "--max-file-size", callback=bytes_of, metavar="SIZE",
    help="Largest weight file of the language model, which is split into packages where it is larger: 1GB, 750MB. "
    "Default: 1GB for ane, none for gpu.",
)  # fmt: skip
quantize = click.option(
    "--quantize", metavar="SCHEME|FILE", callback=filled,
    help="Compress weights: int8, int4 (gpu), lut6, lut4, mixed, or a YAML recipe (docs/compression.md). "
    "Default: fp16. With --format onnx: fp32 (the default), fp16, int8, int4.",
)  # fmt: skip
calibration = click.option(
    "--calibration", metavar="DIR", callback=filled,
    help="Pictures on which int4, lut4 and mixed measure what matters. Default: the three that are shipped.",
)  # fmt: skip
own_pictures = click.option(
    "--calibration", metavar="DIR", callback=filled,
    help="Pictures of your own that are looked at as well as the three that are shipped.",
)  # fmt: skip
image_sizes = click.option(
    "--image-size", "image_sizes", type=click.IntRange(min=1), multiple=True, metavar="N",
    help="Side of the square input in pixels, a multiple of 64; repeatable. Default: the checkpoint's own.",
)  # fmt: skip
image_size = click.option(
    "--image-size", type=click.IntRange(min=1), metavar="N",
    help="Which image side to use. Default: the first there is.",
)  # fmt: skip
backend = click.option(
    "--backend", type=click.Choice(["torch", "mil", "coreml", "onnx"]),
    help="Who computes: torch (a checkpoint), mil (a build, on any machine), coreml (a build, on a Mac) or onnx "
    "(onnxruntime, a build of ONNX files). Default: torch for a checkpoint, mil or onnx for a build.",
)  # fmt: skip
providers = click.option(
    "--provider", "providers", multiple=True, metavar="NAME",
    help="What onnxruntime runs a build of ONNX files on, in order of preference: cpu, coreml, cuda, directml or "
    "openvino. Default: cpu. Nothing else is used instead.",
)  # fmt: skip
compute_units = click.option(
    "--compute-units", type=click.Choice(COMPUTE_UNITS),
    help="Where Core ML may run; with --backend coreml alone. Default: what the build was made for.",
)  # fmt: skip
reference = click.option(
    "--reference", metavar="CHECKPOINT", callback=filled,
    help="The checkpoint that the build was made from. Default: tiny, if it was.",
)  # fmt: skip

device = click.option(
    "--device", metavar="NAME", callback=filled,
    help="A phone, tablet or Mac by its name: iPhone 15 Pro, iPad Pro M4, MacBook Air M2. Default: all of the table.",
)  # fmt: skip

_SOURCE_OPTIONS = (
    click.option("--base", metavar="CHECKPOINT", help="The checkpoint that a LoRA adapter belongs to."),
    click.option(
        "--allow-pickle", is_flag=True,
        help="Also read pickled tensors (.bin), restricted to weights; only for files whose origin you trust.",
    ),
)  # fmt: skip
_HOST_OPTIONS = (
    click.option(
        "--image-rule", type=click.Choice(["pad", "crop"]),
        help="How a photo becomes a square: black bars, or the middle cut out. Default: the checkpoint's, else pad.",
    ),
    click.option(
        "--template", metavar="NAME|FILE",
        help="Conversation template: qwen_2, vicuna_v1, plain, or a JSON file. Default: the checkpoint's, else qwen_2.",
    ),
    click.option(
        "--system", metavar="TEXT", callback=text,
        help="System text of the conversation. Default: the template's own.",
    ),
)  # fmt: skip


def source_options(command: Command) -> Command:
    """Adds what may be needed to read a checkpoint's tensors."""
    return _add(_SOURCE_OPTIONS, command)


def checkpoint_options(command: Command) -> Command:
    """Adds all options of `load_checkpoint`: what the host does with photo and prompt, then `source_options`."""
    return _add(_HOST_OPTIONS + _SOURCE_OPTIONS, command)


def _add(rows: tuple[Callable[[Command], Command], ...], command: Command) -> Command:
    for option in reversed(rows):
        command = option(command)
    return command


INTO_AN_APP = "put its files into your app: docs/onnx.md says what they take and give"  # of --target coreml-ep


def validation_of(build: str) -> str:
    """The command that validates `build`: none is named for the embedded checkpoint, an id for the Hub's."""
    from fastvlm.manifest import read_manifest

    recorded = read_manifest(build)["source"]
    command, source = f"fastvlm validate {shlex.quote(build)}", recorded.get("id")
    if source == "tiny":
        return command
    if isinstance(source, str) and isinstance(recorded.get("revision"), str):
        return f"{command} --reference {shlex.quote(source)}"
    known = f", where CHECKPOINT is {source}" if isinstance(source, str) and source.isprintable() else ""
    return f"{command} --reference CHECKPOINT{known}"


def after_running(build: str) -> str:
    """The command behind a look at `build`: to bundle it where a passed verdict lies in it, else to validate it."""
    from fastvlm.manifest import read_manifest
    from fastvlm.verdict_file import names_selftest, read_verdict

    manifest = read_manifest(build)
    onnx = manifest.get("format") == ONNX
    if onnx and manifest.get("target") == COREML_EP:
        return INTO_AN_APP
    try:
        verdict = read_verdict(build)
        passed = verdict["verdict"] == "passed" and bool(verdict["selftest"]) and names_selftest(build, verdict)
    except (FastVLMError, OSError, ValueError, LookupError, TypeError):
        passed = False  # whatever is wrong with it, validating anew is the cure
    if passed and onnx:
        return f"fastvlm profile {shlex.quote(build)}"
    return f"fastvlm bundle {shlex.quote(build)} -o BUNDLE" if passed else validation_of(build)


def after_profiling(build: str) -> str:
    """The command behind a profile of `build`: of ONNX files a question to them, or `validate` where none passed."""
    from fastvlm.manifest import is_onnx

    if not is_onnx(build):
        return f"fastvlm lint {shlex.quote(build)}, for what the Neural Engine would take"
    following = after_running(build)
    return f'fastvlm run {shlex.quote(build)} IMAGE "PROMPT"' if following.startswith("fastvlm profile ") else following


def show_json(content: Any) -> None:
    """Prints what `--json` asks for: one document on stdout."""
    show_document(json.dumps(content, ensure_ascii=False, indent=1))


def show_document(text: str) -> None:
    """Prints the text of a JSON document on stdout, in ASCII where stdout's encoding lacks a sign of it."""
    click.echo(quoted_json(text.rstrip("\n"), sys.stdout.encoding or "ascii"))


def say(text: str, err: bool = False) -> None:
    """Prints one line, whatever a stranger's words in it hold."""
    click.echo(printable(text, None), err=err)


def next_step(text: str) -> None:
    """Names the command to type next, on stderr, so that stdout holds the result alone."""
    click.echo(f"next: {typed(text)}", err=True)
