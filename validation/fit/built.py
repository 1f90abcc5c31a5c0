"""A build as it lies there: the sizes of its files, and the ops of its programs.

Nothing is hashed and no weight is read; files are measured, and a build whose files are not those of its manifest by
name and size is refused.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any

from fastvlm.app_limits import state_bytes
from fastvlm.build import COREML_EP, FORMATS, LARGEST, ONNX, Build, read_build
from fastvlm.errors import BuildError, UsageError
from fastvlm.manifest import find_changes
from fastvlm.mlpackage import WEIGHT_FILE
from fastvlm_ref.config import TextConfig, VisionConfig
from validation.fit.counted import works_of
from validation.fit.files import Files
from validation.fit.sizes import EMBEDDED, Sizes
from validation.fit.work import Work, gathered
from validation.program.reading import read_program


@dataclass(frozen=True)
class Built:
    """What only a build has. state: bytes of the KV cache; works: by function, over all packages that have it."""

    scheme: str
    target: str
    image_sizes: tuple[int, ...]
    context: int
    query: int
    files: Files
    state: int
    works: Mapping[str, tuple[Work, ...]]


def read_built(folder: Path) -> Sizes:
    """Returns a build's sizes.

    BuildError for one that is not whole, PackageError for a damaged program, UsageError for one of ONNX files.
    """
    build = read_build(folder, FORMATS)
    if build.format == ONNX:
        raise _of_onnx(build)
    build.check_whole()
    if changes := find_changes(folder, build.manifest):
        more = f" and {len(changes) - 1} more" if len(changes) > 1 else ""
        raise BuildError(f"{folder} is not the build its manifest describes ({changes[0]}{more}); export it again")
    model = build.manifest["model"]
    vision, text = _config(folder, VisionConfig, model["vision"]), _config(folder, TextConfig, model["text"])
    compression = build.manifest["compression"].get("scheme", "fp16")
    built = Built(
        str(compression), build.target, build.image_sizes, build.context, build.query, _files(build), _state(build),
        _works(build),
    )  # fmt: skip
    return Sizes(str(folder), "build", vision, text, _checkpoint(build), (), built)


def _of_onnx(build: Build) -> UsageError:
    """The estimate is of Core ML's engines: what is known of onnxruntime is what it takes where it runs."""
    checkpoint = _checkpoint(build)
    named = "CHECKPOINT" if checkpoint is None else shlex.quote(checkpoint)
    which = f", where CHECKPOINT is {build.source_id[:60]!r}," if checkpoint is None else ""
    measured = f"`fastvlm profile {shlex.quote(str(build.folder))}` measures onnxruntime where you type it; "
    return UsageError(
        f"{build.folder} holds ONNX files, and fit estimates Core ML packages: what it rests on says nothing of how "
        f"fast onnxruntime is on a device. {'' if build.target == COREML_EP else measured}"
        f"`fastvlm fit {named}`{which} says what the same model would be as Core ML"
    )


def _checkpoint(build: Build) -> str | None:
    """What `fastvlm export` takes for the checkpoint that a build was made from; None where only the user knows it."""
    source, stated = build.source_id, build.manifest["source"]
    if source == EMBEDDED:
        return source
    if "/" not in source or stated.get("base") is not None:  # a folder somewhere; an adapter, with a base
        return None
    return f"{source}@{stated['revision']}" if isinstance(stated.get("revision"), str) else source


def _config(folder: Path, kind: type[Any], stated: Any) -> Any:
    """The manifest's numbers as a config; BuildError where one is missing or of another type."""
    stated = stated if isinstance(stated, dict) else {}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stated.items()}
    wrong = [field.name for field in fields(kind) if not _fits(values.get(field.name), field)]
    if wrong:
        raise BuildError(
            f"{folder}/manifest.json has no {', '.join(wrong[:5])} of the model, or none that a model has; "
            "export the build again"
        )
    return kind(**{field.name: values[field.name] for field in fields(kind)})


def _fits(value: Any, field: Field[Any]) -> bool:
    """Whether a value is of a field's type, and a list as long as its default."""
    if isinstance(field.default, tuple):
        kind = type(field.default[0])
        return (
            isinstance(value, tuple) and len(value) == len(field.default) and all(type(each) is kind for each in value)
        )
    if field.type == "float":
        return type(value) in (int, float) and 0 < value < 1e12
    return type(value) is bool if field.type == "bool" else type(value) is int and 0 < value <= LARGEST


def _files(build: Build) -> Files:
    assert build.encoder is not None
    assert build.embeddings is not None
    sizes = {path: path.stat().st_size for path in build.folder.rglob("*") if path.is_file()}
    weights = [package / WEIGHT_FILE for package in (build.encoder, *(stage.package for stage in build.language))]
    if missing := [path for path in (*weights, build.embeddings.file) if path not in sizes]:
        raise BuildError(f"{missing[0]} is named by the manifest and is not there; export the build again")
    encoder, *language = (sizes[path] for path in weights)
    table = sizes[build.embeddings.file]
    layered = sum(stage.state for stage in build.language)
    return Files(encoder, tuple(language), layered, table, sum(sizes.values()) - encoder - sum(language) - table)


def _state(build: Build) -> int:
    functions = build.manifest["functions"]["language"]
    entries = functions if isinstance(functions, list) else [functions]
    shapes = [_shape(entry["state"]) for entry in entries if "state" in entry]
    if not all(shapes):
        raise BuildError(f"{build.folder}/manifest.json has a state without a shape of sizes; export the build again")
    return state_bytes(shapes)


def _shape(state: Any) -> list[int]:
    """The shape that the manifest says of a state; an empty one where it says none."""
    shape = state.get("shape") if isinstance(state, dict) else None
    if not isinstance(shape, list) or not all(type(length) is int and 0 < length <= LARGEST for length in shape):
        return []
    return shape


def _works(build: Build) -> dict[str, tuple[Work, ...]]:
    works: dict[str, list[Work]] = {}
    for path in (build.encoder, *(stage.package for stage in build.language)):
        assert path is not None
        for function in read_program(path).functions:
            works.setdefault(function.name, []).extend(works_of(function))
    return {name: tuple(gathered(found)) for name, found in works.items()}
