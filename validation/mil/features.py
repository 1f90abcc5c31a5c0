"""What goes into and comes out of a function: names, types, shapes, images.

A `Feature` joins what the model's description says of an input or output (image, flexible shape, optional, default)
with the type that its program declares. Arrays are checked before anything runs; images become the tensor that the
program expects (values 0 to 255, channels as the description orders them). Scale and bias are ops of the program.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fastvlm.errors import ExecutionError, PackageError
from validation.mil.binding import to_tensor
from validation.mil.rounding import held_type
from validation.mil.values import StateType, TensorType

_GRAY, _RGB, _BGR, _GRAY16 = 10, 20, 30, 40
Range = tuple[int, int | None]  # lowest, highest (None: no end)
_PIL_MODES = {_GRAY: "L", _RGB: "RGB", _BGR: "RGB", _GRAY16: "F"}


@dataclass(frozen=True)
class Image:
    """An image feature: default size in pixels, colour space, and which other sizes are taken.

    sizes: (width, height) of each enumerated one. ranges: (lowest, highest or None) of the width, then of the height.
    """

    width: int
    height: int
    color: int
    sizes: tuple[tuple[int, int], ...] = ()
    ranges: tuple[Range, ...] = ()

    def takes(self, width: int, height: int) -> bool:
        """Whether an image of that size may be given."""
        if self.ranges:
            return all(_within(got, limits) for got, limits in zip((width, height), self.ranges, strict=True))
        return (width, height) in {(self.width, self.height), *self.sizes}

    @property
    def expected(self) -> str:
        """The sizes that may be given, for a message."""
        if self.ranges:
            return "x".join(_spelled(limits) for limits in self.ranges)
        sizes = dict.fromkeys([(self.width, self.height), *self.sizes])
        return " or ".join(f"{width}x{height}" for width, height in sizes)


@dataclass(frozen=True)
class Feature:
    """One input, output or state of a function.

    shape: None stands for a flexible length. ranges: (lowest, highest or None) per axis. shapes: the enumerated ones.
    default: what an optional input takes when it is left out (None: zeros).
    """

    name: str
    type: TensorType
    description: str = ""
    optional: bool = False
    default: float | None = None
    image: Image | None = None
    ranges: tuple[Range, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = field(default=())

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape that the program declares."""
        return self.type.shape

    @property
    def kind(self) -> str:
        """image or tensor."""
        return "image" if self.image else "tensor"

    @property
    def dtype(self) -> str:
        """MIL's name of the element type that the program declares, or string."""
        return self.type.dtype.name if self.type.dtype else "string"


def _image(message: Any) -> Image:
    kind = message.WhichOneof("SizeFlexibility")
    sizes = tuple((int(item.width), int(item.height)) for item in message.enumeratedSizes.sizes)
    limits = message.imageSizeRange
    ranges = (_range(limits.widthRange), _range(limits.heightRange)) if kind == "imageSizeRange" else ()
    return Image(int(message.width), int(message.height), int(message.colorSpace), sizes, ranges)


def _range(message: Any) -> Range:
    return int(message.lowerBound), None if message.upperBound < 0 else int(message.upperBound)


def _within(length: int, limits: Range) -> bool:
    low, high = limits
    return low <= length and (high is None or length <= high)


def _spelled(limits: Range) -> str:
    low, high = limits
    return str(low) if low == high else f"{low}..{'' if high is None else high}"


def _flexibility(array: Any) -> tuple[tuple[Range, ...], tuple[tuple[int, ...], ...]]:
    kind = array.WhichOneof("ShapeFlexibility")
    if kind == "enumeratedShapes":
        return (), tuple(tuple(int(n) for n in item.shape) for item in array.enumeratedShapes.shapes)
    if kind == "shapeRange":
        return tuple(_range(item) for item in array.shapeRange.sizeRanges), ()
    return (), ()


def describe(message: Any, declared: Any) -> Feature:
    """The feature that `message` (FeatureDescription) and the program's declared type make together."""
    kind = message.type.WhichOneof("Type")
    tensor = declared.tensor if isinstance(declared, StateType) else declared
    if not isinstance(tensor, TensorType):
        tensor = TensorType(None, ())  # a dictionary or list: only outputs are one
    common = {"description": message.shortDescription, "optional": bool(message.type.isOptional)}
    if kind == "imageType":
        return Feature(message.name, tensor, image=_image(message.type.imageType), **common)
    if kind != "multiArrayType":
        return Feature(message.name, tensor, **common)
    array = message.type.multiArrayType
    default_field = array.WhichOneof("defaultOptionalValue")
    default = float(getattr(array, default_field)) if default_field else None
    ranges, shapes = _flexibility(array)
    return Feature(message.name, tensor, default=default, ranges=ranges, shapes=shapes, **common)


def _fits(shape: tuple[int, ...], feature: Feature) -> bool:
    if len(shape) != len(feature.shape):
        return False
    if any(want is not None and want != got for want, got in zip(feature.shape, shape, strict=True)):
        return not feature.image and shape in feature.shapes
    if feature.shapes and shape not in feature.shapes:
        return False
    limits = feature.ranges if len(feature.ranges) == len(shape) else ()
    return all(_within(got, wanted) for got, wanted in zip(shape, limits, strict=False))


def _expected(feature: Feature) -> str:
    if feature.shapes:
        return "one of " + ", ".join(str(list(shape)) for shape in feature.shapes)
    if feature.ranges:
        return "[" + ", ".join(_spelled(limits) for limits in feature.ranges) + "]"
    return str(feature.type)


def given_array(value: Any, what: str) -> np.ndarray:
    """`value` as a numpy array; ExecutionError, beginning with `what`, where it is none."""
    try:
        return np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        kind = str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
        reason = " ".join(str(error).split())
        raise ExecutionError(f"{what}: the {kind} given is no array of numbers ({reason}); convert it first") from error


def narrowed(array: np.ndarray, target: np.dtype, what: str) -> np.ndarray:
    """A copy of the numbers in type `target`; ExecutionError, beginning with `what`, for one that it cannot hold.

    A float is never taken for an integer. Rounding is no loss; a finite number that would become infinite is.
    """
    if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and target.kind != "f"):
        raise ExecutionError(f"{what}: {array.dtype} given, expected {target.name}; convert it first")
    if array.dtype.kind in "iu" and target.kind in "iu" and array.size:
        limits = np.iinfo(target)
        if array.min() < limits.min or array.max() > limits.max:
            raise ExecutionError(f"{what}: values {array.min()}..{array.max()} do not fit {target.name}")
    with np.errstate(over="ignore"):
        values = np.array(array, target, order="C")
    if target.kind == "f" and array.dtype != target and (infinite := np.isinf(values)).any():
        lost = array[infinite & np.isfinite(array)]
        if lost.size:
            raise ExecutionError(f"{what}: {lost[0]} does not fit {target.name}; write an infinity if one is meant")
    return values


def array_to_tensor(value: Any, feature: Feature, precision: str) -> torch.Tensor:
    """The tensor of an array input; ExecutionError for a wrong kind of number or a wrong shape.

    Integers are taken for floats and the other way only where no value changes kind: a float array for an integer
    input is refused, any number is taken for a float input. float64 and int64 are taken for narrower declared types.
    """
    what = f"input {feature.name!r}"
    array, dtype = given_array(value, what), feature.type.dtype
    if dtype is None or array.dtype.kind not in "fiub":
        raise ExecutionError(f"{what}: {array.dtype} given, expected {feature.type}")
    if not feature.shape and array.shape == (1,):
        array = array.reshape(())  # Core ML has no rank-0 arrays: a scalar input is described as shape (1,)
    if not _fits(array.shape, feature):
        raise ExecutionError(f"{what}: shape {list(array.shape)} given, expected {_expected(feature)}")
    held = held_type(dtype, precision)
    target = np.dtype(np.float32) if held is torch.float32 else dtype.numpy
    return to_tensor(narrowed(array, target, what)).to(held)


def image_to_tensor(value: Any, feature: Feature, precision: str) -> torch.Tensor:
    """The tensor of an image input: a PIL image or a uint8 array (H, W, 3), or (H, W) for grey, of a declared size.

    Raises ExecutionError for another size, mode or type. Values stay 0 to 255.
    """
    image = feature.image
    if image is None or feature.type.dtype is None:
        raise PackageError(f"input {feature.name!r} is described as an image but its program takes {feature.type}")
    pixels = _pixels(value, feature.name, image)
    height, width = pixels.shape[:2]
    if not image.takes(width, height):
        raise ExecutionError(f"input {feature.name!r}: image of {width}x{height} given, expected {image.expected}")
    if image.color == _BGR:
        pixels = pixels[:, :, ::-1]
    channels_last = len(feature.shape) == 4 and feature.shape[1] not in (1, 3)
    batch = pixels[None] if channels_last else pixels.transpose(2, 0, 1)[None]
    return torch.from_numpy(np.ascontiguousarray(batch)).to(held_type(feature.type.dtype, precision))


def _pixels(value: Any, name: str, image: Image) -> np.ndarray:
    mode = _PIL_MODES.get(image.color)
    if mode is None:
        raise PackageError(f"input {name!r} has colour space {image.color}, known are grey, RGB, BGR and grey fp16")
    if hasattr(value, "mode") and hasattr(value, "getbands"):  # PIL, without importing it
        if value.mode != mode:
            raise ExecutionError(f"input {name!r}: image of mode {value.mode} given, expected {mode}; convert it first")
        array = np.asarray(value)
    else:
        array = given_array(value, f"input {name!r}")
        if array.dtype != np.uint8 and mode != "F":
            raise ExecutionError(
                f"input {name!r}: {array.dtype} array given, expected a PIL image or uint8 (H, W, channels)"
            )
    channels = 3 if mode == "RGB" else 1
    array = array[:, :, None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] != channels:
        raise ExecutionError(f"input {name!r}: image array {list(array.shape)} given, expected [H, W, {channels}]")
    return array


def default_tensor(feature: Feature, precision: str) -> torch.Tensor:
    """What an optional input takes when it is left out: its default value, else zeros, in its default shape."""
    if feature.type.dtype is None or None in feature.shape:
        raise ExecutionError(f"input {feature.name!r} is optional but has no fixed shape; give it")
    shape = [int(length or 0) for length in feature.shape]
    try:
        return torch.full(shape, feature.default or 0, dtype=held_type(feature.type.dtype, precision))
    except (RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise ExecutionError(f"input {feature.name!r} of shape {shape} cannot be filled ({reason}); give it") from error


def to_output(value: Any, feature: Feature) -> Any:
    """A result for the caller: numpy array in its held type, PIL image, or what a classifier returns.

    fp16 outputs are float16 in the fp16 precisions and unrounded float32 in precision "fp32". A scalar comes as shape
    (1,), as Core ML gives it.
    """
    if not isinstance(value, torch.Tensor):
        return value
    array = np.atleast_1d(value.detach().cpu().numpy())
    if feature.image is not None:
        return _to_image(array, feature.image)
    dtype = feature.type.dtype
    if dtype is not None and not dtype.is_float and array.dtype != dtype.numpy:
        return array.astype(dtype.numpy)
    return array.copy()


def _to_image(array: np.ndarray, image: Image) -> Any:
    from PIL import Image as Pillow

    pixels: np.ndarray = array[0] if array.ndim == 4 else array
    pixels = pixels.transpose(1, 2, 0) if pixels.shape[0] in (1, 3) else pixels
    if image.color == _GRAY16:
        return Pillow.fromarray(pixels[:, :, 0].astype(np.float32), mode="F")
    whole = np.clip(np.rint(pixels.astype(np.float32)), 0, 255).astype(np.uint8)
    if image.color == _BGR:
        whole = whole[:, :, ::-1]
    return Pillow.fromarray(np.ascontiguousarray(whole[:, :, 0] if whole.shape[2] == 1 else whole))
