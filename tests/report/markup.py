"""A page as its elements, by the standard library's parser: what tests ask a page about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@dataclass
class Element:
    """One element: tag, attributes, and what is in it, in order: text and elements."""

    tag: str
    attributes: dict[str, str]
    parent: Element | None = None
    parts: list[Element | str] = field(default_factory=list)

    @property
    def children(self) -> list[Element]:
        """The elements right in it."""
        return [part for part in self.parts if isinstance(part, Element)]

    def all(self, *tags: str) -> Iterator[Element]:
        """Every element of those tags below it, in order; all where none is named."""
        for child in self.children:
            if not tags or child.tag in tags:
                yield child
            yield from child.all(*tags)

    def inside(self, *tags: str) -> bool:
        """Whether some element of those tags is around it."""
        return self.parent is not None and (self.parent.tag in tags or self.parent.inside(*tags))

    @property
    def text(self) -> str:
        """All text in it, in order."""
        return " ".join(part if isinstance(part, str) else part.text for part in self.parts)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.top = self.at = Element("", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs}, self.at)
        assert len(element.attributes) == len(attrs), f"an attribute of {tag} is there twice"
        self.at.parts.append(element)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert self.at.tag == "svg" or self.at.inside("svg") or tag == "svg", f"<{tag}/> outside a drawing"
        self.at.parts.append(Element(tag, {name: value or "" for name, value in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.at.tag, f"</{tag}> ends <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.parts.append(data)


def parsed(page: str) -> Element:
    """The page; AssertionError where an element is not closed, or closed by another."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.at is reader.top, f"<{reader.at.tag}> is never closed"
    return reader.top
