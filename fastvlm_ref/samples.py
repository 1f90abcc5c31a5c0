"""Which pictures and prompts a comparison or a calibration uses: the three shipped ones, or a folder of the user's own.

It does not know what they are used for; `option` is what the user typed to name the folder. Questions of the user's own
are read by `fastvlm_ref.questions`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path

from fastvlm.errors import ImageError, UsageError
from fastvlm_ref.image import check_header

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".ppm",
)  # fmt: skip
LISTED = 10  # files named in one error
MOST_PICTURES = 10_000  # of a folder: the encoder of 0.5B takes 11 s for each at 1024 pixels, a day and more for these
DEFAULT_PROMPT = "Describe the picture."


@dataclass(frozen=True)
class Sample:
    """A picture and a question; `answer` is the true one where it is known."""

    picture: Path
    prompt: str
    answer: str | None = None

    @property
    def name(self) -> str:
        """The picture's file name, as reports call it."""
        return self.picture.name


def shipped_samples() -> list[Sample]:
    """Returns the shipped pictures with their questions and true answers."""
    folder = Path(str(files("fastvlm_ref") / "tiny" / "pictures"))
    rows = json.loads((folder / "examples.json").read_text("utf-8"))
    return [Sample(folder / row["image"], row["prompt"], row.get("answer")) for row in rows]


def shipped_photo() -> Path:
    """Returns the shipped picture that is not square, so that preprocessing has to pad or to crop it."""
    return next(sample.picture for sample in shipped_samples() if sample.name == "wide.png")


def samples_in(folder: Path, option: str = "--images") -> list[Sample]:
    """Returns every picture of `folder`, by name, with the default prompt.

    Raises UsageError when there is none, and for more than MOST_PICTURES, of which no more are listed than tell.
    """
    if not os.path.isdir(folder):
        raise UsageError(f"{option} {folder} is not a folder")
    with os.scandir(folder) as entries:  # one by one, where Path.iterdir lists all of them first
        names = (entry.name for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES)
        pictures = sorted(islice((name for name in names if not name.startswith(".")), MOST_PICTURES + 1))
    if not pictures:
        raise UsageError(f"{option} {folder} holds no picture; known endings are {', '.join(SUFFIXES)}")
    if len(pictures) > MOST_PICTURES:
        raise UsageError(
            f"{option} {folder} holds over {MOST_PICTURES:,} pictures; each is taken through the model, choose fewer"
        )
    return [Sample(folder / name, DEFAULT_PROMPT) for name in pictures]


def check_pictures(samples: Iterable[Sample]) -> None:
    """Raises ImageError that names every file that is no picture, by their headers alone: before minutes of work."""
    problems = []
    for picture in dict.fromkeys(sample.picture for sample in samples):
        try:
            if any("\ud800" <= sign <= "\udfff" for sign in picture.name):  # what Python makes of other bytes
                raise ImageError(f"{picture}: its name is not UTF-8, and reports name it; rename the file")
            check_header(picture)
        except ImageError as error:
            problems.append(str(error))
    if problems:
        rest = f"; and {len(problems) - LISTED} more files" if len(problems) > LISTED else ""
        raise ImageError("; ".join(problems[:LISTED]) + rest)
