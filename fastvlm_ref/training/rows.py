"""A user's own data for fine-tuning: JSON lines of {image, prompt, answer}, checked whole before training starts.

Notable choices:
- pictures lie beside the file (paths are relative to it) and go through the checkpoint's own image rule;
- rows are visited in a new order each epoch, a pure function of (seed, step), so that a resumed run sees the same;
- prompts use the checkpoint's own template, and the answer ends with its end-of-turn token.
It does not know the model's weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastvlm.errors import ImageError, TokenizerError, UsageError
from fastvlm.hashes import hash_files, sha256_bytes
from fastvlm.json_file import parse
from fastvlm.paths import open_followed
from fastvlm.progress import SILENT, Progress
from fastvlm.quoting import printable
from fastvlm_ref.config import IMAGE_TOKEN, FastVLMConfig
from fastvlm_ref.image import open_image, preprocess
from fastvlm_ref.prompt import encode_prompt, find_template
from fastvlm_ref.questions import is_text
from fastvlm_ref.tokenizer import Tokenizer
from fastvlm_ref.training.batches import Batch
from fastvlm_ref.training.packing import Block, pack
from fastvlm_ref.training.stages import Stage

FIELDS = ("image", "prompt", "answer")
LISTED = 10  # problems named in one error
LONGEST_LINE = 1 << 20  # bytes of one row; the context of no model here holds as much text
MOST_ROWS = 10_000_000  # LLaVA's own data has 665,000


@dataclass(frozen=True)
class Row:
    """One picture, one question, one answer."""

    image: Path
    prompt: str
    answer: str


def read_rows(data: Path) -> list[Row]:
    """Returns the rows of a .jsonl file, or of every .jsonl file in a folder.

    Raises UsageError that lists what is wrong (first ten): no file, no JSON, a field missing, a picture not there.
    """
    files = sorted(data.glob("[!.]*.jsonl")) if os.path.isdir(data) else [data]
    if not files or not all(map(os.path.isfile, files)):
        raise UsageError(f"{data}: expected a .jsonl file or a folder with some, found none; give --data FILE.jsonl")
    rows: list[Row] = []
    problems: list[str] = []
    for file in files:
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                row = _row(file, line)
                if isinstance(row, Row):
                    rows.append(row)
                else:
                    problems.append(f"{file.name} line {number}: {row}")
            if len(rows) > MOST_ROWS or len(problems) > MOST_ROWS:
                raise UsageError(f"{data} holds more than {MOST_ROWS:,} rows; give a part of them")
    _refuse(problems)
    if not rows:
        raise UsageError(f'{data} holds no rows; expected lines of {{"image": …, "prompt": …, "answer": …}}')
    return rows


def _lines(file: Path) -> Iterator[bytes]:
    """Gives a file's lines; raises UsageError for what cannot be read and for a line that is none of these rows."""
    try:
        with open_followed(file) as handle:
            while line := handle.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise UsageError(f"{file} has a line of more than {LONGEST_LINE:,} bytes; expected one row a line")
                yield line
    except OSError as problem:
        raise UsageError(f"{file} cannot be read ({problem.strerror}); check its permissions") from problem


def rows_hash(rows: list[Row], progress: Progress = SILENT) -> str:
    """Returns the SHA-256 of all prompts, answers and picture files in their order: equal for equal data alone."""
    pictures = hash_files({str(row.image): row.image for row in rows}, "Hashing the pictures", progress)
    lines = [(pictures[str(row.image)]["sha256"], row.prompt, row.answer) for row in rows]
    return sha256_bytes(json.dumps(lines).encode())


def _refuse(problems: list[str]) -> None:
    """Raises UsageError that lists the first of them, where there are any."""
    if problems:
        rest = f" and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise UsageError(f"{len(problems)} rows cannot be used: {'; '.join(problems[:LISTED])}{rest}")


def _row(file: Path, line: bytes) -> Row | str:
    """Returns the row, or what is wrong with it."""
    try:
        found = parse(line)
    except ValueError as error:
        return f"not JSON ({str(error)[:100]})"
    if not isinstance(found, dict):
        return f"a {type(found).__name__}, expected an object with {', '.join(FIELDS)}"
    lacking = [name for name in FIELDS if not is_text(found.get(name))]
    if lacking:
        return f"{', '.join(lacking)} missing or no text"
    image = file.parent / found["image"]
    if not os.path.isfile(image):  # unlike Path.is_file, it takes any text
        return f"no picture at {printable(found['image'])}"
    return Row(image, found["prompt"], found["answer"])


class UserRows:
    """Rows as a source of batches for one checkpoint."""

    def __init__(self, rows: list[Row], tokenizer: Tokenizer, config: FastVLMConfig) -> None:
        self.rows, self.tokenizer, self.config = rows, tokenizer, config
        self.end = _end_of_turn(tokenizer, config)

    def check(self, image_size: int, progress: Progress = SILENT) -> None:
        """Raises UsageError that lists pictures that cannot be read and rows longer than the model's positions."""
        problems = []
        with progress.stage("Checking the rows", len(self.rows)) as advance:
            for row in self.rows:
                try:
                    open_image(row.image)
                except ImageError as error:
                    problems.append(str(error))
                before, blocks = self._pack(row, self.config.vision.tokens_at(image_size))
                length, most = len(before) + len(blocks[0].prompt + blocks[0].answer), self.config.text.max_positions
                if length > most:
                    problems.append(
                        f"{row.image.name}: prompt and answer take {length} positions, the model has {most}"
                    )
                advance(1)
        _refuse(problems)

    def _pack(self, row: Row, tokens: int) -> tuple[list[int], list[Block]]:
        before, after = encode_prompt(self.tokenizer, row.prompt)
        return before + [IMAGE_TOKEN] * tokens, [Block(after, [*self.tokenizer.encode(row.answer), self.end])]

    def batch(self, stage: Stage, step: int, part: int) -> Batch:
        """Returns one part of the step's rows: pixels through the image rule, one question each."""
        places = range(step * stage.pictures + part, (step + 1) * stage.pictures, stage.replicas)
        chosen = [self._at(stage, place) for place in places]
        tokens = self.config.vision.tokens_at(stage.image_size)
        packed = [self._pack(row, tokens) for row in chosen]
        pictures = [preprocess(open_image(row.image), stage.image_size, self.config.image_rule) for row in chosen]
        return Batch(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), pack(packed))

    def _at(self, stage: Stage, number: int) -> Row:
        epoch, place = divmod(number, len(self.rows))
        order = np.random.Generator(np.random.PCG64([stage.seed, epoch])).permutation(len(self.rows))
        return self.rows[int(order[place])]


def _end_of_turn(tokenizer: Tokenizer, config: FastVLMConfig) -> int:
    """The token that the template ends an answer with."""
    for name in find_template(config.prompt.template).stops:
        if tokenizer.has_control(name):
            return tokenizer.control(name)
    raise TokenizerError(f"the tokenizer has no token that ends an answer in template {config.prompt.template}")
