"""coremltools' generated protobuf classes, loaded without coremltools.

Importing coremltools costs 5.6 s and 392 MB, its generated modules 0.1 s and 10 MB. They import each other relatively,
so any package whose path is `coremltools/proto` can hold them; the protobuf runtime returns the same classes when
coremltools is imported later, because it registers the same descriptors again. If coremltools is there already, its
own modules are used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from fastvlm.errors import MissingDependency

_PACKAGE = "_fastvlm_coreml_proto"


def _proto_folder() -> Path:
    spec = importlib.util.find_spec("coremltools")  # finds, does not execute
    locations = list(spec.submodule_search_locations or []) if spec else []
    for location in locations:
        folder = Path(location) / "proto"
        if (folder / "Model_pb2.py").is_file():
            return folder
    raise MissingDependency("coremltools with its proto/Model_pb2.py was not found; pip install 'coremltools>=9,<10'")


def _synthetic_package() -> str:
    if "coremltools.proto.Model_pb2" in sys.modules:
        return "coremltools.proto"
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(_proto_folder())]
        sys.modules[_PACKAGE] = package
    return _PACKAGE


@cache
def proto(name: str) -> ModuleType:
    """The generated module `name`_pb2, e.g. proto("MIL"); MissingDependency when coremltools is not installed."""
    return importlib.import_module(f"{_synthetic_package()}.{name}_pb2")


def model_message() -> Any:
    """An empty Model message (Model.proto), the root of every spec."""
    return proto("Model").Model()
