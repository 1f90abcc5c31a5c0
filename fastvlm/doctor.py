"""What this machine is and can do, found out without importing anything heavy into this process.

Versions come from the installed metadata; whether a library loads is tried in a child process, because a broken
native part may end the process that imports it. The table of ranges repeats setup.cfg's; a test compares the two.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fastvlm.progress import SILENT, Progress

# package -> (lowest version, first version that is too new or None)
RANGES: dict[str, tuple[str, str | None]] = {
    "click": ("8.1", None),
    "coremltools": ("9.0", "10"),
    "huggingface_hub": ("2", "3"),
    "jinja2": ("3.1", None),
    "matplotlib": ("3.9", None),
    "numpy": ("1.26", "2.4"),
    "onnx": ("1.17", None),
    "onnxruntime": ("1.23", None),
    "pillow": ("13", None),
    "protobuf": ("4.25", None),
    "pyyaml": ("6", None),
    "rich": ("13.7", None),
    "safetensors": ("0.5", None),
    "tokenizers": ("0.21", None),
    "torch": ("2.7", None),
    "tqdm": ("4.66", None),
}
_PYTHON = ((3, 11), (3, 13))
_PLATFORMS = (("Linux", "x86_64"), ("Darwin", "arm64"))
_PATIENCE = 300  # seconds; coremltools takes 6 on an idle machine
# Measured on FastVLM-0.5B's sizes at image side 1024 (docs/benchmarks.md): the export's peak, the build on disk.
_EXPORT_MEMORY = 1.5e9
_BUILD_DISK = 1.5e9
_STATEFUL_MACOS = 15  # a state needs the iOS 18 / macOS 15 runtime
# Written by coremltools' native part; without it weights cannot be saved (a wheel for another platform lacks it).
_LOADS = {"torch": "import torch", "coremltools": "import coremltools.libmilstoragepython, coremltools"}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, whether it is good, and what to do if it is not."""

    name: str
    found: str
    status: str  # "ok" | "missing" (required) | "absent" (optional, or another machine's)
    advice: str = ""


def examine(progress: Progress = SILENT) -> list[Finding]:
    """Look at everything; takes some seconds, because libraries are really loaded."""
    findings = [_python(), _platform(), *_versions()]
    with progress.stage("loading torch and coremltools", len(_LOADS)) as advance:
        for name in _LOADS:
            findings.append(_loads(name))
            advance(1)
    return [*findings, *_resources(), _hub_cache(), _core_ml(), _heic()]


def _python() -> Finding:
    found = platform.python_version()
    low, high = _PYTHON
    good = low <= sys.version_info[:2] <= high
    advice = "" if good else "install Python 3.11, 3.12 or 3.13; coremltools 9 has no wheel for others"
    return Finding("python", found, "ok" if good else "missing", advice)


def _platform() -> Finding:
    here = (platform.system(), platform.machine())
    good = here in _PLATFORMS
    advice = "" if good else "use Linux x86_64 or a Mac with Apple silicon; coremltools 9 has wheels for no other"
    return Finding("platform", f"{platform.platform()}, {os.cpu_count()} cores", "ok" if good else "missing", advice)


def _versions() -> Iterator[Finding]:
    for name, (low, too_new) in RANGES.items():
        wanted = f"{name}>={low}" + (f",<{too_new}" if too_new else "")
        advice = f"pip install -c constraints.txt '{wanted}'"
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "not installed", "missing", advice)
            continue
        good = _order(low) <= _order(found) and (too_new is None or _order(found) < _order(too_new))
        yield Finding(name, found, "ok" if good else "missing", "" if good else advice)


def _order(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, enough to compare releases: "2.13.0+cpu" -> (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _loads(name: str) -> Finding:
    # -I: a torch.py or numpy.py in the current folder must not be taken for the library.
    command = [sys.executable, "-I", "-c", _LOADS[name]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"did not finish loading within {_PATIENCE} s"
    if problem:
        return Finding(f"{name} loads", problem[:200], "missing", f"reinstall {name} (make distclean, then make setup)")
    return Finding(f"{name} loads", "yes", "ok")


def _resources() -> Iterator[Finding]:
    memory = _memory()
    need = f"an export of 0.5B takes {_EXPORT_MEMORY / 1e9:.1f} GB at its peak; the embedded checkpoint needs less"
    if memory is None:
        yield Finding("memory", "unknown", "absent", need)
    else:
        few = memory < _EXPORT_MEMORY
        yield Finding("memory", f"{memory / 1e9:.1f} GB in all", "absent" if few else "ok", need if few else "")
    free = shutil.disk_usage(Path.cwd()).free
    few = free < 2 * _BUILD_DISK  # with --overwrite the old build stays until the new one is whole
    advice = f"a build of 0.5B takes {_BUILD_DISK / 1e9:.1f} GB, twice while it replaces an old one" if few else ""
    yield Finding("disk", f"{free / 1e9:.1f} GB free here", "absent" if few else "ok", advice)


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def hub_cache() -> Path:
    """Where huggingface_hub keeps what a Hub id fetches, by its own variables; a test compares the two."""
    home = os.getenv("HF_HOME", os.path.join(os.getenv("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    cache = os.getenv("HF_HUB_CACHE", os.getenv("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub")))
    return Path(os.path.expandvars(os.path.expanduser(cache)))


def _hub_cache() -> Finding:
    cache = hub_cache()
    free = shutil.disk_usage(next(place for place in (cache, *cache.absolute().parents) if place.exists())).free
    offline = os.getenv("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    advice = "HF_HUB_OFFLINE is set: a Hub id that is not in the cache cannot be fetched" if offline else ""
    return Finding("Hub cache", f"{cache}, {free / 1e9:.1f} GB free", "absent" if offline else "ok", advice)


def _core_ml() -> Finding:
    if platform.system() != "Darwin":
        advice = "packages run here on this project's own runtime (--backend mil); Core ML itself needs a Mac"
        return Finding("Core ML prediction", "not on this system", "absent", advice)
    release = platform.mac_ver()[0]
    if _order(release) < (_STATEFUL_MACOS,):
        advice = f"the language model keeps state, which needs macOS {_STATEFUL_MACOS}; --backend mil works"
        return Finding("Core ML prediction", f"macOS {release}", "absent", advice)
    return Finding("Core ML prediction", f"macOS {release}", "ok")


def _heic() -> Finding:
    if find_spec("pillow_heif") is None:
        return Finding("HEIC pictures", "plugin not installed", "absent", "pip install pillow-heif, or use JPEG or PNG")
    return Finding("HEIC pictures", f"pillow-heif {metadata.version('pillow-heif')}", "ok")
