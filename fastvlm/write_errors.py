"""What a disk refuses, as a sentence: which disk, what was needed, what is free, and what to do.

A fault that is none of the disk's stays what it is: it is a defect, and its traceback is wanted.
It does not write anything.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from pathlib import Path

from fastvlm.errors import OutputError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_IN_RUST = re.compile(r"(?:os error |Os \{ code: )(\d{1,3})\b")  # as safetensors tells an errno


def size(count: int) -> str:
    """Bytes in words, to the hundredth of a GB, or of a MB where there are few, one by one below 10 kB."""
    if count < 10_000:
        return f"{count:,} bytes"
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count / 1e6:.2f} MB"


def output_error(error: BaseException, place: Path, *, needed: int = 0, written: int = 0) -> OutputError | None:
    """Returns the sentence for an OSError, or an error of safetensors that holds one, met on the way to `place`.

    `needed` are the bytes that all of it takes (0: not known), `written` those that were there already.
    None for what the disk is not to blame for.
    """
    code = _errno(error)
    file = error.filename if isinstance(error, OSError) else None
    at = _existing(Path(os.fsdecode(file)).parent if isinstance(file, (str, bytes)) else place.parent)
    named = place if at == place.parent or place.parent in at.parents else file
    again = "or choose another place with -o" if named == place else "and run the same command again"
    if code in NO_SPACE:
        return OutputError(_no_space(code, at, named, needed, written))
    if code == errno.EROFS:
        return OutputError(f"cannot write {named}: the disk of {at} is read-only; mount it for writing, {again}")
    if code in {errno.EACCES, errno.EPERM}:
        return OutputError(f"cannot write {named}: this user may not; change the permissions of {at}, {again}")
    if code in {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE}:
        return OutputError(
            f"cannot write {named}: the disk of {at} reports a fault ({os.strerror(code)}); check the disk, {again}"
        )
    return None


def _errno(error: BaseException) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    found = _IN_RUST.search(str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(found[1]) if found else 0


def _existing(folder: Path) -> Path:
    """The nearest folder that is there: what was being written may be gone."""
    return next((parent for parent in (folder, *folder.parents) if parent.exists()), Path("/"))


def _no_space(code: int, at: Path, named: object, needed: int, written: int) -> str:
    try:
        free = size(shutil.disk_usage(at).free)
    except OSError:
        free = "an unknown number of bytes"
    room = f"{size(needed)} are needed" if needed > written else f"more than {size(written)} are needed"
    room = f"{room}, {size(written)} were written and {free} are free" if needed or written else f"{free} are free"
    if code == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        most = f"of {size(limit)} that this process is held to" if limit != resource.RLIM_INFINITY else "of that disk"
        return f"a file for {named} went beyond the largest {most}: {room}; raise `ulimit -f`, or choose another disk"
    if code == errno.EDQUOT:
        return f"this user's quota on the disk of {at} is used up by {named}: {room}; free some, or choose another disk"
    return f"no space left for {named} on the disk of {at}: {room}; free some, or choose another disk"
