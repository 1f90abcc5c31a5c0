"""The one rule for files that a stranger may have put there or named: manifests, packages, shard indexes, bundles.

A file that names other files may only name plain ones below its own folder. Names are an allow-list, not a list of
known attacks: letters, digits and a few signs of ASCII, joined by "/". No "..", no absolute path, no backslash, no
drive letter, no two spellings of one name, no link on the way: a manifest cannot make a reader open /etc/passwd.

A check and an opening that follows it can see two different files. Therefore `open_contained` walks down from the
folder's descriptor, one component at a time, follows no link, waits for no pipe, and looks at what it has opened, not
at what lies there: whoever reads the file returned reads the file that was checked. `open_plain` is the same for one
name that the user has typed or a folder has listed, `open_followed` for a path of the user, which may be a link.

What it cannot tell: a second name (hard link) of a file elsewhere, which only who may read that file can make.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from fastvlm.errors import BuildError, FastVLMError
from fastvlm.quoting import printable, spelled

_COMPONENT = re.compile(r"[A-Za-z0-9_.+@=,()\[\]-][A-Za-z0-9_.+@=,()\[\] -]{0,199}")
_MAX_COMPONENTS = 16
_LONGEST = 1000  # characters of a path: macOS takes 1,023 bytes
_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC  # the user's own word, which may be a link
_FOLDER = _ROOT | os.O_NOFOLLOW
_FOLLOWED = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # without O_NONBLOCK a pipe waits for whoever writes into it
_FILE = _FOLLOWED | os.O_NOFOLLOW
_NO_FILE = (errno.EINVAL, errno.ENXIO, errno.ENODEV)  # `_opened`'s own; sockets and devices that do not open


def is_plain(relative: object) -> bool:
    """Whether `relative` is a plain relative POSIX path that stays below its root, judged by its text alone."""
    if not isinstance(relative, str) or len(relative) > _LONGEST:
        return False
    parts = relative.split("/")
    return len(parts) <= _MAX_COMPONENTS and all(
        _COMPONENT.fullmatch(part) and part not in {".", ".."} and not part.endswith(" ") for part in parts
    )


def contained(root: Path, relative: object, error: type[FastVLMError] = BuildError) -> Path:
    """The path `root/relative`, proven to lie below `root` without a link on the way.

    The target need not exist: a missing file is the caller's message to give. `root` itself may be a link,
    it is the user's own word. Raises `error` that names the offending path. Who opens a file says `open_contained`.
    """
    _check_plain(root, relative, error)
    path = root
    for part in str(relative).split("/"):
        path = path / part
        if _is_link(path):
            raise error(_link(path))
    return path


def open_contained(
    root: Path,
    relative: object,
    error: type[FastVLMError] = BuildError,
    most: int | None = None,
    missing: str | None = None,
) -> BinaryIO:
    """Opens the plain file `root/relative` of at most `most` bytes to be read; nothing is followed on the way.

    Raises `error` for a path that is not plain, a link on the way, what is no plain file or may not be read, and a file
    that is larger. What is not there is FileNotFoundError, or `error` where `missing` says what to do about it.
    """
    _check_plain(root, relative, error)
    *folders, name = str(relative).split("/")
    path = root / str(relative)
    try:
        within = _descend(root, folders)
        try:
            file = _opened(name, path, _FILE, within)
        finally:
            os.close(within)
    except FileNotFoundError as problem:
        if missing is None:
            raise
        raise error(f"{root} has no {relative}; {missing}") from problem
    except OSError as problem:
        raise error(_refusal(path, problem)) from problem
    if most is not None and (size := os.fstat(file.fileno()).st_size) > most:
        file.close()
        raise error(f"{_shown(path)} has {size:,} bytes, at most {most:,} are read; copy its folder again")
    return file


def read_contained(root: Path, relative: object, most: int, error: type[FastVLMError] = BuildError) -> bytes:
    """Returns the bytes of the plain file `root/relative`, at most `most`; raises as `open_contained`.

    A file that grows meanwhile is read up to `most` bytes.
    """
    with open_contained(root, relative, error, most) as file:
        return file.read(most)


def open_plain(path: str | Path) -> BinaryIO:
    """Opens a plain file to be read; links on the way to its folder are the user's own.

    Raises OSError (its `strerror` says what) for a link, a pipe, a device, a folder, or what cannot be read.
    """
    try:
        return _opened(path, path, _FILE)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, expected a plain file", str(path)) from problem
        raise


def open_followed(path: str | Path) -> BinaryIO:
    """Opens the plain file that a path of the user leads to, by links too; raises OSError as `open_plain`."""
    return _opened(path, path, _FOLLOWED)


def check_entry(folder: Path, error: type[FastVLMError] = BuildError) -> None:
    """Raises `error` for a folder that may not be listed or entered; what is no folder is the caller's to refuse."""
    if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        raise error(f"{folder} may not be read by this user; check the permissions of the folder")


def check_tree(root: Path, error: type[FastVLMError] = BuildError, most: int = 1000) -> None:
    """Raises `error` unless all below `root` are folders and plain files, at most `most`: a library will open them.

    Whoever changes the folder between this look and the library's is not seen.
    """
    count = 0
    for parent, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise error(_link(path))
            count += 1
            if count > most:
                raise error(f"{_shown(root)} holds more than {most:,} files, expected a few; copy the folder again")


def _check_plain(root: Path, relative: object, error: type[FastVLMError]) -> None:
    if not is_plain(relative):
        shown = spelled(relative if isinstance(relative, str) else type(relative).__name__)
        raise error(
            f"{root} names the path '{shown}', expected a plain relative path below that folder; "
            "the file is damaged or was not written by this tool, make it again"
        )


def _descend(root: Path, folders: list[str]) -> int:
    """The descriptor of the folder below `root` that one comes to by `folders`."""
    try:
        at = os.open(root, _ROOT)
    except ValueError as problem:  # NUL
        raise OSError(errno.EINVAL, "it is no name that a folder can have", spelled(str(root))) from problem
    for folder in folders:
        try:
            inner = os.open(folder, _FOLDER, dir_fd=at)
        finally:
            os.close(at)
        at = inner
    return at


def _opened(name: str | Path, path: str | Path, flags: int, within: int | None = None) -> BinaryIO:
    try:
        handle = os.open(name, flags, dir_fd=within)
    except ValueError as problem:  # NUL, or half a character
        raise OSError(errno.EINVAL, "it is no name that a file can have", spelled(str(path))) from problem
    try:
        if not is_regular(os.fstat(handle)):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def is_regular(status: os.stat_result) -> bool:
    """Whether what was opened is a plain file: it has an end, and reading it neither waits nor does anything."""
    return stat.S_ISREG(status.st_mode)


def _refusal(path: Path, problem: OSError) -> str:
    """Why a file that is there is not read."""
    if problem.errno in (errno.ELOOP, errno.ENOTDIR):
        return _link(path)
    if problem.errno in _NO_FILE:
        return f"{_shown(path)} is no plain file; copy its folder again"
    return f"{_shown(path)} cannot be read ({problem.strerror}); check its permissions"


def _link(path: Path) -> str:
    return f"{_shown(path)} is a link or no plain file, expected one; copy the folder with its links followed"


def _shown(path: Path) -> str:
    return printable(str(path), _LONGEST)


def _is_link(path: Path) -> bool:
    try:
        return stat.S_ISLNK(path.lstat().st_mode)
    except OSError:  # missing, or below a plain file: nothing to follow
        return False
