"""The self-test of a bundle: its own worked example, computed by the host that knows the bundle alone.

Photo, picture and rows must give the very bytes, prompts the very ids; image tokens and logits may differ by what the
build's own limits allow (`tolerances` in selftest.json). Every step follows the example's token, whatever this host
would have said: after a difference the two would answer different questions. A token that differs is a tie where the
example's own logits of the two are so close that an error that is allowed can make them change places.
What an error counts is the example's to say too (`spreads`): a host that is wrong would excuse itself by its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.errors import BundleError
from fastvlm.hashes import sha256_bytes
from fastvlm.json_file import counted
from fastvlm.progress import SILENT, Progress
from fastvlm.quoting import printable
from validation.bundle_host.host import Host
from validation.bundle_host.picture import Pixels, open_photo, square
from validation.limits import in_words, storable
from validation.metrics import psnr_db

Ids = tuple[list[int], list[int]]
MOST_FEATURES = 256 << 20  # bytes: image tokens of the largest side, 4,096 rows of 8,192 in float32, take half of it


@dataclass(frozen=True)
class Check:
    """One comparison: `value` must be at least ("min") or at most ("max") `limit`."""

    name: str
    value: float
    bound: str
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the limit holds; NaN never does."""
        return self.value >= self.limit if self.bound == "min" else self.value <= self.limit

    @property
    def words(self) -> str:
        """The limit as tables show it."""
        return in_words(self.bound, self.limit)


