"""Whether this machine has Core ML, and coremltools where it does; what is missing is said in one sentence.

`library` and `remote_tools` are the doors to coremltools: tests put a stand-in behind them.
"""

from __future__ import annotations

import platform
import sys
from typing import Any

from fastvlm.errors import MissingDependency

STATEFUL = 15  # of macOS: the first whose Core ML keeps a state
STATELESS = 13  # the first that takes the encoder for Apple's app
PLANS = (14, 4)  # the first with MLComputePlan


def system() -> str:
    """Returns the name of this system, as Python calls it."""
    return sys.platform


def macos_version() -> tuple[int, ...]:
    """Returns the version of macOS in numbers, () where there is none."""
    return tuple(int(part) for part in platform.mac_ver()[0].split(".") if part.isdigit())


def need_mac(what: str, instead: str, oldest: tuple[int, ...] = (STATELESS,)) -> None:
    """Raises MissingDependency for `what` unless this is a Mac with macOS `oldest`; `instead` says what works here."""
    wanted = ".".join(map(str, oldest))
    if system() != "darwin":
        raise MissingDependency(f"{what} needs macOS, this machine is {system()}; {instead}")
    if (version := macos_version()) and version < oldest:
        found = ".".join(map(str, version))
        raise MissingDependency(f"{what} needs macOS {wanted}, this machine has {found}; update it, or {instead}")


def library() -> Any:
    """Returns coremltools; MissingDependency where its own part for Core ML does not load."""
    import coremltools
    import coremltools.models.compute_plan

    if coremltools.models.model._MLModelProxy is None:
        raise MissingDependency(
            "coremltools cannot reach Core ML on this Mac; install it again for this Python: "
            "pip install --force-reinstall --no-deps coremltools"
        )
    return coremltools


def remote_tools() -> tuple[Any, Any]:
    """Returns coremltools' modules `remote_device` and `async_wrapper`, both called experimental there."""
    library()
    from coremltools.models.ml_program.experimental import async_wrapper, remote_device

    return remote_device, async_wrapper
