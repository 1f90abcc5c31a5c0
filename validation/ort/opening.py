"""An ONNX file read as a stranger's, before onnxruntime is given its path: what this project never writes is refused.

Notable choices:
- the file is plain and small (weights lie beside it), and its message has few parts, so that reading it costs little;
  of an encoder for the CoreML provider, which holds its weights, so is what is read (`inside`);
- every tensor is looked at wherever it may hide: the whole message is walked, not a list of known places;
- what can hang, read files or allocate without end is refused as such: graphs inside nodes (loops), functions, sparse
  tensors (a few bytes that stand for any number of values), nodes of a compiled context (they name files), fields that
  this version of onnx does not know and onnxruntime might.
All problems of a file are listed at once. It does not know what the graph computes.
Source: onnx.proto and ExternalData.md of onnx.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as made
from itertools import chain
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message
from onnx import AttributeProto, GraphProto, ModelProto, SparseTensorProto, TensorProto, ValueInfoProto

from export.onnx.graph import IR_VERSION, MICROSOFT, MICROSOFT_OPSET, OPSET
from fastvlm.build import COREML_EP, ONNX, read_build
from fastvlm.errors import PackageError
from fastvlm.json_file import read_plain
from fastvlm.paths import contained
from validation.ort.external import bytes_of, external_problems
from validation.ort.inside import read_past_weights

MOST_BYTES = 8 << 20  # 40 times the decoder of 0.5B; two bytes can become a message of 150, so no more than is needed
MOST_PARTS = 500_000  # messages in the file; the decoder of 0.5B has 6,000
LISTED = 8  # problems named in one error
# LayerNormalization is there from 17 on, IR 8 belongs to it; what is newer than this tool writes is not guessed at.
OPSETS = {"": range(17, OPSET + 1), MICROSOFT: range(1, MICROSOFT_OPSET + 1)}
IR_VERSIONS = range(8, IR_VERSION + 1)
LARGEST = (1 << 31) - 1  # onnxruntime cuts attributes to 32 bits: 1 << 40 heads become 0, and a division by it a signal
CONTEXT = "EPContext"  # a node that stands for a provider's compiled file, which it names by any path
SUFFIX = ".onnx"
AGAIN = "export the build again, or copy it whole"


State = tuple[int, ...]


@dataclass(frozen=True)
class Port:
    """An input or output: TensorProto's number of its dtype, and its shape; a word or None stands for any length."""

    dtype: int
    shape: tuple[int | str | None, ...]

    @property
    def words(self) -> str:
        """As a message shows it: "float [1, S, 896]"."""
        known = self.dtype in TensorProto.DataType.values()
        name = TensorProto.DataType.Name(self.dtype).lower() if known else f"type {self.dtype}"
        return f"{name} [{', '.join(str(length or '?') for length in self.shape)}]"


