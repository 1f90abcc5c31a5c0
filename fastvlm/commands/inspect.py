"""`fastvlm inspect`: what is inside a package or a build, without executing anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastvlm.commands import options
from fastvlm.commands.compression import in_words
from fastvlm.errors import FastVLMError, UsageError
from fastvlm.exponents import protection_in_words
from fastvlm.manifest import is_onnx
from fastvlm.quoting import printable
from fastvlm.terminal import new_console

if TYPE_CHECKING:
    from rich.console import Console

    from validation.contents import Feature, FunctionContents, PackageContents


@click.command(short_help="Show what is inside a package or a build.")
@click.argument("path", metavar="PACKAGE_OR_BUILD", callback=options.filled)
@options.as_json
@options.debug
def inspect(path: str, as_json: bool) -> None:
    """Show functions, inputs, outputs, state, op counts, sizes and metadata of an .mlpackage, or of a whole build."""
    if os.path.isfile(path):
        raise UsageError(f"{path} is a file, expected a package or a build folder; name the folder it lies in")
    from validation.contents import describe_build, describe_package, is_package

    if not is_package(path) and is_onnx(path):
        _inspect_onnx(path, as_json)
        return
    if is_package(path):
        manifest, packages = None, [describe_package(path)]
    else:
        manifest, packages = describe_build(path)
    if as_json:
        content = {"manifest": manifest, "packages": [package.as_json() for package in packages]}
        options.show_json(content)
        return

    console = new_console()
    if manifest is not None:
        _show_manifest(manifest, Path(path), console)
    for package in packages:
        _show_package(package, console)
    if manifest is None:
        options.next_step("fastvlm inspect BUILD, for the manifest that says how to run it")
    else:
        options.next_step(options.after_running(path))


def _inspect_onnx(path: str, as_json: bool) -> None:
    """Shows the manifest and each file: what goes in, what comes out, how often each op occurs."""
    from fastvlm.manifest import read_manifest
    from validation.ort.opening import open_build

    manifest, files = read_manifest(path), open_build(path)
    if as_json:
        content = {"manifest": manifest, "files": [file.as_json() for file in files]}
        options.show_json(content)
        return

    console = new_console()
    _show_manifest(manifest, Path(path), console)
    for file in files:
        console.print()
        console.print(f"{file.path.name}: {sum(file.ops.values())} ops")
        for side, ports in (("in", file.inputs), ("out", file.outputs)):
            for name, port in ports.items():
                console.print(f"  {side:<4} {name} {port.words}")
        console.print("  ops: " + ", ".join(f"{printable(name)} {count}" for name, count in file.ops.most_common()))
    options.next_step(options.after_running(path))


def _show_manifest(manifest: dict[str, Any], build: Path, console: Console) -> None:
    source, image, prompt = manifest["source"], manifest["image"], manifest["prompt"]
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    rows = {
        "made by": f"fastvlm {manifest['fastvlm_version']}, schema {manifest['schema']}",
        **({"made for": f"{manifest['for']}, which takes the encoder alone"} if "for" in manifest else {}),
        "source": f"{source.get('id')} ({source.get('layout')} layout, revision {source.get('revision') or 'unknown'})",
        "image": f"rule {image.get('rule')}, sizes {_listed(image.get('sizes'), ', ')}",
        "prompt": f"template {prompt.get('template')}, stop ids {prompt.get('stop_ids')}",
        "ready-made": _ready_made(build, manifest),
        "context": manifest.get("context"),
        "compression": in_words(manifest["compression"]),
        "fp16": protection_in_words(manifest.get("protection")),
        "licence": manifest["licence"],
        "assumed": _listed(manifest.get("assumed"), "; ") or "nothing",
        "files": f"{len(manifest['files'])}, {_bytes(size)}",
        "validated": _verdict(build, manifest),
    }
    console.print(f"{build}")
    for name, value in rows.items():
        console.print(f"  {name:<12} {value}")


def _ready_made(build: Path, manifest: dict[str, Any]) -> str:
    """How many prompts the build offers."""
    from fastvlm.paths import contained
    from fastvlm.prompts import read_prompts

    told = manifest.get("prompts")
    if told is None:
        return "no prompts"
    try:
        count = len(read_prompts(contained(build, told.get("file") if isinstance(told, dict) else told)))
    except FastVLMError as problem:
        return f"unknown: {problem}"
    return f"{count} prompt{'' if count == 1 else 's'} with ids"


def _listed(value: Any, separator: str) -> str:
    """A list from the manifest in one line; whatever else stands there is shown as it is."""
    return separator.join(map(str, value)) if isinstance(value, list) else str(value or "")


def _verdict(build: Path, manifest: dict[str, Any]) -> str:
    """What validation.json says, if it speaks of this very manifest and the files look like those it lists."""
    from fastvlm.hashes import sha256_file
    from fastvlm.manifest import NAME, find_changes
    from fastvlm.verdict_file import names_selftest, read_verdict

    try:
        verdict = read_verdict(build)
        same = verdict["manifest_sha256"] == sha256_file(build / NAME)
        if not same:
            return "no: validation.json speaks of another manifest"
        if changes := find_changes(build, manifest):
            more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
            return f"no: the files have changed since ({changes[0]}{more})"
        if verdict["verdict"] == "passed" and not names_selftest(build, verdict):
            return "no: its self-test is not the one that was validated; run `fastvlm validate` again"
        said = printable(str(verdict["verdict"]))
        return f"{said} (names and sizes of the files agree; they were not hashed here)"
    except FastVLMError as problem:
        return f"no: {problem}"
    except FileNotFoundError:
        return "not yet"
    except (OSError, ValueError, KeyError, TypeError) as problem:
        return f"no: validation.json cannot be read ({type(problem).__name__})"


def _show_package(package: PackageContents, console: Console) -> None:
    console.print()
    console.print(f"{package.name}: {package.target} and later, default function {package.default_function}")
    console.print(f"  program {_bytes(package.program_bytes)}, weights {_bytes(package.weight_bytes)}")
    for name, value in package.metadata.items():
        more = "" if len(value) <= 200 else " … (--json shows all)"
        console.print(f"  {printable(name)}: {value[:200]}{more}")
    for function in package.functions:
        _show_function(function, console)


def _show_function(function: FunctionContents, console: Console) -> None:
    from rich.table import Table

    total = sum(function.ops.values())
    console.print()
    console.print(
        f"  {printable(function.name)} ({printable(function.opset)}, {total} ops, {function.constants} constants)"
    )
    table = Table("", "name", "kind", "shape", "type", "what it is", box=None, padding=(0, 1, 0, 2))
    sides = (("in", function.inputs), ("state", function.states), ("out", function.outputs))
    for side, features in sides:
        for feature in features:
            table.add_row(side, *_cells(feature))
    console.print(table)
    most = sorted(function.ops.items(), key=lambda item: (-item[1], item[0]))
    console.print("   ops: " + ", ".join(f"{printable(name)} {count}" for name, count in most))


def _cells(feature: Feature) -> tuple[str, ...]:
    shape = " × ".join(map(str, feature.shape)) or "scalar"
    return feature.name, feature.kind, shape, feature.dtype, feature.text


def _bytes(count: int) -> str:
    """Bytes for a reader, in powers of ten as disks and shops count."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
