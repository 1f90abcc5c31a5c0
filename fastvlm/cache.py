"""Where this tool keeps what it found out about a checkpoint and can find out again: never the only copy of anything.

`FASTVLM_CACHE` names the folder; without it, the platform's own place for such files is used.
It does not know what is kept.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fastvlm.errors import UsageError

VARIABLE = "FASTVLM_CACHE"


def cache_folder() -> Path:
    """The cache's folder, which need not exist: $FASTVLM_CACHE, ~/Library/Caches/fastvlm on a Mac, elsewhere
    $XDG_CACHE_HOME/fastvlm or ~/.cache/fastvlm (XDG base directories). UsageError where no home folder is known."""
    if asked := os.environ.get(VARIABLE):
        return _at_home(asked)
    if sys.platform == "darwin":
        return _at_home("~/Library/Caches/fastvlm")
    return _at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fastvlm"


def _at_home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as problem:  # a user that does not exist, or one without a home, as in some containers
        raise UsageError(
            f"the cache's folder {path} is in no home folder that is known here; set {VARIABLE} to a folder"
        ) from problem
