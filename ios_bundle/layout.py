"""Where things lie in a bundle, and which version of the format this is.

Every name is ASCII, plain and visible, so that a bundle survives zip, any file system and a server unchanged.
"""

from __future__ import annotations

import re

SCHEMA = "0.1"  # of the bundle's own keys and of the files beside metadata.json
METADATA_VERSION = "0.2"  # of Apple's coreai-models envelope around them

METADATA, CHECKSUMS = "metadata.json", "checksums.json"
MODELS, EMBEDDINGS, TOKENIZER, SELFTEST = "models", "embeddings", "tokenizer", "selftest"
EMBED, SCALES = f"{EMBEDDINGS}/embed.bin", f"{EMBEDDINGS}/scales.bin"
PREPROCESS, GENERATION, PROMPTS = "preprocess.json", "generation.json", "prompts.json"
COMPILE = "scripts/compile_models.sh"
LICENSES, NOTICE, CARD = "LICENSES", "LICENSES/DERIVATIVE.txt", "MODEL_CARD.md"
PACKAGE, COMPILED = ".mlpackage", ".mlmodelc"


def stem(package: str) -> str:
    """Returns what metadata.json calls a package: its path in the bundle without the ending."""
    return f"{MODELS}/{package.removesuffix(PACKAGE)}"


def bundle_name(source_id: str, sizes: tuple[int, ...], *others: str) -> str:
    """Returns the bundle's name, from the checkpoint's id, the image sides and what is out of the ordinary.

    `FastVLM-0.5B-1024`, `FastVLM-7B-1024-int4-gpu`.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", source_id.rpartition("/")[2]).strip("-._")[:80] or "FastVLM"
    return "-".join((plain, *map(str, sizes), *others))
