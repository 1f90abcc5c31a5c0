"""prompts.json of a build: ready-made prompts with their ids, for whoever has no tokenizer at hand.

A host that offers only these needs no tokenizer library: image tokens go between the two rows of ids. The text is there
to be shown, and to be encoded anew where a tokenizer is. Written canonically, read with every field checked.
It knows neither tokenizers nor templates: `fastvlm_ref.ready_prompts` makes the ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.build import LARGEST
from fastvlm.errors import BuildError
from fastvlm.json_file import read_json
from fastvlm.manifest import dump

NAME = "prompts.json"
SCHEMA = "0.1"
TEXTS, IDS = ("title", "text"), ("ids_before_image", "ids_after_image")
MAX_BYTES = 16 << 20  # 64 prompts of 4,000 characters, each of them four ids, take 13 MB
LISTED = 10  # problems named in one error


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt: a short title for a menu, the text, and the ids that stand before and after the image tokens."""

    title: str
    text: str
    ids_before_image: tuple[int, ...]
    ids_after_image: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many positions it takes beside those of the image."""
        return len(self.ids_before_image) + len(self.ids_after_image)


def dump_prompts(prompts: Iterable[EncodedPrompt]) -> bytes:
    """The bytes of prompts.json."""
    rows = [{name: getattr(prompt, name) for name in (*TEXTS, *IDS)} for prompt in prompts]
    return dump({"schema": SCHEMA, "prompts": rows})


def read_prompts(file: Path) -> tuple[EncodedPrompt, ...]:
    """Read a build's prompts.json, `file`; BuildError that lists every entry that is no prompt."""
    content = _load(file)
    rows = content.get("prompts") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise BuildError(f'{file} holds no prompts, expected {{"schema", "prompts": [...]}}; export the build again')
    problems = [words for number, row in enumerate(rows, 1) for words in _problems(number, row)]
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise BuildError(f"{file}: {'; '.join(problems[:LISTED])}{more}; export the build again")
    return tuple(
        EncodedPrompt(row["title"], row["text"], tuple(row["ids_before_image"]), tuple(row["ids_after_image"]))
        for row in rows
    )


def _load(file: Path) -> Any:
    try:
        return read_json(file, MAX_BYTES)
    except OSError as problem:
        raise BuildError(f"{file} cannot be read ({problem.strerror}); export the build again") from problem
    except ValueError as problem:
        raise BuildError(f"{file} is not valid JSON ({str(problem)[:120]}); export the build again") from problem


def _problems(number: int, row: Any) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f"entry {number} is {json.dumps(row)[:40]}, expected an object"
        return
    for name in TEXTS:
        if not isinstance(row.get(name), str):
            yield f"entry {number}: {name} is {json.dumps(row.get(name))[:40]}, expected text"
    for name in IDS:
        ids = row.get(name)
        if not (isinstance(ids, list) and all(type(id_) is int and 0 <= id_ < LARGEST for id_ in ids)):
            yield f"entry {number}: {name} is {json.dumps(ids)[:40]}, expected a list of token ids"
