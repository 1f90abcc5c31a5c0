"""What a bundle takes over from a build beyond what running one needs: each field and table proven to be of its kind.

A validated manifest is right throughout; an unvalidated one may have been edited by hand, and must still end in a
sentence. All problems are listed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastvlm.build import LARGEST, Build
from fastvlm.errors import BuildError
from fastvlm.json_file import read_json
from fastvlm.manifest import NAME, SELFTEST
from fastvlm.mlpackage import WEIGHT_FILE
from fastvlm.paths import contained

MAX_BYTES = 4 << 20  # of a self-test: some kilobytes for each of 256 steps
_PROMPT = ("template", "before", "after", "system", "system_turn")
_LISTS = ("controls", "stops")


def check_promises(build: Build) -> None:
    """Raises BuildError that lists the fields of the manifest which a bundle cannot be made of."""
    problems = [*_functions(build), *_prompt(build.manifest["prompt"]), *_rest(build)]
    if problems:
        raise BuildError(f"{build.folder / NAME}: {'; '.join(problems[:10])}; export the build again")
    _check_table(build)
    _check_selftest(contained(build.folder, f"{SELFTEST}/selftest.json"))


def _functions(build: Build) -> Iterator[str]:
    functions = build.manifest["functions"]
    encoder = functions.get("encoder")
    for size in build.image_sizes:
        if not (isinstance(encoder, dict) and isinstance(encoder.get(f"encode_{size}"), dict)):
            yield f"functions.encoder.encode_{size} is missing"
    for entry in language_entries(build):
        shape = entry["state"].get("shape") if isinstance(entry.get("state"), dict) else None
        if "state" in entry and not (isinstance(shape, list) and all(_is_size(length) for length in shape)):
            yield f"functions.language has a state of shape {str(shape)[:60]}, expected sizes"


def language_entries(build: Build) -> list[dict[str, Any]]:
    """Returns the manifest's entry for each package of the language model; schema 0.1 knew one alone."""
    functions = build.manifest["functions"]["language"]
    return functions if isinstance(functions, list) else [functions]


def _prompt(prompt: dict[str, Any]) -> Iterator[str]:
    for key in _PROMPT:
        if not isinstance(prompt.get(key, ""), str):
            yield f"prompt.{key} is {str(prompt[key])[:60]!r}, expected text"
    for key in _LISTS:
        found = prompt.get(key, [])
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            yield f"prompt.{key} is {str(found)[:60]!r}, expected a list of texts"
    if type(prompt.get("image_token_id")) is not int:
        yield "prompt.image_token_id is missing"


def _rest(build: Build) -> Iterator[str]:
    manifest = build.manifest
    vision = manifest["model"].get("vision")
    widths = vision.get("widths") if isinstance(vision, dict) else None
    if not (isinstance(widths, list) and widths and _is_size(widths[0])):
        yield "model.vision.widths is missing"
    for package in packages(build):
        if f"{package}/{WEIGHT_FILE}" not in manifest["files"]:
            yield f"files lacks {package}/{WEIGHT_FILE}"
    for key in ("protection", "saturated"):
        if not isinstance(manifest.get(key, {}), dict):
            yield f"{key} is no object"
    bos = manifest["tokenizer"].get("bos_id", "") if isinstance(manifest.get("tokenizer"), dict) else ""
    if bos is not None and (type(bos) is not int or not 0 <= bos < build.vocab_size):
        yield f"tokenizer.bos_id is {bos or 'missing'!r:.40}, expected an id or null"


def _check_table(build: Build) -> None:
    table = build.embeddings
    assert table is not None
    size = table.rows * table.width + 2 * table.rows if table.dtype == "int8" else 2 * table.rows * table.width
    if table.file.is_file() and table.file.stat().st_size != size:
        raise BuildError(
            f"{table.file} has {table.file.stat().st_size:,} bytes, expected {size:,} for {table.rows} rows of "
            f"{table.width} {table.dtype}; export the build again"
        )


def _check_selftest(file: Path) -> None:
    try:
        whole = isinstance(read_json(file, MAX_BYTES), dict)
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        whole = False
    if not whole:
        raise BuildError(f"{file} is damaged; run `fastvlm validate` on the build, which writes it anew")


def packages(build: Build) -> tuple[str, ...]:
    """Returns the names of the packages, the encoder's first."""
    return str(build.manifest["packages"]["encoder"]), *(stage.package.name for stage in build.language)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST
