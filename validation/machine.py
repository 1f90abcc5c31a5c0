"""What a measurement says of the machine it was made on: model, chip, system, cores, memory.

Nothing that names its owner: no host name, user, serial number or path. A test holds every report to that.
"""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from validation.coreml import here

BUSY = 0.8  # processes that want to run besides; two threads that wait for each other then wait for a third one too
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """model: Apple's identifier of the hardware ("Mac14,2"), "" elsewhere. chip: "Apple M2", or the processor."""

    model: str
    chip: str
    system: str  # "macOS 15.5", "Linux"
    architecture: str
    cores: int
    memory_gb: float

    def as_json(self) -> dict[str, str | int | float]:
        """The same as plain data."""
        return asdict(self)


def this_machine() -> Machine:
    """Returns the machine that this runs on; what it does not tell is empty."""
    mac = here.system() == "darwin"
    version = ".".join(map(str, here.macos_version()))
    return Machine(
        _sysctl("hw.model") if mac else "",
        _sysctl("machdep.cpu.brand_string") if mac else _processor(),
        f"macOS {version}".strip() if mac else platform.system(),
        platform.machine(),
        os.cpu_count() or 1,
        round(memory_bytes() / 1e9, 1),
    )


def memory_bytes() -> int:
    """Returns the memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _sysctl(name: str) -> str:
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    if CPUINFO.is_file():
        for line in CPUINFO.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()
