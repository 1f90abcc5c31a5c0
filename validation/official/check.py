"""`fastvlm check-official`: does this project's reference give the logits that were published for a real checkpoint?

Order of things: what was given, the picture, the checkpoint's size, then the forward pass. Image rule, prompt and
image side are those of the published run, whatever the checkpoint states. The decoder's weights stay in the file and
are read layer by layer, so that 7B needs no more memory than its largest layer and head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from fastvlm.errors import ImageError, TokenizerError, UsageError
from fastvlm.manifest import is_build
from fastvlm.progress import SILENT, Progress
from fastvlm_ref.checkpoint import load_checkpoint
from fastvlm_ref.checkpoint.hub import on_disk
from fastvlm_ref.checkpoint.load import read_config
from fastvlm_ref.checkpoint.opening import open_checkpoint
from fastvlm_ref.image import open_image, pixels_to_tensor, preprocess
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import encode_prompt
from validation.limits import OFFICIAL, Measurement, storable, worst
from validation.official.logits import LastLogits, last_logits
from validation.official.published import (
    IMAGE_RULE,
    PICTURE,
    PICTURE_SIZE,
    PROMPT,
    PUBLISHED,
    QUESTION,
    SCRIPT,
    Published,
    find_published,
)


@dataclass(frozen=True)
class LogitRow:
    """One logit: its token, what was published, what float32 gives here, and what rounding to bfloat16 makes of it."""

    token: int
    published: float
    here: float
    rounded: float

    @property
    def difference(self) -> float:
        """How far float32 is from what was published."""
        return self.here - self.published


@dataclass(frozen=True)
class OfficialCheck:
    """What came out: the row that was compared with, each logit, and the limits with their values."""

    published: Published
    positions: int
    logits: tuple[LogitRow, ...]
    spread: float  # standard deviation of all logits here: the unit of the limits
    rows: tuple[Measurement, ...]

    @property
    def allowed(self) -> float:
        """How far a logit may be from its published value."""
        return OFFICIAL["official.logit_error"].limit * self.spread

    @property
    def passed(self) -> bool:
        """True when every limit holds."""
        return all(row.passed for row in self.rows)

    def as_json(self) -> dict[str, object]:
        """The result as `--json` prints it, numbers to three significant digits but for the logits."""
        return {
            "verdict": "passed" if self.passed else "failed",
            "size": self.published.name,
            "positions": self.positions,
            "expected_positions": self.published.positions,
            "logits": [{key: _plain(value) for key, value in asdict(row).items()} for row in self.logits],
            "spread": storable(self.spread),
            "limits": [row.as_json() for row in self.rows],
            "source": SCRIPT,
        }


def check_official(
    checkpoint: str | Path,
    image: str | Path,
    *,
    base: str | Path | None = None,
    allow_pickle: bool = False,
    progress: Progress = SILENT,
) -> OfficialCheck:
    """Compares a checkpoint with the logits published for its size, about the picture that they were published for.

    `base` and `allow_pickle` are those of `load_checkpoint`. Raises UsageError for a build and for sizes without
    published logits, ImageError for a picture of another size, and whatever loading raises.
    """
    if is_build(Path(checkpoint)):
        raise UsageError(
            f"{checkpoint} is a build, expected a checkpoint; name the one that it was made from, and compare the "
            "build with that one by `fastvlm validate`"
        )
    picture = _open_picture(image, progress)
    found = on_disk(checkpoint, progress)
    told = {"image_rule": IMAGE_RULE, "template": PROMPT.template, "system": PROMPT.system}  # nothing is assumed then
    config = read_config(open_checkpoint(found, base, allow_pickle), **told)
    published = find_published(config.text, str(checkpoint), PUBLISHED)
    model = load_checkpoint(found, stream=True, base=base, allow_pickle=allow_pickle, progress=progress, **told)
    return compare(published, _last_logits(model, picture, published, progress))


def compare(published: Published, found: LastLogits) -> OfficialCheck:
    """Holds logits to what was published for the same prompt."""
    rows = tuple(
        LogitRow(token, value, float(found.exact[token]), float(found.rounded[token]))
        for token, value in enumerate(published.logits)
    )
    return OfficialCheck(published, found.positions, rows, found.spread, tuple(_measure(published, found, rows)))


def _measure(published: Published, found: LastLogits, rows: Sequence[LogitRow]) -> Iterator[Measurement]:
    differing = float(abs(found.positions - published.positions))
    errors = {f"token {row.token}": _over(abs(row.difference), found.spread) for row in rows}
    yield worst("official.differing_positions", {"the prompt": differing}, OFFICIAL)
    yield worst("official.logit_error", errors, OFFICIAL)
    yield worst("official.bf16_cost", {"all tokens": _over(found.rounding_error, found.spread)}, OFFICIAL)


def _open_picture(path: str | Path, progress: Progress) -> Image.Image:
    picture = open_image(path, progress=progress)
    if picture.size != PICTURE_SIZE:
        found, expected = ("×".join(map(str, size)) for size in (picture.size, PICTURE_SIZE))
        raise ImageError(
            f"{path} is {found} pixels, expected {expected}: the logits were published for {PICTURE}; fetch that file"
        )
    return picture


def _last_logits(model: FastVLM, picture: Image.Image, published: Published, progress: Progress) -> LastLogits:
    if model.tokenizer is None:
        raise TokenizerError("this checkpoint has no tokenizer")
    pixels = pixels_to_tensor(preprocess(picture, published.image_size, IMAGE_RULE))
    return last_logits(model, pixels, encode_prompt(model.tokenizer, QUESTION, PROMPT), progress)


def _over(value: float, spread: float) -> float:
    """The quotient; infinite where there is nothing to divide by, so that no limit holds."""
    return value / spread if spread > 0 else math.inf


def _plain(value: float) -> float | str:
    """A number as JSON can hold it."""
    return value if math.isfinite(value) else str(value)
