"""Where this tool keeps what it found out about a checkpoint and can find out again: never the only copy of anything.

`FASTVLM_CACHE` names the folder; without it, the platform's own place for such files is used.
It does not know what is kept.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "FASTVLM_CACHE"


def cache_folder() -> Path:
    """The cache's folder, which need not exist: $FASTVLM_CACHE, ~/Library/Caches/fastvlm on a Mac, elsewhere
    $XDG_CACHE_HOME/fastvlm or ~/.cache/fastvlm (XDG base directories)."""
    if asked := os.environ.get(VARIABLE):
        return Path(asked).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches/fastvlm").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fastvlm"
