"""Which updates may write into their argument: nobody reads the old value any more, and nobody outside owns it.

Values that may share memory form groups: an op's arguments and results, unless its results are fresh. An update of x is
done in place when x's group holds no function input or constant, when no other value of the group is read later, and,
where the group holds a state, when the very next access to that state stores this result. Everything is decided once,
from the plan; the rule errs towards copying.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

_STATE_OPS = ("read_state", "write_state")
MOST_UPDATES = 1_000  # that are looked at: each may take as long as the program; decoders have four a layer


@dataclass(frozen=True)
class Effect:
    """What one op reads and writes by name.

    fresh: no result shares memory with what it reads, nor with another result (`registry.Op`); can_write: it can update
    its first argument in place; foreign: results may share memory with a constant, or with anything (nested blocks);
    numbers: what it reads as Python numbers alone, with which no result shares memory.
    """

    type: str
    fresh: bool
    can_write: bool
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    foreign: bool = False
    numbers: frozenset[str] = frozenset()


class _Groups:
    """Union-find over value names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        root = name
        while (parent := self._parent.setdefault(root, root)) != root:
            root = parent
        while name != root:  # no call within a call: a chain may be as long as the program
            self._parent[name], name = root, self._parent[name]
        return root

    def join(self, first: str, second: str) -> None:
        self._parent[self.find(second)] = self.find(first)


def _states(effects: list[Effect]) -> set[str]:
    return {name for effect in effects if effect.type in _STATE_OPS for name in effect.reads[:1]}


def _shared(effect: Effect) -> tuple[str, ...]:
    if effect.can_write:  # in place the result is the first argument; the new values are copied in
        return (*effect.reads[:1], *effect.writes)
    return () if effect.fresh else (*[name for name in effect.reads if name not in effect.numbers], *effect.writes)


def _grouped(effects: list[Effect]) -> _Groups:
    groups = _Groups()
    for effect in effects:
        shared = _shared(effect)
        for name in shared[1:]:
            groups.join(shared[0], name)
    return groups


def writable_in_place(effects: list[Effect], kept: set[str], inputs: set[str]) -> list[int]:
    """Indices of the effects that may write into their first argument.

    None where there are more than MOST_UPDATES of them. kept: names that the block returns. inputs: names defined
    outside it, states among them.
    """
    if sum(effect.can_write for effect in effects) > MOST_UPDATES:
        return []
    states = _states(effects)
    groups = _grouped(effects)
    constants = {name for effect in effects if effect.foreign for name in effect.writes}
    foreign = {groups.find(name) for name in (inputs - states) | constants}
    last = {name: index for index, effect in enumerate(effects) for name in effect.reads}
    # Where a name is defined twice, its first value counts: it may be read until the second is there.
    defined = {name: index for index, effect in reversed([*enumerate(effects)]) for name in effect.writes}
    members: dict[str, set[str]] = defaultdict(set)
    for name in (*defined, *inputs):
        members[groups.find(name)].add(name)
    allowed = []
    for index, effect in enumerate(effects):
        if not effect.can_write or not effect.reads or groups.find(effect.reads[0]) in foreign:
            continue
        group = members[groups.find(effect.reads[0])]
        if any(name in group for name in effect.reads[1:]):
            continue
        earlier = {name for name in group - states if defined.get(name, -1) < index}
        if any(name in kept or last.get(name, -1) > index for name in earlier):
            continue
        held = group & states
        if all(_next_access_stores(effects, index, state, effect.writes[0]) for state in held):
            allowed.append(index)
    return allowed


def _next_access_stores(effects: list[Effect], index: int, state: str, value: str) -> bool:
    for effect in effects[index + 1 :]:
        if state in effect.reads:
            return effect.type == "write_state" and effect.reads == (state, value)
    return False
