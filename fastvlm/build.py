"""A build folder as a runtime needs it: the manifest's fields, each checked, as one frozen object.

`fastvlm.manifest` reads any manifest; this reads one that is to be run, so every field that leads to a file, a shape or
a number is proven to be there and of its type before anything is opened. All problems are listed at once.
A build that was exported with `--only` lacks one part: then `encoder` is None, or `language` is empty. One that was
made for somebody else's app (`--for`) is an encoder alone: it lacks the projector and the tokenizer too. One of ONNX
files says so in `format`, and is read only for who asks for that: its files are no packages of Core ML.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastvlm.errors import BuildError
from fastvlm.manifest import NAME, is_file_hash, read_manifest
from fastvlm.paths import contained

COREML, ONNX = FORMATS = ("coreml", "onnx")
IMAGE_RULES = ("pad", "crop")
TARGETS = ("ane", "gpu")
CPU, COREML_EP = ONNX_TARGETS = ("cpu", "coreml-ep")  # onnxruntime's own kernels, or its CoreML provider in an app
APPLE_APP = "apple-app"  # Apple's sample app (github.com/apple/ml-fastvlm, app/)
PURPOSES = (APPLE_APP,)
COMPUTE_UNITS = ("cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine", "all")  # where Core ML may run, as Apple names it
SOURCE_OPTIONS = ("image_rule", "template", "system")
HIDDEN = "hiddenStates"  # what a package of the language model hands to the next
MASKED = -1e4  # of causalMask, where a row may not look; never −inf: fp16 sums of infinities are NaN on the engine
STATE = "kvCache"  # what every package with layers keeps
LARGEST_SIDE = 4096  # pixels of an image's side that any export accepts
LARGEST_HEAD = 1024  # D; models have 64 to 256
LONGEST = 1 << 20  # C; no model reads more positions
LARGEST_MASK = 1 << 24  # values of causalMask, Q·C, which the host makes for every call: 128 MiB on the way to fp16
LARGEST = 1 << 24  # no side, context, vocabulary or width of any model comes near; a larger number is damage


@dataclass(frozen=True)
class Embeddings:
    """`embeddings.bin`: V rows of H values, fp16, int8 with V fp16 scales behind them, or float32 beside ONNX files."""

    file: Path
    rows: int
    width: int
    dtype: str = "float16"  # "float16" | "int8" | "float32"


@dataclass(frozen=True)
class Stage:
    """One package of the language model: all of them are called in order, each with `hiddenStates` of the one before.

    logits: the outputs of its `decode` that belong to the head, in order. A package of the head alone has neither
    `prefill` nor a state, and hands nothing on.
    """

    package: Path
    prefill: bool
    state: bool
    logits: tuple[str, ...]


@dataclass(frozen=True)
class Build:
    """One build folder; paths are contained in it, numbers are positive."""

    folder: Path
    manifest: dict[str, Any]
    source_id: str
    source_options: dict[str, str]  # what the user said at the export in place of what the checkpoint states
    source_files: dict[str, Any]
    image_rule: str
    image_sizes: tuple[int, ...]  # N, the first is the default; empty without an encoder
    prompt: dict[str, Any]
    context: int  # C
    query: int  # Q of `prefill`
    stride: int  # pixels of an image's side that one token stands for: T = (N / stride)²
    head_dim: int  # D
    rope_theta: float
    vocab_size: int  # V
    encoder: Path | None
    language: tuple[Stage, ...]
    target: str  # what the language model was made for: "ane" | "gpu"
    embeddings: Embeddings | None
    tokenizer: Path  # not there in an encoder for an app
    prompts: Path | None = None  # ready-made prompts (`fastvlm.prompts`); none before schema 0.3
    purpose: str | None = None  # the app that it was made for, of PURPOSES
    format: str = COREML  # of FORMATS
    encoders: Mapping[int, Path] = field(default_factory=dict)  # of ONNX files: the file of each side N

    def tokens_at(self, side: int) -> int:
        """Returns T for an image of `side` pixels."""
        return int((side // self.stride) ** 2)

    def missing(self, part: str) -> BuildError:
        """Returns the error for a `part` ("vision encoder", "language model") that this build is asked for in vain."""
        if self.purpose is None or self.encoder is None:
            return BuildError(f"{self.folder} holds no {part}, it was exported with --only; export it whole")
        return BuildError(
            f"{self.folder} is a vision encoder for Apple's sample app, without projector and language model, and "
            f"answers nothing by itself; put its {self.encoder.name} into that app (docs/apple-app.md), or make a "
            "whole build with `fastvlm export CHECKPOINT -o BUILD`"
        )

    def check_whole(self) -> None:
        """Raises BuildError where it lacks the encoder or the language model: it can neither be asked nor bundled."""
        if self.encoder is None:
            raise self.missing("vision encoder")
        if not self.language:
            raise self.missing("language model")


def read_build(folder: str | Path, formats: Sequence[str] = (COREML,)) -> Build:
    """Reads the manifest of a build folder, which may be named in its place.

    Raises BuildError that lists every field that is missing or wrong, and for a build of a format (of FORMATS) that is
    not among `formats`.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    root = root.parent if root.is_file() else root
    fields = _Fields(manifest)
    kind = _format(root, fields, formats)
    language = _stages(root, fields) if kind == COREML else _onnx_stages(root, fields)
    encoders = _onnx_encoders(root, fields) if kind == ONNX else {}
    encoder = _encoder(root, fields) if kind == COREML else next(iter(encoders.values()), None)
    purpose = fields.choice("for", PURPOSES) if fields.has("for") else None
    if fields.has("protection"):
        fields.mapping("protection")
    vocabulary = fields.integer("model.text.vocab_size")
    build = Build(
        root,
        manifest,
        fields.text("source.id"),
        fields.texts("source.options", SOURCE_OPTIONS),
        fields.files("source.files"),
        fields.choice("image.rule", IMAGE_RULES),
        fields.integers("image.sizes"),
        _prompt(fields),
        fields.integer("context"),
        fields.integer("query_length") if kind == COREML else 1,
        fields.integer("model.vision.stride"),
        fields.integer("model.text.head_dim"),
        fields.number("model.text.rope_theta"),
        vocabulary,
        encoder,
        language,
        _target(fields, kind),
        _embeddings(root, fields, vocabulary, kind) if language else None,
        contained(root, fields.text("tokenizer.folder", optional=purpose is not None) or "tokenizer"),
        contained(root, fields.text("prompts.file") or "prompts.json") if fields.has("prompts") else None,
        purpose=purpose,
        format=kind,
        encoders=encoders,
    )
    if encoder and not build.image_sizes:
        fields.problems.append("image.sizes is empty, expected the sides of the encoder")
    fields.problems += _too_large(build)
    if purpose and (language or not encoder or len(build.image_sizes) != 1):
        fields.problems.append(f"for is {purpose}, expected packages.encoder at one image size and nothing else")
    if fields.problems:
        raise BuildError(f"{root / NAME} cannot be run: {'; '.join(fields.problems)}; export the build again")
    return build


