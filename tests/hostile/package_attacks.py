"""Packages each of which one check must refuse; `onnx_attacks` and `manifest_attacks` have the same of other files.

An attack is a small whole thing with one lie. `cases` lays each out and gives it to its reader: a FastVLMError is how
it must end, and what is taken is an AssertionError. The order is that of the reader: names, files, sizes, contents.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import stranger_packages
from ordeal import Case
from package_cases import used
from stranger_packages import MANIFEST, MODEL, WEIGHTS, Program, declare
from stranger_programs import convolutions

from validation.mil.package import MOST_BLOCKS, MOST_MANIFEST, MOST_OPS, MOST_PROGRAM, check_package
from validation.mil.schema import model_message

Attack = Callable[[Path], object]


def cases(attacks: dict[str, Attack], folder: Path) -> list[Case]:
    """A case for each attack, in a folder of its own below `folder`."""

    def run(attack: Attack) -> None:
        place = Path(mkdtemp(dir=folder))
        try:
            attack(place)
        finally:
            shutil.rmtree(place)
        raise AssertionError("it was taken")

    return [(name, partial(run, attack)) for name, attack in attacks.items()]


@cache
def small() -> Program:
    """A product with a stored weight and a stored bias, and an inline constant."""
    made = Program()
    x = made.input("x", "fp16", (2, 8))
    weight, bias = (stranger_packages.stored(np.ones(shape, np.float16)) for shape in ((4, 8), (4,)))
    product = made.op("linear", "product", "fp16", (2, 4), x=x, weight=weight, bias=bias)
    made.give(made.op("mul", "y", "fp16", (2, 4), x=product, y=np.float16([1, 2, 3, 4])))
    return made


def package(folder: Path, change: Callable[[Any], object] = lambda _: None) -> Path:
    """The small package, its message changed."""
    made = Program()
    made.spec.CopyFrom(small().spec)
    made.weights = bytearray(small().weights)
    change(made.spec.mlProgram.functions["main"].block_specializations[stranger_packages.OPSET])
    return made.write(folder / "small.mlpackage")


def manifested(change: Callable[[dict[str, Any]], object]) -> Attack:
    def attack(folder: Path) -> None:
        made = package(folder)
        manifest = json.loads((made / MANIFEST).read_text())
        change(manifest)
        (made / MANIFEST).write_text(json.dumps(manifest))
        used(made)

    return attack


def named(path: str) -> Attack:
    """The model's path in the manifest is another one, and leads to a whole model."""

    def attack(folder: Path) -> None:
        made = package(folder)
        (folder / "elsewhere").mkdir()
        shutil.copytree(made / "Data" / "com", folder / "elsewhere" / "com")
        manifest = json.loads((made / MANIFEST).read_text())
        manifest["itemInfoEntries"]["1"]["path"] = path.replace("FOLDER", str(folder))
        (made / MANIFEST).write_text(json.dumps(manifest))
        used(made)

    return attack


def filed(part: str, make: Callable[[Path], object]) -> Attack:
    """One file or folder of the package, put aside as `kept` and replaced by what `make` makes of its path."""

    def attack(folder: Path) -> None:
        made = package(folder)
        os.rename(made / part, folder / "kept")
        make(made / part)
        used(made)

    return attack


def link(path: Path) -> None:
    path.symlink_to(_kept(path))


def pipe(path: Path) -> None:
    """A pipe that somebody has written the whole file into."""
    content = _kept(path).read_bytes()
    os.mkfifo(path)
    os.write(os.open(path, os.O_RDWR), content)  # open until the case is over, or nothing is in it


def _kept(path: Path) -> Path:
    return next(parent / "kept" for parent in path.parents if (parent / "kept").exists())


def written(content: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content(_kept(path).read_bytes()))


