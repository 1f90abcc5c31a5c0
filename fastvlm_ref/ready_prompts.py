"""Ready-made prompts: what an app offers to be asked at a tap, the checkpoint's own or eight general ones.

Notable choices:
- a checkpoint folder may hold a prompts.json, a JSON list of {"title", "text"}, which takes the place of the general
  ones: a fine-tune knows best what it may be asked. A LoRA adapter's own wins over its base's;
- a misspelt key, an empty text or a title that stands there twice is refused, never mended: an app shows these texts;
- they are data of the source: their hash is recorded, and other prompts are no other checkpoint (`source.is_prose`).
What a build keeps of them, ids included, is `fastvlm.prompts`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastvlm.errors import CheckpointError
from fastvlm.json_file import each_once
from fastvlm.prompts import EncodedPrompt
from fastvlm_ref.checkpoint.source import PROMPTS, Source
from fastvlm_ref.config import PromptConfig
from fastvlm_ref.files import open_file
from fastvlm_ref.prompt import Encoder, encode_prompt
from fastvlm_ref.questions import is_text

FIELDS = {"title": 60, "text": 4000}  # most characters of each
MOST = 64  # prompts
MAX_BYTES = 1 << 20
LISTED = 10  # problems named in one error
EXPECTED = 'expected a JSON list such as [{"title": "Describe", "text": "Describe the image."}]'


@dataclass(frozen=True)
class ReadyPrompt:
    """One prompt: a short title for a menu, and the text that is asked."""

    title: str
    text: str


GENERAL = (
    ReadyPrompt("Describe", "Describe the image."),
    ReadyPrompt("One sentence", "Say in one sentence what the image shows."),
    ReadyPrompt("Read the text", "Write down all text that can be read in the image."),
    ReadyPrompt("Count", "Which things are in the image, and how many of each?"),
    ReadyPrompt("What is unusual", "What is unusual about the image?"),
    ReadyPrompt("Are there people", "Are there people in the image? Answer yes or no."),
    ReadyPrompt("Where is this", "What kind of place does the image show, and what tells you so?"),
    ReadyPrompt("Colours", "Which colours stand out in the image, and what has them?"),
)


def ready_prompts(source: Source) -> tuple[ReadyPrompt, ...]:
    """Returns the prompts of a checkpoint: its own prompts.json, else its base's, else the general ones.

    Raises CheckpointError that names every entry that is wrong.
    """
    origin: Source | None = source
    while origin is not None:
        if PROMPTS in origin.names:
            return read_own(origin.folder / PROMPTS)
        origin = origin.base
    return GENERAL


def encoded(
    prompts: Iterable[ReadyPrompt], tokenizer: Encoder, prompt: PromptConfig | None = None
) -> tuple[EncodedPrompt, ...]:
    """Returns the prompts with their ids, made as `encode_prompt` makes them; raises what that raises."""
    rows = ((ready, *encode_prompt(tokenizer, ready.text, prompt)) for ready in prompts)
    return tuple(EncodedPrompt(ready.title, ready.text, tuple(before), tuple(after)) for ready, before, after in rows)


def read_own(file: Path) -> tuple[ReadyPrompt, ...]:
    """Returns the prompts in a checkpoint's prompts.json; CheckpointError that names every entry that is wrong."""
    rows = _load(file)
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST:
        found = f"a list of {len(rows)}" if isinstance(rows, list) else f"a JSON {type(rows).__name__}"
        raise CheckpointError(f"{file} holds {found}, {EXPECTED}, 1 to {MOST} entries; or remove the file")
    problems = [f"entry {number}: {words}" for number, row in enumerate(rows, 1) for words in _problems(row)]
    problems += _twice([row.get("title") for row in rows if isinstance(row, dict)])
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise CheckpointError(f"{file}: {'; '.join(problems[:LISTED])}{more}; {EXPECTED}; or remove the file")
    return tuple(ReadyPrompt(row["title"], row["text"]) for row in rows)


def _load(file: Path) -> Any:
    try:
        with open_file(file) as opened:
            data = opened.read(MAX_BYTES + 1)
            size = max(len(data), os.fstat(opened.fileno()).st_size)
        if size > MAX_BYTES:
            raise CheckpointError(f"{file} has {size:,} bytes, at most {MAX_BYTES:,} are read; keep fewer prompts")
        return json.loads(data, object_pairs_hook=each_once)
    except OSError as problem:
        raise CheckpointError(f"{file} cannot be read ({problem.strerror}); check its permissions") from problem
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"{file} is not JSON ({str(problem)[:120]}); {EXPECTED}; or remove the file") from problem


def _problems(row: Any) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f"{json.dumps(row)[:40]}, expected an object with {' and '.join(FIELDS)}"
        return
    yield from (f"{key!r} is unknown (known: {', '.join(FIELDS)})" for key in row if key not in FIELDS)
    for name, most in FIELDS.items():
        if name not in row:
            yield f"{name} is missing"
        elif not is_text(row[name]):
            yield f"{name} is {json.dumps(row[name])[:40]}, expected text"
        elif len(row[name]) > most:
            yield f"{name} has {len(row[name]):,} characters, at most {most:,} are expected"
        elif name == "title" and not row[name].isprintable():
            yield f"title is {json.dumps(row[name])[:40]}, expected one line without control characters"


def _twice(titles: list[Any]) -> Iterator[str]:
    """Names the titles of a menu that could not be told apart."""
    known: dict[str, int] = {}
    for number, title in enumerate(titles, 1):
        if isinstance(title, str) and known.setdefault(title, number) != number:
            yield f"entry {number}: title {title[:40]!r} is that of entry {known[title]}, expected another"
