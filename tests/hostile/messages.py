"""What every message of an error is held to, whatever a stranger's file made it say."""

from __future__ import annotations

LONG = 1_500  # characters of one that names a few things


def check_message(said: str, most: int = LONG) -> None:
    """AssertionError for a message of `most` characters, or one that holds what a terminal obeys."""
    assert len(said) < most, said[:300]
    assert said.isprintable(), said[:300]
