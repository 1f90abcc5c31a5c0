"""A bundle folder: metadata.json by dotted path, files, functions; what is missing or wrong is one BundleError."""

import json
from pathlib import Path
from typing import Any, BinaryIO

from fastvlm.errors import BundleError
from fastvlm.paths import contained, open_contained
from validation.backends import Predictor, open_package


class Bundle:
    """A bundle whose packages `backend` ("mil" | "coreml") executes; nothing outside the folder is opened."""

    def __init__(self, folder: str | Path, backend: str) -> None:
        self.folder, self.backend = Path(folder), backend
        self.opened: dict[str, dict[str, Predictor]] = {}
        try:
            with self.open("metadata.json", 4 << 20) as file:
                self.metadata = json.load(file)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"metadata.json of {folder} is no JSON ({error!s:.60}); copy it again") from error
        schema, kind = self.get("bundle.schema", str), self.get("kind", str)
        if schema.split(".")[0] != "0" or kind != "vlm":
            raise BundleError(f"{folder} is a {kind!r:.9} of schema {schema!r:.9}, not a vlm of 0.x; update fastvlm")

    def get(self, path: str, kind: Any, low: float = 1, high: float = 1 << 24) -> Any:
        """Returns `metadata[a][b]…` of the path "a.b…"; BundleError unless a `kind`, a number from `low` to `high`."""
        value: Any = self.metadata
        for key in path.split("."):
            at = int(key) if isinstance(value, list) and key.isdecimal() and int(key) < len(value) else key
            value = value[at] if at != key or (isinstance(value, dict) and key in value) else None
        name = kind.__name__ + f" from {low:,} to {high:,}" * (number := kind in (int, float))
        if type(value) not in (kind, int if number else kind) or (number and not low <= value <= high):
            raise BundleError(f"metadata.json of {self.folder}: {path} is {value!r:.60}, expected {name}; bundle again")
        return kind(value)

    def all(self, path: str, kind: Any, tail: str = "", low: float = 1) -> list[Any]:
        """Returns `get` of every entry of a list, or of what lies at `tail` below each."""
        return [self.get(f"{path}.{n}{tail}", kind, low) for n in range(len(self.get(path, list)))]

    def path(self, name: str) -> Path:
        """Returns the path of a package of the bundle."""
        path = contained(self.folder, name, BundleError)
        if not path.exists():
            only = ", only .mlmodelc, which Core ML alone runs" * path.with_suffix(".mlmodelc").exists()
            raise BundleError(f"{self.folder} has no {name}{only}; it is no whole bundle, copy it again")
        return path

    def open(self, name: str, most: int = 64 << 20) -> BinaryIO:
        """Opens a plain file of the bundle, of at most `most` bytes."""
        return open_contained(self.folder, name, BundleError, most, "it is no whole bundle, copy it again")

    def function(self, asset: str, name: str) -> Predictor:
        """Returns a function of STEM.mlpackage, where `asset` is the path of STEM in metadata.json; opens it once."""
        held = self.opened.setdefault(asset, {})
        if name not in held:
            units = self.get(f"compute_units.{'vision' if asset == 'assets.vision' else 'main'}.0", str)
            file, other = self.path(f"{self.get(asset, str)}.mlpackage"), next(iter(held.values()), None)
            held[name] = open_package(file, name, self.backend, "fp16", other, "gpu" if units == "cpuAndGPU" else "ane")
        return held[name]