def stored_as(offset: int, form: str, number: int) -> Attack:
    """A number of the first blob's metadata, which begin at byte 64, or of the file's header, is another."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(form, changed, offset, number)
        return bytes(changed)

    return filed(WEIGHTS, written(change))


def blob(change: Callable[[Any], object]) -> Attack:
    """The place of the weight is another."""
    return lambda folder: used(package(folder, lambda block: change(_weight(block).blobFileValue)))


def _weight(block: Any) -> Any:
    return block.operations[0].inputs["weight"].arguments[0].value


def _factor(block: Any) -> Any:
    return block.operations[1].inputs["y"].arguments[0].value


def typed(change: Callable[[Any], object]) -> Attack:
    """The inline constant is another."""
    return lambda folder: used(package(folder, lambda block: change(_factor(block))))


def _inline(dtype: str, shape: tuple[int, ...], **values: Any) -> Callable[[Any], object]:
    def change(value: Any) -> None:
        value.Clear()
        declare(value.type, dtype, shape)
        for kind, held in values.items():
            field = getattr(value.immediateValue.tensor, kind)
            if kind == "bytes":
                field.values = held
            else:
                field.values.extend(held)

    return change


def _unlike(value: Any) -> None:
    value.type.tensorType.rank = 7


def _state(value: Any) -> None:
    kind = value.type.tensorType
    value.type.stateType.wrappedType.tensorType.CopyFrom(kind)


def beside(folder: Path) -> None:
    """A link that no reader of ours opens, and Core ML might."""
    made = package(folder)
    (made / "Data" / "more").symlink_to("/etc/passwd")
    check_package(made)


def crowded(folder: Path) -> None:
    made = package(folder)
    (made / "more").mkdir()
    for index in range(1001):
        (made / "more" / str(index)).touch()
    check_package(made)


def large(folder: Path) -> None:
    """A whole program with a long text in it."""
    made = package(folder)
    spec = model_message().FromString((made / MODEL).read_bytes())
    spec.description.metadata.userDefined["more"] = "x" * MOST_PROGRAM
    (made / MODEL).write_bytes(spec.SerializeToString())
    used(made)


def other_kind(folder: Path) -> None:
    made = package(folder)
    spec = model_message()
    spec.specificationVersion = 9
    spec.pipeline.SetInParent() if hasattr(spec, "pipeline") else spec.ClearField("mlProgram")
    (made / MODEL).write_bytes(spec.SerializeToString())
    used(made)


def many_ops(folder: Path) -> None:
    """More constants than anybody plans; each is whole."""
    made = Program()
    x = made.input("x", "fp32", (1,))
    first = made.block.operations.add(type="const")
    made._fill(first.attributes["val"], np.float32(0))
    declare(first.outputs.add(name="c").type, "fp32", ())
    made.block.operations.extend([first] * MOST_OPS)
    made.give(made.op("identity", "y", "fp32", (1,), x=x))
    used(made.write(folder / "many.mlpackage"))


def many_blocks(folder: Path) -> None:
    made = Program()
    x = made.input("x", "fp32", (1,))
    for index in range(MOST_BLOCKS // 2 + 1):
        branch = made.none("cond", f"branch{index}", pred=np.bool_(True))
        for _ in range(2):
            branch.blocks.add().outputs.append(x[1:])
        declare(branch.outputs.add(name=f"branch{index}").type, "fp32", (1,))
    made.give(made.op("identity", "y", "fp32", (1,), x=x))
    used(made.write(folder / "blocks.mlpackage"))


def nibbles(folder: Path) -> None:
    """Codes of four bits, and more bytes than they take: what is too much is never looked at."""
    made = convolutions().write(folder / "palette.mlpackage")
    data = bytearray((made / WEIGHTS).read_bytes())
    place = data.index(struct.pack("<IIQ", 0xDEADBEEF, stranger_packages.BLOBS["uint4"], 72))
    struct.pack_into("<Q", data, place + 8, 73)
    (made / WEIGHTS).write_bytes(data)
    used(made)


def of_text(folder: Path) -> None:
    """A text that is said to lie in the weight file."""

    def change(block: Any) -> None:
        value = _weight(block)
        value.type.tensorType.dataType = stranger_packages.CODES["string"]

    used(package(folder, change))


def _blanks(data: bytes) -> bytes:
    return data + b" " * MOST_MANIFEST


def _deep(_: bytes) -> bytes:
    return b"[" * 500_000


PACKAGES: dict[str, Attack] = {
    "a file in a package's place": lambda folder: ((folder / "x.mlpackage").touch(), used(folder / "x.mlpackage")),
    "no manifest": lambda folder: ((made := package(folder)) / MANIFEST).unlink() or used(made),
    "a manifest that is no JSON": filed(MANIFEST, written(lambda _: b"{")),
    "a manifest without end": filed(MANIFEST, written(_deep)),
    "a manifest of a megabyte": filed(MANIFEST, written(_blanks)),
    "a manifest that is a link": filed(MANIFEST, link),
    "a manifest that is a pipe": filed(MANIFEST, pipe),
    "items in a list": manifested(lambda manifest: manifest.update(itemInfoEntries=[])),
    "an item that is a number": manifested(lambda manifest: manifest["itemInfoEntries"].update({"1": 3})),
    "a path that is a number": manifested(lambda manifest: manifest["itemInfoEntries"]["1"].update(path=3)),
    "a root that is not there": manifested(lambda manifest: manifest.update(rootModelIdentifier="3")),
    "a path with ..": named("../../elsewhere/com/model.mlmodel"),
    "a path with NUL": named("com/a\0b"),
    "no model": filed(MODEL, lambda path: None),
    "a model that is a link": filed(MODEL, link),
    "a model that is a pipe": filed(MODEL, pipe),
    "a model that is a folder": filed(MODEL, lambda path: path.mkdir()),
    "a folder that is a link": filed("Data", link),
    "a model that is no message": filed(MODEL, written(lambda _: b"\xff" * 90)),
    "a model of another kind": other_kind,
    "a model of 16 MB": large,
    "ops by the hundred thousand": many_ops,
    "blocks by the thousand": many_blocks,
    "a link beside": beside,
    "files by the thousand": crowded,
    "weights of another folder": blob(lambda place: setattr(place, "fileName", "@wrong_path/weights/weight.bin")),
    "weights with ..": blob(lambda place: setattr(place, "fileName", "@model_path/../../Data/com/weights/weight.bin")),
    "no weights": filed(WEIGHTS, lambda path: None),
    "weights that are a link": filed(WEIGHTS, link),
    "weights in a folder that is a link": filed(str(Path(WEIGHTS).parent), link),
    "empty weights": filed(WEIGHTS, written(lambda _: b"")),
    "weights of a few bytes": filed(WEIGHTS, written(lambda data: data[:20])),
    "another version of weights": stored_as(4, "<I", 3),
    "a blob behind the end": blob(lambda place: setattr(place, "offset", 1 << 40)),
    "a blob at the last byte": blob(lambda place: setattr(place, "offset", 319)),
    "a blob without its mark": stored_as(64, "<I", 0xDEADBEE0),
    "a blob of another type": stored_as(68, "<I", 2),
    "a blob of another size": stored_as(72, "<Q", 32),
    "a blob of nibbles with more behind them": nibbles,
    "a blob that ends behind the end": stored_as(80, "<Q", 10_000),
    "a text among the weights": of_text,
    "a type that nobody knows": typed(lambda value: setattr(value.type.tensorType, "dataType", 99)),
    "a rank that is none": typed(_unlike),
    "65 axes": typed(_inline("fp16", (1,) * 65, floats=[1])),
    "elements by the billion": typed(_inline("fp16", (1 << 17, 1 << 17), floats=[1])),
    "a constant state": typed(_state),
    "values that are too few": typed(_inline("fp32", (2, 4), floats=[1, 2, 3])),
    "texts for numbers": typed(_inline("fp32", (2, 4), strings=["1"] * 8)),
    "a number beyond its type": typed(_inline("int8", (4,), ints=[1, 2, 3, 1000])),
    "bytes that are no whole values": typed(_inline("fp16", (4,), bytes=b"abcdefg")),
    "nibbles that are too few": typed(_inline("uint4", (8,), bytes=b"ab")),
}  # fmt: skip
