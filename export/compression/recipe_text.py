"""The text of a recipe: from a file or a string to plain mappings, with every line that YAML cannot mean refused.

A recipe, and the plan of a sweep, is two levels of names and numbers. Anchors, aliases (which can grow without bound),
tags, deeper nesting and keys that stand twice are refused by line; PyYAML's safe loader makes the rest plain Python
values.
It does not know what the keys mean: `recipe` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fastvlm.errors import UsageError
from fastvlm.paths import open_followed
from fastvlm.quoting import short

LARGEST = 1 << 16  # bytes: a line for each matrix of 7B takes 15,000; a megabyte of keys took 16 s to read
DEEPEST = 2  # levels of mappings
MOST_LISTED = 10  # problems that one error lists
MOST_SAID = 100  # characters of a parser's own sentence


def read_text(path: Path, kind: str = "recipe") -> str:
    """Returns what the file holds; UsageError when it is missing, no file, too large or not UTF-8.

    `kind` is what messages call it.
    """
    if not os.path.exists(path):
        raise UsageError(f"{kind} {path}: no such file; expected a YAML file")
    if not os.path.isfile(path):
        raise UsageError(f"{kind} {path}: not a file; expected a YAML file")
    try:
        with open_followed(path) as handle:
            data = handle.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise UsageError(f"{kind} {path}: larger than {LARGEST:,} bytes; a {kind} has a few lines")
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{kind} {path}: byte {error.start} is not UTF-8; save it as UTF-8 text") from error
    except OSError as error:
        raise UsageError(f"{kind} {path}: cannot be read: {error.strerror}") from error


def load_mapping(text: str, title: str, example: str = "language: lut4") -> dict[Any, Any]:
    """Returns the mapping that the YAML text stands for, empty for no text; UsageError with the lines at fault.

    `example` is a line as messages show one.
    """
    try:
        problems = list(_refused(text))
        node = None if problems else yaml.compose(text, Loader=yaml.SafeLoader)
        problems += [] if node is None else _repeated(node)
        found = None if problems else yaml.safe_load(text)
    except yaml.YAMLError as error:
        problems = [_in_words(error)]
    except (ValueError, OverflowError) as error:  # a date or number that looks like one and is none
        problems = ["a number of thousands of digits" if "digits" in str(error) else str(error)[:MOST_SAID]]
    if not problems and not isinstance(found, (dict, type(None))):
        problems = [f"holds {short(found)}, expected lines of the form `{example}`"]
    if problems:
        raise UsageError(f"{title}: {joined(problems)}")
    return found or {}


def joined(problems: list[str]) -> str:
    """Returns problems as one error lists them: the first `MOST_LISTED`, and how many more there are."""
    more = [f"and {len(problems) - MOST_LISTED} more"] if len(problems) > MOST_LISTED else []
    return "; ".join([*problems[:MOST_LISTED], *more])


def _refused(text: str) -> Iterator[str]:
    """What no recipe needs, each with its line; nesting that is too deep ends the search."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            yield f"{line}: anchors and aliases (& and *) are not taken; write the value out, a pattern in quotes"
        if getattr(event, "tag", None):
            yield f"{line}: tags (!) are not taken; write the plain value"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            yield f"{line}: nested too deeply, expected {DEEPEST} levels"
            return


def _repeated(node: yaml.Node) -> list[str]:
    """Keys that stand twice in the mapping or in a mapping inside it, and keys that are no names."""
    if not isinstance(node, yaml.MappingNode):
        return []
    seen: set[str] = set()
    problems = []
    for key, value in node.value:
        line = f"line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            problems.append(f"{line}: a key must be a name")
        elif key.value in seen:
            problems.append(f"{line}: {short(key.value)} stands twice")
        else:
            seen.add(key.value)
        problems += _repeated(value)
    return problems


def _in_words(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or " ".join(str(error).split()))[:MOST_SAID]
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)
