"""FastVLM for Core ML: one import for users, nothing heavy until a name is used.

    from fastvlm import load_checkpoint, preprocess, encode_prompt     # the PyTorch model (room fastvlm_ref)
    from fastvlm import export, scan                                   # checkpoint -> build folder; what fp16 asks
    from fastvlm import MILModel, validate                             # run and check .mlpackage files
    from fastvlm import lint, profile                                  # what the Neural Engine would take; how fast
    from fastvlm import bundle, verify                                 # a validated build -> iOS bundle; is one whole

Names are looked up in their rooms on first use, because torch and coremltools take seconds to import and
`fastvlm --help` must not wait for them.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_ROOM_OF = {
    "FastVLMConfig": "fastvlm_ref",
    "encode_prompt": "fastvlm_ref",
    "load_checkpoint": "fastvlm_ref",
    "preprocess": "fastvlm_ref",
    "export": "export",
    "scan": "export",
    "MILModel": "validation.mil",
    "validate": "validation",
    "lint": "validation.lint",
    "profile": "validation.profiling",
    "bundle": "ios_bundle",
    "verify": "ios_bundle",
    "FastVLMError": "fastvlm.errors",
}


__all__ = ["__version__", *_ROOM_OF]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _ROOM_OF[name] != "ios_bundle":
        _check_room("fastvlm_ref")  # the other rooms import it
    _check_room(_ROOM_OF[name].partition(".")[0])
    value = getattr(importlib.import_module(_ROOM_OF[name]), name)
    globals()[name] = value
    return value


def _check_room(room: str) -> None:
    """Raises ImportError where another file hides a room: `validation.py` in the user's folder comes before ours."""
    home = Path(__file__).resolve().parent.parent
    spec = importlib.util.find_spec(room)
    found = Path(spec.origin).resolve() if spec and spec.origin else None
    if found != home / room / "__init__.py":
        raise ImportError(
            f"fastvlm needs its own package {room!r}, expected in {home}, and found {found or 'nothing'}; "
            "run from another folder, or rename what was found",
            name=room,
        )


def __dir__() -> list[str]:
    return sorted(__all__)
