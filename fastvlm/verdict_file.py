"""`validation.json` of a build, for those who only ask whether it passed and whether its self-test lies beside it.

`validate` puts two things into a build, the self-test and the verdict that states its hashes. A process that dies
between them leaves a new self-test beside an older verdict: who calls a build passed asks `names_selftest` first. It
does not know what a verdict says of numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastvlm.hashes import sha256_open
from fastvlm.json_file import read_json
from fastvlm.manifest import SELFTEST, SELFTEST_FILES
from fastvlm.paths import contained, open_contained

FILE = "validation.json"
MOST_BYTES = 32 << 20  # of it; with a step of 256 for each of many questions it has a few MB
MOST_OF_A_FILE = 256 << 20  # bytes of one of the self-test; a photo for a side of 4,096 has at most 190 MB


def read_verdict(build: str | Path) -> Any:
    """What validation.json in `build` holds, unchecked; raises as `read_json`: it may be a pipe, or without end."""
    return read_json(Path(build) / FILE, MOST_BYTES)


def selftest_hashes(build: str | Path) -> dict[str, str]:
    """The SHA-256 of each file of the build's self-test that is there; BuildError for one that is no plain file."""
    root = Path(build)
    names = [name for name in SELFTEST_FILES if contained(root, f"{SELFTEST}/{name}").is_file()]
    hashes = {}
    for name in names:
        with open_contained(root, f"{SELFTEST}/{name}", most=MOST_OF_A_FILE) as file:
            hashes[name] = sha256_open(file)
    return hashes


def names_selftest(build: str | Path, verdict: Any) -> bool:
    """Whether the self-test that lies in a build is the one that its verdict states, or neither has one."""
    return (verdict.get("selftest") or {}) == selftest_hashes(build)
