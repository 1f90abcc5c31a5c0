"""Makes `import torchvision` work beside a CPU torch, for tests alone.

The stock torchvision wheel is compiled against a GPU torch: its ops do not load, and the import stops at the first that
it wants to describe. timm and transformers need none of them, so their names are declared and the import tried again.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings

import torch

POOLS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
NAMES = ("nms", "qnms", "qroi_align", *POOLS, *(f"_{name}_backward" for name in POOLS))
_kept: list[torch.library.Library] = []  # a declaration lasts as long as its library


def usable() -> str | None:
    """Imports torchvision and timm; returns None, or the reason why they cannot be used."""
    for name in ("torchvision", "timm"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed (pip install --no-deps timm torchvision)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _import_torchvision()
            importlib.import_module("timm")
        except (ImportError, RuntimeError, OSError) as problem:
            return f"timm or torchvision does not import: {problem}"
    return None


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as problem:
        if "torchvision::" not in str(problem):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        _kept.append(library)
        for name in NAMES:
            library.define(f"{name}(Tensor input) -> Tensor")
        importlib.import_module("torchvision")
