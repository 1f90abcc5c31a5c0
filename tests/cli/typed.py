"""How the tests of the commands type them, for fixtures and for their annotations."""

from __future__ import annotations

from collections.abc import Callable

from click.testing import CliRunner, Result

from fastvlm.cli import cli

Run = Callable[..., Result]


def typed(*words: object) -> Result:
    """Types a command in this process: `typed("export", checkpoint, "-o", build)`."""
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="fastvlm")
