"""What makes a part of a build: everything that its bytes depend on, so that an interrupted export can be gone on with.

The checkpoint's files by their hashes, the sizes read from it, the plan's options for this part, and the code: the
libraries' versions and the source of what makes graphs of weights. Weights in memory count by their own
bytes, because whoever loads a model may change it before it is exported.
It does not know how parts are kept: `fastvlm.parts` does.
"""

from __future__ import annotations

import hashlib
import platform
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.plan import ExportPlan
from fastvlm import __version__
from fastvlm.hashes import FileHash
from fastvlm.manifest import SCHEMA
from fastvlm_ref.model.fastvlm import FastVLM

LIBRARIES = ("coremltools", "torch", "numpy", "protobuf")
ROOMS = ("export", "fastvlm_ref")
HALL = ("fastvlm/licences.py", "fastvlm/mlpackage.py")  # how packages are laid out and labelled
ENCODER_OPTIONS = {"image_sizes", "purpose"}
LANGUAGE_OPTIONS = {"context", "query_length", "target", "max_file_size"}


def encoder_key(model: FastVLM, plan: ExportPlan, files: Mapping[str, FileHash]) -> dict[str, Any]:
    """Returns what makes the vision encoder's package, as JSON; `files` is `Source.files()`."""
    modules = (model.vision_encoder, model.projector) if plan.projector else (model.vision_encoder,)
    return _key(model, plan, files, LANGUAGE_OPTIONS, modules)


def language_key(model: FastVLM, plan: ExportPlan, files: Mapping[str, FileHash]) -> dict[str, Any]:
    """Returns what makes the language model's packages and the embedding table, as JSON."""
    return _key(model, plan, files, ENCODER_OPTIONS, (model.decoder,))


def _key(
    model: FastVLM, plan: ExportPlan, files: Mapping[str, FileHash], others: set[str], weights: Iterable[nn.Module]
) -> dict[str, Any]:
    """All options of the plan count but those of the `others` and which parts were asked for."""
    options = {name: value for name, value in asdict(plan).items() if name not in others | {"parts"}}
    return {
        "files": dict(files), "config": asdict(model.config), "options": options, "memory": memory_digest(weights),
        "fastvlm": [__version__, SCHEMA], "code": code_digest(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "machine": [platform.python_version(), platform.machine()],
    }  # fmt: skip


def code_digest(rooms: Iterable[str] = ROOMS) -> str:
    """Returns the SHA-256 of the source of `rooms` and `HALL`; without sources a random one, as nothing is told."""
    root, digest, found = Path(__file__).resolve().parent.parent, hashlib.sha256(), 0
    sources = (path for room in rooms for path in sorted((root / room).rglob("*.py")))
    for path in (*sources, *(root / name for name in HALL if (root / name).is_file())):
        content, found = path.read_bytes(), found + 1
        digest.update(f"{path.relative_to(root).as_posix()}:{len(content)}\n".encode() + content)
    return digest.hexdigest() if found else secrets.token_hex(32)


def memory_digest(modules: Iterable[nn.Module]) -> str:
    """Returns the SHA-256 of all parameters and buffers that are in memory; what streams is in the files' hashes."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict(keep_vars=True).items():
            if tensor.device.type != "meta":
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
