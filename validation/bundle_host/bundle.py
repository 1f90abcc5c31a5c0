"""A bundle folder: metadata.json by dotted path, files, functions; what is missing or wrong is one BundleError."""

import json
from pathlib import Path
from typing import Any

from fastvlm.errors import BundleError
from fastvlm.paths import contained
from validation.backends import Predictor, open_package


class Bundle:
    """A bundle whose packages `backend` ("mil" | "coreml") executes; nothing outside the folder is opened."""

    def __init__(self, folder: str | Path, backend: str) -> None:
        self.folder, self.backend = Path(folder), backend
        self.opened: dict[str, dict[str, Predictor]] = {}
        try:
            self.metadata = json.loads(self.path("metadata.json").read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"metadata.json of {folder} cannot be read ({error}); copy the bundle again") from error
        schema, kind = self.get("bundle.schema", str), self.get("kind", str)
        if schema.split(".")[0] != "0" or kind != "vlm":
            raise BundleError(f"{folder} is a {kind} of schema {schema}, not a vlm of 0.x; install a newer fastvlm")

    def get(self, path: str, kind: Any) -> Any:
        """Returns `metadata[a][b]…` of the path "a.b…"; BundleError unless it is a `kind`, and an int positive."""
        value: Any = self.metadata
        for key in path.split("."):
            held = {str(n): each for n, each in enumerate(value)} if isinstance(value, list) else value
            value = held.get(key) if isinstance(held, dict) else None
        value = float(value) if kind is float and type(value) is int else value
        if not isinstance(value, kind) or (kind is int and not 0 < value < 1 << 24):
            found = f"{path} is {value!r:.60}"
            raise BundleError(f"metadata.json of {self.folder}: {found}, expected {kind.__name__}; make it again")
        return value

    def all(self, path: str, kind: Any, tail: str = "") -> list[Any]:
        """Returns `get` of every entry of a list, or of what lies at `tail` below each."""
        return [self.get(f"{path}.{n}{tail}", kind) for n in range(len(self.get(path, list)))]

    def path(self, name: str) -> Path:
        """Returns the path of a file or package of the bundle."""
        path = contained(self.folder, name, BundleError)
        if not path.exists():
            there = path.with_suffix(".mlmodelc").exists()
            compiled = ", only .mlmodelc, which Core ML alone runs" if there else ""
            raise BundleError(f"{self.folder} has no {name}{compiled}; it is no whole bundle, copy it again")
        return path

    def function(self, asset: str, name: str) -> Predictor:
        """Returns a function of STEM.mlpackage, where `asset` is the path of STEM in metadata.json; opens it once."""
        opened = self.opened.setdefault(asset, {})
        if name not in opened:
            units = self.get(f"compute_units.{'vision' if asset == 'assets.vision' else 'main'}.0", str)
            package, beside = self.path(f"{self.get(asset, str)}.mlpackage"), next(iter(opened.values()), None)
            target = "gpu" if units == "cpuAndGPU" else "ane"
            opened[name] = open_package(package, name, self.backend, "fp16", beside, target)
        return opened[name]
