"""The one rule for relative paths that come out of a file: manifests, packages, archives.

A file that names other files may only name plain ones below its own folder. Names are an allow-list, not a
list of known attacks: letters, digits and a few signs, joined by "/". No "..", no absolute path, no backslash,
no drive letter, no link anywhere on the way, so a manifest cannot make a reader open /etc/passwd.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from fastvlm.errors import BuildError, FastVLMError

_COMPONENT = re.compile(r"[A-Za-z0-9_.+@=,()\[\]-][A-Za-z0-9_.+@=,()\[\] -]{0,199}")
_MAX_COMPONENTS = 16


def is_plain(relative: object) -> bool:
    """Whether `relative` is a plain relative POSIX path that stays below its root, judged by its text alone."""
    if not isinstance(relative, str):
        return False
    parts = relative.split("/")
    return len(parts) <= _MAX_COMPONENTS and all(
        _COMPONENT.fullmatch(part) and part not in {".", ".."} and not part.endswith(" ") for part in parts
    )


def contained(root: Path, relative: object, error: type[FastVLMError] = BuildError) -> Path:
    """The path `root/relative`, proven to lie below `root` without a link on the way.

    The target need not exist: a missing file is the caller's message to give. `root` itself may be a link,
    it is the user's own word. Raises `error` that names the offending path.
    """
    if not is_plain(relative):
        raise error(
            f"{root} names the path {str(relative)[:200]!r}, expected a plain relative path below that folder; "
            "the file is damaged or was not written by this tool, make it again"
        )
    path = root
    for part in str(relative).split("/"):
        path = path / part
        if _is_link(path):
            raise error(f"{path} is a link, expected a plain file or folder; copy the folder with its links followed")
    return path


def check_entry(folder: Path, error: type[FastVLMError] = BuildError) -> None:
    """Raises `error` for a folder that may not be listed or entered; what is no folder is the caller's to refuse."""
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise error(f"{folder} may not be read by this user; check the permissions of the folder")


def _is_link(path: Path) -> bool:
    try:
        return stat.S_ISLNK(path.lstat().st_mode)
    except OSError:  # missing, or below a plain file: nothing to follow
        return False
