"""What a fault is planted into: a copy of a build, and the model that it is compared with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvlm.build import Build, read_build
from fastvlm.hashes import file_hash
from fastvlm.manifest import NAME as MANIFEST
from fastvlm.manifest import read_manifest, write_manifest
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.tokenizer import Tokenizer
from validation.faults.programs import ProgramEdit, opened


class Bench:
    """A build folder that may be damaged and a model that may be changed: both are this bench's own."""

    def __init__(self, build: Path, model: FastVLM, folder: Path) -> None:
        self.folder = Path(shutil.copytree(build, folder))
        self.model = model
        assert model.tokenizer is not None
        self.tokenizer: Tokenizer = model.tokenizer

    @property
    def build(self) -> Build:
        """The build as it is now."""
        return read_build(self.folder)

    def encoder(self) -> AbstractContextManager[ProgramEdit]:
        """Opens the vision encoder's package for editing."""
        package = self.build.encoder
        assert package is not None
        return opened(package)

    def language(self) -> AbstractContextManager[ProgramEdit]:
        """Opens the language model's package for editing; the benches' builds have one."""
        (stage,) = self.build.language
        return opened(stage.package)

    def embeddings(self) -> NDArray[Any]:
        """Returns the embedding table (V, H) as it lies in its file; writing to it writes there."""
        table = self.build.embeddings
        assert table is not None
        return np.memmap(table.file, table.dtype, "r+", shape=(table.rows, table.width))

    def tell(self, path: str, change: Callable[[Any], Any]) -> None:
        """Changes one field of the manifest, `prompt.stop_ids`."""
        manifest = read_manifest(self.folder)
        *parents, leaf = path.split(".")
        place = manifest
        for name in parents:
            place = place[name]
        place[leaf] = change(place[leaf])
        write_manifest(self.folder / MANIFEST, manifest)

    def retokenize(self, file: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Changes a JSON file of the build's tokenizer in place."""
        path = self.folder / "tokenizer" / file
        content = json.loads(path.read_text("utf-8"))
        change(content)
        path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")

    def seal(self) -> None:
        """Makes the manifest's hashes agree with the files, so that nothing but a comparison finds what is wrong."""
        manifest = read_manifest(self.folder)
        manifest["files"] = {name: file_hash(self.folder / name) for name in manifest["files"]}
        write_manifest(self.folder / MANIFEST, manifest)