def _too_large(build: Build) -> Iterator[str]:
    """Numbers that a host would spend all memory on before any package could refuse them."""
    if any(side > LARGEST_SIDE for side in build.image_sizes):
        yield f"image.sizes has {max(build.image_sizes)}, expected sides up to {LARGEST_SIDE}"
    if build.head_dim > LARGEST_HEAD:
        yield f"model.text.head_dim is {build.head_dim}, expected up to {LARGEST_HEAD}"
    if build.context > LONGEST:
        yield f"context is {build.context}, expected up to {LONGEST}"
    elif build.context * build.query > LARGEST_MASK:
        yield f"query_length {build.query} times context {build.context} is beyond a mask of {LARGEST_MASK} values"


def _format(root: Path, fields: _Fields, formats: Sequence[str]) -> str:
    kind = fields.choice("format", FORMATS) if fields.has("format") else COREML
    if kind not in formats and not fields.problems:
        raise BuildError(
            f"{root} is a build of --format {kind}, and this takes builds of --format {' or '.join(formats)} alone; "
            f"export the checkpoint with --format {formats[0]}"
        )
    return kind


def _onnx_stages(root: Path, fields: _Fields) -> tuple[Stage, ...]:
    """The language model's files; each is prefill and decode in one, with its cache as inputs and outputs."""
    names = fields.strings("packages.language")
    return tuple(Stage(contained(root, name), True, True, ("logits",)) for name in names)


