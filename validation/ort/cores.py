"""How many threads compute best here: one for each physical core that this process may use.

onnxruntime's own default counts the cores of the whole machine, whatever share of it a container or an affinity leaves.
Two threads on one core's hyperthreads take the vector units and the cache from each other.
"""

from __future__ import annotations

import os
from math import ceil
from pathlib import Path

CPUS, QUOTA = Path("/sys/devices/system/cpu"), Path("/sys/fs/cgroup/cpu.max")


def usable_cores(cpus: Path = CPUS, quota: Path = QUOTA) -> int:
    """Returns how many physical cores affinity and the container's quota leave to this process, at least 1."""
    if not hasattr(os, "sched_getaffinity"):  # a Mac: its cores have one thread each
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    cores = {_text(cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in allowed}
    share = _text(quota).split()  # "200000 100000": microseconds in each period; "max" without a limit
    most = ceil(int(share[0]) / int(share[1])) if len(share) == 2 and share[0].isdigit() else len(cores)
    return max(1, min(len(cores), most))


def _text(path: Path) -> str:
    """What a file of the kernel says; nothing where it is not there."""
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
