"""`selftest/` of a build: a picture and the numbers that a device must find for it at first start.

    picture.png      the preprocessed picture, N×N, RGB, so that no decoder or resampler stands between
    photo.png        a picture that is not square, to be preprocessed
    features.bin     the reference's image tokens, fp16, row-major [T, H]
    selftest.json    pixel sha256, prompt ids, the sha256 of their rows, greedy ids, of each step the eight best logits
                     and the spread of all, tolerances; of the photo the pixel sha256 at every exported size

The numbers come from the reference, not from the packages: a device is tested against the truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastvlm.build import Build
from fastvlm.hashes import list_tree, sha256_bytes, sha256_file
from fastvlm.manifest import SELFTEST, SELFTEST_FILES, dump
from fastvlm.publish import staged_folder
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.samples import shipped_photo
from validation.host import EmbeddingTable
from validation.limits import LIMITS, Limit, storable
from validation.reference import Encoded, Transcript

FOLDER = SELFTEST
OWN = {*SELFTEST_FILES, ".DS_Store"}
SCHEMA = "0.3"  # 0.2: photo; 0.3: rows_sha256, spreads, and a photo larger than every side
TOP = 8


@dataclass(frozen=True)
class Photo:
    """A picture as a user has it, and the SHA-256 of the RGB bytes (N, N, 3) that preprocessing makes of it, by N."""

    picture: Image.Image
    pixels_sha256: Mapping[int, str]

    def as_json(self) -> dict[str, object]:
        """What selftest.json says of it."""
        return {
            "file": "photo.png",
            "pixels_sha256": {str(side): digest for side, digest in self.pixels_sha256.items()},
        }


@dataclass(frozen=True)
class SelfTest:
    """One worked example: RGB bytes (N, N, 3), image tokens float32 (T, H), prompt ids and the reference's steps."""

    prompt: str
    pixels: NDArray[np.uint8]
    features: NDArray[np.float32]
    ids_before: tuple[int, ...]
    ids_after: tuple[int, ...]
    greedy_ids: tuple[int, ...]
    top_logits: tuple[tuple[tuple[int, float], ...], ...]  # per step: (id, logit), best first
    spreads: tuple[float, ...]  # per step: the standard deviation of all V logits, which the tolerance is in units of
    photo: Photo
    rows_sha256: str  # of the embedding rows of both rows of ids, fp16 [S, H]
    limits: Mapping[str, Limit] = field(default_factory=lambda: LIMITS)  # what the build is held to

    def as_json(self) -> dict[str, object]:
        """The content of selftest.json."""
        return {
            "schema": SCHEMA,
            "picture": "picture.png",
            "pixels_sha256": sha256_bytes(self.pixels.tobytes()),
            "photo": self.photo.as_json(),
            "features": {"file": "features.bin", "dtype": "float16", "shape": list(self.features.shape)},
            "prompt": self.prompt,
            "ids_before_image": list(self.ids_before),
            "ids_after_image": list(self.ids_after),
            "rows_sha256": self.rows_sha256,
            "greedy_ids": list(self.greedy_ids),
            "top_logits": [[[i, storable(value)] for i, value in step] for step in self.top_logits],
            "spreads": [storable(value) for value in self.spreads],
            "tolerances": {
                "features_psnr_db": self.limits["encoder.psnr_db"].limit,
                "logit_error_over_spread": self.limits["language.logit_error"].limit,
            },
        }


def top_logits(logits: NDArray[np.float32]) -> tuple[tuple[int, float], ...]:
    """Returns the eight best (id, logit) of logits (V,), best first, the lower id first among equals."""
    order = np.argsort(-logits, kind="stable")[:TOP]
    return tuple((int(i), float(logits[i])) for i in order)


def worked_photo(build: Build) -> Photo:
    """Returns the shipped picture that is not square, with what the build's image rule makes of it at every size.

    It is enlarged beyond all of them, edges kept sharp, and to odd sides: where a picture is reduced, a resampler
    without antialias makes other bytes, and where a bar is half a pixel wide, so does one that rounds it otherwise.
    """
    side = max(build.image_sizes)
    picture = open_image(shipped_photo()).resize((side * 5 // 2 + 1, side * 3 // 2 + 2), Image.Resampling.NEAREST)
    pixels = {side: preprocess(picture, side, build.image_rule) for side in build.image_sizes}
    return Photo(picture, {side: sha256_bytes(made.tobytes()) for side, made in pixels.items()})


def rows_sha256(build: Build, ids: tuple[Sequence[int], Sequence[int]]) -> str:
    """Returns the hash of the rows that a host takes of the build's table for ids before and after the image.

    These are exact on any device: fp16 as it is stored, or a product rounded once.
    """
    assert build.embeddings is not None
    table = EmbeddingTable(build.embeddings.file, build.embeddings.rows, build.embeddings.width, build.embeddings.dtype)
    return sha256_bytes(table([*ids[0], *ids[1]]).tobytes())


def worked_example(
    prompt: str,
    encoded: Encoded,
    transcript: Transcript,
    ids: tuple[Sequence[int], Sequence[int]],
    stop_ids: tuple[int, ...],
    photo: Photo,
    rows: str,
    limits: Mapping[str, Limit] = LIMITS,
) -> SelfTest:
    """Returns what a device is to find for one picture and prompt: the reference's steps up to the first stop id."""
    ends = (step for step, chosen in enumerate(transcript.ids, 1) if chosen in stop_ids)
    steps = next(ends, len(transcript.ids))
    tops = tuple(top_logits(logits) for logits in transcript.logits[:steps])
    greedy = tuple(step[0][0] for step in tops)
    spreads = tuple(float(logits.std()) for logits in transcript.logits[:steps])
    before, after = map(tuple, ids)
    return SelfTest(prompt, encoded.pixels, encoded.tokens, before, after, greedy, tops, spreads, photo, rows, limits)


@contextmanager
def staged_selftest(build: Path, test: SelfTest) -> Iterator[dict[str, str]]:
    """Write `selftest/` into the build, whole or not at all, in place of an older one.

    Yields its files' SHA-256 when they are written; it takes its name when the block ends well.
    """
    with staged_folder(build / FOLDER, overwrite=True, is_ours=is_selftest) as stage:
        Image.fromarray(test.pixels).save(stage / "picture.png")
        test.photo.picture.save(stage / "photo.png")
        (stage / "features.bin").write_bytes(test.features.astype(np.float16).tobytes())
        (stage / "selftest.json").write_bytes(dump(test.as_json()))
        yield {name: sha256_file(stage / name) for name in list_tree(stage)}


def is_selftest(folder: Path) -> bool:
    """Returns whether a folder is a self-test and nothing else, so that replacing it costs nobody a file."""
    try:
        found = {path.name for path in folder.iterdir()}
    except OSError:
        return False
    return "selftest.json" in found and found <= OWN