def _encoder(root: Path, fields: _Fields) -> Path | None:
    name = fields.text("packages.encoder", optional=True)
    return contained(root, name) if name else None


def _onnx_encoders(root: Path, fields: _Fields) -> dict[int, Path]:
    """The encoder's file for each side N, in the order of `image.sizes`."""
    if not fields.has("packages.encoder"):
        return {}
    named, sides = fields.mapping("packages.encoder"), fields.integers("image.sizes")
    if set(named) != {str(side) for side in sides}:
        fields.problems.append(f"packages.encoder is for {list(named)[:8]}, image.sizes says {list(sides)[:8]}")
        return {}
    return {side: contained(root, fields.text(f"packages.encoder.{side}") or "VisionEncoder.onnx") for side in sides}


def _target(fields: _Fields, kind: str) -> str:
    """What the language model was made for: of TARGETS, or any word of an ONNX build."""
    if kind == ONNX:
        return fields.text("target", optional=True)
    return fields.choice("target", TARGETS) if fields.has("target") else TARGETS[0]


def _stages(root: Path, fields: _Fields) -> tuple[Stage, ...]:
    """The language model's packages with what the manifest says of their functions; schema 0.1 knew one alone."""
    names = fields.strings("packages.language")
    functions = fields.stages("functions.language", len(names))
    stages = tuple(
        Stage(
            contained(root, name), "prefill" in each, "state" in each,
            tuple(output for output in _outputs(each.get("decode")) if output.startswith("logits")),
        )
        for name, each in zip(names, functions, strict=True)
    )  # fmt: skip
    if stages:
        fields.problems += _broken_chain(stages, functions)
    return stages


