"""A user's own questions: JSON lines of {image, prompt, answer?}, checked whole before anything is computed.

Paths of pictures are relative to the file. A key that is not known is refused: a misspelt "answer" would otherwise be
a question without one. Pictures are looked for here, and opened by `fastvlm_ref.samples.check_pictures`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from fastvlm.errors import UsageError
from fastvlm.json_file import counted, each_once
from fastvlm.paths import open_followed
from fastvlm.quoting import printable
from fastvlm_ref.samples import Sample

NEEDED, KNOWN = ("image", "prompt"), ("image", "prompt", "answer")
EXAMPLE = '{"image": "photo.jpg", "prompt": "What is this?", "answer": "a cat"}'
LISTED = 20  # lines named in one error
LARGEST = 64 << 20  # bytes: a hundred thousand questions are a tenth of it


def read_questions(file: Path, option: str = "--questions") -> list[Sample]:
    """Returns the questions of a .jsonl file in order; blank lines are passed by.

    Raises UsageError that names every line that is wrong (the first twenty) with the reason, or says that there is no
    file or no question in it. `option` is what the user typed to name the file.
    """
    named = f"{option} {file}"
    if not os.path.isfile(file):
        raise UsageError(f"{named} is not a file; expected lines such as {EXAMPLE}")
    try:
        with open_followed(file) as opened:
            data = opened.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{named} cannot be read ({error.strerror}); expected lines such as {EXAMPLE}") from error
    if len(data) > LARGEST:
        raise UsageError(f"{named} has {os.stat(file).st_size} bytes, at most {LARGEST} are read; split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{named} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    read = [(number, _question(file, line)) for number, line in lines]
    _refuse(named, [f"line {number}: {found}" for number, found in read if isinstance(found, str)])
    if not read:
        raise UsageError(f"{named} holds no question; expected lines such as {EXAMPLE}")
    return [found for _, found in read if isinstance(found, Sample)]


def _refuse(named: str, problems: list[str]) -> None:
    if problems:
        rest = f"; and {len(problems) - LISTED} more lines" if len(problems) > LISTED else ""
        raise UsageError(f"{named}: {'; '.join(problems[:LISTED])}{rest}; expected lines such as {EXAMPLE}")


def _question(file: Path, line: str) -> Sample | str:
    """Returns the question, or what is wrong with the line."""
    try:
        found = json.loads(counted(line.encode()), object_pairs_hook=each_once)
    except RecursionError:
        return "not JSON (nested too deeply)"
    except ValueError as error:
        return f"not JSON ({error})"
    if not isinstance(found, dict):
        return f"{json.dumps(found)[:40]}, expected an object with {', '.join(NEEDED)} and perhaps answer"
    wrong = [f"{key!r} is unknown (known: {', '.join(KNOWN)})" for key in found if key not in KNOWN]
    wrong += [f"{key} is missing" for key in NEEDED if key not in found]
    texts = {key: value for key, value in found.items() if key in KNOWN}
    wrong += [f"{key} is {json.dumps(texts[key])[:40]}, expected text" for key in texts if not is_text(texts[key])]
    if wrong:
        return ", ".join(wrong)
    picture = file.parent / texts["image"]
    if not os.path.isfile(picture):  # unlike Path.is_file, it takes any text
        return f"no picture at {printable(texts['image'])}"
    return Sample(picture, texts["prompt"], texts.get("answer"))


def is_text(value: object) -> bool:
    """Whether it is text of any length but 0, of characters that exist: half a surrogate pair is none."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= sign <= "\udfff" for sign in value)