@dataclass(frozen=True)
class OnnxFile:
    """A file that may be given to onnxruntime: what goes in, what comes out, how often each op occurs.

    weights: bytes of all its tensors, wherever they lie. inside: as `open_file` was told.
    states: what was looked at, the file itself and its data, as `state_of` told it then.
    """

    path: Path
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    ops: Counter[str]
    weights: int = 0
    inside: int | None = None
    states: Mapping[Path, State] = made(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, without the path to it."""
        ports = {
            side: {name: port.words for name, port in found.items()}
            for side, found in (("inputs", self.inputs), ("outputs", self.outputs))
        }
        return {"file": self.path.name, **ports, "ops": dict(self.ops)}


def in_words(ports: Mapping[str, Port]) -> str:
    """Inputs or outputs as a message shows them."""
    return ", ".join(f"{name[:60]} {port.words}" for name, port in ports.items())[:300] or "nothing"


def open_build(folder: str | Path) -> list[OnnxFile]:
    """Reads and checks every model file of a build, encoders first; raises as `open_file`, and BuildError.

    Encoders for the CoreML provider may hold their weights: those files have the size that the manifest says.
    """
    build = read_build(folder, (ONNX,))
    sizes = {build.folder / name: entry["bytes"] for name, entry in build.manifest["files"].items()}
    holding = sizes if build.target == COREML_EP else {}
    encoders = [open_file(path, holding.get(path)) for path in build.encoders.values()]
    return encoders + [open_file(stage.package) for stage in build.language]


def open_file(path: Path, inside: int | None = None) -> OnnxFile:
    """Reads and checks a model's file and the sizes of the data beside it; no weight is read.

    `inside`: how many bytes a file has that may hold its weights; None for one that may not. Raises PackageError that
    lists what is wrong: the file itself, its version, what it may not hold, its weights, its data files.
    """
    plain = contained(path.parent, path.name, PackageError)
    data, lengths = _read(plain, inside)
    model = _parse(plain, data)
    problems = [*_version_problems(model), *_content_problems(model), *external_problems(path, _tensors(model))]
    problems += _weight_problems(model, lengths)
    if problems:
        shown = "; ".join(problems[:LISTED])
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise PackageError(f"{path} is not opened: {shown}{more}; {AGAIN}")
    graph = model.graph
    sizes = (bytes_of(tensor) for tensor in graph.initializer)
    weights = sum(size for size in sizes if isinstance(size, int))
    ops = Counter(node.op_type for node in graph.node)
    return OnnxFile(path, _ports(graph.input), _ports(graph.output), ops, weights, inside, _states(path, model))


def _states(path: Path, model: ModelProto) -> dict[Path, State]:
    beside = {entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"}
    return {file: state_of(file) for file in (path, *(path.parent / name for name in sorted(beside)))}


def state_of(path: Path) -> State:
    """What tells one file from another that was put in its place: device, number, bytes, time; no link is followed."""
    try:
        status = path.lstat()
    except OSError as error:
        raise PackageError(f"{path} cannot be reached ({error.strerror}); {AGAIN}") from error
    return status.st_mode, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_unchanged(file: OnnxFile) -> None:
    """Raises PackageError where something else lies now where `open_file` looked: a library opens files by itself."""
    for path, state in file.states.items():
        if state_of(path) != state:
            raise PackageError(f"{path} was changed or exchanged while it was opened; {AGAIN}")


def _read(path: Path, inside: int | None) -> tuple[bytes, list[int]]:
    """The message in a file, without the weights that may be inside, and how many bytes each of those has."""
    if path.suffix != SUFFIX:  # by the name alone onnxruntime would read another format, which nobody has looked at
        raise PackageError(f"{path} is not opened: expected a file that ends in {SUFFIX}; {AGAIN}")
    try:
        if inside is not None:
            return read_past_weights(path, inside, MOST_BYTES, MOST_PARTS)
        return read_plain(path, MOST_BYTES), []
    except FileNotFoundError as error:
        raise PackageError(f"{path} is missing; {AGAIN}") from error
    except (OSError, ValueError) as error:
        beside = "" if inside is not None else ", and weights belong into the file beside it"
        reason = error.strerror if isinstance(error, OSError) else f"{error}{beside}"
        raise PackageError(f"{path} cannot be read: {reason}; {AGAIN}") from error


def _parse(path: Path, data: bytes) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise PackageError(f"{path} is no ONNX model, or was cut ({len(data):,} bytes); {AGAIN}") from error
    if not model.graph.node:
        raise PackageError(f"{path} holds no ONNX graph ({len(data):,} bytes); {AGAIN}")
    for count, message in enumerate(_messages(model)):
        if count == MOST_PARTS:
            raise PackageError(f"{path} has more than {MOST_PARTS:,} parts, expected at most that many; {AGAIN}")
        if not _is_text(message):
            raise PackageError(f"{path} holds a name that is no text (UTF-8); {AGAIN}")
    return model


def _is_text(message: Message) -> bool:
    """Whether its strings are text: protobuf gives those that are not as bytes."""
    strings = (value for field, value in message.ListFields() if field.type == field.TYPE_STRING)
    texts = ([value] if isinstance(value, (str, bytes)) else value for value in strings)
    return all(isinstance(text, str) for text in chain.from_iterable(texts))


def _messages(root: Message) -> Iterator[Message]:
    """The message and all messages in it, at whatever depth (protobuf itself refuses more than 100)."""
    waiting = [root]
    while waiting:
        message = waiting.pop()
        yield message
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting.extend([value] if isinstance(value, Message) else value)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    return (message for message in _messages(model) if isinstance(message, TensorProto))


def _version_problems(model: ModelProto) -> Iterator[str]:
    if model.ir_version not in IR_VERSIONS:
        yield f"its IR version is {model.ir_version}, expected {_words(IR_VERSIONS)}"
    asked = [("" if opset.domain == "ai.onnx" else opset.domain, opset.version) for opset in model.opset_import]
    domains = [domain for domain, _ in asked]
    if "" not in domains or len(set(domains)) != len(domains):
        yield f"it asks for the opsets {asked}, expected the standard one, and each once"
    for domain, version in asked:
        if domain not in OPSETS:
            yield f"it asks for ops of the domain {domain[:60]!r}, known are the standard one and {MICROSOFT}"
        elif version not in OPSETS[domain]:
            yield f"it asks for opset {version} of {domain or 'the standard ops'}, expected {_words(OPSETS[domain])}"


def _words(versions: range) -> str:
    return str(versions[0]) if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"


def _content_problems(model: ModelProto) -> Iterator[str]:
    if _holds_unknown(model):
        yield "it holds fields that the installed onnx does not know"
    if model.functions:
        yield f"it defines functions of its own ({model.functions[0].name[:60]!r})"
    if model.training_info:
        yield "it holds a training graph"
    imported = {opset.domain for opset in model.opset_import}
    for message in _messages(model):
        if isinstance(message, SparseTensorProto):
            yield f"it holds a sparse tensor ({message.values.name[:60]!r})"
        elif isinstance(message, AttributeProto) and (message.HasField("g") or message.graphs):
            yield f"an op runs a graph of its own (attribute {message.name[:60]!r})"
        elif isinstance(message, AttributeProto) and not all(-LARGEST <= n <= LARGEST for n in _numbers(message)):
            yield f"an attribute is beyond 32 bits ({message.name[:60]!r}), which no op takes"
    for node in model.graph.node:
        if node.domain not in imported:
            yield f"the op {node.op_type[:60]!r} is of the domain {node.domain[:60]!r}, which the model does not import"
        if node.op_type == CONTEXT:
            yield f"the op {CONTEXT} names files of its own"
    yield from _port_problems(model.graph)


def _numbers(attribute: AttributeProto) -> Iterable[int]:
    return chain((attribute.i,), attribute.ints)


def _holds_unknown(model: ModelProto) -> bool:
    """Whether there are fields beyond onnx's schema: they go when a copy is asked to drop them."""
    known = ModelProto()
    known.CopyFrom(model)
    known.DiscardUnknownFields()
    return bool(known.ByteSize() != model.ByteSize())


def _weight_problems(model: ModelProto, lengths: Iterable[int]) -> Iterator[str]:
    """Weights inside of the file that have another number of bytes than their shape takes."""
    for tensor, found in zip(model.graph.initializer, lengths, strict=False):
        wanted = bytes_of(tensor) if found else found
        if wanted != found:
            expected = wanted if isinstance(wanted, str) else f"takes {wanted:,} by its shape"
            yield f"tensor {tensor.name[:60]!r} has {found:,} bytes inside of the file and {expected}"


def _port_problems(graph: GraphProto) -> Iterator[str]:
    for port in (*graph.input, *graph.output):
        if port.type.WhichOneof("value") != "tensor_type":
            yield f"{port.name[:60]!r} is no tensor"


def _ports(ports: Iterable[ValueInfoProto]) -> dict[str, Port]:
    return {
        port.name: Port(
            port.type.tensor_type.elem_type,
            tuple(
                dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param or None
                for dimension in port.type.tensor_type.shape.dim
            ),
        )
        for port in ports
    }
