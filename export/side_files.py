"""What a build holds beside its model, in whichever format: tokenizer, prompts, licences, and the manifest's fields of
the checkpoint.

It knows no graph and no format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.contract import SCALE
from fastvlm import __version__
from fastvlm.hashes import FileHash
from fastvlm.licences import APPLE, licence_text
from fastvlm.licences import FOLDER as LICENCE
from fastvlm.progress import Progress
from fastvlm.prompts import NAME as PROMPTS
from fastvlm.prompts import EncodedPrompt, dump_prompts
from fastvlm_ref.checkpoint.source import Source, is_licence
from fastvlm_ref.files import copy_file
from fastvlm_ref.model.fastvlm import FastVLM
from fastvlm_ref.prompt import prompt_record
from fastvlm_ref.tokenizer import Tokenizer

TOKENIZER = "tokenizer"


def write_text_files(folder: Path, tokenizer: Tokenizer, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
    """Writes the tokenizer's folder and the ready-made prompts; returns the manifest's entries for them."""
    tokenizer.save(folder / TOKENIZER)
    (folder / PROMPTS).write_bytes(dump_prompts(tuple(prompts)))
    return {"tokenizer": {"folder": TOKENIZER, "bos_id": tokenizer.bos}, "prompts": {"file": PROMPTS}}


def write_licences(folder: Path, source: Source, licence: str, progress: Progress) -> None:
    """Copies the checkpoint's licence texts into `licence/`: they bind what is made from the weights as well."""
    sources = {"": source} | ({"base": source.base} if source.base else {})
    found = [(place, each, name) for place, each in sources.items() for name in each.names]
    texts = [(place, each.folder / name) for place, each, name in found if is_licence(name)]
    for place, text in texts:
        into = folder / LICENCE / place
        into.mkdir(parents=True, exist_ok=True)
        copy_file(text, into / text.name)
    if licence == APPLE and not texts:
        progress.note(
            f"licence {APPLE} asks for a copy of its agreement with every derivative, "
            "and the checkpoint folder holds none; put LICENSE_MODEL there before you pass the build on"
        )


def manifest_head(
    model: FastVLM, source: Source, files: Mapping[str, FileHash], sizes: Sequence[int], scale: float = SCALE
) -> dict[str, Any]:  # fmt: skip
    """Returns the manifest's fields that say what the checkpoint is and what a host does with photo and prompt.

    files: `Source.files`; sizes: the encoder's image sizes in pixels, none without an encoder; scale: what brings a
    byte of the photo to what the encoder takes.
    """
    config = model.config
    return {
        "fastvlm_version": __version__,
        "source": {**source.named, "files": dict(files), "options": dict(source.options)},
        "model": {"type": config.model_type, "vision": asdict(config.vision), "text": asdict(config.text)},
        "image": {
            "rule": config.image_rule, "sizes": list(sizes), "scale": scale, "bias": [0, 0, 0], "color": "RGB",
        },
        "prompt": prompt_record(config.prompt),
        "licence": config.licence,
        "licence_text": licence_text(config.licence),
        "assumed": list(config.assumed),
    }  # fmt: skip