@dataclass(frozen=True)
class SelfTestResult:
    """What a self-test found: every check, the answer's text, and how many of its tokens were ties."""

    backend: str
    checks: tuple[Check, ...]
    text: str
    ties: int

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data, numbers to three significant digits."""
        rows = [
            {"name": each.name, "value": storable(each.value), "bound": each.bound, "limit": each.limit}
            | {"passed": each.passed}
            for each in self.checks
        ]
        return {"backend": self.backend, "passed": self.passed, "text": self.text, "ties": self.ties, "checks": rows}


def run_selftest(bundle: str | Path, backend: str = "mil", progress: Progress = SILENT) -> SelfTestResult:
    """Runs the self-test of a bundle; `backend` is "mil" or "coreml".

    Raises BundleError where the bundle has no self-test, a damaged one, or one of a newer schema; what the host raises.
    """
    host = Host(bundle, backend)
    if "selftest" not in host.get("files", dict):
        raise BundleError(f"{host.folder} has no self-test: its build was not validated; validate it, bundle it again")
    name = host.get("files.selftest", str)
    try:
        with host.open(name) as file:
            example = json.loads(counted(file.read()))
        if str(example["schema"]).split(".")[0] != "0":
            raise BundleError(f"{name} has schema {example['schema']}, expected 0.x; install a newer fastvlm")
        with progress.stage("Running the self-test"):
            return _Run(host, example, Path(name).parent.as_posix()).result()
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        reason = printable(repr(error), 80)
        raise BundleError(
            f"{host.folder / name} is damaged ({reason}); validate its build again, then bundle that"
        ) from error


@dataclass(frozen=True)
class _Run:
    """One host with one worked example, whose files lie in `folder` of the bundle."""

    host: Host
    example: dict[str, Any]
    folder: str

    def result(self) -> SelfTestResult:
        """All of the example's files are read before anything is computed: a damaged one costs nothing."""
        if not self.example["greedy_ids"]:
            raise ValueError("no ids of an answer")
        np.array(self.example["spreads"], np.float64)  # JSON has whole numbers that no float holds
        tolerances, pixels = self.example["tolerances"], self._picture("picture")
        ids = (self.example["ids_before_image"], self.example["ids_after_image"])
        truth, photo, rows = self._truth(), tuple(self._photo()), tuple(self._rows(ids))
        asked = differing(self.host.prompt.ids(self.example["prompt"]), ids)
        ready = self._prompts()
        said, error = self._answer(pixels, ids)
        decibel = psnr_db(truth, self.host.features(pixels))
        differ = [mine != true for mine, true in zip(said, self.example["greedy_ids"], strict=True)]
        wrong = self._wrong(said)
        checks = (
            *photo,
            Check("picture: hash differs", _is_other(pixels, self.example["pixels_sha256"]), "max", 0),
            Check("image tokens: PSNR, dB", decibel, "min", tolerances["features_psnr_db"]),
            Check("prompt: ids that differ", asked, "max", 0),
            Check("ready-made prompts: ids that differ", ready, "max", 0),
            *rows,
            Check("logits: error over spread", error, "max", tolerances["logit_error_over_spread"]),
            Check("answer: tokens that differ", sum(wrong), "max", 0),
        )
        text = "".join(self.host.prompt.text(said))
        return SelfTestResult(self.host.backend, checks, text, sum(differ) - sum(wrong))

    def _picture(self, key: str) -> Pixels:
        return open_photo(self.host.path(f"{self.folder}/{self.example[key]}"))

    def _photo(self) -> Iterator[Check]:
        """The photo at every size of the bundle; self-tests of schema 0.1 have none."""
        if photo := self.example.get("photo"):
            pixels = open_photo(self.host.path(f"{self.folder}/{photo['file']}"))
            sizes = self.host.all("profiles", int, ".image_size")
            for size in sorted(map(int, photo["pixels_sha256"])):
                if size not in sizes:
                    raise ValueError(f"a photo at {size}, which is none of {sizes[:8]}")
                made = square(pixels, size, self.host.get("vision.image_strategy", str))
                other = _is_other(made, photo["pixels_sha256"][str(size)])
                yield Check(f"photo at {size}: hash differs", other, "max", 0)

    def _rows(self, ids: Ids) -> Iterator[Check]:
        """The rows of the prompt's ids; they depend on no engine. Self-tests of schema 0.1 have none."""
        if digest := self.example.get("rows_sha256"):
            rows = self.host.embed([*ids[0], *ids[1]])
            yield Check("rows of embeddings: hash differs", _is_other(rows, digest), "max", 0)

    def _truth(self) -> NDArray[Any]:
        """The image tokens that the example has."""
        stored = self.example["features"]
        with self.host.open(f"{self.folder}/{stored['file']}", MOST_FEATURES) as file:
            return np.frombuffer(file.read(MOST_FEATURES), stored["dtype"]).reshape(stored["shape"])

    def _prompts(self) -> int:
        with self.host.open(self.host.get("files.prompts", str)) as file:
            ready = json.loads(counted(file.read()))["prompts"]
        return sum(
            differing(self.host.prompt.ids(each["text"]), (each["ids_before_image"], each["ids_after_image"]))
            for each in ready
        )

    def _wrong(self, said: list[int]) -> list[bool]:
        """Which of the tokens differ from the example's and are no ties with them."""
        most = 2 * self.example["tolerances"]["logit_error_over_spread"]
        steps = zip(said, self.example["greedy_ids"], self.example["top_logits"], self.example["spreads"], strict=True)
        return [
            mine != true and not _margin(mine, true, dict(eight)) <= most * spread
            for mine, true, eight, spread in steps
        ]

    def _answer(self, pixels: Pixels, ids: Ids) -> tuple[list[int], float]:
        """The likeliest token of each step behind the example's, and the worst error of any of its eight logits."""
        greedy, said, errors = self.example["greedy_ids"], [], []
        steps = self.host.steps(pixels, ids, len(greedy))
        logits = next(steps)
        spreads = self.example["spreads"]
        for number, (eight, spread) in enumerate(zip(self.example["top_logits"], spreads, strict=True)):
            said.append(int(logits.argmax()))
            errors.append(_error(logits, eight, spread))
            if number + 1 < len(greedy):
                logits = steps.send(greedy[number])
        return said, float(np.max(errors))  # NaN is the worst of all, where max() would pass it by


def differing(mine: Ids, theirs: Ids) -> int:
    """Returns at how many places two pairs of rows of ids differ; a missing id counts."""
    pairs = zip(mine, theirs, strict=True)
    return sum(a != b for one, other in pairs for a, b in zip_longest(one, other))


def _is_other(values: NDArray[Any], digest: str) -> int:
    return int(sha256_bytes(values.tobytes()) != digest)


def _error(logits: NDArray[np.float32], eight: list[tuple[int, float]], spread: float) -> float:
    """The largest difference from the eight stored logits over the stored spread; inf for one that is no spread."""
    places, values = zip(*eight, strict=True)
    worst = float(np.abs(logits[list(places)] - np.array(values, np.float32)).max())
    return worst / spread if math.isfinite(spread) and spread > 0 else math.inf


def _margin(mine: int, true: int, eight: dict[int, float]) -> float:
    """How far apart the example has two tokens; inf where one of them is not among its eight."""
    return abs(eight[true] - eight[mine]) if {mine, true} <= eight.keys() else math.inf
