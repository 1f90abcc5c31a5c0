"""Changes that a stranger or a bad disk makes to a file: bytes, fields of a protobuf message, fields of a JSON text.

Each change is drawn from the `random.Random` that is given, so a seed tells it again. What is drawn lies near what does
harm: the ends of number types, lengths beyond the file, names of other things in the same file, none and many.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

NUMBERS = (0, 1, -1, 2, 3, 5, 64, 127, 4096, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1)
REALS = (0.0, -1.0, float("nan"), float("inf"), -1e30, 1e38)
LEAVES = 0.75  # of the changes are of a number or a text
TRIES = 20  # draws until one fits its field


def changed_bytes(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one to five of them flipped, replaced, taken out or put in, or cut."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(max(1, len(changed)))
        kind = draw.randrange(9)
        if kind < 2 and changed:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind < 4 and changed:
            changed[place] = draw.choice((0, 255, 127, 128))
        elif kind < 6:
            del changed[place : place + draw.randrange(1, 9)]
        elif kind < 8:
            changed[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 5)))
        else:
            del changed[max(1, place) :]
    return bytes(changed)


def changed_message(whole: Message, draw: random.Random, names: Sequence[str]) -> bytes:
    """The message with one to four of its fields changed, as bytes; `names`: what texts become."""
    message = type(whole)()
    message.CopyFrom(whole)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        for _ in range(TRIES):
            try:
                _change(message, draw, names)
            except (ValueError, TypeError):  # what the field cannot hold: drawn again
                continue
            break
    return bytes(message.SerializePartialToString(deterministic=True))


def changed_json(whole: Any, draw: random.Random) -> bytes:
    """The JSON value with one to three of its entries changed, as text."""
    value = json.loads(json.dumps(whole))
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return b"[]"
        owner, key = draw.choice(places)
        if draw.random() < 0.25:
            del owner[key]
        else:
            owner[key] = draw.choice(_ODD)
    return json.dumps(value).encode("utf-8", "surrogatepass")


_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 1 << 24, 1 << 64, 10**400, float("nan"), float("inf"), "", "x", "..", "../x", "/etc/passwd",
    "a\0b", "\ud800", "\x1b[31m", "a" * 5000, [], {}, ["x"], [[]], {"x": 1}, {"path": 3}, [None], [-1], [1 << 40] * 3,
)  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    found, waiting = [], [value]
    while waiting:
        each = waiting.pop()
        entries = list(each.items()) if isinstance(each, dict) else list(enumerate(each))
        found += [(each, key) for key, _ in entries]
        waiting += [inner for _, inner in entries if isinstance(inner, (dict, list))]
    return found


def names_in(message: Message) -> list[str]:
    """All texts of a message: what one of its names may become; and some that are none's."""
    texts = {"", "x\x1b[31m", "a" * 300, "bool", "fp16", "int32"}
    for owner, field in _fields(message):
        if field.type == field.TYPE_STRING:
            held = getattr(owner, field.name)
            texts.update([held] if isinstance(held, str) else held)
    return sorted(texts)


def _fields(top: Message) -> list[tuple[Message, Any]]:
    """All fields that are set, of the message and of all in it."""
    found, waiting = [], [top]
    while waiting:
        each = waiting.pop()
        for field, value in each.ListFields():
            found.append((each, field))
            if field.message_type is None:
                continue
            if _is_map(field):  # a map has another order in every process
                value = [value[key] for key in sorted(value)]
            waiting += [
                item for item in ([value] if isinstance(value, Message) else value) if isinstance(item, Message)
            ]
    return found


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _change(top: Message, draw: random.Random, names: Sequence[str]) -> None:
    fields = _fields(top)
    if draw.random() < LEAVES:  # numbers and texts do more harm than what lacks a part, which is seen at once
        fields = [(owner, field) for owner, field in fields if field.message_type is None] or fields
    owner, field = draw.choice(fields)
    held = getattr(owner, field.name)
    if _is_map(field):
        del held[draw.choice(sorted(held))]
    elif isinstance(held, (Message, str, bytes, int, float)):
        _change_one(owner, field, held, draw, names)
    else:
        _change_many(field, held, draw, names)


def _change_one(owner: Message, field: Any, held: Any, draw: random.Random, names: Sequence[str]) -> None:
    if isinstance(held, Message) or draw.random() < 0.1:
        owner.ClearField(field.name)
    else:
        setattr(owner, field.name, _other(held, draw, names))


def _change_many(field: Any, held: Any, draw: random.Random, names: Sequence[str]) -> None:
    place, way = draw.randrange(len(held)), draw.random()
    if field.message_type is None and way < 0.6:
        held[place] = _other(held[place], draw, names)
    elif way < 0.8:
        del held[place]
    elif field.message_type is None:
        held.append(_other(held[place], draw, names))
    else:
        held.add().CopyFrom(held[draw.randrange(len(held) - 1)] if len(held) > 1 else held[place])


def _other(held: Any, draw: random.Random, names: Sequence[str]) -> Any:
    """Another value of the same type."""
    if isinstance(held, str):
        return draw.choice(names)
    if isinstance(held, bytes):
        return held[: draw.randrange(len(held) + 1)] + bytes(draw.randrange(3))
    if isinstance(held, bool):
        return not held
    if isinstance(held, float):
        return draw.choice(REALS)
    return draw.choice((*NUMBERS, held + 1, held - 1, held * 2))