def _broken_chain(stages: Sequence[Stage], functions: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What no chain can be: called in this order, it would skip layers or hand on something else than hidden states."""
    told = "functions.language"
    if any(stage.prefill != stage.state for stage in stages):
        yield f"{told} has a package with one of prefill and state alone, expected both or neither"
    depth = sum(stage.state for stage in stages)
    if depth == 0 or not all(stage.state for stage in stages[:depth]):
        yield f"{told} has a package without state before one with it, expected layers first, then the head"
    makers = [("decode", functions[: min(depth, len(stages) - 1)]), ("prefill", functions[: max(depth - 1, 0)])]
    if any(HIDDEN not in _outputs(function.get(name)) for name, before in makers for function in before):
        yield f"{told} has a package that hands no {HIDDEN} to the one behind it"
    names = [name for stage in stages for name in stage.logits]
    if not names:
        yield f"{told} names no output logits, expected at least one"
    elif names not in (["logits"], [f"logits{part}" for part in range(len(names))]):
        yield f"{told} gives {', '.join(names)[:60]}, expected logits, or logits0, logits1, … in order"


def _outputs(function: Any) -> Iterator[str]:
    """The names of a function's outputs, as far as the manifest gives any."""
    outputs = function.get("outputs") if isinstance(function, dict) else None
    for output in outputs if isinstance(outputs, list) else ():
        if isinstance(output, dict) and isinstance(output.get("name"), str):
            yield output["name"]


def _prompt(fields: _Fields) -> dict[str, Any]:
    fields.text("prompt.template")
    if fields.has("prompt.system"):
        fields.text("prompt.system", empty=True)
    fields.integers("prompt.stop_ids")
    if fields.has("prompt.image_token_id"):
        fields.id("prompt.image_token_id")
    return fields.mapping("prompt")


def _embeddings(root: Path, fields: _Fields, vocabulary: int, kind: str) -> Embeddings:
    file = fields.text("embeddings.file") or "embeddings.bin"
    dtype = fields.choice("embeddings.dtype", ("float16", "int8") + ("float32",) * (kind == ONNX))
    rows, width = fields.integer("embeddings.rows"), fields.integer("embeddings.width")
    fields.fixed("embeddings.rows", vocabulary)
    if dtype == "int8":
        fields.fixed("embeddings.scales.dtype", "float16")
        fields.fixed("embeddings.scales.offset", rows * width)
    if (dtype == "int8") != (fields.has("compression.embeddings") and fields.text("compression.embeddings") == "int8"):
        fields.problems.append(f"embeddings.dtype is {dtype}, and compression.embeddings says otherwise")
    return Embeddings(contained(root, file), rows, width, dtype)


class _Fields:
    """Reads dotted paths of a manifest and gathers what is wrong; a wrong field yields an empty value of its type."""

    def __init__(self, manifest: dict[str, Any]) -> None:
        self._manifest = manifest
        self.problems: list[str] = []

    def _find(self, path: str) -> Any:
        value: Any = self._manifest
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def has(self, path: str) -> bool:
        """Whether the field is there and not null."""
        return self._find(path) is not None

    def _wrong(self, path: str, expected: str) -> None:
        value = self._find(path)
        found = "nothing" if value is None else repr(value)[:60]
        self.problems.append(f"{path} is {found}, expected {expected}")

    def text(self, path: str, optional: bool = False, empty: bool = False) -> str:
        """A text, "" where an `optional` one is missing; `empty` ones are texts where asked for."""
        value = self._find(path)
        if isinstance(value, str) and (value or empty):
            return value
        if value is not None or not optional:
            self._wrong(path, "text")
        return ""

    def texts(self, path: str, known: tuple[str, ...]) -> dict[str, str]:
        return {name: self.text(f"{path}.{name}", empty=True) for name in known if self.has(f"{path}.{name}")}

    def choice(self, path: str, known: tuple[str, ...]) -> str:
        value = self._find(path)
        if value in known:
            return str(value)
        self._wrong(path, " or ".join(known))
        return known[0]

    def fixed(self, path: str, expected: str | int) -> None:
        value = self._find(path)
        if value != expected or isinstance(value, bool):
            self._wrong(path, str(expected))

    def integer(self, path: str) -> int:
        value = self._find(path)
        if _is_count(value):
            return int(value)
        self._wrong(path, f"a whole number from 1 to {LARGEST}")
        return 1

    def id(self, path: str) -> None:
        value = self._find(path)
        if type(value) is not int or not -LARGEST <= value <= LARGEST:
            self._wrong(path, "a whole number")

    def number(self, path: str) -> float:
        value = self._find(path)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e12:
            return float(value)
        self._wrong(path, "a positive number")
        return 1.0

    def integers(self, path: str) -> tuple[int, ...]:
        value = self._find(path)
        if isinstance(value, list) and all(_is_count(item) or item == 0 for item in value):
            return tuple(value)
        self._wrong(path, "a list of whole numbers")
        return ()

    def strings(self, path: str) -> tuple[str, ...]:
        """A list of texts, empty where it is missing."""
        value = self._find(path)
        if value is None:
            return ()
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        self._wrong(path, "a list of package names")
        return ()

    def stages(self, path: str, count: int) -> list[dict[str, Any]]:
        """One object for each of `count` packages; an object alone stands for a list of one."""
        value = self._find(path)
        found = [value] if isinstance(value, dict) else value
        if not count or (isinstance(found, list) and len(found) == count and all(isinstance(e, dict) for e in found)):
            return list(found or ()) if count else []
        self._wrong(path, f"a list of {count} objects, one for each of packages.language")
        return [{}] * count

    def files(self, path: str) -> dict[str, Any]:
        """Names of files, each with its `bytes` and `sha256`."""
        found = self.mapping(path)
        unclear = [name for name, row in found.items() if not is_file_hash(row)]
        if unclear:
            self.problems.append(f"{path} has {unclear[0][:60]!r} without bytes and sha256")
        return found

    def mapping(self, path: str) -> dict[str, Any]:
        value = self._find(path)
        if isinstance(value, dict):
            return value
        self._wrong(path, "an object")
        return {}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST
