"""Pictures: JPEG, PNG, WebP or HEIC files (`image_file`) -> upright RGB -> square uint8, the same bytes everywhere.

Notable choices, one rule per kind of picture:
- orientation: turned upright by EXIF, then forgotten, so that it cannot be turned twice;
- alpha: laid over white. A transparent picture is made to be seen on a page; over black its dark lines would vanish,
  and dropping alpha (what `convert("RGB")` does) shows whatever colour lies hidden under it;
- 16-bit grey: scaled to 8 bits by v · 255 / 65535, rounded, where `convert("RGB")` clips at 255 (Pillow #3011);
- a transparent colour (PNG's tRNS): alpha, where all bits that the file has are that colour's;
- 16-bit colour: Pillow's decoder keeps the high byte of each value;
- CMYK, YCbCr, palettes: Pillow's conversion; colour profiles are not applied, as in Apple's predict.py;
- animations and pages: the first one, with a note;
- the pad rule is LLaVA's expand2square in black, then Pillow bicubic; the crop rule is the Hugging Face processor's,
  shortest edge to N, then the centre.
It does not know the model: N is a number that the caller has.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from fastvlm.errors import ImageError, UsageError
from fastvlm.picture_files import eight_bits, load_whole
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.image_file import MAX_PIXELS, MAX_SIDE, check_size, opened, said

if TYPE_CHECKING:
    import torch

STRIP_PIXELS = 16_000_000  # of the padded square that exist at one time: 64 MB
FLAT_PIXELS = 2_000_000  # of one mode that exist beside the picture while it becomes another: 8 MB each
STRATEGIES = ("pad", "crop")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: str | Path, *, max_pixels: int = MAX_PIXELS, progress: Progress = SILENT) -> Image.Image:
    """Returns the picture in a file as upright RGB, decoded whole.

    Raises ImageError when it is no picture, truncated, larger than `max_pixels` by its header, or of a format whose
    plugin is missing (HEIC: pillow-heif). What was left out (further frames) or Pillow warned of is told to
    `progress.note`.
    """
    path, notes = Path(path), list[str]()
    with opened(path, max_pixels, notes) as (image, file):
        load_whole(image, file, Image._getdecoder)
        orientation, rgb = _load(image), _flat(image)
    del image  # a third copy of a large picture exists else while it is turned
    for text in notes:
        progress.note(f"{path.name}: {text}")
    return _turned(rgb, orientation)


def check_header(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageError as `open_image` does for what a file's header tells, without decoding the picture."""
    with opened(Path(path), max_pixels, []):
        pass


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns a picture of any mode as upright RGB without metadata, by the rules above. Raises ImageError."""
    orientation = _load(image)
    return _turned(_flat(image), orientation)


def preprocess(image: Image.Image, size: int, strategy: str = "pad") -> NDArray[np.uint8]:
    """Returns pixels (N, N, 3) of a picture of any mode, N = `size`: padded ("pad") or cropped ("crop") to a square.

    Raises ImageError for a picture that cannot be brought to RGB or is too large, UsageError for an unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"image rule '{strategy}' is unknown; known are {', '.join(STRATEGIES)}")
    if size < 1:
        raise UsageError(f"image size is {size}; it must be at least 1")
    check_size(image.size, MAX_SIDE * MAX_SIDE)  # in memory already: only what follows is limited
    rgb = to_rgb(image)
    square = _pad(rgb, size) if strategy == "pad" else _crop(rgb, size)
    return np.array(square, dtype=np.uint8)


def pixels_to_tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Returns float32 (1, 3, N, N) in [0, 1] of pixels (N, N, 3): v / 255, mean 0 and std 1 in every FastVLM."""
    import torch

    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255.0


def _pad(image: Image.Image, size: int) -> Image.Image:
    """Black-pads to a centred square and resizes, in strips: the square of a long picture never exists whole.

    Pillow resizes the width of every row first and rounds to uint8, then the height; rows are independent in the first
    pass, so that strips give the same bytes.
    """
    width, height = image.size
    side = max(width, height)
    narrow = Image.new("RGB", (size, side))  # the padded square after the first pass; black rows stay black
    rows = max(1, STRIP_PIXELS // side)
    for top in range(0, height, rows):
        strip = Image.new("RGB", (side, min(rows, height - top)))
        strip.paste(image.crop((0, top, width, top + strip.height)), ((side - width) // 2, 0))
        narrow.paste(strip.resize((size, strip.height), Image.Resampling.BICUBIC), (0, (side - height) // 2 + top))
    return narrow.resize((size, size), Image.Resampling.BICUBIC)


def _crop(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shortest edge to `size` and cuts out the centre (transformers, CLIPImageProcessor).

    In two calls: Pillow 13 resizes the height first where it shrinks far more than the width (its #9549), all before
    resized the width first, and the bytes differ.
    """
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled = int(size * long / short)
    if scaled > MAX_SIDE:
        raise ImageError(
            f"the picture is {width}×{height}; the crop rule would make it {scaled} pixels long, at most {MAX_SIDE} "
            "are made; cut it, or use --image-rule pad"
        )
    wide, high = (size, scaled) if width <= height else (scaled, size)
    resized = image.resize((wide, height), Image.Resampling.BICUBIC).resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def _load(image: Image.Image) -> int:
    """Decodes a picture whole and returns its EXIF orientation, 1 to 8.

    In this order: Pillow turns a TIFF itself while it loads, and then forgets the tag.
    """
    try:
        image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return orientation if orientation in UPRIGHT else 1
    except MemoryError:
        raise
    except Exception as error:  # decoders raise a dozen kinds on damaged files (OSError, SyntaxError, struct.error, …)
        raise ImageError(f"the picture is damaged or cut short ({said(error)}); copy it or save it again") from error


def _turned(rgb: Image.Image, orientation: int) -> Image.Image:
    if orientation in UPRIGHT:
        rgb = rgb.transpose(UPRIGHT[orientation])
    rgb.info = {}  # holds the EXIF bytes otherwise, and the picture would be turned again
    return rgb


def _flat(image: Image.Image) -> Image.Image:
    """Returns RGB, a picture of its own: transparent places over white, grey of 16 bits scaled."""
    if image.mode == "F":
        raise ImageError("the picture has 32-bit float pixels, of which white is unknown; save it with 8 or 16 bits")
    if image.mode == "I":
        _check_grey(image)
    try:
        if image.mode.startswith("I") or image.has_transparency_data:
            return _in_strips(image)
        return image.convert("RGB")
    except (ValueError, KeyError) as error:
        found = f"mode {image.mode} does not convert to RGB ({error})"
        raise ImageError(f"the picture's {found}; save it as RGB") from error


def _in_strips(image: Image.Image) -> Image.Image:
    """Flattens strip by strip: of a large picture the steps between would take several times its memory."""
    flat = Image.new("RGB", image.size)
    rows = max(1, FLAT_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if image.mode.startswith("I"):
            strip = eight_bits(strip)
        flat.paste(_over_white(strip), (0, top))
    return flat


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _check_grey(image: Image.Image) -> None:
    low, high = cast(tuple[int, int], image.getextrema())
    if low < 0 or high > 65535:
        raise ImageError(f"the picture's grey runs from {low} to {high}; expected 0 to 65535, save it with 16 bits")
