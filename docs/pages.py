"""What the generators of pages share: the lines of a Markdown table, and the places between marks that they fill."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    heads = list(heads)
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def filled(page: str, parts: Iterable[tuple[str, Iterable[str]]]) -> str:
    """The page with the lines of each part between `<!-- NAME -->` and `<!-- /NAME -->`, which it has once."""
    for name, lines in parts:
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        text = "\n".join([begin, *lines, end])
        place = f"{re.escape(begin)}.*?{re.escape(end)}"
        page, count = re.subn(place, lambda _, text=text: text, page, flags=re.DOTALL)
        assert count == 1, f"the page has {count} places for {name}, expected one"
    return page
